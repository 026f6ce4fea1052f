"""Coding short windows of trellis sequences again: free bits inside, everything before and behind stays as it is.

A window is a stretch of steps of one column. Its first state follows from the bits before it; the steps behind it keep
their bits, but ceil(L / B) of them have states that see the window's last bits, so their entries change too: they are
coded along with their bits held, after which the state is the old one again.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.gradients import trellis_states
from ...kernels.packing import UNIT_STEPS, pack_trellis, unpack_trellis
from ...kernels.parts import TrellisPart

WINDOW = 16                                # steps coded again together when codes flip: one group
AT_ONCE = 1 << 22                          # states x windows: 17 MB of path costs


@dataclass(frozen=True)
class Windows:
    """Where windows are: column and first step of each, int64 [n]; all `steps` long, none in another's tail."""

    columns: torch.Tensor
    first: torch.Tensor
    steps: int


def tail_steps(part: TrellisPart) -> int:
    """Steps behind a window until the state has forgotten its bits."""
    return -(-part.window // part.step_bits)


def possible(part: TrellisPart, steps: int, shift: int) -> Windows:
    """All windows that begin at shift, shift + 2 steps, ... of a column and whose tails end inside it.

    Every other stretch only, so that no window lies in another one's tail (which must not be longer than a window).
    """
    tail, length = tail_steps(part), part.out_features // part.vector
    cols = part.channels * part.taps
    stop = length - steps - tail + 1
    first = torch.arange(shift, stop, 2 * steps) if tail <= steps and shift < stop else torch.arange(0)
    return Windows(torch.arange(cols).repeat_interleave(len(first)), first.repeat(cols), steps)


def count(part: TrellisPart, steps: int = WINDOW) -> int:
    """Groups of a part: stretches of `steps` steps in all its columns."""
    return part.channels * part.taps * -(-(part.out_features // part.vector) // steps)


def places(part: TrellisPart, turn: int) -> Windows:
    """The groups that may flip in a turn: every other one."""
    return possible(part, WINDOW, WINDOW * (turn % 2))


def picked(windows: Windows, mask: torch.Tensor) -> Windows:
    """Some of the windows."""
    return Windows(windows.columns[mask], windows.first[mask], windows.steps)


def covered(part: TrellisPart) -> int:
    """Weights of one group."""
    return WINDOW * part.vector


def sums(values: torch.Tensor, part: TrellisPart, windows: Windows) -> torch.Tensor:
    """Sums of values [out, cols] over windows, float32 [n] on the CPU."""
    rows = windows.first[:, None] * part.vector + torch.arange(windows.steps * part.vector)
    return values[rows.to(values.device), windows.columns[:, None].to(values.device)].sum(1).cpu()


def error(part: TrellisPart, integers: torch.Tensor) -> float:
    """Usual coding error of an integer: the table's root mean square, halved with every bit a weight."""
    return float(part.table.float().square().mean().sqrt()) * 2.0 ** (-part.step_bits / part.vector)


def differs(part: TrellisPart, windows: Windows, codes: torch.Tensor) -> torch.Tensor:
    """Which of the windows have other codes now, bool [n]."""
    steps = unpack_trellis(part.codes, part.step_bits, part.codes.shape[0] * UNIT_STEPS).cpu()
    rows = windows.first[:, None] + torch.arange(windows.steps)
    return (steps[rows, windows.columns[:, None]] != codes).any(1)


def changed(old: TrellisPart, new: TrellisPart) -> int:
    """Groups whose codes differ."""
    length = old.out_features // old.vector
    steps = [unpack_trellis(part.codes, part.step_bits, part.codes.shape[0] * UNIT_STEPS)[:length]
             for part in (old, new)]
    return sum(int(some.any(0).sum()) for some in (steps[0] != steps[1]).split(WINDOW))


def recode(part: TrellisPart, targets: torch.Tensor, windows: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """Best bits of each window for targets, float32 [out_features, cols] in table steps.

    -> step codes, int64 [n, steps]; and by how much the squared error of window and tail falls, float32 [n], never
    below 0 but for rounding.
    """
    most = max(1, AT_ONCE >> part.window)
    found = [_recode(part, targets, Windows(windows.columns[i:i + most], windows.first[i:i + most], windows.steps))
             for i in range(0, len(windows.first), most)]
    if not found:
        return torch.zeros(0, windows.steps, dtype=torch.int64), torch.zeros(0)
    return torch.cat([codes for codes, _ in found]), torch.cat([gain for _, gain in found])


def replaced(part: TrellisPart, windows: Windows, codes: torch.Tensor) -> torch.Tensor:
    """The part's packed codes with these windows' codes, int64 [n, steps], in place of theirs."""
    padded = part.codes.shape[0] * UNIT_STEPS
    steps = unpack_trellis(part.codes, part.step_bits, padded)                     # int32 [padded, cols]
    rows = windows.first[:, None] + torch.arange(windows.steps)
    steps[rows.to(steps.device), windows.columns[:, None].to(steps.device)] = codes.to(steps)
    return pack_trellis(steps, part.step_bits)


def _recode(part: TrellisPart, targets: torch.Tensor, windows: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    device, tail = targets.device, tail_steps(part)
    states = trellis_states(part, 0, part.codes.shape[0])                          # [padded steps, cols]
    columns, first = windows.columns.to(device), windows.first.to(device)
    rows = first[:, None] + torch.arange(windows.steps + tail, device=device)      # [n, steps + tail]
    old = states[rows, columns[:, None]]
    lanes = [targets[rows * part.vector + lane, columns[:, None]] for lane in range(part.vector)]
    wanted = torch.stack(lanes, 2)                                                 # [n, steps + tail, vector]
    table = part.table.float()
    before = (wanted - table[old]).square().sum((1, 2))
    start = _states_before(part, states, columns, first)
    codes, after = _viterbi(wanted, table, part.step_bits, start, old[:, windows.steps:])
    return codes[:, :windows.steps].cpu(), (before - after).cpu()


def _states_before(part: TrellisPart, states: torch.Tensor, columns: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    inside = states[(first - 1).clamp(min=0), columns]
    last = torch.where(columns % part.chain == 0, 0, states[-1, (columns - 1).clamp(min=0)])
    return torch.where(first > 0, inside, last)


def _viterbi(wanted: torch.Tensor, table: torch.Tensor, step_bits: int, start: torch.Tensor, held: torch.Tensor
             ) -> tuple[torch.Tensor, torch.Tensor]:
    """wanted [n, steps, vector], start [n]; held: old states of the last steps, whose bits stay, [n, tail].

    -> step codes [n, steps], squared error [n] of the best path.
    """
    n, steps, _ = wanted.shape
    size, branches = len(table), 2**step_bits
    cost = wanted.new_full((n, size), float("inf"))
    cost[torch.arange(n), start] = 0.0
    bits = torch.arange(size, device=wanted.device) & (branches - 1)               # of each new state
    came = []
    for step in range(steps):
        least, origin = cost.view(n, branches, size // branches).min(1)            # [n, size / branches]
        came.append(origin.to(torch.uint8))
        cost = least.repeat_interleave(branches, 1)
        for lane in range(table.shape[1]):
            cost = cost + (wanted[:, step, lane, None] - table[:, lane]).square()
        if step >= steps - held.shape[1]:
            kept = held[:, step - steps + held.shape[1]] & (branches - 1)
            cost = cost.masked_fill(bits != kept[:, None], float("inf"))
    end = held[:, -1] if held.shape[1] else cost.argmin(1)
    total, state, path = cost[torch.arange(n), end], end, []
    for step in range(steps - 1, -1, -1):
        path.append(state & (branches - 1))
        above = state >> step_bits
        state = above | (came[step][torch.arange(n), above].long() * (size // branches))
    return torch.stack(path[::-1], 1), total
