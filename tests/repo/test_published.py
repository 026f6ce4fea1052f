"""The archive that is published keeps the registry's rules: specification, standards, what its scanner looks for."""
from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

LARGEST = 8 << 20                          # bytes of the archive; the pack has 3 MB, most of it pictures of the docs
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnl",
                   "torch.load", "pickle.load", "pickle.loads", "marshal.loads", "runpy.run_path", "ctypes.CDLL"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "pip", "requests", "urllib", "http", "ftplib", "telnetlib",
                     "smtplib", "webbrowser", "runpy", "code", "pty", "multiprocessing"}
NUMBER = r"(0|[1-9]\d*)"


def load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def packing(repository):
    """benchmarks/pack.py"""
    return load("pack_under_test", repository / "benchmarks" / "pack.py")


@pytest.fixture(scope="module")
def archive(packing, tmp_path_factory):
    """-> (the archive, the folder it was unpacked into)"""
    folder = tmp_path_factory.mktemp("published")
    packing.pack(folder / "node.zip")
    with zipfile.ZipFile(folder / "node.zip") as opened:
        opened.extractall(folder / "vqpack")
    return folder / "node.zip", folder / "vqpack"


@pytest.fixture(scope="module")
def sources(archive):
    """Path relative to the pack -> syntax tree of every published Python file."""
    _, folder = archive
    return {path.relative_to(folder).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted(folder.rglob("*.py"))}


@pytest.fixture(scope="module")
def project(archive):
    return tomllib.loads((archive[1] / "pyproject.toml").read_text(encoding="utf-8"))


def test_it_is_small_and_holds_what_a_user_needs_and_nothing_else(archive, packing):
    path, folder = archive
    assert path.stat().st_size < LARGEST
    top = {entry.name for entry in folder.iterdir()}
    assert {"__init__.py", "kernels", "vq_core", "nodes", "docs", "pyproject.toml", "LICENSE", "README.md",
            "CHANGELOG.md"} <= top
    assert not top & {"tests", "benchmarks", "testbed", ".ci", ".github", ".git", "install.py", "requirements.txt"}
    left_out = set(packing.tracked()) - set(packing.published())
    assert not [name for name in left_out if name.split("/")[0] in ("kernels", "vq_core", "nodes", "web", "scripts")]
    assert packing.pack(path.with_name("again.zip")) and path.with_name("again.zip").read_bytes() == path.read_bytes()


def test_the_specification_of_pyproject(project, archive):
    said, comfy = project["project"], project["tool"]["comfy"]
    name = said["name"]
    assert re.fullmatch(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*", name) and len(name) < 100 and "comfyui" not in name.lower()
    assert re.fullmatch(rf"{NUMBER}\.{NUMBER}\.{NUMBER}", said["version"])
    assert (archive[1] / said["license"]["file"]).is_file()
    assert said["description"] and said["requires-python"]
    assert "Operating System :: OS Independent" in said["classifiers"]
    assert said["dependencies"] == [] and not any("comfyui" in d for d in said["dependencies"])
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", comfy["PublisherId"]) and comfy["DisplayName"]
    assert re.fullmatch(rf">={NUMBER}\.{NUMBER}\.{NUMBER}", comfy["requires-comfyui"])


def test_the_changelog_knows_the_version(project, archive):
    text = (archive[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", text, re.MULTILINE)[0] == project["project"]["version"]


def test_icon_and_banner_have_the_registrys_sizes(repository):
    from PIL import Image

    drawing = load("registry_pictures", repository / "benchmarks" / "registry_pictures.py")
    for name, most in (("icon", (400, 400)), ("banner", (2100, 900))):
        with Image.open(repository / "docs" / "images" / f"{name}.png") as picture:
            width, height = picture.size
            assert picture.size == getattr(drawing, name)().size
        assert width <= most[0] and height <= most[1] and width * most[1] == height * most[0], name


def test_the_publisher_fills_in_links(packing, repository, tmp_path):
    copy = Path(shutil.copy(repository / "pyproject.toml", tmp_path))
    packing.fill_in(copy, "https://github.com/some-one/vq.pack.git")
    filled = tomllib.loads(copy.read_text(encoding="utf-8"))
    assert filled["project"]["urls"]["Repository"] == "https://github.com/some-one/vq.pack"
    for key in ("Icon", "Banner"):
        link = filled["tool"]["comfy"][key]
        start, _, path = link.partition("/main/")
        assert start == "https://raw.githubusercontent.com/some-one/vq.pack" and (repository / path).is_file()
    before = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    assert filled["project"] == {**before["project"], "urls": filled["project"]["urls"]}
    with pytest.raises(SystemExit, match="expected https"):
        packing.fill_in(copy, "git@example.org:x")


def test_no_dynamic_code_no_process_no_pickle(sources):
    found = []
    for path, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
                found.append(f"{path}:{node.lineno} {ast.unparse(node.func)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
                found.append(f"{path}:{node.lineno} {ast.unparse(node.func)}")
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                found += [f"{path}:{node.lineno} import {n}" for n in names
                          if n.split(".")[0] in FORBIDDEN_MODULES and n != "urllib.parse"]      # text, no network
    assert found == []


def test_subprocess_is_named_for_its_errors_only(sources):
    """Triton starts a compiler and lets its errors through; we start nothing."""
    used = {ast.unparse(node) for tree in sources.values() for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "subprocess"}
    assert used <= {"subprocess.SubprocessError", "subprocess.CalledProcessError"}


def test_nothing_is_obfuscated(archive):
    for path in archive[1].rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 120 and line.count("\\x") < 10, f"{path.name}:{number}"


def test_arrays_are_never_unpickled(sources):
    loads = [(path, node) for path, tree in sources.items() for node in ast.walk(tree)
             if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load"]
    assert loads and all(any(k.arg == "allow_pickle" and k.value.value is False for k in node.keywords)
                         for _, node in loads)


def test_the_publishing_tools_own_lint(archive):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    done = subprocess.run([ruff, "check", "--no-cache", "--isolated", "--select", "S102,S307,E702", str(archive[1])],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_workflow_publishes_what_is_tested_here(repository):
    text = (repository / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    for needed in ("secrets.REGISTRY_ACCESS_TOKEN", "benchmarks/pack.py --repository", "node publish",
                   "workflow_dispatch", 'paths: ["pyproject.toml"]', "contents: read"):
        assert needed in text, needed
