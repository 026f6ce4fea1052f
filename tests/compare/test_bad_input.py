"""`vqpack compare` given bad prompt files: one line, nothing left behind; and a table in UTF-16 that is drawn."""
from __future__ import annotations

import pytest
from vqpack.vq_core.cli.main import main
from vqpack.vq_core.compare.run import compare


@pytest.mark.parametrize("data, name, words", [
    (b"", "empty.txt", "holds no prompt"), (b"\n" * 100_000, "blank.txt", "holds no prompt"),
    ("\n".join(map(str, range(100_000))).encode(), "many.txt", "100000 prompts"),
    ("id,score\n1,2\n".encode("utf-16"), "table.csv", "columns id, score"),
    ("a\nb".encode("utf-16")[:-1], "cut.txt", "not UTF-16-LE text")])
def test_bad_prompt_files_are_one_line_and_leave_nothing(testbed, files, tmp_path, capsys, data, name, words):
    (tmp_path / name).write_bytes(data)
    arguments = ["compare", str(testbed), str(files["eight"]), "-o", str(tmp_path / "out"), "--prompts",
                 str(tmp_path / name)]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said and name in said
    assert not (tmp_path / "out").exists()


def test_a_utf_16_table_of_prompts_is_drawn(testbed, files, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_bytes('id,prompt\n1,"a red circle"\n2,a blue square\n'.encode("utf-16"))
    found = compare([testbed, files["two"]], tmp_path / "out", prompts=table, steps=1, count=1)
    assert found.data["settings"]["prompts"] == ["a red circle"]
    assert "1 of the 2 prompts of 'prompts.csv'" in " ".join(found.data["notes"])
