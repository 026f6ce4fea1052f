"""What scales do: the rounding floor they reach (T14), routing, gradients, diffusers, merging; codes never change."""
from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from torch import nn
from vqpack.vq_core.adapters.attach import apply_adapters
from vqpack.vq_core.adapters.file import Adapter, base_id, save_adapter
from vqpack.vq_core.adapters.layer import Route, ScaledLayer
from vqpack.vq_core.adapters.merge import merge, scaled
from vqpack.vq_core.adapters.noise_levels import NoiseTable, experts_of
from vqpack.vq_core.adapters.scaling import CHANNELS_LAST, LayerScales
from vqpack.vq_core.adapters.settings import Scaling
from vqpack.vq_core.adapters.stack import Stack
from vqpack.vq_core.adapters.student import AdapterStudent
from vqpack.vq_core.container import Reader
from vqpack.vq_core.encode import encode_weight
from vqpack.vq_core.errors import FormatError, PlanError, UnsupportedError
from vqpack.vq_core.layers import VQConv2d, VQLinear
from vqpack.vq_core.pipeline import load_unet
from vqpack.vq_core.spec import make_spec
from vqpack.vq_core.verify import verify_file


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coded(weight, method="uniform", bits=4):
    return encode_weight(weight, make_spec(method, bits)).weight


def layer_of(weight, experts=1, both=True, route=None):
    made = (VQConv2d if len(weight.shape) == 4 else VQLinear)(weight)
    return ScaledLayer(made, route or Route(), experts, both)


def fitted(weight, target, both):
    """Relative error of diag(s) W diag(t) after the logarithms were trained through the layer itself."""
    layer, eye = layer_of(weight, both=both), torch.eye(target.shape[1])
    logs = [*layer.out_logs, *layer.in_logs]
    optimizer = torch.optim.Adam(logs, 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (layer(eye).T - target).square().sum()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float((layer(eye).T - target).norm() / target.norm())


def test_separable_scales_reach_the_rounding_floor():
    """T14: T = diag(a) W diag(b) with the codes of W frozen."""
    weight = normal(96, 128)
    spread = [(0.15 * normal(n, seed=n)).exp() for n in (96, 128)]
    target = weight * spread[0][:, None] * spread[1][None]
    own = coded(weight)
    floor = float((own.decode() - weight).norm() / weight.norm())
    frozen = float((own.decode() - target).norm() / target.norm())
    two, one = fitted(own, target, True), fitted(own, target, False)
    assert two <= 1.1 * floor and one >= 1.4 * floor and frozen > 1.2 * one


@pytest.mark.parametrize("method", ["uniform", "trellis", "product", "additive", "palette"])
@pytest.mark.parametrize("shape", [(24, 40), (16, 24, 3, 3), (8, 16, 1, 1)])
def test_the_layers_gradients_are_those_of_plain_products(method, shape):
    """Against autograd through diag(exp) W diag(exp), sample by sample, two experts in a batch of three."""
    weight, route = coded(normal(*shape), method, 2), Route()
    route.rows = [1, 0, 1]
    layer = layer_of(weight, 3, True, route)
    for index, logs in enumerate([*layer.out_logs, *layer.in_logs]):
        logs.data = 0.3 * normal(len(logs), seed=index)
    x = normal(3, 5, shape[1], seed=7) if len(shape) == 2 else normal(3, shape[1], 7, 5, seed=7)
    x = x.requires_grad_(True)
    y = layer(x)
    (y * normal(*y.shape, seed=8)).sum().backward()
    found = [x.grad.clone()] + [p.grad for p in (*layer.out_logs, *layer.in_logs)]
    plain = [nn.Parameter(p.detach().clone()) for p in (*layer.out_logs, *layer.in_logs)]
    again, dense, ones = x.detach().clone().requires_grad_(True), weight.decode(), [1] * (len(shape) - 2)
    rows = []
    for row, expert in enumerate(route.rows):
        full = plain[expert].exp().view(-1, 1, *ones) * dense * plain[3 + expert].exp().view(1, -1, *ones)
        one = again[row:row + 1]
        rows.append(nn.functional.linear(one, full) if len(shape) == 2 else nn.functional.conv2d(one, full))
    reference = torch.cat(rows)
    torch.testing.assert_close(y, reference, rtol=1e-5, atol=1e-5)
    (reference * normal(*y.shape, seed=8)).sum().backward()
    assert found[3] is None and found[6] is None           # the third expert's, which no sample asked for
    for ours, theirs in zip(found, [again.grad, *(p.grad for p in plain)], strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_experts_switch_at_half_the_timesteps_however_sigmas_are_rounded():
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    noise = NoiseTable.of(scheduler, "x")
    for experts in (1, 2, 3, 4, 7):
        edges = noise.boundaries(experts)
        times = torch.arange(1000)
        wanted = (times * experts // 1000).tolist()        # TuneQDM: floor(t N / 1000)
        assert experts_of(noise.sigmas(times), edges) == wanted
        assert experts_of(noise.sigmas(times).float(), edges) == wanted
        assert experts_of(noise.sigmas(times).half(), edges)[::50] == wanted[::50]
    assert experts_of(noise.sigmas(torch.tensor([499, 500])), noise.boundaries(2)) == [0, 1]
    assert experts_of(torch.tensor([1.9999, 2.0, 2.0001]), (2.0,)) == [0, 1, 1]
    with pytest.raises(UnsupportedError, match="of its own kind"):
        NoiseTable.of(object(), "edm")


def test_only_the_active_expert_learns(w4, testbed, called):
    student = AdapterStudent(w4, Scaling(2), "cpu", testbed)
    before = hashes(student)
    for times, active in (([100.0, 499.0], {"0"}), ([500.0], {"1"}), ([10.0, 990.0], {"0", "1"})):
        for item in student.trainable.values():
            item.parameter.grad = None
        called(student.unet, times).square().mean().backward()
        learned = {name.rpartition(".")[2] for name, item in student.trainable.items()
                   if item.parameter.grad is not None}
        assert learned == active
        assert all(float(item.parameter.grad.abs().max()) > 0 for name, item in student.trainable.items()
                   if name.rpartition(".")[2] in active)
    torch.optim.AdamW([item.parameter for item in student.trainable.values()], 0.1).step()
    assert hashes(student) == before


def hashes(student):
    return {key: hashlib.sha256(layer.coded.blob.numpy().tobytes()).hexdigest() for key, layer in
            student.layers.items()}


def test_zeros_change_nothing_and_an_attached_adapter_is_the_trained_one(w4, testbed, called, tmp_path):
    student = AdapterStudent(w4, Scaling(2), "cpu", testbed)
    plain = load_unet(w4, torch.float32, decode="per_call", configs=testbed)
    times = [20.0, 700.0, 499.0, 500.0]
    with torch.no_grad():
        before = called(plain, times)
        torch.testing.assert_close(called(student.unet, times), before, rtol=1e-4, atol=1e-5)
        for name, item in student.trainable.items():
            item.parameter.data = (0.2 * normal(*item.parameter.shape, seed=len(name))).half().float()
        path = save_adapter(tmp_path / "a", student.adapter({}))
        assert torch.equal(called(plain, times), before)
        on = apply_adapters(plain, w4, path, configs=testbed)
        after = called(plain, times)
        torch.testing.assert_close(after, called(student.unet, times), rtol=1e-3, atol=1e-4)
        assert float((after - before).norm() / before.norm()) > 0.05
        alone = torch.cat([called_one(called, plain, times, i) for i in range(4)])
        torch.testing.assert_close(alone, after, rtol=1e-3, atol=1e-4)
        on.remove()
        assert torch.equal(called(plain, times), before)
        off = apply_adapters(plain, w4, (path, 0.0), configs=testbed)
        assert torch.equal(called(plain, times), before)               # to the last bit
        off.remove()
    with pytest.raises(UnsupportedError, match="per_call"):
        apply_adapters(load_unet(w4, torch.float32, configs=testbed), w4, path, configs=testbed)


def called_one(called, unet, times, index):
    """The same call with one of its samples alone."""
    class One:
        def __call__(self, sample, time, text, added_cond_kwargs, return_dict):
            rows = slice(index, index + 1)
            return unet(sample[rows], time[rows], text[rows], return_dict=return_dict,
                        added_cond_kwargs={name: value[rows] for name, value in added_cond_kwargs.items()})
    return called(One(), times)


def test_the_bias_is_not_scaled_and_stacked_adapters_multiply():
    weight, bias, x = normal(6, 4), normal(6), normal(2, 3, 4)
    scales = [LayerScales(normal(1, 6, seed=i).exp(), normal(1, 4, seed=9 + i).exp(), None) for i in (1, 2)]
    made = scales[0].around(x, bias, CHANNELS_LAST, lambda x, b: nn.functional.linear(x, weight, b))
    full = scales[0].out.T * weight * scales[0].into
    torch.testing.assert_close(made, nn.functional.linear(x, full, bias))
    adapters = [(Adapter("", (1.0,), {"k": (normal(2, 6, seed=i).half(), None if i else normal(2, 4).half())}), s)
                for i, s in ((0, 0.5), (1, -2.0))]
    found = Stack(adapters).scales(torch.tensor([3.0, 0.2]), x.device, torch.float32)["k"]
    logs = 0.5 * adapters[0][0].layers["k"][0].float() - 2 * adapters[1][0].layers["k"][0].float()
    torch.testing.assert_close(found.out[found.rows], logs[[1, 0]].exp())
    torch.testing.assert_close(found.into[found.rows], (0.5 * adapters[0][0].layers["k"][1].float())[[1, 0]].exp())


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_merging_is_the_adapter_in_every_family(mixed, testbed, called, random_adapter, tmp_path, strength):
    adapter = random_adapter(mixed)
    path = save_adapter(tmp_path / "one", adapter)
    merged = merge(mixed, path, tmp_path, strength)
    assert merged.name == "mixed-one.safetensors" and verify_file(merged) == []
    with Reader(mixed, mapped=False) as old, Reader(merged, mapped=False) as new:
        assert base_id(old) != base_id(new)
        kinds = set()
        for key in old.coded_keys():
            before, after = old.weight(key), new.weight(key)
            kinds.add(before.parts[0][2])
            for (*_, a), (*_, b) in zip(before.parts, after.parts, strict=True):
                assert torch.equal(a.codes, b.codes)
            out, into = (strength * x[0].float() for x in adapter.layers[key])
            ones = [1] * (len(before.shape) - 2)
            full = before.decode() * out.exp().view(-1, 1, *ones) * into.exp().view(1, -1, *ones)
            assert float((after.decode() - full).norm() / full.norm()) < 6e-4      # two roundings to float16
        assert kinds >= {"uniform", "trellis", "product", "palette"}
    beside, inside = (load_unet(file, torch.float32, decode="per_call", configs=testbed) for file in (mixed, merged))
    with torch.no_grad():
        apply_adapters(beside, mixed, (path, strength), configs=testbed)
        theirs = called(beside, [300.0])
        assert float((called(inside, [300.0]) - theirs).norm() / theirs.norm()) < 5e-3


def test_a_branch_and_a_narrow_part_are_scaled_too():
    from vqpack.vq_core.record import build_blob, parse_blob

    plain = coded(normal(16, 24, 3, 3), "trellis", 2)
    branch = normal(2, 216, seed=3).half(), (0.1 * normal(16, 2, seed=4)).half()
    blob = build_blob(plain.shape, plain.source_dtype, list(plain.parts), branch)
    weight = parse_blob(blob, plain.tables, "k")
    out, into = (0.3 * normal(1, n, seed=n) for n in (16, 24))
    made = scaled(weight, out, into, 1.0, "k").decode()
    full = weight.decode() * out[0].exp().view(-1, 1, 1, 1) * into[0].exp().view(1, -1, 1, 1)
    assert float((made - full).norm() / full.norm()) < 1e-3
    with pytest.raises(FormatError, match="float16's range"):
        scaled(weight, out + 12, into, 1.0, "k")


def test_what_cannot_be_merged_or_attached_is_one_sentence(mixed, w4, testbed, random_adapter, tmp_path):
    two = save_adapter(tmp_path / "two", random_adapter(mixed, 2))
    other = save_adapter(tmp_path / "other", random_adapter(w4))
    with pytest.raises(PlanError, match="has 2 experts"):
        merge(mixed, two)
    for call in (lambda: merge(mixed, other), lambda: apply_adapters(nn.Module(), mixed, other, configs=testbed)):
        with pytest.raises(FormatError, match="was trained on the UNet"):
            call()
    adapter = random_adapter(mixed)
    key = next(iter(adapter.layers))
    cut = {**adapter.layers, key: (adapter.layers[key][0][:, 1:], None)}
    with pytest.raises(FormatError, match="has scales for"):
        merge(mixed, save_adapter(tmp_path / "cut", replace(adapter, layers=cut)))
    gone = {**adapter.layers, "model.diffusion_model.none.weight": adapter.layers[key]}
    with pytest.raises(FormatError, match="absent"):
        merge(mixed, save_adapter(tmp_path / "gone", replace(adapter, layers=gone)))
    assert not list(tmp_path.glob("mixed*"))
