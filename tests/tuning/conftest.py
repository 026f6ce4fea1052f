"""A coarse file of the testbed, and one finished fine-tune of it that several tests read."""
from __future__ import annotations

import importlib.util

import pytest

QUICK = {"steps": 3, "guidance": 3.0, "size": (64, 64), "device": "cpu"}       # of the sampler


@pytest.fixture(scope="session")
def captions(repository):
    """caption(index) of a scene that the testbed was not trained on."""
    spec = importlib.util.spec_from_file_location("testbed_scenes", repository / "testbed" / "scenes.py")
    scenes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenes)
    return [scenes.scene(6, i)[1] for i in range(4)]


@pytest.fixture(scope="session")
def coarse(testbed, tmp_path_factory):
    """The testbed's UNet at 2 bits, window 8, nothing else."""
    from vqpack.vq_core.quantize import quantize

    return quantize(testbed, tmp_path_factory.mktemp("coarse") / "coarse", bits=2, window=8, parts=("unet",)).path


@pytest.fixture(scope="session")
def quick(captions):
    """Arguments of tune() that take seconds: four captions, one of them held out."""
    from vqpack.vq_core.tuning.settings import Tuning

    return {"prompts": captions, "tuning": Tuning(steps=6, batch=4, together=4, warmup=1, checks=2, rate=2.0), **QUICK}


@pytest.fixture(scope="session")
def tuned(coarse, testbed, quick, tmp_path_factory):
    """The result of one run."""
    from vqpack.vq_core.tuning.run import tune

    return tune(coarse, testbed, tmp_path_factory.mktemp("tuned") / "tuned", **quick)


@pytest.fixture(scope="session")
def lessons(coarse, testbed, captions, tmp_path_factory):
    """What the teacher says of the same calls that `tuned` learned from, recorded once more."""
    from vqpack.vq_core.calibration.settings import pictures, preset_settings
    from vqpack.vq_core.compare.models import open_checkpoint
    from vqpack.vq_core.progress import Progress
    from vqpack.vq_core.tuning.lessons import Lessons
    from vqpack.vq_core.tuning.teacher import CheckpointTeacher

    settings = preset_settings("base", QUICK["size"], steps=3, timesteps=3, guidance=3.0, held_out_share=0.2)
    found = Lessons(tmp_path_factory.mktemp("lessons"), pictures(tuple(captions), settings))
    checkpoint = open_checkpoint(testbed, "A")
    CheckpointTeacher(checkpoint, checkpoint, "cpu").record(found, None, "teacher", settings, Progress())
    found.sort_out("testbed")
    return found
