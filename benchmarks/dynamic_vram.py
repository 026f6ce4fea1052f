"""Dynamic VRAM on a real GPU: a VQ file under ComfyUI's dynamic loading, checked against its own loader.

usage: python dynamic_vram.py COMFYUI SMALL DECOMPRESSED     (with ComfyUI's own Python, on a machine with CUDA)

SMALL: a vqpack file; DECOMPRESSED: `vqpack decompress` of it. Everything runs in this process, in fp32, so that
latents can be compared: load, sample, LoRA on linear and convolution layers, another strength, removal, partial and
whole unloading, little memory left, hooks' second copy, sizes, nothing encoded again. Prints a table of verdicts and
writes benchmarks/results/dynamic_vram.json; status 0 where all hold. Without CUDA it says so and ends with 1.
`--simulated` runs the same on the CPU over tests/comfy/fake_gpu.py and writes nothing: it shows that this script works.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

from alias import RESULTS, ROOT, load_vqpack, machine

TOLERANCE = 1e-3                           # relative distance of latents
LORA = 0.7
ROOM_FOR_A_CALL = 3 << 30                  # left free, beside half the model, when memory is made short


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("decompressed", type=Path)
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--simulated", action="store_true")
    args = parser.parse_args()
    import torch

    if not args.simulated and not torch.cuda.is_available():
        raise SystemExit("dynamic_vram.py needs an NVIDIA GPU: torch.cuda.is_available() is False here")
    with start_host(args), torch.inference_mode():
        checks = Checks(args)
        checks.run()
    passed = checks.report()
    if not args.simulated:
        RESULTS.mkdir(exist_ok=True)
        found = {"machine": machine(), "settings": {"size": args.size, "steps": args.steps}, "checks": checks.rows}
        (RESULTS / "dynamic_vram.json").write_text(json.dumps({**found, "numbers": checks.numbers}, indent=1) + "\n")
    raise SystemExit(0 if passed else 1)


def start_host(args):
    """ComfyUI in this process with dynamic VRAM on, as its main.py does it -> a context to work in."""
    small, decompressed, host = args.small.resolve(), args.decompressed.resolve(), args.comfyui.resolve()
    args.small, args.decompressed = small, decompressed
    sys.argv = ["main.py", *(["--cpu"] if args.simulated else ["--force-fp32"])]
    sys.path[0] = str(host)
    import comfy.options

    comfy.options.enable_args_parsing()
    if args.simulated:
        load_vqpack()
        return simulated()
    import comfy_aimdo.control
    import torch

    torch.backends.cudnn.allow_tf32 = False
    first_accepted(comfy_aimdo.control.init, ({"simple_vram_headroom": None, "nvml_pressure": True},),
                   ({"simple_vram_headroom": None},), ({},))
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    indices = [device.index for device in comfy.model_management.get_all_torch_devices()]
    try:
        ready = comfy_aimdo.control.init_devices((index, 0) for index in indices)
    except TypeError:                      # before comfy-aimdo 0.4.10
        ready = comfy_aimdo.control.init_devices(indices)
    if not ready:
        raise SystemExit("comfy-aimdo found no device: dynamic VRAM does not work on this machine")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    load_vqpack()
    return contextlib.nullcontext()


def first_accepted(function, *attempts):
    """Call with the first keywords its version knows."""
    for (keywords,) in attempts:
        with contextlib.suppress(TypeError):
            return function(**keywords)
    raise SystemExit("this comfy-aimdo is started in a way that is not known here")


@contextlib.contextmanager
def simulated():
    """The second device of the tests."""
    sys.path.append(str(ROOT / "tests" / "comfy"))
    import fake_gpu

    with fake_gpu.second_device(), fake_gpu.fake_dynamic_vram():
        yield


class Checks:
    """What is checked, one row each; the stock loader's latents are the reference."""

    def __init__(self, args):
        self.args, self.rows, self.numbers = args, [], {}

    def run(self) -> None:
        """All of it; every model is loaded by the host as a graph would load it."""
        self._references()
        from vqpack.nodes import layout
        from vqpack.nodes.loading import load_checkpoint
        from vqpack.nodes.schema import DYNAMIC

        encoded = []
        refuse = layout.VQLayout.quantize
        layout.VQLayout.quantize = classmethod(lambda cls, tensor, **options: encoded.append(1) or refuse(tensor))
        started = time.monotonic()
        self.base = load_checkpoint(self.args.small, DYNAMIC)[0]
        self.numbers["load_seconds"] = round(time.monotonic() - started, 2)
        self.row("the patcher is ours and dynamic", type(self.base).__name__, type(self.base).__name__ ==
                 "VQModelPatcherDynamic")
        self.model = self.lora(self.base, LORA)
        self._sampling()
        self._unloading()
        self._little_memory()
        self._others()
        self.row("weights encoded again", len(encoded), not encoded)

    def row(self, name: str, value, good: bool) -> None:
        """One verdict, printed at once: a crash later does not take it away."""
        self.rows.append({"check": name, "found": value, "good": bool(good)})
        print(f"{'ok  ' if good else 'BAD '} {name}: {value}", flush=True)

    def report(self) -> bool:
        """Print the outcome -> whether all rows are good."""
        bad = [row["check"] for row in self.rows if not row["good"]]
        print(json.dumps(self.numbers))
        print(f"{len(self.rows) - len(bad)} of {len(self.rows)} hold" + (f"; not: {', '.join(bad)}" if bad else ""))
        return not bad

    def _references(self) -> None:
        import comfy.sd

        stock = comfy.sd.load_checkpoint_guess_config(str(self.args.decompressed), output_clip=False)[0]
        self.numbers["stock_patcher"] = type(stock).__name__
        self.weights = lora_weights(stock)
        self.reference = {"plain": self.sample(stock, "stock"),
                          "lora": self.sample(self.lora(stock, LORA), "stock, LORA"),
                          "weak": self.sample(self.lora(stock, LORA / 2), "stock, half the strength")}
        far = apart(self.reference["lora"], self.reference["plain"])
        self.row("the LoRA changes the picture", round(far, 4), far > 0.02)
        self.unload()

    def _sampling(self) -> None:
        self.equal("sampling", self.base, "plain")
        self.equal("LoRA", self.model, "lora")
        self.equal("LoRA, a second time", self.model, "lora")
        self.slots_untouched()
        self.equal("LoRA, half the strength", self.lora(self.base, LORA / 2), "weak")
        self.equal("LoRA removed", self.base, "plain")
        self.equal("LoRA again", self.model, "lora")
        size, held = self.model.model_size(), blob_and_dense_bytes(self.model)
        self.row("model_size is what is held", [size, held], abs(size - held) <= 0.01 * held)
        self.row("and the same with a LoRA", size, size == self.base.model_size())
        self.numbers |= {"loaded_size": self.model.loaded_size(), "lora_bytes_on_device": self.model.held_bytes()}

    def _unloading(self) -> None:
        before = self.model.loaded_size()
        freed = self.model.partially_unload(self.model.offload_device, before // 2)
        self.row("half of it unloaded", [before // 2, freed], freed >= before // 2)
        self.equal("after partial unloading", self.model, "lora")
        self.model.partially_unload(self.model.offload_device, 1e30)
        left = [self.model.loaded_size(), self.model.held_bytes()]
        self.row("all of it unloaded", left, left == [0, 0])
        self.equal("after whole unloading", self.model, "lora")
        self.unload()
        self.row("patches left after unload_all_models", self.model.held_bytes(), not self.model.held_bytes())

    def _little_memory(self) -> None:
        import comfy.model_management as management
        import torch

        if self.args.simulated:
            self.model._vbar_get().full = True
            self.equal("no page to be had", self.model, "lora")
            self.model._vbar_get().full = False
            return
        self.unload()
        management.soft_empty_cache()
        device = management.get_torch_device()
        hog = torch.cuda.mem_get_info(device)[0] - ROOM_FOR_A_CALL - self.model.model_size() // 2
        taken = torch.empty(max(hog, 1), dtype=torch.uint8, device=device)
        self.equal("memory for half the model", self.model, "lora")
        self.numbers["loaded_size_short_of_memory"] = self.model.loaded_size()
        del taken
        management.soft_empty_cache()

    def _others(self) -> None:
        import comfy.sd
        from vqpack.nodes.loading import load_checkpoint
        from vqpack.nodes.schema import COMPRESSED

        delegate = self.model.get_non_dynamic_delegate()
        self.row("the copy for hooks is ours", type(delegate).__name__, type(delegate).__name__ == "VQModelPatcher")
        self.equal("the copy for hooks", delegate, "lora")
        del delegate
        self.unload()
        dense = comfy.sd.load_checkpoint_guess_config(str(self.args.decompressed), output_clip=False)[0]
        self.equal("a dense model in the same graph", dense, "plain")
        self.equal("and ours after it", self.model, "lora")
        del dense
        whole = self.lora(load_checkpoint(self.args.small, COMPRESSED)[0], LORA)
        self.equal("ordinary loading, whole", whole, "lora")
        whole.partially_unload(whole.offload_device, whole.model_size() // 2)
        self.equal("ordinary loading, half unloaded", whole, "lora")

    def slots_untouched(self) -> None:
        """The bytes on the device are those of the file: no LoRA was written into them."""
        import comfy_aimdo.model_vbar as vbars
        import comfy_aimdo.torch

        changed = counted = 0
        for _, module in self.model.coded_modules():
            signature = vbars.vbar_fault(module._v) if hasattr(module, "_v") else None
            if signature is None:
                continue                   # small and never paged, or no page to be had
            if vbars.vbar_signature_compare(signature, module._v_signature):
                slot = comfy_aimdo.torch.aimdo_to_tensor(module._v, self.model.load_device)
                blob = module.weight._qdata
                counted, changed = counted + 1, changed + int(not slot[:blob.numel()].cpu().equal(blob.cpu()))
            vbars.vbar_unpin(module._v)
        left = sum(getattr(m, "weight_lowvram_function", None) is not None for _, m in self.model.coded_modules())
        self.row("slots changed, of how many", [changed, counted], not changed and counted and not left)

    def equal(self, name: str, model, reference: str) -> None:
        """Sample and compare."""
        far = apart(self.sample(model, name), self.reference[reference])
        self.row(name, float(f"{far:.2e}"), far < TOLERANCE)

    def lora(self, model, strength: float):
        """A clone with the LoRA."""
        import comfy.sd

        return comfy.sd.load_lora_for_models(model, None, dict(self.weights), strength, 0)[0]

    def sample(self, model, name: str):
        """-> latents float32 [1, 4, size / 8, size / 8]; notes seconds of the fastest step and peak bytes."""
        import comfy.sample
        import torch

        generator = torch.Generator().manual_seed(1)
        shape = [1, 4, self.args.size // 8, self.args.size // 8]
        noise = torch.randn(shape, generator=generator)
        prompts = [[[0.5 * torch.randn([1, 77, 2048], generator=generator),
                     {"pooled_output": 0.5 * torch.randn([1, 1280], generator=generator)}]] for _ in range(2)]
        ticks = []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        latents = comfy.sample.sample(model, noise, self.args.steps, 3.0, "euler", "normal", *prompts,
                                      torch.zeros(shape), seed=1, disable_pbar=True,
                                      callback=lambda *_: ticks.append(time.monotonic()))
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        fastest = min((b - a for a, b in zip(ticks, ticks[1:])), default=0.0)
        self.numbers[name] = {"seconds_per_step": round(fastest, 4), "peak_allocated_bytes": peak}
        return latents.float().cpu()

    @staticmethod
    def unload() -> None:
        """What the host does between two workflows."""
        import comfy.model_management

        comfy.model_management.unload_all_models()


def apart(a, b) -> float:
    """Relative distance."""
    return float((a - b).norm() / b.norm())


def blob_and_dense_bytes(model) -> int:
    """Bytes of the model's parameters and buffers as they are stored."""
    return sum(getattr(t, "_qdata", t).nbytes for t in (*model.model.parameters(), *model.model.buffers()))


def lora_weights(model) -> dict:
    """Rank 8 on every fifth linear layer and every third convolution of the UNet; its keys, ComfyUI's spelling."""
    import torch

    generator, out = torch.Generator().manual_seed(2), {}
    shapes = {key: value.shape for key, value in model.model.state_dict().items()
              if key.startswith("diffusion_model.") and key.endswith(".weight") and value.ndim in (2, 4)}
    for number, (key, shape) in enumerate(sorted(shapes.items())):
        if number % (5 if len(shape) == 2 else 3) == 0:
            name, ones = key.removesuffix(".weight"), [1] * (len(shape) - 2)
            out[f"{name}.lora_up.weight"] = 0.03 * torch.randn([shape[0], 8, *ones], generator=generator)
            out[f"{name}.lora_down.weight"] = 0.03 * torch.randn([8, *shape[1:]], generator=generator)
            out[f"{name}.alpha"] = torch.tensor(8.0)
    return out


if __name__ == "__main__":
    main()
