"""Finds real ComfyUIs and makes the files that are compared; skips, with the reason, where there is none.

ComfyUI is looked for at $COMFYUI_PATH, else ~/ComfyUI; an old one (0.8) at $COMFYUI_OLD_PATH, else ~/ComfyUI-0.8.
It runs under $COMFYUI_PYTHON, else under the Python that runs the tests, in a process of its own for every group of
tests; these skip where ComfyUI's requirements do not import there. Everything is on the CPU.
"""
from __future__ import annotations

import functools
import gzip
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATIENCE = 1800                            # seconds: cuts off what hangs, however busy the machine is
PLAN = {"vqpack_plan": 1, "unet": {"kind": "palette", "bits": 3}, "rules": [
    {"match": r"input_blocks\.3\.1.*attn1", "spec": {"kind": "trellis", "bits": 3, "window": 8, "rotation": 0}},
    {"match": r"input_blocks\.4\.0\.op", "spec": {"kind": "trellis", "bits": 2.5, "window": 8, "rotation": 16}},
    {"match": r"input_blocks\.3\.0\.", "spec": {"kind": "uniform", "bits": 3}},
    {"match": r"input_blocks\.4\.1.*attn1", "spec": {"kind": "additive", "bits": 3}}]}


def host_path(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or Path.home() / default)
    if not (path / "comfy" / "model_patcher.py").is_file():
        pytest.skip(f"no ComfyUI at ${variable} nor ~/{default}")
    return path


def host_python() -> str:
    return os.environ.get("COMFYUI_PYTHON") or sys.executable


def environment() -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON"))}
    return {**keep, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}


@functools.cache
def why_not(python: str, host: Path) -> str:
    """Empty, or the reason why this ComfyUI does not start under this Python."""
    code = ("import sys; host = sys.argv[1]; sys.argv = ['main.py', '--cpu']; sys.path.insert(0, host);"
            "import comfy.options; comfy.options.enable_args_parsing();"
            "import comfy_kitchen, aiohttp, av, comfy.sd")
    done = subprocess.run([python, "-c", code, str(host)], capture_output=True, text=True, env=environment(), cwd=host,
                          check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it ends without a word"])[-1]


def usable(host: Path) -> Path:
    reason = why_not(host_python(), host)
    if reason:
        pytest.skip(f"ComfyUI's requirements do not import under $COMFYUI_PYTHON, else the tests' own Python: {reason}")
    return host


def observed(script: str, host: Path, folder: Path, *arguments: str) -> dict:
    """What a script of tests/comfy found, run in a process of its own with that ComfyUI, on that folder."""
    command = [str(HERE / script), str(host), str(folder), *arguments]
    code, out, err = (forked if script.startswith("cases") and hasattr(os, "fork") else started)(command, folder)
    lines = [line for line in out.splitlines() if line.startswith("FOUND ")]
    log = folder / "server.log"
    said = log.read_text(encoding="utf-8", errors="replace")[-3000:] if log.is_file() else out[-2000:]
    assert code == 0 and lines, f"{script} {arguments} failed:\n{said}\n{err[-4000:]}"
    return json.loads(lines[-1][6:])


def started(command: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a script and its arguments in a new process."""
    done = subprocess.run([host_python(), *command], capture_output=True, text=True, env=environment(), cwd=folder,
                          check=False, timeout=PATIENCE)
    return done.returncode, done.stdout, done.stderr


def forked(command: list[str], folder: Path) -> tuple[int, str, str]:
    """The same in a fork of a process that has imported what ComfyUI imports (forked.py)."""
    process = forking()
    with tempfile.TemporaryDirectory() as where:
        out, err = Path(where) / "out", Path(where) / "err"
        print(json.dumps([str(folder), str(out), str(err), *command]), file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            os.killpg(process.pid, signal.SIGKILL)
            forking.cache_clear()
            return -signal.SIGKILL, "", f"not done after {PATIENCE} s"
        code = process.stdout.readline()
        assert code, "forked.py ended without an answer"
        return int(code), *(path.read_text(encoding="utf-8", errors="replace") for path in (out, err))


@functools.cache
def forking() -> subprocess.Popen:
    """The one process that cases are forked from; it ends when its stdin does."""
    return subprocess.Popen([host_python(), str(HERE / "forked.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, env=environment(), start_new_session=True)


def pytest_sessionfinish() -> None:
    """Let the forking process end."""
    if forking.cache_info().currsize:
        forking().communicate()
        forking.cache_clear()


def make_base(folder: Path, packs: dict[str, str] | None = None, **linked: Path) -> Path:
    """A ComfyUI base folder with this pack in a folder with a dash, hold_stage.py, and other packs' source by name.

    linked: files to be there, by the model folder they belong to.
    """
    for name in ("models/checkpoints", "custom_nodes", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True)
    for kind, path in linked.items():
        (folder / "models" / kind).mkdir(exist_ok=True)
        os.link(path, folder / "models" / kind / path.name)
    for name, source in (packs or {}).items():
        (folder / "custom_nodes" / f"{name}.py").write_text(source, encoding="utf-8")
    (folder / "custom_nodes" / "hold_stage.py").symlink_to(HERE / "hold_stage.py")
    (folder / "custom_nodes" / "vq-pack").symlink_to(ROOT, target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """A current ComfyUI."""
    return usable(host_path("COMFYUI_PATH", "ComfyUI"))


@pytest.fixture(scope="session")
def old_comfyui() -> Path:
    """ComfyUI 0.8."""
    return usable(host_path("COMFYUI_OLD_PATH", "ComfyUI-0.8"))


@pytest.fixture(scope="session")
def inside(files):
    """inside(host, case, *arguments) -> what a script of tests/comfy found, run in a process with that ComfyUI."""
    def run(host: Path, case: str, *arguments: str, script: str = "cases.py") -> dict:
        return observed(script, host, files, case, *arguments)
    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with the tiny checkpoint, its VQ file, that file decompressed (in fp16, as its source), and two LoRA."""
    folder = tmp_path_factory.mktemp("comfy")
    source = make_tiny(folder / "tiny.safetensors")
    from vqpack.vq_core.decompress import decompress
    from vqpack.vq_core.plan import plan_from_json
    from vqpack.vq_core.quantize import quantize

    quantize(source, folder / "tiny-vq.safetensors", plan=plan_from_json(PLAN))
    save_unet_only(folder / "tiny-vq.safetensors", folder / "unet-vq.safetensors")
    decompress(folder / "tiny-vq.safetensors", folder / "dense.safetensors")
    with_text = make_tiny(folder / "with-text.safetensors", text_encoder_shapes())
    quantize(with_text, folder / "text-vq.safetensors", bits=3, method="palette", parts=("te",))
    decompress(folder / "text-vq.safetensors", folder / "text-dense.safetensors")
    with_text.unlink()
    for seed in (1, 2):
        save_file(make_lora(source, seed), folder / f"lora{seed}.safetensors")
    return folder


def save_unet_only(path: Path, out: Path) -> None:
    """What `quantize --parts unet` writes, less its checksums."""
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        kept = {k: opened.get_tensor(k) for k in opened.keys() if not k.startswith("first_stage_model.")}
        metadata = {k: v for k, v in opened.metadata().items() if "crc32" not in k}
    save_file(kept, out, metadata)


def make_tiny(path: Path, more: dict[str, tuple[int, ...]] | None = None) -> Path:
    """The 126 MB checkpoint with random weights that ComfyUI takes for SDXL, without text encoders, and `more`."""
    listed = gzip.decompress((ROOT / "tests" / "data" / "sdxl_tiny.keys.tsv.gz").read_bytes()).decode()
    return make_checkpoint(path, more or {}, listed)


def make_checkpoint(path: Path, shapes: dict[str, tuple[int, ...]], listed: str = "") -> Path:
    """A checkpoint of these shapes, and of those listed as in tests/data, with random weights."""
    lines = [f"{key}\t{','.join(map(str, shape))}" for key, shape in shapes.items()]
    table = path.with_suffix(".tsv")
    table.write_text("\n".join([*listed.splitlines(), *lines]) + "\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "benchmarks" / "make_checkpoint.py"), str(table), str(path)]
    subprocess.run(command, check=True, capture_output=True, env=environment())
    return path


def text_encoder_shapes(width: int = 64, layers: int = 3, second: int = 64, inner: int = 4
                        ) -> dict[str, tuple[int, ...]]:
    """CLIP-L and CLIP-G, `second` wide, under SDXL's names with few narrow layers, for a host told the same sizes."""
    hf, openclip = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
    out = {f"{hf}embeddings.token_embedding.weight": (49408, width),
           f"{hf}embeddings.position_embedding.weight": (77, width),
           f"{openclip}token_embedding.weight": (49408, second), f"{openclip}positional_embedding": (77, second),
           f"{openclip}text_projection": (second, second), f"{openclip}logit_scale": ()}
    for layer in range(layers):
        one, two = f"{hf}encoder.layers.{layer}.", f"{openclip}transformer.resblocks.{layer}."
        matrices = {**{f"{one}self_attn.{n}_proj.": (width, width) for n in ("q", "k", "v", "out")},
                    f"{one}mlp.fc1.": (inner * width, width), f"{one}mlp.fc2.": (width, inner * width),
                    f"{two}attn.in_proj_": (3 * second, second), f"{two}attn.out_proj.": (second, second),
                    f"{two}mlp.c_fc.": (inner * second, second), f"{two}mlp.c_proj.": (second, inner * second)}
        for name, shape in matrices.items():
            out |= {f"{name}weight": shape, f"{name}bias": shape[:1]}
        for norm, size in ((f"{one}layer_norm1.", width), (f"{one}layer_norm2.", width), (f"{two}ln_1.", second),
                           (f"{two}ln_2.", second)):
            out |= {f"{norm}weight": (size,), f"{norm}bias": (size,)}
    for norm, size in ((f"{hf}final_layer_norm.", width), (f"{openclip}ln_final.", second)):
        out |= {f"{norm}weight": (size,), f"{norm}bias": (size,)}
    return out


def make_lora(source: Path, seed: int) -> dict[str, torch.Tensor]:
    """Rank 4 on every third Linear and every convolution of the UNet, coded ones and others, in kohya's names."""
    from safetensors import safe_open

    generator, out = torch.Generator().manual_seed(seed), {}
    with safe_open(source, "pt") as opened:
        shapes = {k: opened.get_slice(k).get_shape() for k in opened.keys() if k.startswith("model.diffusion_model.")}
    keys = sorted(k for k, shape in shapes.items() if k.endswith(".weight") and len(shape) in (2, 4))
    for index, key in enumerate(keys):
        shape = shapes[key]
        if index % 3 == seed % 3 or len(shape) == 4:
            name = "lora_unet_" + key.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
            ones = [1, 1] if len(shape) == 4 else []
            out[f"{name}.lora_up.weight"] = torch.randn(shape[0], 4, *ones, generator=generator) * 0.05
            out[f"{name}.lora_down.weight"] = torch.randn(4, *shape[1:], generator=generator) * 0.05
            out[f"{name}.alpha"] = torch.tensor(4.0)
    return out
