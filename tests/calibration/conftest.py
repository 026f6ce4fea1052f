"""The testbed's captions, and one small calibration of it that several tests read."""
from __future__ import annotations

import importlib.util

import pytest

# full_columns: convolutions of 64 channels whole, wider ones tap by tap.
QUICK = {"steps": 2, "timesteps": 2, "guidance": 3.0, "sensitivity_calls": 1, "full_columns": 600, "device": "cpu"}


@pytest.fixture(scope="session")
def captions(repository):
    """caption(index) of a scene that the testbed was not trained on."""
    spec = importlib.util.spec_from_file_location("testbed_scenes", repository / "testbed" / "scenes.py")
    scenes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenes)
    return lambda index: scenes.scene(5, index)[1]


@pytest.fixture(scope="session")
def quick():
    """Arguments of calibrate() that take seconds."""
    return dict(QUICK)


@pytest.fixture(scope="session")
def small_run(testbed, captions, quick, tmp_path_factory, asked):
    """(a calibration of the testbed, the longest it did not ask whether to stop): four captions, one held out."""
    import diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl  # noqa: F401  (seconds, no question)
    from vqpack.vq_core.calibration.run import calibrate

    progress, prompts = asked(), [captions(i) for i in range(4)]
    result = calibrate(testbed, tmp_path_factory.mktemp("small") / "small", prompts=prompts, progress=progress, **quick)
    return result, progress.longest()


@pytest.fixture(scope="session")
def small(small_run):
    """The calibration."""
    return small_run[0]


@pytest.fixture
def pipe(testbed):
    """The testbed's pipeline, fresh."""
    from vqpack.vq_core.compare.models import Models, open_checkpoint

    checkpoint = open_checkpoint(testbed, "A")
    return Models((checkpoint,), "cpu", None).pipeline(checkpoint)
