"""Capturing: recorded calls are made again while hooks add up what the coded layers are given."""
from __future__ import annotations

import torch

from ..container import Writer
from ..progress import Progress
from .accumulate import Sums, input_rows
from .calls import Calls
from .file import UPPER, gram_keys, pack_gram
from .groups import Group
from .kept import Kept, Snapshot
from .settings import Picture, Settings


def capture(unet, groups: dict[int, Group], pictures: list[Picture], kept: Kept, settings: Settings, writer: Writer,
            progress: Progress, stage: str = "capturing") -> None:
    """One sweep: what the groups (by their number in the file) see in all recorded calls, into the writer's spool.

    Groups already there are left out; a sweep that was stopped goes on after its last copied picture.
    """
    missing = {index: group for index, group in groups.items() if gram_keys(index, False)[UPPER] not in writer}
    if not missing:
        return
    progress.start(stage, len(pictures))
    sums = {index: Sums(group, unet.device) for index, group in missing.items()}
    snapshot = Snapshot(kept.folder / f"sums-{min(groups)}.npz", sums, progress)
    todo = pictures[snapshot.done:]
    progress.start(stage, max(1, len(todo)))
    for picture in todo:
        capture_picture(unet, kept.calls(picture), picture, sums, settings, progress)
        snapshot.finished(picture.index + 1)
    for index in list(sums):               # those that are not stored when it is stopped are in the last copy
        progress.check()
        _store(index, sums.pop(index), writer)
    snapshot.path.unlink(missing_ok=True)
    progress.finish()


def capture_picture(unet, calls: Calls, picture: Picture, sums: dict[int, Sums], settings: Settings,
                    progress: Progress) -> None:
    """Make one picture's calls again, those with finite numbers, and add up what the groups of `sums` see."""
    good = [i for i, finite in enumerate(calls.finite) if finite]
    now: dict[str, int] = {}
    hooks = [unet.get_submodule(found.group.module).register_forward_pre_hook(
        _listener(index, found, picture, calls, settings, now)) for index, found in sums.items()]
    try:
        for number, call in enumerate(good):
            now.update(call=call, number=number)
            calls.ask(unet, call)
            progress.advance(1 / len(good))
    finally:
        for hook in hooks:
            hook.remove()


def _listener(index: int, sums: Sums, picture: Picture, calls: Calls, settings: Settings, now: dict[str, int]):
    start, distance = picture.tokens

    def hook(module: torch.nn.Module, args: tuple) -> None:
        seed = (settings.seed, picture.index, calls.steps[now["call"]], index)
        if not sums.group.text:
            rows = input_rows(module, args[0], settings.tokens, seed)
        elif now["number"] == 0:           # the text is the same at every step
            tokens = args[0][:, start::distance]
            rows = input_rows(module, tokens, tokens[..., 0].numel(), seed)
        else:
            return
        sums.add(rows, picture.held_out, calls.levels[now["call"]])

    return hook


def _store(index: int, sums: Sums, writer: Writer) -> None:
    """Move a finished group into the spool; what tells that it is there comes last."""
    note = sums.note()
    for held_out in (True, False):
        upper, diagonal = pack_gram(sums.mean(held_out))
        keys = gram_keys(index, held_out)
        for key, tensor in zip(keys, (diagonal, upper), strict=True):
            if key not in writer:
                writer.add(key, tensor, note=note)


def stored_notes(count: int, writer: Writer) -> list[dict]:
    """The notes of all groups in the spool."""
    return [writer.note(gram_keys(index, False)[UPPER]) for index in range(count)]
