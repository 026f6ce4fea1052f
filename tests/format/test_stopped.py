"""A stop while a file is written: nothing of it stays, the spool does, and the next run needs nothing else."""
from __future__ import annotations

import os

import pytest
import torch
from format_samples import fill, write_file
from vqpack.vq_core import publish
from vqpack.vq_core.container import Writer
from vqpack.vq_core.errors import Interrupted
from vqpack.vq_core.plain_writer import PlainWriter
from vqpack.vq_core.progress import Progress


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_stop_while_writing_leaves_the_spool_alone(tmp_path, share):
    """At the first byte, halfway, and when all is written but has no name yet."""
    target = tmp_path / "model.safetensors"
    metadata = {"vqpack.architecture": "test"}
    expected = write_file(tmp_path, metadata=metadata).read_bytes()
    target.unlink()
    with Writer(target, fingerprint="a") as writer:
        fill(writer)
        size, stored = writer.file_bytes(metadata), sum(map(writer.nbytes, writer.keys()))
        stopping = Progress(should_stop=lambda: stopping.total == size and stopping.done >= share * stored)
        with pytest.raises(Interrupted):
            writer.close(metadata, stopping)
        assert stopping.done < size
        writer.abort(keep_spool=True)
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors.spool", "model.safetensors.spool.journal"]
    with Writer(target, fingerprint="a") as writer:
        fill(writer)
        assert writer.close(metadata, Progress()).read_bytes() == expected
    assert os.listdir(tmp_path) == [target.name]


def test_a_stop_while_an_earlier_spool_is_read_leaves_it_as_it_was(tmp_path):
    target = tmp_path / "model.safetensors"
    with Writer(target, fingerprint="a") as writer:
        fill(writer)
        keys = writer.keys()
        writer.abort(keep_spool=True)
    before, asked = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, []
    with pytest.raises(Interrupted):
        Writer(target, fingerprint="a", progress=Progress(should_stop=lambda: asked.append(1) or len(asked) > 2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with Writer(target, fingerprint="a", progress=Progress()) as writer:
        assert writer.keys() == keys


def test_a_stop_when_all_of_an_ordinary_checkpoint_is_written_leaves_nothing(tmp_path):
    writer = PlainWriter(tmp_path / "plain.safetensors", [("a", "F32", (3,))], {})
    writer.write(torch.zeros(3))
    with pytest.raises(Interrupted):
        writer.close(Progress(should_stop=lambda: True))
    writer.abort()
    assert os.listdir(tmp_path) == []


def test_the_system_is_told_to_write_before_the_end(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(publish.os, "fsync", lambda file: told.append(flushed._waiting))
    with open(tmp_path / "file", "wb") as file:
        flushed = publish.Flushed(file)
        for _ in range(2000):
            flushed.wrote(1 << 20)
    assert len(told) > 10 and max(told) < 200 << 20
