"""Damaged files: 500 seeded mutations, each refused or reported; forged records, refused or decoded without harm."""
from __future__ import annotations

import contextlib
import json
import re
import struct
import time
from collections import Counter

import pytest
from format_mutations import CASES, KINDS, contents, forge, mutate, outcome, touch
from format_samples import write_file
from vqpack.vq_core.container import Reader
from vqpack.vq_core.errors import FormatError, VQError
from vqpack.vq_core.verify import verify_file

SECONDS = 5.0           # of processor time, a hundred times what the slowest takes


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_file(tmp_path_factory.mktemp("fuzz"), cases=CASES)


def test_mutations_are_refused_or_reported(original, tmp_path):
    data, known, counts, kinds = original.read_bytes(), contents(original), Counter(), set()
    path = tmp_path / "damaged.safetensors"
    for seed in range(500):
        kind, changed = mutate(data, seed)
        path.write_bytes(changed)
        started = time.process_time()
        try:
            counts[outcome(path, known)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} ({kind}): {type(error).__name__}: {error}") from error
        assert time.process_time() - started < SECONDS, (seed, kind)
        kinds.add(kind)
    assert counts["refused"] > 50 and counts["reported"] > 50 and kinds == set(KINDS)


def test_forged_records_do_no_harm(original, tmp_path):
    data, known, counts = original.read_bytes(), contents(original), Counter()
    path = tmp_path / "forged.safetensors"
    for seed in range(200):
        path.write_bytes(forge(data, seed))
        assert verify_file(path)                         # its modelspec hash is still the original's
        try:
            with Reader(path) as reader:
                reader.check_tensors()
                decoded = touch(reader, known)
                assert decoded <= 64 * 8 * len(data)     # no more than 64 weights from one bit
                counts["decoded" if decoded else "refused"] += 1
        except VQError:
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert counts["refused"] > 50 and counts["decoded"] > 5


def test_memory_follows_the_file_not_its_claims(original, tmp_path):
    resource = pytest.importorskip("resource")
    path, data = tmp_path / "x.safetensors", original.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    known = contents(original)
    for seed in range(300):
        path.write_bytes(forge(data, 1000 + seed))
        with contextlib.suppress(VQError), Reader(path, mapped=False) as reader:
            touch(reader, known)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10     # KiB


@pytest.mark.parametrize(("change", "text"), [
    (lambda d: b"", "empty"), (lambda d: d[:5], "5 bytes"), (lambda d: d[:-1], "truncated"),
    (lambda d: d[:300], "truncated"),
    (lambda d: d + b"x", "behind its last"), (lambda d: b"\xff" * 8 + d[8:], "header claims"),
    (lambda d: b"PK\3\4" + bytes(100), "not a safetensors"), (lambda d: b"GGUF" + d[4:], "header claims"),
    (lambda d: d.replace(b'"vqpack.version":"1"', b'"vqpack.version":"7"'), "version '7'.*version 1"),
    (lambda d: d.replace(b"VQWEIGHT\1", b"VQWEIGHT\2", 1), "checksum"),
    (lambda d: d.replace(b'"test"', b'"sdxl"'), "edited"),
    (lambda d: respelled(d), "another program"),
    (lambda d: d[:-70] + bytes([d[-70] ^ 4]) + d[-69:], "checksum"),
])
def test_verify_says_what_is_wrong(original, tmp_path, change, text):
    path = tmp_path / "x.safetensors"
    path.write_bytes(change(original.read_bytes()))
    problems = verify_file(path)
    assert any(re.search(text, problem) for problem in problems), problems


def respelled(data: bytes) -> bytes:
    """The same header in another order of keys: same length, same checksum, other bytes."""
    end = 8 + struct.unpack_from("<Q", data)[0]
    table = json.loads(data[8:end])
    text = json.dumps(dict(reversed(table.items())), separators=(",", ":"), ensure_ascii=False).encode()
    return data[:8] + text.ljust(end - 8) + data[end:]


def test_missing_file_and_folder_are_one_sentence(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FormatError, match="cannot open"):
            Reader(path)
        assert len(verify_file(path)) == 1


def test_loader_warns_of_an_edited_header_and_refuses_damaged_tensors(original, tmp_path):
    data, path = original.read_bytes(), tmp_path / "x.safetensors"
    path.write_bytes(data.replace(b'"test"', b'"sdxl"'))
    with Reader(path) as reader:
        assert "edited" in reader.warnings[0]
        reader.check_tensors()
    path.write_bytes(data[:-70] + bytes([data[-70] ^ 4]) + data[-69:])
    with Reader(path) as reader:
        assert reader.warnings == []
        with pytest.raises(FormatError, match="checksum"):
            reader.check_tensors()
    with Reader(path, mapped=False) as reader, pytest.raises(FormatError, match="checksum"):
        for key in reader.keys():
            reader.tensor(key)
