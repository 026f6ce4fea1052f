"""What Windows does otherwise, simulated: refused renames, no flush of folders, locks, names, paths and consoles."""
from __future__ import annotations

import errno
import io
import os
import sys
import types
from pathlib import Path

import pytest
from format_samples import fill, write_file
from vqpack.vq_core import locked_files, plain_writer, publish
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.container import Writer
from vqpack.vq_core.decompress import decompress
from vqpack.vq_core.errors import VQError
from vqpack.vq_core.file_names import safe_stem
from vqpack.vq_core.publish import os_error
from vqpack.vq_core.spool import Spool
from vqpack.vq_core.verify import verify_file

pytestmark = pytest.mark.skipif(os.name == "nt", reason="simulates Windows on other systems")


def refusal(code: int = 32) -> PermissionError:
    error = PermissionError(errno.EACCES, "The process cannot access the file because it is being used")
    error.winerror = code
    return error


@pytest.fixture
def windows(monkeypatch):
    """Modules that ask take this for Windows; waiting takes no time."""
    for module in (locked_files, publish, plain_writer):
        monkeypatch.setattr(module, "WINDOWS", True)
    monkeypatch.setattr(publish.time, "sleep", lambda seconds: None)
    monkeypatch.setitem(sys.modules, "msvcrt", FakeLocks())


class FakeLocks(types.ModuleType):
    """msvcrt.locking over a table: a byte that an open file holds cannot be locked through another one."""

    LK_NBLCK = 2

    def __init__(self):
        super().__init__("msvcrt")
        self.held: dict[int, int] = {}     # inode -> descriptor
        self.offsets = []

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        inode = os.fstat(descriptor).st_ino
        self.offsets.append(os.lseek(descriptor, 0, os.SEEK_CUR))
        holder = self.held.get(inode)
        if holder is not None and holder != descriptor and _open_as(holder, inode):
            raise OSError(errno.EACCES, "locked")
        self.held[inode] = descriptor


def _open_as(descriptor: int, inode: int) -> bool:
    try:
        return os.fstat(descriptor).st_ino == inode
    except OSError:
        return False


def test_a_file_that_another_program_has_open_is_not_replaced_but_numbered(tmp_path, windows, monkeypatch):
    first = write_file(tmp_path)
    before = first.read_bytes()
    monkeypatch.setattr(publish.os, "replace", lambda part, final: (_ for _ in ()).throw(refusal(5)))
    second = write_file(tmp_path, seed=1, overwrite=True)
    assert second.name == "model-2.safetensors" and verify_file(second) == [] and first.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["model-2.safetensors", "model.safetensors"]


def test_a_short_refusal_is_waited_for(tmp_path, windows, monkeypatch):
    rename, tries = os.rename, []

    def busy(part, final):
        tries.append(final)
        if len(tries) < 3:
            raise refusal()
        rename(part, final)

    monkeypatch.setattr(publish.os, "rename", busy)
    assert verify_file(write_file(tmp_path)) == [] and len(tries) == 3


@pytest.mark.parametrize("plain", [False, True])
def test_a_lasting_refusal_loses_nothing_and_says_where_it_is(tmp_path, windows, monkeypatch, plain):
    packed = write_file(tmp_path, "packed")
    monkeypatch.setattr(publish.os, "rename", lambda part, final: (_ for _ in ()).throw(refusal()))
    with pytest.raises(VQError, match="is finished.*rename it yourself") as caught:
        decompress(packed, tmp_path / "model.safetensors") if plain else write_file(tmp_path)
    parts = [name for name in os.listdir(tmp_path) if name != "packed.safetensors"]
    assert parts == ["model.safetensors.part"] and parts[0] in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.undo()
    os.rename(tmp_path / parts[0], tmp_path / "model.safetensors")
    if plain:
        again = decompress(packed, tmp_path / "again.safetensors")
        assert again.read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    else:
        assert verify_file(tmp_path / "model.safetensors") == []


def test_a_folder_that_cannot_be_opened_is_not_flushed(tmp_path, windows, monkeypatch):
    opened, asked = os.open, []

    def no_folders(path, *arguments, **more):
        if os.path.isdir(path):
            asked.append(path)
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **more)

    monkeypatch.setattr(publish.os, "open", no_folders)
    assert verify_file(write_file(tmp_path)) == [] and asked == [tmp_path]


def test_locks_keep_two_runs_apart(tmp_path, windows):
    target = tmp_path / "model.safetensors"
    first, second = Spool(target, "a"), Spool(target, "b")
    assert [first.path.name, second.path.name] == ["model.safetensors.spool", "model.safetensors.1.spool"]
    first.append("x", "U8", (3,), memoryview(b"abc"), coded=False)
    assert [bytes(view) for view in first.chunks(first.entries["x"])] == [b"abc"]
    assert set(sys.modules["msvcrt"].offsets) == {0x7FFFFFF0}          # far behind what is read
    first.close(keep=True)
    second.close(keep=False)
    third = Spool(target, "a")
    assert third.path == first.path and list(third.entries) == ["x"]
    third.close(keep=False)
    assert os.listdir(tmp_path) == []


def test_no_file_is_deleted_or_renamed_while_we_hold_it_open(tmp_path, windows, monkeypatch):
    unlink, rename = Path.unlink, os.rename

    def held(path) -> bool:
        folder = Path("/proc/self/fd")
        if not folder.is_dir():
            pytest.skip("needs /proc")
        return str(path) in {os.readlink(link) for link in map(str, folder.iterdir()) if os.path.exists(link)}

    def careful_unlink(path, missing_ok=False):
        assert not held(path), path
        unlink(path, missing_ok=missing_ok)

    def careful_rename(part, final):
        assert not held(part), part
        rename(part, final)

    monkeypatch.setattr(Path, "unlink", careful_unlink)
    monkeypatch.setattr(publish.os, "rename", careful_rename)
    packed = write_file(tmp_path)
    decompress(packed, tmp_path / "out.safetensors")
    writer = Writer(tmp_path / "given-up.safetensors")
    fill(writer)
    writer.abort()
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "out.safetensors"]


def test_source_and_target_that_are_one_file_under_two_spellings(tmp_path):
    packed = write_file(tmp_path, "Model")
    os.link(packed, tmp_path / "model.safetensors")          # as a file system that ignores case shows it
    before = packed.read_bytes()
    with pytest.raises(VQError, match="is loaded and cannot be replaced"):
        decompress(packed, tmp_path / "model.safetensors", overwrite=True)
    assert packed.read_bytes() == before


@pytest.mark.parametrize("name", ["con", "CON.safetensors", "nul", "Com1", "LPT9.x", "con .x", "conin$", "aux. "])
def test_reserved_names_get_another_one(name):
    assert safe_stem(name).startswith("_")


@pytest.mark.parametrize(("name", "expected"), [("model. . .", "model"), ("a<b>|c?*", "a_b__c__"), ("x ", "x"),
                                                ("console", "console"), ("company", "company")])
def test_names_that_windows_would_change(name, expected):
    assert safe_stem(name) == expected


def test_long_paths_are_told_as_such(tmp_path, windows):
    long = "C:\\" + "folder\\" * 40 + "model.safetensors.spool"
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", long)
    too_long = OSError(errno.EINVAL, "The filename or extension is too long", long)
    too_long.winerror = 206
    for error in (missing, too_long, OSError(errno.ENAMETOOLONG, "File name too long", long)):
        text = str(os_error(error, tmp_path))
        assert "too long" in text and str(len(long)) in text and "\n" not in text
    assert "too long" not in str(os_error(FileNotFoundError(errno.ENOENT, "No such file", "C:\\x"), tmp_path))


def test_a_file_in_use_is_told_as_such(tmp_path, windows):
    assert "another program holds" in str(os_error(refusal(32), tmp_path))
    assert "cannot write into" in str(os_error(refusal(5), tmp_path))


@pytest.mark.parametrize("command", ["inspect", "verify", "decompress", "missing"])
def test_a_cp1252_console_takes_any_name(tmp_path, monkeypatch, command):
    path = write_file(tmp_path, "模型-ä-😀")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    arguments = {"missing": ["inspect", str(tmp_path / "没有.safetensors")],
                 "decompress": ["decompress", str(path), "-o", str(tmp_path / "出.safetensors")]}
    code = main(arguments.get(command, [command, str(path)]))
    out.flush()
    err.flush()
    text = (out.buffer.getvalue() + err.buffer.getvalue()).decode("cp1252")
    assert code == (1 if command == "missing" else 0) and text.strip()
    if command in ("decompress", "missing"):
        assert "?" in text                 # what the console cannot show
