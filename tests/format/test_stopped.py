"""A stop while a file is written out: nothing of it stays, the spool does, and the next run needs nothing else."""
from __future__ import annotations

import os

import pytest
from format_samples import fill, write_file
from vqpack.vq_core.container import Writer
from vqpack.vq_core.errors import Interrupted
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
