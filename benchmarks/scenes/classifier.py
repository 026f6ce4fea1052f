"""The attribute classifier: a small CNN that names what a 64 x 64 picture shows, and its features."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from .data import GROUPS, TESTBED, named

WEIGHTS = TESTBED / "classifier.safetensors"
CHANNELS, FEATURES, BATCH = (24, 48, 96), 192, 256
SIDE = 64


class Net(nn.Module):
    """[n, 3, 64, 64] in 0..1 -> features [n, 192] and one group of logits per attribute."""

    def __init__(self):
        super().__init__()
        first, second, third = CHANNELS
        self.trunk = nn.Sequential(
            _unit(3, first, 2, kernel=5), _unit(first, second, 2), Residual(second),      # [n, 48, 16, 16]
            _unit(second, third, 2), Residual(third), Residual(third),                    # [n, 96, 8, 8]
            _unit(third, 32, 1, kernel=1))
        self.feature = nn.Linear(32 * 8 * 8, FEATURES)     # no pooling: where something lies is an attribute
        self.heads = nn.Linear(FEATURES, sum(map(len, GROUPS.values())))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return F.relu(self.feature(self.trunk(images * 2 - 1).flatten(1)))

    def forward(self, images: torch.Tensor, dropout: float = 0.0) -> tuple[torch.Tensor, ...]:
        """-> logits [n, classes] in the order of GROUPS."""
        kept = F.dropout(self.features(images), dropout, self.training)
        return self.heads(kept).split([len(names) for names in GROUPS.values()], 1)


class Residual(nn.Module):
    """x + unit(x)"""

    def __init__(self, channels: int):
        super().__init__()
        self.unit = _unit(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.unit(x)


def _unit(inputs: int, outputs: int, stride: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
                         nn.BatchNorm2d(outputs), nn.ReLU())


def save(net: Net, path: Path = WEIGHTS) -> int:
    """fp16 safetensors -> bytes written; batch counters stay out."""
    tensors = {name: value.half().contiguous() for name, value in net.state_dict().items() if value.is_floating_point()}
    save_file(tensors, path)
    return path.stat().st_size


@lru_cache(maxsize=2)
def load(path: Path = WEIGHTS) -> Net:
    """The trained classifier in fp32 on the CPU."""
    if not path.is_file():
        raise FileNotFoundError(f"the attribute classifier {path.name} is not there: "
                                f"run python benchmarks/scenes/train_classifier.py")
    net = Net()
    tensors = {name: value.float() for name, value in load_file(path).items()}
    missing, unknown = net.load_state_dict(tensors, strict=False)
    if unknown or not all(name.endswith("num_batches_tracked") for name in missing):
        raise ValueError(f"{path.name} holds another classifier (missing {missing[:3]}, unknown {unknown[:3]}): "
                         f"run python benchmarks/scenes/train_classifier.py")
    return net.eval().requires_grad_(False)


def predicted(images: torch.Tensor, net: Net | None = None) -> torch.Tensor:
    """-> [n, 9] class indices in the order of data.GROUPS; -1 for a second object where one is seen."""
    rows = torch.cat([torch.stack([group.argmax(1) for group in (net or load())(batch)], 1)
                      for batch in _checked(images).split(BATCH)])
    rows[rows[:, 0] == 0, 6:9] = -1
    return rows


def attributes(images: torch.Tensor) -> list[dict]:
    """What each picture [n, 3, 64, 64] (0 to 1) shows, as scenes.scene says it; objects in reading order."""
    return [named(row) for row in predicted(images).tolist()]


def features(images: torch.Tensor) -> torch.Tensor:
    """-> [n, 192] non-negative activations under the attributes, for a kernel distance between sets of pictures."""
    net = load()
    return torch.cat([net.features(batch) for batch in _checked(images).split(BATCH)])


def _checked(images: torch.Tensor) -> torch.Tensor:
    if images.ndim != 4 or images.shape[1:] != (3, SIDE, SIDE) or not images.is_floating_point() or not len(images):
        raise ValueError(f"expected pictures [n, 3, {SIDE}, {SIDE}] of floats from 0 to 1, got "
                         f"{list(images.shape)} {images.dtype}: decode and scale them first")
    images = images.detach().to("cpu", torch.float32)
    return torch.nan_to_num(images, nan=0.5).clamp(0, 1)
