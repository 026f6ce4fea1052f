"""Prompt files as people have them: every encoding and shape either works or is refused in one sentence."""
from __future__ import annotations

import pytest
from vqpack.vq_core.compare.prompts import MOST, SDXL_PROMPTS, read_prompts, spread
from vqpack.vq_core.errors import VQError

TWO = ("a red circle", "zwei Kreise, naß & <blau>")


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "prompts.txt"):
        path = tmp_path / name
        path.write_bytes(data)
        return path
    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(write, encoding, end):
    text = f"{TWO[0]}{end}{end}  {TWO[1]} {end}"
    assert read_prompts(write(text.encode(encoding))).texts == TWO


@pytest.mark.parametrize("name, text", [
    ("p.csv", 'id,prompt\n1,"a red circle"\n2,"zwei Kreise, naß & <blau>"\n'),
    ("p.csv", '\ufeff"Prompt";"Note"\r\na red circle;x\r\n"zwei Kreise, naß & <blau>";y\r\n'),
    ("p.tsv", "Category\tCaption\nx\ta red circle\ny\tzwei Kreise, naß & <blau>\n"),
    ("p.csv", 'a red circle\n"zwei Kreise, naß & <blau>"\n'),
    ("p.txt", "Prompt\tCategory\na red circle\tx\nzwei Kreise, naß & <blau>\ty\n")])
def test_tables(write, name, text):
    assert read_prompts(write(text.encode(), name)).texts == TWO


def test_lines_with_commas_are_no_table(write):
    lines = ("a cat, high quality", "a dog, low quality")
    assert read_prompts(write("\n".join(lines).encode())).texts == lines


@pytest.mark.parametrize("data, name, words", [
    (b"", "p.txt", "holds no prompt"), (b" \n\r\n\t\n", "p.txt", "holds no prompt"),
    (b"\xef\xbb\xbf", "p.txt", "holds no prompt"), (b"prompt\n", "p.csv", "holds no prompt"),
    (b"a red circle\ncaf\xe9\n", "p.txt", r"not UTF-8 text \(line 2\)"),
    (b"\xff\xfea\x00b", "p.txt", "not UTF-16-LE text"),
    (bytes(range(256)) * 20, "p.png", "not a text file"),
    (b'[{"prompt": "x"}]', "p.json", "is JSON"), (b"id,score\n1,2\n", "p.csv", "columns id, score"),
    (b"x" * 5000, "p.txt", "5000 characters")])
def test_bad_files_are_refused_in_one_sentence(write, data, name, words):
    with pytest.raises(VQError, match=words) as error:
        read_prompts(write(data, name))
    assert "\n" not in str(error.value) and name in str(error.value)


def test_many_lines_need_a_count(write):
    path = write("\n".join(f"prompt {i}" for i in range(100_000)).encode())
    with pytest.raises(VQError, match=rf"100000 prompts, more than the {MOST}.*--count"):
        read_prompts(path)
    few = read_prompts(path, count=4)
    assert few.texts == ("prompt 0", "prompt 25000", "prompt 50000", "prompt 75000")
    assert "4 of the 100000" in few.notes[0]


def test_repeated_lines_are_left_out_and_said(write):
    found = read_prompts(write(b"a\nb\na\na\n"))
    assert found.texts == ("a", "b") and "2 repeated" in found.notes[0]


def test_missing_file_folder_and_count(tmp_path):
    for given, words in ((tmp_path / "none.txt", "not there"), (tmp_path, "a folder")):
        with pytest.raises(VQError, match=words):
            read_prompts(given)
    with pytest.raises(VQError, match="--count"):
        read_prompts("built-in", count=0)


def test_built_in():
    assert read_prompts("built-in").texts == SDXL_PROMPTS
    assert read_prompts("built-in", count=2, built_in=("a", "b", "c", "d")).texts == ("a", "c")
    assert spread(["a"], 5) == ["a"]
