"""Abandoned spools are swept; young ones, locked ones and files of others never."""
from __future__ import annotations

import os
import time

import pytest
from format_samples import fill, write_file
from vqpack.vq_core.container import Writer
from vqpack.vq_core.locked_files import ABANDONED_DAYS


def age(folder, days: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - days * 86400,) * 2)


@pytest.fixture
def left(tmp_path):
    """What a run that was stopped leaves, with the `.part` of one that was killed."""
    writer = Writer(tmp_path / "old.safetensors", fingerprint="old")
    fill(writer, cases=("one",))
    writer.abort(keep_spool=True)
    (tmp_path / "old.safetensors.part").write_bytes(b"half")
    assert len(os.listdir(tmp_path)) == 3
    return tmp_path


def test_an_abandoned_spool_goes_with_all_that_belongs_to_it(left):
    age(left, ABANDONED_DAYS + 1)
    write_file(left)
    assert os.listdir(left) == ["model.safetensors"]


def test_a_young_one_stays(left):
    age(left, ABANDONED_DAYS - 1)
    write_file(left)
    assert len(os.listdir(left)) == 4


def test_its_own_run_goes_on_from_it_however_old(left):
    age(left, 10 * ABANDONED_DAYS)
    with Writer(left / "old.safetensors", fingerprint="old") as writer:
        assert "one.weight" in writer
        fill(writer)
        writer.close({})
    assert os.listdir(left) == ["old.safetensors"]


def test_one_that_a_living_run_holds_stays(left):
    living = Writer(left / "old.safetensors", fingerprint="old")
    age(left, ABANDONED_DAYS + 1)
    write_file(left)
    assert "old.safetensors.spool" in os.listdir(left)
    fill(living)
    living.close({})
    assert sorted(os.listdir(left)) == ["model.safetensors", "old.safetensors"]


@pytest.mark.parametrize("journal", [None, b"", b"other\n", b'{"journal": "vqpack spool 9"}\n',
                                     b'["vqpack spool 1"]\n'])
def test_files_of_others_stay(tmp_path, journal):
    (tmp_path / "x.safetensors.spool").write_bytes(b"data")
    if journal is not None:
        (tmp_path / "x.safetensors.spool.journal").write_bytes(journal)
    age(tmp_path, 10 * ABANDONED_DAYS)
    before = sorted(os.listdir(tmp_path))
    write_file(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "model.safetensors"])
