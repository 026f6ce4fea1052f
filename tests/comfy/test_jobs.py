"""A job is followed by its id alone: from its place in the queue to its end, by any window, in a real server."""
from __future__ import annotations

import pytest

from .conftest import make_base, observed


@pytest.fixture(scope="module")
def found(comfyui, files, tmp_path_factory):
    base = make_base(tmp_path_factory.mktemp("jobs"), checkpoints=files / "tiny.safetensors")
    return observed("server_jobs.py", comfyui, base)


def test_a_job_from_the_queue_to_its_file(found):
    done = found["done"]
    assert done["states"] in (["running", "done"], ["waiting", "running", "done"]) and done["rising"]
    assert done["last"]["file"] == "made.safetensors" and done["last"]["share"] == 1
    assert done["last"]["text"] == "made.safetensors is ready" and "coding" in done["texts"]
    assert "data:image/png;base64" in done["pictures"]


def test_another_one_waits_and_shows_nothing_of_the_first(found):
    assert found["later"] == {"state": "waiting", "share": 0, "text": "", "file": "", "picture": ""}
    assert found["then"]["states"][-1] == "done" and found["then"]["last"]["file"] == "later.safetensors"


def test_it_can_be_asked_again(found):
    assert found["again"]["state"] == "done" and found["again"]["file"] == "made.safetensors"
    assert found["again"]["picture"] == ""              # another one has been drawn since, and it is not shown for this


def test_a_job_that_was_done_already_names_its_file(found):
    assert found["cached"]["last"]["state"] == "done" and found["cached"]["last"]["file"] == "made.safetensors"


def test_stopped_and_failed(found):
    assert found["stopped"]["last"]["state"] == "stopped" and "half-written" in found["stopped"]["last"]["text"]
    failed = found["failed"]["last"]
    assert failed["state"] == "failed" and "trellis bits" in failed["text"] and "\n" not in failed["text"]
    assert [name for name in found["files"] if name.endswith(".safetensors")] == ["later.safetensors",
                                                                                  "made.safetensors"]


def test_a_prompt_of_another_kind_has_no_file(found):
    assert found["other"]["last"]["state"] == "done" and found["other"]["last"]["text"] == "done"
    assert found["other"]["last"]["file"] == ""


def test_unknown_ids(found):
    assert {answer["state"] for answer in found["unknown"]} == {"unknown"} and found["long"] == 404
