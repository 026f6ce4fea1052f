"""Coding block by block: what is captured, what is corrected, that a stopped run goes on to the same bytes."""
from __future__ import annotations

import copy
import json
import re
import shutil

import pytest
import torch
from vqpack.vq_core.arch import layers as arch_layers
from vqpack.vq_core.calibration import Calibration, reconstruct
from vqpack.vq_core.calibration.kept import Kept
from vqpack.vq_core.calibration.sequential import Seen, Sequential
from vqpack.vq_core.calibration.stages import by_block
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.container import Reader, Writer
from vqpack.vq_core.encode import adaround
from vqpack.vq_core.errors import Interrupted, PlanError
from vqpack.vq_core.gram import Gram
from vqpack.vq_core.plan import Plan
from vqpack.vq_core.planning.budget import MARGIN, file_bytes
from vqpack.vq_core.progress import Progress
from vqpack.vq_core.quantize import quantize
from vqpack.vq_core.source import open_source
from vqpack.vq_core.spec import DenseSpec, TrellisSpec, UniformSpec
from vqpack.vq_core.text_encoders import stored_items

WORDS = ("input_blocks.1.0.in_layers", "middle_block.0.in_layers", "middle_block.1.transformer_blocks.0.attn2.to_k",
         "output_blocks.0.0.in_layers")


LAST = "capturing block 4 of 4"            # the text, which layers of several blocks see, is the second one's


@pytest.fixture(scope="module")
def plan(testbed):
    """Four layers of three blocks; one of them sees the text."""
    with open_source(testbed) as source:
        coded = [layer.key for layer in arch_layers(source) if layer.component == "unet" and not layer.dense]
    chosen = [next(key for key in coded if word in key) for word in WORDS]
    specs = [TrellisSpec(bits=1, window=8) if "attn2" in key else UniformSpec(bits=2) for key in chosen]
    return Plan(unet=DenseSpec(), layers=tuple(zip(chosen, specs, strict=True)))


@pytest.fixture(scope="module")
def prompts(captions):
    return [captions(i) for i in range(4)]


def blobs(path, plan):
    with Reader(path) as reader:
        return [reader.tensor(key) for key, _ in plan.layers], json.loads(reader.metadata["vqpack.settings"])


@pytest.fixture
def students(monkeypatch, plan):
    """The student's weights of the plan's layers, and which of them the teacher's are, after each change."""
    put, original = [], Sequential._put

    def recorded(self, *args):
        original(self, *args)
        modules = {layer.key: layer.module for layer in self.teacher.layers()}
        both = [[unet.get_submodule(modules[key]).weight.clone() for key, _ in plan.layers]
                for unet in (self._student, self.teacher.unet)]
        put.append((both[0], [torch.equal(a, b) for a, b in zip(*both, strict=True)]))

    monkeypatch.setattr(Sequential, "_put", recorded)
    return put


class Stages(Progress):
    """Notes the stages; copies a folder as it is when the last block is about to be captured."""

    def __init__(self, folder=None, copy_to=None):
        super().__init__()
        self.folder, self.copy_to, self.seen = folder, copy_to, []

    def start(self, stage, *args, **named):
        self.seen.append(stage)
        if stage == LAST and self.copy_to:
            shutil.copytree(self.folder, self.copy_to)
        super().start(stage, *args, **named)


def test_later_blocks_are_coded_for_what_earlier_ones_give(testbed, small, plan, prompts, tmp_path, students):
    arguments = {"plan": plan, "calibration": small.path, "parts": ("unet",)}
    plain = quantize(testbed, tmp_path / "plain", **arguments)
    there, killed = tmp_path / "there", tmp_path / "killed"
    there.mkdir()
    found = quantize(testbed, there / "found", sequential=prompts, progress=Stages(there, killed), **arguments)
    (before, _), (after, settings) = blobs(plain.path, plan), blobs(found.path, plan)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, True, False]                      # the first block's and the text's stay
    assert settings["sequential"]["pictures"] == 4 and not list(there.glob("*.parts"))
    with Reader(found.path) as reader:
        decoded = [reader.weight(key).decode() for key, _ in plan.layers]
    # What sees the text is coded first: it gets the same whatever is coded before.
    assert [kept for _, kept in students] == [[False, True, False, True], [False, False, False, True]]
    assert torch.equal(students[1][0][0], decoded[0]) and torch.equal(students[1][0][1], decoded[1])
    assert quantize(testbed, there / "found", sequential=prompts, **arguments).already_there
    assert MARGIN <= foreseen(testbed, plan, settings) - found.file_bytes < 1500

    again = Stages()                       # goes on where a killed run was
    resumed = quantize(testbed, killed / "found", sequential=prompts, progress=again, **arguments)
    assert [stage for stage in again.seen if stage.startswith("capturing")] == [LAST]
    assert resumed.path.read_bytes() == found.path.read_bytes() and [x.name for x in killed.iterdir()] == [
        resumed.path.name]


@pytest.fixture
def few(monkeypatch):
    """Few iterations, layer by layer (which then do little) and, of a higher rate, together."""
    alone, together = (made.__init__.__defaults__ for made in (adaround.Schedule, reconstruct.Schedule))
    monkeypatch.setattr(adaround.Schedule.__init__, "__defaults__", (5, *alone[1:]))
    monkeypatch.setattr(reconstruct.Schedule.__init__, "__defaults__", (80, 0.1, *together[2:]))


def block_plan(testbed):
    """A residual block, a transformer block that sees the text, and a layer after them that stands for itself."""
    with open_source(testbed) as source:
        coded = [layer.key for layer in arch_layers(source) if layer.component == "unet" and not layer.dense]
    chosen = [key for key in coded if re.search(r"input_blocks\.1\.0|middle_block\.1\.(transf|proj_out)", key)]
    return Plan(unet=DenseSpec(), layers=tuple((key, UniformSpec(3, rounding="block")) for key in chosen))


class Killed(Exception):
    """The process is gone."""


def test_blocks_are_rounded_together_and_a_killed_run_gives_the_same_bytes(testbed, small, prompts, tmp_path, few,
                                                                          monkeypatch):
    plan = block_plan(testbed)
    arguments = {"plan": plan, "calibration": small.path, "parts": ("unet",), "sequential": prompts}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = quantize(testbed, tmp_path / "whole" / "a", **arguments)
    blocks = whole.blocks()
    assert len(blocks) == 2 and all(error <= 1 for error in blocks.values()) and min(blocks.values()) < 1
    alone = [layer.name for layer in whole.layers if layer.block is None]
    assert len(alone) == 1 and "proj_out" in alone[0]
    assert re.match(r"[12] of 2 blocks took roundings learned together; held-out", whole.blocks_in_words())
    assert {layer.spec["bits"] for layer in whole.layers} == {3}

    add, count = Writer.add_blob, []

    def stop(self, key, *args, **named):
        if len(count) == 5:                # some layers of the second block are written, others not
            raise Killed
        count.append(key)
        add(self, key, *args, **named)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Writer, "add_blob", stop)
        quantize(testbed, tmp_path / "killed" / "a", **arguments)
    assert not list((tmp_path / "killed").glob("*.safetensors"))
    stages = Stages()
    again = quantize(testbed, tmp_path / "killed" / "a", progress=stages, **arguments)
    assert again.path.read_bytes() == whole.path.read_bytes() and again.blocks() == blocks
    assert [stage for stage in stages.seen if stage.startswith("learning")] == [
        "learning the roundings of mid_block.attentions.0.transformer_blocks.0"]
    found = quantize(testbed, tmp_path / "whole" / "a", **arguments)
    assert found.already_there and found.blocks() == blocks


def test_a_run_stopped_while_learning_leaves_nothing_half_written(testbed, small, prompts, tmp_path, few):
    progress = Progress(should_stop=lambda: progress.stage.startswith("learning") and progress.done > 0.5)
    with pytest.raises(Interrupted):
        quantize(testbed, tmp_path / "out", plan=block_plan(testbed), calibration=small.path, parts=("unet",),
                 sequential=prompts, progress=progress)
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.part"))


def foreseen(testbed, plan, settings):
    """Bytes that the planner allows for the file, which knows of no --sequential."""
    with open_source(testbed) as source:
        items = [item for item in stored_items(source, arch_layers(source))
                 if item.layer.component not in ("te1", "te2", "vae")]
        return file_bytes(source, items, plan, {k: v for k, v in settings.items() if k != "sequential"}, {})


def test_a_student_that_lost_nothing_gives_the_calibrations_grams(testbed, small, prompts, tmp_path):
    with Calibration(small.path) as calibration:
        run = Sequential(testbed, prompts, calibration, "cpu")
        run.teacher.open()
        groups, _ = run.teacher.groups(run.teacher.layers(), run.settings)
        names = [block[0].module.split(".")[:2] for block in by_block(groups)]
        assert [name[0] for name in names] == ["down_blocks"] * 3 + ["mid_block"] + ["up_blocks"] * 3
        run._kept, run._student = Kept(tmp_path / "kept", "0" * 64), copy.deepcopy(run.teacher.unet)
        try:
            run._draw()
            block = [group for group in by_block(groups)[3] if not group.text][:3]
            found = run._capture(block, {group.layers: number for number, group in enumerate(groups)}, "capturing")
        finally:
            run._kept.close()
        for group in block:
            seen, expected = found[group.layers[0]], calibration.gram(group.layers[0])
            assert (seen.gram.count, seen.gram.held_out_count) == (expected.count, expected.held_out_count)
            size = float(expected.blocks.abs().max())
            assert torch.allclose(seen.gram.blocks, expected.blocks, atol=1e-4 * size)
            assert torch.allclose(seen.gram.held_out, expected.held_out, atol=1e-4 * size)
            if group.blocks == 1:
                assert torch.allclose(seen.cross, seen.gram.blocks, atol=1e-6 * size)
            else:
                assert seen.cross is None


def inputs(count, seed, noise):
    """x of the teacher, x' of a student whose inputs are damped and noisy."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(24, 24, generator=torch.Generator().manual_seed(9)) / 5
    x = torch.randn(count, 24, generator=g) @ mix
    return x, 0.8 * x + noise * torch.randn(count, 24, generator=g)


def seen_of(count, noise, seed=0):
    sets = [inputs(count, seed + i, noise) for i in range(2)]
    means = [[(a.t() @ b / count)[None] for a, b in ((mine, mine), (x, mine))] for x, mine in sets]
    return Seen(Gram(means[0][0], count, means[1][0], count), means[0][1], means[1][1])


@pytest.mark.parametrize("shape", [(10, 24), (10, 6, 2, 2)])
def test_the_target_makes_up_for_what_the_inputs_lost(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x, mine = inputs(20000, 7, 0.1)

    def left(tried):
        flat = [w if w.dim() == 2 else w.permute(0, 2, 3, 1).flatten(1) for w in (weight, tried)]
        return float((x @ flat[0].t() - mine @ flat[1].t()).square().sum())

    best = torch.linalg.lstsq(mine, x).solution
    flat = weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)
    least = float((x @ flat.t() - mine @ best @ flat.t()).square().sum())
    found = left(seen_of(2000, 0.1).target(weight))
    assert found < 0.5 * left(weight) and found < 1.1 * least
    few = [left(seen_of(8, 0.1, 100 * seed).target(weight)) for seed in range(5)]
    assert sum(few) / 5 < left(weight)                             # of eight samples at least no harm
    same = seen_of(500, 0.1)
    unharmed = Seen(same.gram, same.gram.blocks, same.gram.held_out)
    assert torch.equal(unharmed.target(weight), weight)
    assert Seen(same.gram, None, None).target(weight) is weight


def test_what_cannot_be_done_is_refused_in_a_sentence(testbed, small, prompts, tmp_path, capsys):
    with pytest.raises(PlanError, match="--calibration"):
        quantize(testbed, tmp_path / "out", sequential=prompts)
    for named in ({}, {"calibration": small.path}):
        with pytest.raises(PlanError, match="--sequential"):
            quantize(testbed, tmp_path / "out", method="uniform", rounding="block", **named)
    with open_source(testbed) as source, pytest.raises(PlanError, match="give its path"):
        quantize(source, tmp_path / "out", calibration=small.path, sequential=prompts)
    code = main(["quantize", str(testbed), "-o", str(tmp_path / "out"), "--calibration", str(small.path),
                 "--sequential", "--prompts", str(tmp_path / "none.txt")])
    assert code == 1 and "the prompt file 'none.txt' is not there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
