"""A stop in the middle of every stage, in a real ComfyUI (server_cancel.py, cancel_nodes.py): it takes effect soon, and
nothing of the job stays but what the next run goes on from.
"""
from __future__ import annotations

from collections import Counter

import pytest

from . import unets
from .conftest import HERE, make_base, make_checkpoint, observed, text_encoder_shapes
from .test_calibrate import PACK
from .test_server import CONDITIONING

LONGEST = 2.0                              # processor seconds from the stop to its end, all threads together
ALONE = ("reading", "coding", "writing", "written", "continuing", "loading", "decoding at load", "decompress",
         "decompressed")
WITH_A_MODEL = ("drawing", "capturing", "storing", "weighing", "backward", "calibration written")
STAGES = [*(("alone", case) for case in ALONE), *(("with a model", case) for case in WITH_A_MODEL)]


@pytest.fixture(scope="module")
def found(comfyui, files, tmp_path_factory):
    """What server_cancel.py saw of a server with the tiny checkpoint and one that has text encoders."""
    folder = tmp_path_factory.mktemp("cancel")
    shapes = {**unets.narrow(), **unets.vae(), **text_encoder_shapes(768, 3, 1280, 1)}
    whole = make_checkpoint(folder / "whole.safetensors", shapes)
    packs = {"testing": CONDITIONING, "few": PACK, "cancel_nodes": (HERE / "cancel_nodes.py").read_text("utf-8")}
    base = make_base(folder / "base", packs, checkpoints=files / "tiny.safetensors")
    whole.rename(base / "models" / "checkpoints" / whole.name)
    return observed("server_cancel.py", comfyui, base)


def test_every_stage_was_stopped(found):
    assert found["warm"] == ["execution_success"] * 3
    assert [(kind, case) for kind in ("alone", "with a model") for case in found[kind]["cases"]] == STAGES


@pytest.mark.parametrize(("kind", "case"), STAGES)
def test_a_stop_takes_effect_at_once(found, kind, case):
    stopped = found[kind]["cases"][case]
    assert stopped["end"] == "execution_interrupted", stopped
    assert stopped["seconds"] <= LONGEST
    assert stopped["after"] == 0           # where a function was held: it was not called again


@pytest.mark.parametrize(("kind", "case"), STAGES)
def test_nothing_of_the_job_stays_in_the_process(found, kind, case):
    """The host's own model stays, and may have let go of the pictures it drew."""
    stopped, before = found[kind]["cases"][case], found[kind]["before"]
    more = Counter(stopped["kinds"]) - Counter(before["kinds"])
    assert stopped["bytes"] <= before["bytes"] and not more, more
    assert stopped["loaded"] <= before["loaded"]
    assert stopped["threads"] == [] and stopped["open"] == []


@pytest.mark.parametrize(("kind", "case"), STAGES)
def test_on_the_disk_is_only_what_a_run_goes_on_from(found, kind, case):
    """The spool with its journal, and a calibration's pictures (docs/format.md, docs/calibration.md)."""
    new = set(found[kind]["cases"][case]["files"]) - set(found["alone"]["files"])
    assert all(name.endswith((".spool", ".spool.journal")) or ".vqcal.parts/" in name and name.endswith(".npz")
               for name in new), new


def test_freed_the_host_has_what_it_had(found):
    """Also of the jobs that had a model."""
    assert found["after"]["bytes"] == found["alone"]["before"]["bytes"]
    assert found["after"]["loaded"] == found["alone"]["before"]["loaded"] == 0
