"""Coding block by block: what the layers of a block are given once the blocks before it are coded (VQDM's subsets).

VQDM (arXiv 2409.00492): the grams of each part of the UNet are captured from the partly coded student. Here the teacher
answers the same recorded calls beside it, so that with x the teacher's and x' the student's input of a layer W,
C = E x x'ᵀ and H = E x' x'ᵀ, the layer is coded at the weights that give the teacher's outputs best from what it will
really get, W + W (C - H)(H + damping)⁻¹: it also corrects what earlier blocks lost.
"""
from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..encode import from_matrix, to_matrix
from ..encode.feedback import DAMPINGS, add_damping, one_thread
from ..gram import Gram, output_error
from ..progress import Progress
from ..record import parse_blob
from ..tables import table_by_id
from ..writer import Writer
from .accumulate import input_rows
from .calls import Calls
from .file import Calibration
from .groups import Group, sweeps
from .kept import Kept
from .recorded import INPUT, OUTPUT, Block
from .run import read_given
from .settings import Picture, Settings, pictures
from .stages import Stage, plain_stages, unit_stages
from .teacher import CheckpointTeacher

MEMORY = 8 << 30                           # bytes of sums at a time


@dataclass(frozen=True)
class Seen:
    """What one group of layers gets in the partly coded model."""

    gram: Gram                             # of the student's inputs x'
    cross: torch.Tensor | None             # float32 [n, size, size], mean x x'ᵀ; None for grams of single taps
    held_out_cross: torch.Tensor | None

    def target(self, weight: torch.Tensor) -> torch.Tensor:
        """The weights to be coded in place of `weight`, float32 [out, in] or [out, in, kh, kw].

        The damping is the one with the least error on the held-out calls; much of it leaves the weights as they are.
        """
        if self.cross is None or self.gram.held_out is None or self.held_out_cross is None:
            return weight
        matrix, gram = to_matrix(weight, 0, weight.shape[1]), self.gram
        with one_thread():
            learned = matrix @ (self.cross - gram.blocks)[0]                        # W (C - H), [out, cols]
            known = matrix @ (self.held_out_cross - gram.held_out)[0]

            def left(damping: float) -> float:
                change = _solved(learned, gram.blocks, damping)
                return float(output_error(change, gram.held_out).sum() - 2 * (change.double() * known).sum())

            damping = min(DAMPINGS, key=lambda share: (left(share), -share))
            if left(damping) >= 0:
                return weight
            share = gram.held_out_count / (gram.count + gram.held_out_count)
            change = _solved(learned + share * (known - learned), gram.all_inputs(), damping)
        return weight + from_matrix(change, weight.shape)


def _solved(right: torch.Tensor, blocks: torch.Tensor, damping: float) -> torch.Tensor:
    """right (H + damping)⁻¹, float32 [out, cols]"""
    damped = add_damping(blocks.double(), damping)[0]
    return torch.linalg.solve(damped, right.double(), left=False).float()


class Sequential:
    """One run: pictures drawn with the teacher, a student whose coded blocks are put in place one after the other.

    source: a checkpoint with its text encoders. prompts: "built-in", a file or a list; as many of them are drawn as the
    calibration has pictures, with its settings. The first block is coded for the calibration's own grams.
    """

    def __init__(self, source: str | Path, prompts, calibration: Calibration, device: str | None = None,
                 configs: str | Path | None = None, memory: int = MEMORY, progress: Progress | None = None):
        self.teacher = CheckpointTeacher(source, device, configs)
        given = calibration.settings
        self.settings = Settings(**{**given, "size": tuple(given["size"]), "window": tuple(given["window"]),
                                    "device": torch.device(self.teacher.device).type})
        self.pictures = pictures(read_given(prompts, calibration.count, self.teacher.built_in).texts, self.settings)
        self.memory, self.progress = memory, progress or Progress()
        asked = json.dumps([(p.prompt, p.seed) for p in self.pictures], ensure_ascii=False)
        self.fingerprint = hashlib.sha256(asked.encode("utf-8", "replace")).hexdigest()
        self._now: dict[str, Seen] = {}
        self._kept: Kept | None = None
        self._student, self._there = None, set()
        self.block: Block | None = None

    def seen(self, key: str) -> Seen | None:
        """What a layer of the stage that is being coded gets; None: what the calibration says."""
        return self._now.get(key)

    def stages(self, items: Sequence, coded: set[str], writer: Writer, path: Path, fingerprint: str,
               together: Collection[str] = ()) -> Iterator[list]:
        """Items in the order they are to be coded, a list at a time; the next list needs all earlier ones in `writer`.

        coded: keys of those that are going to be coded. together: those whose roundings are learned block by block:
        `block` is then, until the next list is asked for, what the block of this list got and should give.
        path: of the result; pictures are kept beside it for a while.
        A stopped run draws nothing again, captures the block it was in once more and gives the same bytes.
        """
        self._kept = Kept(path.with_name(path.name.removesuffix(".safetensors") + ".parts"), fingerprint)
        try:
            yield from self._stages({item.layer.key: item for item in items}, coded, writer, together)
        finally:
            self._now, self._student, self.block = {}, None, None
            self._kept.close()
            self.teacher.close()
        self._kept.remove()

    def _stages(self, items: dict, coded: set[str], writer: Writer, together: Collection[str]) -> Iterator[list]:
        if all(key in writer for key in items):
            return
        self.teacher.open()
        modules = {layer.key: layer.module for layer in self.teacher.layers()}
        groups, _ = self.teacher.groups(self.teacher.layers(), self.settings)
        numbers = {group.layers: number for number, group in enumerate(groups)}
        groups = [group for group in groups if coded.intersection(group.layers)]
        stages = unit_stages(groups, modules, coded, together) if together else plain_stages(groups)
        later = {key for stage in stages for key in stage.keys}
        yield [item for key, item in items.items() if key not in later]
        for place, stage in enumerate(stages):
            if all(key in writer for key in stage.keys if key in items):
                continue
            later = {key for stage in stages[place:] for key in stage.keys}
            self._draw()
            self._put({key: module for key, module in modules.items() if key not in later}, writer)
            for keys, groups in self._parts(stage):
                self.block = Block(stage.unit, {key: modules[key] for key in keys}) if stage.unit else None
                self._now = self._capture(groups, numbers, f"capturing block {place + 2} of {len(stages) + 1}")
                yield [items[key] for key in keys if key in items]
                self._now, self.block = {}, None

    def _parts(self, stage: Stage) -> list[tuple[Sequence[str], Sequence[Group]]]:
        """Keys and groups of each sweep; two sums a group, H and C. A block whose roundings are learned together is
        captured at once: of SDXL's the largest has 0.9 GB of sums, counted from its shapes.
        """
        if stage.unit is not None:
            return [(stage.keys, stage.groups)]
        return [([key for group in part for key in group.layers], part)
                for part in sweeps(stage.groups, self.memory // 2) if part]

    def _draw(self) -> None:
        todo = [picture for picture in self.pictures if not self._kept.has(picture)]
        self.progress.start("drawing", max(1, len(todo)))
        self.teacher.prepare(todo, self.settings)
        for picture in todo:
            with one_thread():
                self._kept.save(picture, self.teacher.draw(picture, self.settings, self.progress))
        self.progress.finish()

    def _put(self, modules: dict[str, str], writer: Writer) -> None:
        """Give the student what these layers (key -> path in the UNet) decode to, as far as they are coded."""
        if self._student is None:
            self._student = copy.deepcopy(self.teacher.unet)
        for key in sorted(key for key in modules if key in writer and key not in self._there):
            self._there.add(key)
            note = writer.note(key) or {}
            if "layer" in note:
                coded = parse_blob(writer.blob(key), {table: table_by_id(table) for table in note["tables"]}, key)
                weight = self._student.get_submodule(modules[key]).weight
                weight.data.copy_(coded.decode(torch.float32).view(weight.shape))

    def _capture(self, part: Sequence[Group], numbers: dict, stage: str) -> dict[str, Seen]:
        """Layer -> what it gets, for the groups of one sweep; what `block` gets and gives is recorded in it."""
        sums = {numbers[group.layers]: _Pair(group, self.teacher.unet.device) for group in part}
        self.progress.start(stage, len(self.pictures))
        with one_thread():
            for picture in self.pictures:
                self._picture(self._kept.calls(picture), picture, sums)
        self.progress.finish()
        if self.block is not None:
            self.block.module = self._student.get_submodule(self.block.name)
        found = {number: pair.seen() for number, pair in sums.items()}
        return {key: found[number] for number, pair in sums.items() for key in pair.group.layers}

    def _picture(self, calls: Calls, picture: Picture, sums: dict[int, _Pair]) -> None:
        for call in (i for i, finite in enumerate(calls.finite) if finite):
            teacher, student = (self._seen(unet, calls, call, picture, sums)
                                for unet in (self.teacher.unet, self._student))
            if self.block is not None:
                self.block.offer(student.pop(INPUT), teacher.pop(OUTPUT), picture.held_out)
            for number in teacher.keys() & student.keys():
                sums[number].add(teacher[number], student[number], picture.held_out)
            self.progress.advance(1 / len(calls.finite))

    def _seen(self, unet, calls: Calls, call: int, picture: Picture, sums: dict[int, _Pair]) -> dict:
        """In one call: the input vectors that groups get, by number of the group, and what the block gets or gives."""
        found, wanted = {}, len(sums) + (self.block is not None)

        def note(name, value) -> None:
            found[name] = value
            if len(found) == wanted:
                raise _Enough              # what comes after the last of them need not be computed

        def listener(number: int):
            def hook(module: torch.nn.Module, args: tuple) -> None:
                seed = (self.settings.seed, picture.index, calls.steps[call], number)
                note(number, input_rows(module, args[0], self.settings.tokens, seed))
            return hook

        hooks = [unet.get_submodule(pair.group.module).register_forward_pre_hook(listener(number))
                 for number, pair in sums.items()]
        if self.block is not None:
            hooks.append(self.block.listen(unet, unet is self._student, note))
        try:
            calls.ask(unet, call)
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found


class _Enough(Exception):
    """All inputs that were wanted have been seen."""


class _Pair:
    """Sums of x' x'ᵀ and x x'ᵀ of one group, float32 [2 sets, blocks, size, size]; single taps have no x x'ᵀ.

    Corrections learned from each tap alone would add up: neighboring pixels tell the same.
    """

    def __init__(self, group: Group, device: torch.device):
        self.group, self.counts = group, [0, 0]
        shape = (2, group.blocks, group.size, group.size)
        self.own = torch.zeros(shape, device=device)
        self.cross = torch.zeros(shape, device=device) if group.blocks == 1 else None

    def add(self, teacher: torch.Tensor, student: torch.Tensor, held_out: bool) -> None:
        """Add the vectors of one call, [rows, taps, channels] each; calls with NaN or infinity are left out."""
        if not (torch.isfinite(teacher).all() and torch.isfinite(student).all()):
            return
        x, mine = (rows.reshape(rows.shape[0], self.group.blocks, self.group.size).transpose(0, 1)
                   for rows in (teacher, student))
        self.own[int(held_out)].baddbmm_(mine.transpose(1, 2), mine)
        if self.cross is not None:
            self.cross[int(held_out)].baddbmm_(x.transpose(1, 2), mine)
        self.counts[int(held_out)] += mine.shape[1]

    def seen(self) -> Seen | None:
        """The means, on the CPU; None where nothing was seen."""
        if not self.counts[0]:
            return None
        own, cross = ([None if sums is None or not count else (sums[i] / count).cpu()
                       for i, count in enumerate(self.counts)] for sums in (self.own, self.cross))
        return Seen(Gram(own[0], self.counts[0], own[1], self.counts[1]), *cross)
