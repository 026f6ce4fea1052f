"""What a block was given in the partly coded model and gave in the original: as many calls as fit into memory."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

MEMORY = 4 << 30                           # bytes of calls: see docs/calibration.md for SDXL
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Asked:
    """What a module was called with, tensors on the CPU; the first dimension of each is the batch."""

    args: tuple
    named: dict

    @classmethod
    def copied(cls, args: tuple, named: dict) -> Asked:
        """A call as a forward hook sees it."""
        return cls(tuple(map(_kept, args)), {name: _kept(value) for name, value in named.items()})

    def tensors(self) -> list[torch.Tensor]:
        """Those among the arguments."""
        return [value for value in (*self.args, *self.named.values()) if isinstance(value, torch.Tensor)]


def joined(calls: Sequence[Asked], device: torch.device) -> Asked:
    """Calls as one, float32 on `device`; what is no tensor is the first one's."""
    def one(values: Sequence):
        if not isinstance(values[0], torch.Tensor):
            return values[0]
        whole = torch.cat(list(values)).to(device)
        return whole.float() if whole.is_floating_point() else whole

    args = tuple(one(values) for values in zip(*(call.args for call in calls), strict=True))
    return Asked(args, {name: one([call.named[name] for call in calls]) for name in calls[0].named})


class Recorded:
    """Calls of one block. Where they outgrow `memory` bytes every other one goes and every other one is kept from
    then on: those that stay lie evenly over all that were offered.
    """

    def __init__(self, memory: int):
        self.memory, self.used = memory, 0
        self.calls: list[tuple[Asked, torch.Tensor]] = []          # (inputs x', the original's output)
        self._offered, self._every = 0, 1

    def offer(self, asked: Asked, output: torch.Tensor) -> None:
        """One more call; those with NaN or infinity are left out."""
        if not all(bool(torch.isfinite(value).all()) for value in (*asked.tensors(), output)):
            return
        self._offered += 1
        if (self._offered - 1) % self._every:
            return
        self.calls.append((asked, output))
        self.used += _nbytes(asked, output)
        while self.used > self.memory and len(self.calls) > 1:
            self.calls, self._every = self.calls[::2], 2 * self._every
            self.used = sum(_nbytes(*call) for call in self.calls)

    def batch(self, chosen: Sequence[int], device: torch.device) -> tuple[Asked, torch.Tensor]:
        """Calls of these numbers as one -> inputs and outputs, float32."""
        output = torch.cat([self.calls[i][1] for i in chosen]).to(device).float()
        return joined([self.calls[i][0] for i in chosen], device), output


class Block:
    """One block: where it is, and its calls, those of a quarter of the memory held out.

    layers: key -> path in the UNet. module: it, in the partly coded model, set once its calls were recorded.
    """

    def __init__(self, name: str, layers: Mapping[str, str], memory: int = MEMORY):
        self.name, self.module = name, None
        self.paths = {key: path[len(name) + 1:] for key, path in layers.items()}   # in the block
        self.seen, self.held_out = Recorded(memory * 3 // 4), Recorded(memory // 4)

    def listen(self, unet: torch.nn.Module, coded: bool, note: Callable):
        """Hook that notes the block's input in the coded model, or its output in the original."""
        module = unet.get_submodule(self.name)
        if coded:
            return module.register_forward_pre_hook(
                lambda _, args, named: note(INPUT, Asked.copied(args, named)), with_kwargs=True)
        return module.register_forward_hook(lambda _, __, output: note(OUTPUT, _kept(output)))

    def offer(self, asked: Asked, output: torch.Tensor, held_out: bool) -> None:
        """One more call, of a held-out picture or not."""
        (self.held_out if held_out else self.seen).offer(asked, output)


def _kept(value):
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def _nbytes(asked: Asked, output: torch.Tensor) -> int:
    return sum(value.numel() * value.element_size() for value in (*asked.tensors(), output))
