"""Everything that can be trained, moved by hand, written and read again; where low-rank branches begin."""
from __future__ import annotations

import pytest
import torch
from vqpack.kernels.dispatch import decode_part
from vqpack.vq_core.container import Reader
from vqpack.vq_core.encode import to_matrix
from vqpack.vq_core.gram import Gram, output_error
from vqpack.vq_core.inspection import file_bits
from vqpack.vq_core.pipeline import load_unet
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.source_reader import open_reader
from vqpack.vq_core.tuning.branch import add_branches, low_rank
from vqpack.vq_core.tuning.export import target, write
from vqpack.vq_core.tuning.masters import Trained
from vqpack.vq_core.tuning.student import Student
from vqpack.vq_core.verify import verify_file


@pytest.fixture(scope="module")
def moved(coarse, testbed):
    """A student with everything there is, every trained number moved."""
    student = Student(coarse, Trained(tables="layer", columns=True), "cpu", testbed)
    with open_reader(testbed) as original:
        add_branches(student, original, 2, None, Progress())
    generator = torch.Generator().manual_seed(0)
    for item in student.trainable.values():
        item.parameter.data += 0.05 * item.unit * torch.randn(item.parameter.shape, generator=generator)
    return student


def test_what_is_written_is_what_was_learned(coarse, moved, testbed, tmp_path):
    with open_reader(testbed) as original:
        path, bits = write(moved, original, tmp_path / "x.safetensors", False, {"steps": 1}, Progress())
        again, _ = write(moved, original, tmp_path / "y.safetensors", False, {"steps": 1}, Progress())
    assert verify_file(path) == []
    unet = load_unet(path, configs=testbed)
    with moved.as_stored():
        for name, module in unet.named_modules():
            own = moved.unet.get_submodule(name)
            if hasattr(own, "coded"):
                ours = own.assembled([decode_part(part) for part in own.now()])
                assert torch.equal(module.weight, ours.detach()), name
        for name, parameter in unet.named_parameters():
            if name in dict(moved.unet.named_parameters()):
                assert torch.equal(parameter, dict(moved.unet.named_parameters())[name]), name
    with Reader(path) as reader, Reader(coarse) as before:
        assert file_bits(reader) == bits and len([k for k in reader.keys() if k.startswith("vq.tables.")]) == len(
            [1 for layer in moved.layers.values() for _ in layer.parts])
        weights = sum(layer.coded.numel for layer in moved.layers.values())
        added = sum(2 * 2 * (layer.coded.numel // layer.coded.shape[0] + layer.coded.shape[0])
                    for layer in moved.layers.values())
        more = 8 * added / weights
        assert bits["coded"] > file_bits(before)["coded"] + more + 0.08        # tables of 256 bytes, column scales
    assert again.read_bytes() == path.read_bytes()
    student = Student(path, Trained(), "cpu", testbed)                         # a tuned file can be tuned again
    assert all(layer.branch is not None for layer in student.layers.values())


def test_gradients_reach_the_branch(moved):
    key, layer = next((k, x) for k, x in moved.layers.items() if x.convolution is not None)
    x = torch.randn(1, layer.coded.shape[1], 5, 5, generator=torch.Generator().manual_seed(2))
    moved.unet.zero_grad()
    out = layer(x)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
    (out * direction).sum().backward()
    for parameter in (layer.branch.down, layer.branch.up):
        step = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        parameter.data += step
        change = float(((layer(x) - out).detach() * direction).sum())          # linear in each factor
        parameter.data -= step
        assert change == pytest.approx(float((parameter.grad * step).sum()), rel=1e-2), key


def test_branches_begin_where_outputs_gain_most(coarse, testbed):
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(40, 48, generator=generator)
    inputs = torch.randn(400, 48, generator=generator) * torch.logspace(0, -2, 48)
    gram = Gram((inputs.t() @ inputs / 400)[None], 400)

    def left(pair) -> float:
        lost = output_error(error - pair[1] @ pair[0], gram.blocks)
        return float(lost.sum() / output_error(error, gram.blocks).sum())

    plain, weighted = left(low_rank(error, 6)), left(low_rank(error, 6, gram))
    assert weighted < 0.5 * plain < 0.5
    by_tap = Gram(torch.stack([gram.blocks[0][:24, :24], gram.blocks[0][24:, 24:]]), 400)
    assert left(low_rank(error, 6, by_tap)) < 0.6 * plain
    assert left(low_rank(error, 40)) < 1e-6
    student = Student(coarse, Trained(), "cpu", testbed)
    key, layer = next(iter(student.layers.items()))
    with open_reader(testbed) as original:
        add_branches(student, original, 4, None, Progress())
    weight = load_unet_weight(testbed, key)
    before = float((weight - layer.coded.decode()).square().sum())
    after = float((weight - layer.assembled([decode_part(part) for part in layer.now()])).square().sum())
    assert after < 0.95 * before


def load_unet_weight(testbed, key):
    from vqpack.vq_core.decompress import decode_tensor

    with open_reader(testbed) as reader:
        return decode_tensor(reader, key).float()


def test_where_the_file_goes(tmp_path):
    file = tmp_path / "model-vq2b.safetensors"
    assert target(file, None).name == "model-vq2b-tuned.safetensors" and target(file, None).parent == tmp_path
    assert target(file, tmp_path).name == "model-vq2b-tuned.safetensors"
    assert target(file, tmp_path / "x.1").name == "x.1.safetensors"


def test_matrices_and_weights_agree(moved):
    for layer in list(moved.layers.values())[:20]:
        weight = layer.assembled([decode_part(part) for part in layer.now()])
        assert to_matrix(weight, 0, weight.shape[1]).shape[1] * weight.shape[0] == weight.numel()
