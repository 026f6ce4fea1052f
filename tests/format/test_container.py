"""Files: written, read back, named, resumed, refused."""
from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from format_samples import CASES, dense_tensors, fill, parts_of, write_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from vqpack.vq_core import spool as spool_module
from vqpack.vq_core.container import Reader, Writer, output_name
from vqpack.vq_core.errors import FormatError, VQError
from vqpack.vq_core.file_names import safe_stem
from vqpack.vq_core.verify import verify_file


@pytest.fixture
def file(tmp_path) -> Path:
    return write_file(tmp_path)


@pytest.mark.parametrize("mapped", [True, False])
def test_reads_what_was_written(file, mapped):
    with Reader(file, mapped=mapped) as reader:
        assert reader.warnings == [] and reader.metadata["format"] == "pt" and reader.metadata["vqpack.version"] == "1"
        for key, tensor in dense_tensors().items():
            got = reader.tensor(key)
            assert got.dtype == tensor.dtype and got.shape == tensor.shape
            assert torch.equal(got.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        assert sorted(reader.coded_keys()) == sorted(f"{case}.weight" for case in CASES)
        reader.check_tensors()
        for case in CASES:
            shape, parts = parts_of(case)
            weight = reader.weight(f"{case}.weight")
            assert weight.shape == shape
            for (*_, mine), (*_, theirs) in zip(weight.parts, parts, strict=True):
                assert torch.equal(mine.codes, theirs.codes)
    assert weight.decode().isfinite().all()        # still valid after the reader is closed


def test_other_libraries_read_the_file(file):
    tensors = load_file(file)
    assert set(dense_tensors()) < set(tensors) and torch.equal(tensors["norm.bias"], dense_tensors()["norm.bias"])
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["vqpack.architecture"] == "test"


def test_data_and_blobs_are_aligned(file):
    with Reader(file) as reader:
        assert reader.header.data_start % 64 == 0
        for key in reader.keys():
            entry = reader.entry(key)
            assert entry.start % (64 if key in reader.coded_keys() else entry.torch_dtype.itemsize) == 0
        weight = reader.weight("trellis.weight")
        assert weight.blob.data_ptr() % 64 == 0
        assert weight.blob.untyped_storage().nbytes() == file.stat().st_size     # a view of the mapping, no copy


def test_a_file_rewritten_by_another_tool_still_loads(file, tmp_path):
    save_file({"a": torch.zeros(3, dtype=torch.uint8), **load_file(file)}, tmp_path / "other.safetensors")
    with Reader(tmp_path / "other.safetensors") as other, Reader(file) as reader:
        assert other.warnings and set(other.coded_keys()) == set(reader.coded_keys())
        for key in reader.coded_keys():
            assert torch.equal(other.weight(key).decode(), reader.weight(key).decode())
    assert verify_file(tmp_path / "other.safetensors")


def test_same_content_same_bytes_in_any_order(tmp_path, file):
    (tmp_path / "b").mkdir()
    again = write_file(tmp_path / "b", cases=tuple(reversed(CASES)))
    assert again.read_bytes() == file.read_bytes()
    assert verify_file(again) == []


def test_mode_is_the_usual_one_and_nothing_else_is_left(file):
    assert os.listdir(file.parent) == [file.name]
    if os.name != "nt":
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


def test_existing_names_get_a_number_unless_overwritten(tmp_path, file):
    before = file.read_bytes()
    assert write_file(tmp_path, seed=1).name == "model-2.safetensors"
    assert write_file(tmp_path, seed=1).name == "model-3.safetensors"
    assert file.read_bytes() == before
    assert write_file(tmp_path, seed=1, overwrite=True) == file and file.read_bytes() != before


def test_a_loaded_file_is_never_replaced(tmp_path, file):
    before = file.read_bytes()
    for mapped in (True, False):
        with Reader(file, mapped=mapped), pytest.raises(VQError, match="loaded"):
            Writer(file, overwrite=True)
    reader = Reader(file)
    weight = reader.weight("mixed.weight")
    reader.close()
    with pytest.raises(VQError, match="loaded"):   # closed, but a weight still looks into the mapping
        Writer(file, overwrite=True)
    del weight
    with Writer(file, overwrite=True) as writer:
        fill(writer, seed=1)
        with Reader(file):                         # loaded meanwhile: the work is not lost
            assert writer.close({}).name == "model-2.safetensors"
    assert file.read_bytes() == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_data_is_flushed_before_the_name_appears(tmp_path, monkeypatch, overwrite):
    calls = []

    def spy(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (calls.append(name), original(*args))[1])

    spy(os, "fsync"), spy(os, "link"), spy(os, "replace")
    write_file(tmp_path, overwrite=overwrite)
    assert calls[:2] == ["fsync", "replace" if overwrite else "link"] and calls.count("fsync") <= 2


def test_file_bytes_foretells_the_size(tmp_path):
    with Writer(tmp_path / "x.safetensors") as writer:
        fill(writer)
        foretold = writer.file_bytes({"a": "é"})
        assert writer.close({"a": "é"}).stat().st_size == foretold


def test_abort_and_errors_leave_nothing(tmp_path):
    writer = Writer(tmp_path / "x.safetensors")
    fill(writer)
    writer.abort()
    writer.abort()
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "x.safetensors") as writer:
        fill(writer)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_an_interrupted_run_resumes(tmp_path, file):
    target = tmp_path / "model.safetensors"
    expected = file.read_bytes()
    file.unlink()
    with pytest.raises(KeyboardInterrupt), Writer(target, fingerprint="a") as writer:
        fill(writer, cases=tuple(CASES)[:5])
        raise KeyboardInterrupt
    assert not target.exists()
    with Writer(target, fingerprint="a") as writer:
        assert "palette.weight" in writer and "mixed.weight" not in writer
        assert writer.note("palette.weight") == {"case": "palette"}
        fill(writer)
        assert writer.close({"vqpack.architecture": "test"}).read_bytes() == expected
    assert os.listdir(tmp_path) == [target.name]


def test_a_spool_of_other_settings_is_discarded(tmp_path):
    target = tmp_path / "model.safetensors"
    for fingerprint in ("b", None):
        writer = Writer(target, fingerprint="a")
        fill(writer)
        writer.abort(keep_spool=True)
        assert os.listdir(tmp_path)
        with Writer(target, fingerprint=fingerprint) as writer:
            assert writer.keys() == []
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["spool", "journal", "cut journal", "cut spool", "garbage"])
def test_a_damaged_spool_is_used_up_to_the_damage(tmp_path, damage):
    target = tmp_path / "model.safetensors"
    writer = Writer(target, fingerprint="a")
    fill(writer)
    keys = writer.keys()
    writer.abort(keep_spool=True)
    path = tmp_path / ("model.safetensors.spool" + (".journal" if damage != "spool" and damage != "cut spool" else ""))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "garbage":
        data[data.index(b"\n") + 1:] = b'{"key": 3, "shape": 7, "tables": [], "offset": "x"}\n[]\n'
    elif damage.startswith("cut"):
        del data[middle:]
    else:
        data[middle] ^= 1
    path.write_bytes(data)
    with Writer(target, fingerprint="a") as writer:
        assert len(writer.keys()) < len(keys) and writer.keys() == keys[:len(writer.keys())]
        assert writer.keys() or damage == "garbage"
        fill(writer)
        assert verify_file(writer.close({})) == []


def test_two_writers_under_one_name_do_not_meet(tmp_path):
    with Writer(tmp_path / "x.safetensors", fingerprint="a") as one, Writer(tmp_path / "x.safetensors") as two:
        fill(one, seed=1)
        fill(two, seed=2)
        assert [one.close({}).name, two.close({}).name] == ["x.safetensors", "x-2.safetensors"]
    assert sorted(os.listdir(tmp_path)) == ["x-2.safetensors", "x.safetensors"]
    assert verify_file(tmp_path / "x.safetensors") == verify_file(tmp_path / "x-2.safetensors") == []


@pytest.mark.parametrize("after", [0, 3, 10_000, 60_000])
def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, after):
    from vqpack.vq_core import writer as writer_module

    left = [after]

    def write_all(file, data):
        if len(data) > left[0]:
            file.write(data[:left[0]])
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(data)
        file.write(data)

    monkeypatch.setattr(spool_module, "write_all", write_all)
    monkeypatch.setattr(writer_module, "write_all", write_all)
    with pytest.raises(VQError, match="full") as caught:
        write_file(tmp_path, fingerprint="a")
    assert os.listdir(tmp_path) == [] and "\n" not in str(caught.value)


def test_too_little_space_is_seen_before_work_starts(tmp_path):
    with pytest.raises(VQError, match="not enough space"):
        Writer(tmp_path / "x.safetensors", expected_bytes=1 << 60)
    assert os.listdir(tmp_path) == []


def test_bad_targets_are_refused(tmp_path, monkeypatch):
    with pytest.raises(VQError, match="does not exist"):
        Writer(tmp_path / "no" / "x.safetensors")
    with pytest.raises(VQError, match=r"\.safetensors"):
        Writer(tmp_path / "x.ckpt")
    monkeypatch.setattr(os, "open", lambda *a, **k: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    with pytest.raises(VQError, match="cannot write"):
        Writer(tmp_path / "x.safetensors")


def test_bad_tensors_are_refused(tmp_path):
    with Writer(tmp_path / "x.safetensors") as writer:
        writer.add("a", torch.zeros(2))
        with pytest.raises(FormatError, match="twice"):
            writer.add("a", torch.zeros(2))
        for key in ("__metadata__", "x.comfy_quant", "", "\ud800"):
            with pytest.raises(FormatError, match="name of a tensor"):
                writer.add(key, torch.zeros(2))
        with pytest.raises(FormatError, match="blob"):
            writer.add_blob("b", torch.zeros(64, dtype=torch.uint8))
        fill(writer, cases=("palette",))
        with pytest.raises(VQError, match="header"):
            writer.close({"x": "y" * (1 << 20)})


def test_a_missing_shared_table_is_noticed(tmp_path):
    from vqpack.vq_core.record import build_blob

    shape, parts = parts_of("trellis")
    with Writer(tmp_path / "x.safetensors") as writer:
        writer.add_blob("w", build_blob(shape, torch.float16, parts))
        with pytest.raises(FormatError, match=r"vq\.tables\."):
            writer.close({})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("model", ["../../etc/x", "..", "", "a/b\\c", "con", "COM1.x", "x" * 400, "ä" * 300, "a\0b\n",
                                   " .. ", "名前 mit Leerzeichen", "\ud800x", "a:b*c?", "nul.txt"])
def test_names_stay_in_their_folder(tmp_path, model):
    path = output_name(tmp_path, model, 3.0857)
    assert path.parent == tmp_path and path.name.endswith("-vq3.09b.safetensors")
    assert len(path.name.encode()) <= 200 and not set(path.name) & set('/\\:*?"<>|\0\n')
    path.touch()
    assert os.listdir(tmp_path) == [path.name]


def test_plain_names_are_kept():
    assert output_name("f", "sd_xl_base_1.0", 3).name == "sd_xl_base_1.0-vq3.00b.safetensors"
    assert safe_stem("Modell (größer) v2.1") == "Modell (größer) v2.1"


def test_fingerprint_without_entries_leaves_no_spool(tmp_path):
    Writer(tmp_path / "x.safetensors", fingerprint="a").abort(keep_spool=True)
    assert os.listdir(tmp_path) == []
