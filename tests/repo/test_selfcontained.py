"""vq_core and kernels alone, in an empty package, without any host: file -> layer -> matmul."""
from __future__ import annotations

import shutil
import subprocess
import sys

CODE = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"comfy", "comfy_api", "comfy_kitchen", "server", "folder_paths", "nodes"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, FOLDER)
import torch
from alone.kernels.parts import LutPart, Scales
from alone.kernels.packing import pack_codes
from alone.kernels.reference import decode_part
from alone.vq_core.container import Reader, Writer
from alone.vq_core.layers import VQConv2d, VQLinear
from alone.vq_core.record import build_blob

g = torch.Generator().manual_seed(0)
rows, channels = 37, 21

def part(taps):
    codes = torch.randint(0, 8, (rows, taps * channels), generator=g)
    return LutPart(rows, channels, taps, 3, pack_codes(codes, 3),
                   Scales(0.0078125, row=(torch.rand(rows, generator=g) + 0.5).half()),
                   values=torch.randint(-300, 300, (8,), generator=g, dtype=torch.int16))

linear, conv = part(1), part(9)
writer = Writer(FOLDER + "/model.safetensors")
writer.add_blob("linear.weight", build_blob((rows, channels), torch.float16, [(0, channels, "palette", linear)]))
writer.add_blob("conv.weight", build_blob((rows, channels, 3, 3), torch.float16, [(0, channels, "palette", conv)]))
writer.add("linear.bias", torch.ones(rows))
path = writer.close({})
with Reader(path) as reader:
    one = VQLinear(reader.weight("linear.weight"), reader.tensor("linear.bias"))
    two = VQConv2d(reader.weight("conv.weight"), padding=1)
x, image = torch.randn(5, channels, generator=g), torch.randn(2, channels, 6, 7, generator=g)
wanted = x @ decode_part(linear).T + 1
assert torch.allclose(one(x), wanted, atol=1e-5), (one(x) - wanted).abs().max()
kernel = decode_part(conv).view(rows, 3, 3, channels).permute(0, 3, 1, 2)
wanted = torch.nn.functional.conv2d(image, kernel, padding=1)
assert torch.allclose(two(image), wanted, atol=1e-4), (two(image) - wanted).abs().max()
foreign = {name.split(".")[0] for name in sys.modules} & {"comfy", "server", "folder_paths", "nodes", "vqpack"}
assert not foreign, foreign
print("done")
"""


def test_file_to_matmul_without_any_host(repository, tmp_path):
    package = tmp_path / "alone"
    for layer in ("kernels", "vq_core"):
        shutil.copytree(repository / layer, package / layer, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    done = subprocess.run([sys.executable, "-c", f"FOLDER = {str(tmp_path)!r}\n{CODE}"], capture_output=True, text=True,
                          cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
