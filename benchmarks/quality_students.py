"""The students of quality.py: the testbed's UNet with the weights a method gives back, and the bits that it stores.

Every student codes the same layers, those the product codes; what a method cannot code stays fp16 and is counted so.
Text encoders and VAE are the teacher's. Everything the UNet stores is in its bits: codes, scales, books, tables, and
the layers that nobody codes (embeddings of time and size, first and last convolution).
"""
from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path

import torch
from alias import ROOT, load_vqpack
from peers import METHODS
from peers.coded import version
from torch import nn

load_vqpack()
from vqpack.vq_core.arch import UNET_PREFIX, unet_names  # noqa: E402
from vqpack.vq_core.arch import layers as arch_layers  # noqa: E402
from vqpack.vq_core.container import Reader  # noqa: E402
from vqpack.vq_core.decompress import decode_tensor  # noqa: E402
from vqpack.vq_core.keymap import PrefixTable  # noqa: E402
from vqpack.vq_core.plan import make_plan  # noqa: E402
from vqpack.vq_core.quantize import quantize  # noqa: E402
from vqpack.vq_core.source import open_source  # noqa: E402
from vqpack.vq_core.spec import TRELLIS_RATES, DenseSpec  # noqa: E402

TESTBED = ROOT / "testbed" / "pipe"
TRELLIS, LINEARS = "ours-trellis", "ours-trellis-linears"             # families: our curves
CHECK_SNR = 20.0                           # dB, of check-predictions
CHECK_ERROR = 0.25                         # RMS of the final latents' error in check-last-step
# What decides every student, and what decides ours besides: for identity().
CODE = ("benchmarks/quality_students.py", "benchmarks/quality_measure.py", "vq_core/trajectory.py",
        "vq_core/metrics.py")
OURS_CODE = ("vq_core/encode", "vq_core/spec.py", "vq_core/plan.py", "vq_core/quantize.py", "kernels")


@dataclass(frozen=True)
class Layer:
    """One layer the product codes."""

    key: str                               # in LDM names, as in vqpack files
    parameter: str                         # in the UNet's state dict
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Coded:
    """All layers coded by one method."""

    weights: dict[str, torch.Tensor]       # LDM key -> float32 decoded
    bits_layers: float                     # stored bits a weight in the layers it coded
    bits_unet: float                       # of the whole UNet
    share: float                           # coded share of the weights of all layers that the product codes
    linear_share: float                    # the same of the linear ones


@dataclass(frozen=True)
class Student:
    """A UNet that draws, and what it stores."""

    unet: nn.Module
    coded: Coded


@dataclass(frozen=True)
class Row:
    """One student to be made: family "" for checks."""

    name: str
    family: str
    code: Callable[[], Coded]
    sources: tuple[str, ...]               # files and folders that decide what it codes, besides CODE
    disturb: Callable | None = None        # forward hook of a check
    options: str = ""                      # its settings


def student(row: Row, teacher: nn.Module) -> Student:
    """The teacher's UNet (which is left alone) with the weights of one row."""
    unet, coded = copy.deepcopy(teacher), row.code()
    parameters = dict(unet.named_parameters())
    with torch.no_grad():
        for layer in layers()[0]:
            parameters[layer.parameter].copy_(coded.weights[layer.key])
    if row.disturb is not None:
        unet.register_forward_hook(row.disturb(), with_kwargs=True)
    return Student(unet, coded)


def rows() -> dict[str, Row]:
    """All students by name, ours first."""
    found = [_product(TRELLIS, "trellis", bits) for bits in TRELLIS_RATES]
    found += [_product(LINEARS, "trellis", bits, only_linear=True) for bits in TRELLIS_RATES[1:]]
    found += [_product("ours-additive", "additive", bits) for bits in (1, 2, 3, 4)]
    found += [_product("ours-product", "product", bits) for bits in (1, 2, 3, 4)]
    found += [_product("ours-palette-rows", "palette", bits) for bits in (2, 3, 4)]
    found += [_product("ours-uniform", "uniform", bits) for bits in (2, 3, 4)]
    taken = {row.family for row in found}
    found += [_per_layer(method) for method in METHODS.values() if method.family not in taken]
    found += [Row("fp8-e4m3", "fp8", partial(_each, _fp8), ()),
              Row("check-fp16", "", partial(_each, _same), ()),
              Row("check-predictions", "", partial(_each, _same), (), _noisy_predictions),
              Row("check-last-step", "", partial(_each, _same), (), _noisy_last_step)]
    return {row.name: row for row in found}


def identity(row: Row, settings: str) -> str:
    """What decides a row's numbers: settings, the code that makes it, the peer's version, torch -> hex digits"""
    peer = version(row.family) if row.family else ""
    digest = hashlib.sha256(f"{settings} {row.name} {row.options} {torch.__version__} {peer}".encode())
    digest.update((TESTBED / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    for name in CODE + row.sources:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@cache
def layers() -> tuple[tuple[Layer, ...], int]:
    """-> layers the product codes, and the number of all the UNet's weights"""
    with open_source(TESTBED) as source:
        unet = [layer for layer in arch_layers(source) if layer.component == "unet"]
    names = PrefixTable(unet_names.pairs_from_ldm([layer.key.removeprefix(UNET_PREFIX) for layer in unet]))
    return tuple(Layer(layer.key, names.apply(layer.key.removeprefix(UNET_PREFIX)), layer.shape)
                 for layer in unet if not layer.dense), sum(prod(layer.shape) for layer in unet)


def count(stored: dict[str, int], coded: set[str]) -> dict[str, float]:
    """Bytes of every layer and the keys of those coded -> the numbers of Coded; all other weights are fp16."""
    every, weights = layers()
    size = {layer.key: prod(layer.shape) for layer in every}
    linear = {layer.key for layer in every if len(layer.shape) == 2}
    dense = 2 * (weights - sum(size.values()))
    coded_weights = sum(size[key] for key in coded)
    return {"bits_layers": 8 * sum(stored[key] for key in coded) / coded_weights if coded else 16.0,
            "bits_unet": 8 * (sum(stored.values()) + dense) / weights,
            "share": coded_weights / sum(size.values()),
            "linear_share": sum(size[key] for key in coded & linear) / sum(size[key] for key in linear)}


def _product(family: str, method: str, bits: float, only_linear: bool = False) -> Row:
    name = f"{family.removesuffix('-linears')}-{bits:g}{'-linears' if only_linear else ''}"
    return Row(name, family, partial(_by_product, method, bits, only_linear), OURS_CODE)


def _by_product(method: str, bits: float, only_linear: bool) -> Coded:
    """Through the product: quantize writes a file, its reader decodes it, its own count of bits."""
    plan = make_plan(bits, method, text_encoder_bits=16)
    if only_linear:
        plan = replace(plan, layers=tuple((layer.key, DenseSpec()) for layer in layers()[0] if len(layer.shape) > 2))
    with tempfile.TemporaryDirectory() as folder:
        result = quantize(TESTBED, Path(folder) / "student.safetensors", plan=plan, parts=("unet",), device="cpu")
        with Reader(result.path, mapped=False) as reader:
            weights = {layer.key: decode_tensor(reader, layer.key, torch.float32) for layer in layers()[0]}
    shares = count(dict.fromkeys(weights, 0), {layer.name for layer in result.layers})
    return Coded(weights, **{**shares, "bits_layers": result.bits["coded"], "bits_unet": result.bits["unet"]})


def _per_layer(method) -> Row:
    module = f"benchmarks/peers/{method.module.__name__.rpartition('.')[2]}.py"
    own = OURS_CODE if method.family.startswith("ours") else ()
    return Row(method.name, method.family, partial(_each, method.code),
               ("benchmarks/peers/coded.py", module, *own), options=f"{method.bits} {method.settings}")


def _each(code) -> Coded:
    """code(weight) -> an object with decoded, stored_bytes, coded_share; the same random numbers for every layer."""
    weights, stored, coded = {}, {}, set()
    with open_source(TESTBED) as source:
        for layer in layers()[0]:
            torch.manual_seed(0)
            found = code(source.load(layer.key).float())
            weights[layer.key], stored[layer.key] = found.decoded, found.stored_bytes
            if found.coded_share == 1:
                coded.add(layer.key)
    return Coded(weights, **count(stored, coded))


@dataclass(frozen=True)
class _Weight:
    decoded: torch.Tensor
    stored_bytes: int
    coded_share: float


def _same(weight: torch.Tensor) -> _Weight:
    return _Weight(weight, 2 * weight.numel(), 0.0)


def _fp8(weight: torch.Tensor) -> _Weight:
    """ComfyUI's weight type fp8_e4m3fn: no scale."""
    return _Weight(weight.to(torch.float8_e4m3fn).float(), weight.numel(), 1.0)


def _noisy_predictions():
    """Adds white noise CHECK_SNR below each prediction's power, so that prediction SNR must read CHECK_SNR."""
    generator = torch.Generator().manual_seed(7)

    def hook(_, args, kwargs, output):
        said = output[0]                                                            # [2 n, 4, h, w]
        scale = said.square().mean((1, 2, 3), keepdim=True).sqrt() * 10 ** (-CHECK_SNR / 20)
        return (said + scale * torch.randn(said.shape, generator=generator),)
    return hook


def _noisy_last_step():
    """Adds white noise to the last step's predictions that moves the final latents by CHECK_ERROR (RMS)."""
    generator = torch.Generator().manual_seed(8)

    def hook(_, args, kwargs, output):
        if float(args[1]) > 1:
            return None
        said = output[0]                                                            # [2 n, 4, h, w]
        noise = torch.randn((len(said) // 2, *said.shape[1:]), generator=generator) * CHECK_ERROR / _last_sigma()
        return (said + torch.cat([noise, noise]),)         # the same with and without prompt: guidance leaves it alone
    return hook


@cache
def _last_sigma() -> float:
    """Euler's noise level at timestep 1, from which the last step goes to 0."""
    from diffusers import EulerDiscreteScheduler

    alphas = EulerDiscreteScheduler.from_pretrained(TESTBED / "scheduler").alphas_cumprod
    return float(((1 - alphas[1]) / alphas[1]).sqrt())
