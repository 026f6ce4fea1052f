"""The dispatcher: who is chosen, what is refused and how the refusal reads, what is counted."""
import dataclasses

import pytest
import torch
from vqpack.kernels import capabilities, dispatch
from vqpack.kernels.dispatch import Backend, BackendError, Requirements, choose, decode_part


def changed(part, **fields):
    return dataclasses.replace(part, **fields)


def test_the_cpu_uses_torch_and_reference_only_when_asked(make):
    part = make.lut()
    assert choose(part).name == "torch"
    assert choose(part, backend="reference").name == "reference"
    assert torch.equal(decode_part(part, 2, 9, backend="reference"), decode_part(part, 2, 9))


def test_a_backend_that_cannot_says_why(make):
    with pytest.raises(BackendError, match="triton runs on cuda, got cpu") as caught:
        decode_part(make.lut(), backend="triton")
    assert list(caught.value.reasons) == ["triton"]
    with pytest.raises(BackendError, match="unknown backend 'fast': expected one of triton, torch, reference"):
        decode_part(make.lut(), backend="fast")


@pytest.fixture
def backends(monkeypatch):
    def put(*records):
        monkeypatch.setattr(dispatch, "BACKENDS", records)
        monkeypatch.setattr(dispatch, "_fallbacks", {})
        monkeypatch.setattr(dispatch, "_self_tests", {})
    return put


@pytest.mark.parametrize("requirements,words", [
    (Requirements(families=("trellis",)), "decodes trellis, got lut"),
    (Requirements(devices=("mps",)), "runs on mps, got cpu"),
    (Requirements(dtypes=(torch.float16,)), "writes torch.float16, got torch.float32"),
    (Requirements(package="no_such_package"), "needs no_such_package: not installed"),
    (Requirements(package="torch", version=(99, 1)), r"needs torch 99.1 or newer, got \d"),
    (Requirements(widest=95), "counts up to 95 columns and 6080 entries, the part has more"),
])
def test_each_requirement_is_checked_before_the_call(make, backends, requirements, words):
    backends(Backend("picky", "no_such_module", requirements))
    with pytest.raises(BackendError, match=words):
        decode_part(make.lut())


def test_capability_is_compared_on_cuda_only(make, backends, monkeypatch):
    backends(Backend("new", "decode_torch", Requirements(capability=(8, 0))))
    decode_part(make.lut())
    monkeypatch.setattr(capabilities, "compute_capability", lambda device: (7, 5))
    with pytest.raises(BackendError, match=r"needs compute capability 8.0, got 7.5"):
        decode_part(make.lut())


def test_fallbacks_are_counted_and_calls_never_retried(make, backends):
    backends(Backend("first", "no_such_module", Requirements(devices=("cpu",), package="no_such_package")),
             Backend("torch", "decode_torch", Requirements()))
    for _ in range(3):
        decode_part(make.lut())
    assert dispatch.fallbacks() == {("first", "needs no_such_package: not installed"): 3}
    backends(Backend("broken", "no_such_module", Requirements()), Backend("torch", "decode_torch", Requirements()))
    with pytest.raises(ModuleNotFoundError):
        decode_part(make.lut())


def test_self_test_runs_once_and_its_answer_is_the_reason(make, backends, monkeypatch):
    asked = []

    class Module:
        @staticmethod
        def self_test(family, device):
            asked.append((family, str(device)))
            return "failed its self-test for lut: wrong" if family == "lut" else None

        @staticmethod
        def decode(part, start, stop, out):
            out.fill_(7)

    real = dispatch._module
    monkeypatch.setattr(dispatch, "_module", lambda name: Module if name == "tested" else real(name))
    backends(Backend("tested", "tested", Requirements(self_test=True)))
    for _ in range(2):
        assert (decode_part(make.trellis()) == 7).all()
        with pytest.raises(BackendError, match="failed its self-test"):
            decode_part(make.lut())
    assert asked == [("trellis", "cpu"), ("lut", "cpu")]


def test_a_package_that_imports_but_does_not_fit_is_a_reason(make, backends, monkeypatch):
    def broken(name):
        raise AttributeError("module 'triton.language' has no attribute 'gather'")

    real = dispatch._module
    monkeypatch.setattr(dispatch, "_module", lambda name: broken(name) if name == "old" else real(name))
    backends(Backend("old", "old", Requirements(devices=("cpu",), self_test=True)),
             Backend("torch", "decode_torch", Requirements()))
    assert choose(make.lut()).name == "torch"
    assert [reason for _, reason in dispatch.fallbacks()] == [
        "cannot be used here: AttributeError: module 'triton.language' has no attribute 'gather'"]


def test_out_is_written_and_checked(make):
    part = make.trellis(40, 8, 1)
    out = torch.full((10, 8), float("nan"), dtype=torch.float16)
    assert decode_part(part, 5, 15, torch.float16, out=out) is out
    assert torch.equal(out, decode_part(part, 5, 15, torch.float16))
    with pytest.raises(ValueError, match=r"\[10, 8\]"):
        decode_part(part, 5, 15, torch.float16, out=out[:9])


@pytest.mark.parametrize("start,stop", [(-1, 3), (4, 3), (0, 14), (14, None)])
def test_rows_outside_are_refused(make, start, stop):
    with pytest.raises(ValueError, match="0 <= start <= stop <= 13"):
        decode_part(make.lut(), start, stop)


def test_no_rows_are_no_rows(make):
    assert decode_part(make.lut(), 5, 5).shape == (0, 96)


def test_other_dtypes_are_refused(make):
    with pytest.raises(TypeError, match="float64"):
        decode_part(make.lut(), dtype=torch.float64)


def _hostile(make):
    lut, uniform, additive, trellis = make.lut(), make.lut(uniform=True, group=5), make.additive(), make.trellis()
    meta = torch.empty(8, dtype=torch.int16, device="meta")
    both = dataclasses.replace(lut.scales, group=torch.zeros(13, 96, dtype=torch.float16), group_size=1)
    return [
        (changed(lut, bits=9), "bits must lie in 1 to 8"),
        (changed(lut, out_features=0), "out_features must lie in 1"),
        (changed(lut, out_features=14), "codes must be"),
        (changed(lut, channels=2**40), "channels must lie"),
        (changed(lut, codes=lut.codes.int()), "codes must be torch.uint8"),
        (changed(lut, values=lut.values[:7]), r"values must be torch.int16 \[8\]"),
        (changed(lut, values=meta), "must be on cpu"),
        (changed(lut, values=None), "neither"),
        (changed(lut, zero_points=uniform.zero_points), "both"),
        (changed(lut, scales=both), "row or group"),
        (changed(lut, scales=dataclasses.replace(lut.scales, row=lut.scales.row.float())), "scales.row must be"),
        (changed(lut, scales=dataclasses.replace(lut.scales, col=lut.scales.row)), "scales.col must be"),
        (changed(lut, rotation=12), "power of two"),
        (changed(lut, rotation=64), "divides the 32 channels"),
        (changed(lut, rotation=-16), "power of two"),
        (changed(lut, rotation_seed=2**32), "rotation_seed"),
        (changed(uniform, scales=dataclasses.replace(uniform.scales, group_size=0)), "group_size"),
        (changed(uniform, zero_points=uniform.zero_points[:, :3]), "zero_points must be"),
        (changed(additive, bits=17), "bits must lie in 1 to 16"),
        (changed(additive, bits=7), "codebook_size must lie in 1 to 128"),
        (changed(additive, group=4), "codebooks must be"),
        (changed(additive, group=0), "group must lie"),
        (changed(additive, order=2), "order must lie in 0 to 1"),
        (changed(additive, codebooks=additive.codebooks[0]), "codebooks must be"),
        (changed(additive, codebooks=additive.codebooks.repeat(13, 1, 1, 1)), "blocks must lie in 1 to 12"),
        (changed(trellis, window=17), "window must lie in 1 to 16"),
        (changed(trellis, window=11), r"table must be torch.int8 \[2048, 1\]"),
        (changed(trellis, vector=3), "vector must lie in 1 to 2"),
        (changed(trellis, chain=0), "chain must lie"),
        (changed(trellis, step_bits=0), "step_bits must lie"),
        (changed(trellis, out_features=1000), "codes must be torch.int32"),
        (changed(trellis, codes=trellis.codes.long()), "codes must be torch.int32"),
        (changed(trellis, codes=trellis.codes.repeat(1, 1, 2)[:, :, ::2]), "codes must be contiguous, got strides"),
    ]


@pytest.mark.parametrize("index", range(33))
def test_hostile_parts_are_refused_in_words(make, index):
    cases = _hostile(make)
    assert len(cases) == 33
    part, words = cases[index]
    with pytest.raises(ValueError, match=words):
        decode_part(part)


def test_something_else_is_a_type_error():
    with pytest.raises(TypeError, match="got dict"):
        decode_part({})


def test_capabilities_answer_without_a_gpu():
    table = capabilities.table()
    assert table["torch"] == torch.__version__ and "cpu" in table["device 0"]
    assert capabilities.package_version("no_such_package") is None
    assert capabilities.package_problem("no_such_package") == "not installed"
    capabilities.forget()
    assert [row["backend"] for row in dispatch.requirements_table()] == ["triton", "torch", "reference"]
