"""pyproject, the published package and the documents agree with the tree."""
from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

SKIPPED_FOLDERS = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", "demo", "out", "build"}
TEXT = {".py", ".md", ".toml", ".json", ".js", ".css", ".html", ".txt", ".tsv", ".yml", ".yaml", ".sh", ".ini", ""}
MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_.])/(?:" + "|".join(("work", "farm", "root", "opt/pypi")) + ")/[A-Za-z.]")


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def files(repository):
    for path in sorted(repository.rglob("*")):
        parts = path.relative_to(repository).parts
        if path.is_file() and not SKIPPED_FOLDERS.intersection(parts) and not parts[0].endswith(".egg-info"):
            yield path


def test_packages_are_all_listed(repository, project):
    found = {"vqpack"}
    for layer in ("kernels", "vq_core", "nodes", "webui"):
        for init in (repository / layer).rglob("__init__.py"):
            found.add(".".join(("vqpack", *init.parent.relative_to(repository).parts)))
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(found)


def test_package_data_patterns_match_every_data_file(repository, project):
    patterns = project["tool"]["setuptools"]["package-data"]
    covered = {path for package, globs in patterns.items() for pattern in globs
               for path in (repository / "/".join(package.split(".")[1:])).glob(pattern)}
    data = {path for path in files(repository) if path.relative_to(repository).parts[0] in ("vq_core", "kernels")
            and path.suffix != ".py"}
    assert data - covered == set()


def test_version_is_said_once(project):
    from vqpack.vq_core.version import __version__

    assert project["project"]["version"] == __version__


def test_nothing_beyond_the_host_is_required(project):
    assert project["project"]["dependencies"] == []
    assert "web" not in project["tool"]["comfy"]        # WEB_DIRECTORY says it; twice would load the scripts twice


def test_console_script_exists(project):
    from vqpack.vq_core.cli.main import main

    assert project["project"]["scripts"]["vqpack"] == f"{main.__module__}:{main.__name__}"


def test_published_package_leaves_development_out(repository):
    ignored = (repository / ".comfyignore").read_text(encoding="utf-8").split()
    assert {"tests/", "benchmarks/", "testbed/", ".ci/"} <= set(ignored)
    assert not {"vq_core/", "kernels/", "nodes/", "web/", "docs/"} & set(ignored)


def test_no_machine_paths(repository):
    found = [f"{path.relative_to(repository)}:{number}: {line.strip()[:80]}" for path in files(repository)
             if path.suffix in TEXT and path.name != "tokenizer.json" and path.stat().st_size < 2_000_000
             for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
             if MACHINE_PATH.search(line)]
    assert found == []


def test_machine_paths_would_be_found():
    slash = "/"
    assert MACHINE_PATH.search(f"see {slash}work/shared") and MACHINE_PATH.search(f"'{slash}root/x'")
    assert not MACHINE_PATH.search("net/work/x") and not MACHINE_PATH.search("a/root/b")


def test_ruff_is_clean(repository):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    done = subprocess.run([ruff, "check", "--no-cache", str(repository)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
