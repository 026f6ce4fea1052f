"""Block reconstruction: the roundings of all layers of a block learned together, by the error of the block's output.

Q-Diffusion (Li et al., arXiv 2302.04304, section 3.2) after BRECQ (arXiv 2102.05426): each weight goes to one of two
neighboring codes. The share between them is learned with AdaRound's rectified sigmoid and regularizer
(encode/adaround.py), so that the block gives the original's output for what it gets in the partly coded model. Other
than there it starts from roundings learned layer by layer, and what comes out is judged on held-out calls.
"""
from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.func import functional_call

from ...kernels.packing import unpack_codes
from ...kernels.parts import LutPart
from ..encode import from_matrix, to_matrix
from ..encode.adaround import BETA_FIRST, BETA_LAST, STRETCH_HIGH, STRETCH_LOW, WARM_UP
from ..encode.feedback import one_thread
from ..progress import Progress
from ..weight import CodedWeight, join
from .recorded import Block, Recorded

# Where shares start: 0 at the weight itself (as AdaRound does), 1 at the layer-wise code. Three blocks of the testbed
# (two residual, one transformer), 4 bits, 144 calls of the uncoded model; held-out error over the layer-wise (which is
# .17 to .21 of the nearest's) with 300 iterations, START .5 (weight 300), .8 and .95 (1000): 1.05, .88, .90; 1.11, .92,
# .97; 1.33, .90, .93.
START = 0.8


# START .8: 300 iterations of weight 1000, 3000: .88, .87; .92, .92; .90, .88; 600 of weight 300, 1000: .85, .82; .93,
# .93; .99, .85. With too small a weight shares stay between 0 and 1, and setting them hard loses what was learned.
# 48 calls instead of 144 (300 iterations, weight 1000): .88, 1.06, 1.01, nothing is gained in two of them.
@dataclass(frozen=True)
class Schedule:
    """How long to learn. Errors are in units of the layer-wise roundings', the push to 0 or 1 is a mean of all weights
    (Q-Diffusion: sums, 0.01 of the push): so blocks of any size and scale of activations take the same weight.
    """

    iterations: int = 600                  # Q-Diffusion: 20,000 at a rate of 0.001
    rate: float = 0.02                     # of Adam
    weight: float = 1000.0                 # of the term that drives shares to 0 or 1
    calls: int = 4                         # in a batch, both guidance halves each (Q-Diffusion: 8 samples)


@dataclass(frozen=True)
class Learned:
    """What came of a block."""

    codes: dict[str, list[torch.Tensor]]   # layer -> int32 [out, cols] of each range; empty where nothing was gained
    error: float                           # of outputs on held-out calls, over that of the layer-wise roundings; <= 1


def reconstruct(block: Block, layers: Mapping[str, tuple[CodedWeight, torch.Tensor]], fixed: Mapping[str, CodedWeight],
                seed: int, progress: Progress, schedule: Schedule | None = None) -> Learned:
    """Learn the roundings of a recorded block.

    layers: key -> (uniform codes found layer by layer, the weight they stand for, float32); fixed: key -> what other
    layers of the block are coded to and stay. The same for a seed, whatever the number of threads.
    """
    progress.start(f"learning the roundings of {block.name}", 1)
    job = _Reconstruction(block.module, {block.paths[key]: layer for key, layer in layers.items()},
                          {block.paths[key]: weight for key, weight in fixed.items()}, schedule or Schedule())
    codes, error = job.learn(block.seen, block.held_out, zlib.crc32(f"{seed} {block.name}".encode()), progress)
    progress.finish()
    return Learned({key: codes[block.paths[key]] for key in layers} if codes else {}, error)


class PartRounding:
    """One range of a uniform layer. Its codes are low or low + 1, one of which is the layer-wise code."""

    def __init__(self, part: LutPart, wanted: torch.Tensor):
        """wanted: float32 [out, cols], the weights that the codes stand for."""
        cols = part.channels * part.taps
        codes = unpack_codes(part.codes, part.bits, cols).float()                   # [out, cols]
        zeros = part.zero_points.float().view(len(codes), -1)                       # [out, 1 or groups]
        self.step = _step(part, cols)                                               # [out, 1 or cols]
        self.zero = zeros if zeros.shape[1] == 1 else _spread(zeros, part.scales.group_size, cols)
        place = torch.where(self.step == 0, codes, wanted / torch.where(self.step == 0, 1.0, self.step) + self.zero)
        low = torch.minimum(torch.maximum(place.floor(), codes - 1), codes)
        self.low = low.clamp(0, 2**part.bits - 2)                                   # [out, cols]
        share = torch.lerp((place - self.low).clamp(0, 1), codes - self.low, START)
        self.learned = torch.logit((share - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)).requires_grad_()

    def share(self) -> torch.Tensor:
        """Of a step that is added, 0 to 1, [out, cols]"""
        return (self.learned.sigmoid() * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)

    def weights(self, share: torch.Tensor) -> torch.Tensor:
        """What low + share decodes to, [out, cols]"""
        return (self.low + share - self.zero) * self.step

    def hard(self) -> torch.Tensor:
        """The share that is nearer, 0 or 1, [out, cols]"""
        return (self.share().detach() >= 0.5).float()

    def codes(self) -> torch.Tensor:
        """The codes that are nearer, int32 [out, cols]"""
        return (self.low + self.hard()).to(torch.int32)


def _step(part: LutPart, cols: int) -> torch.Tensor:
    scales = part.scales
    if scales.group is None:
        return scales.row.float()[:, None] * scales.gain
    return _spread(scales.group.float() * scales.gain, scales.group_size, cols)


def _spread(groups: torch.Tensor, size: int, cols: int) -> torch.Tensor:
    """[out, groups] -> [out, cols]"""
    return groups.repeat_interleave(size, 1)[:, :cols]


class LayerRounding:
    """A uniform layer, range by range. target: float32 in the weight's shape, what it was coded for."""

    def __init__(self, coded: CodedWeight, target: torch.Tensor, device: torch.device):
        self.shape = coded.shape
        self.parts = [PartRounding(part, to_matrix(target.to(device), start, stop))
                      for start, stop, _, part in coded.to(device).parts]

    def weight(self, shares: Sequence[torch.Tensor]) -> torch.Tensor:
        """With these shares of its ranges, in its own shape."""
        return from_matrix(join([part.weights(s) for part, s in zip(self.parts, shares, strict=True)], self.shape),
                           self.shape)


class _Reconstruction:
    """One block: a copy of the module, float32, whose coded weights are handed to it."""

    def __init__(self, module: torch.nn.Module, layers: Mapping[str, tuple[CodedWeight, torch.Tensor]],
                 fixed: Mapping[str, CodedWeight], schedule: Schedule):
        self.device = next(module.parameters()).device
        self.module = copy.deepcopy(module).float().requires_grad_(False)
        self.schedule = schedule
        self.fixed = {path: self._decoded(coded) for path, coded in fixed.items()}
        self.start = {path: self._decoded(coded) for path, (coded, _) in layers.items()}
        self.layers = {path: LayerRounding(coded, target, self.device) for path, (coded, target) in layers.items()}
        self.parts = [part for layer in self.layers.values() for part in layer.parts]
        self.size = sum(part.low.numel() for part in self.parts)

    def _decoded(self, coded: CodedWeight) -> torch.Tensor:
        return coded.decode(torch.float32, device=self.device)

    def learn(self, seen: Recorded, held_out: Recorded, seed: int, progress: Progress
              ) -> tuple[dict[str, list[torch.Tensor]], float]:
        """-> (path -> codes of each range, their held-out error over the start's); nothing and 1 where it is no less"""
        if not seen.calls or not held_out.calls:
            return {}, 1.0
        with one_thread():
            before = self.error(self.start, held_out)
            self._descend(seen, torch.Generator().manual_seed(seed), progress)
            after = self.error(self._weights([part.hard() for part in self.parts]), held_out)
        if not after < before:
            return {}, 1.0
        found = {path: [part.codes().cpu() for part in layer.parts] for path, layer in self.layers.items()}
        return found, after / before

    def error(self, weights: Mapping[str, torch.Tensor], calls: Recorded) -> float:
        """Mean over calls of the squared error of the block's output."""
        lost, size = 0.0, self.schedule.calls
        with torch.no_grad():
            for start in range(0, len(calls.calls), size):
                batch = range(start, min(start + size, len(calls.calls)))
                lost += float(self._lost(weights, calls, batch).double())
        return lost / len(calls.calls)

    def _lost(self, weights: Mapping[str, torch.Tensor], calls: Recorded, chosen: Sequence[int]) -> torch.Tensor:
        """Sum of the squared error of the block's output for these calls."""
        asked, wanted = calls.batch(chosen, self.device)
        given = {f"{path}.weight": weight for path, weight in {**self.fixed, **weights}.items()}
        return (functional_call(self.module, given, asked.args, asked.named) - wanted).square().sum()

    def _descend(self, seen: Recorded, random: torch.Generator, progress: Progress) -> None:
        schedule, unit = self.schedule, self.error(self.start, seen) or 1.0
        adam = torch.optim.Adam([part.learned for part in self.parts], schedule.rate)
        size = min(schedule.calls, len(seen.calls))
        for i in range(schedule.iterations):
            progress.advance(1 / schedule.iterations)
            chosen = torch.randperm(len(seen.calls), generator=random)[:size].tolist()
            done = (i / schedule.iterations - WARM_UP) / (1 - WARM_UP)
            with torch.enable_grad():
                shares = [part.share() for part in self.parts]
                loss = self._lost(self._weights(shares), seen, chosen) / (unit * size)
                if done >= 0:
                    beta = BETA_FIRST + (BETA_LAST - BETA_FIRST) * done
                    between = sum((1 - (2 * share - 1).abs().pow(beta)).sum() for share in shares) / self.size
                    loss = loss + schedule.weight * between
                adam.zero_grad()
                loss.backward()
            adam.step()

    def _weights(self, shares: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        found, left = {}, iter(shares)
        for path, layer in self.layers.items():
            found[path] = layer.weight([next(left) for _ in layer.parts])
        return found
