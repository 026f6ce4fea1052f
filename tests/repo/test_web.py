"""The page's scripts and help pages, read as text: every node has its page, no script makes markup."""
from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "web").glob("*.js"))
NODES = sorted((ROOT / "nodes").glob("*.py"))
FROM_HOST = {"../../scripts/app.js": {"graph.js", "vqpack.js"}, "../../scripts/api.js": {"server.js"}}


def calls(path: Path, name: str):
    """Calls of a function or method of this name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == name:
            yield node


def node_ids() -> list[str]:
    return [keyword.value.value for path in NODES for call in calls(path, "make_schema") for keyword in call.keywords
            if keyword.arg == "node_id"]


def test_every_node_has_a_help_page_and_every_page_a_node():
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    assert len(node_ids()) == 15 and pages == set(node_ids())


def test_help_pages_begin_with_the_nodes_name():
    for path in NODES:
        for call in calls(path, "make_schema"):
            fields = {keyword.arg: keyword.value for keyword in call.keywords}
            page = ROOT / "web" / "docs" / f"{fields['node_id'].value}.md"
            assert page.read_text(encoding="utf-8").startswith(f"# {fields['display_name'].value}\n")


def test_every_input_has_a_tooltip():
    found = [f"{path.name}:{call.lineno}" for path in NODES for call in calls(path, "Input")
             if not any(keyword.arg == "tooltip" for keyword in call.keywords)]
    assert found == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_small_and_make_no_markup(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("// ") and text.count("\n") <= 300
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"https?://", text)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_use_what_a_whole_module_exports(path):
    text = path.read_text(encoding="utf-8")
    for name, module in re.findall(r'import \* as (\w+) from "\./([^"]+)"', text):
        exported = re.findall(r"^export (?:async )?(?:const|function) (\w+)",
                              (ROOT / "web" / module).read_text(encoding="utf-8"), re.MULTILINE)
        assert set(re.findall(rf"\b{name}\.(\w+)", text)) - {"js"} <= set(exported)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_what_there_is(path):
    for name in re.findall(r'from "([^"]+)"', path.read_text(encoding="utf-8")):
        if name.startswith("../"):
            assert path.name in FROM_HOST[name], f"{path.name} imports the host's {name}"
        else:
            assert (path.parent / name).is_file(), name


def test_scripts_parse_and_reckon_rightly(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    for path in SCRIPTS:
        shutil.copy(path, tmp_path / f"{path.stem}.mjs")
        done = subprocess.run([node, "--check", str(tmp_path / f"{path.stem}.mjs")], capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stderr
    check = tmp_path / "check.mjs"
    check.write_text((Path(__file__).parent / "check_web.mjs").read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run([node, str(check)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
