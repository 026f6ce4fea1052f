"""install.py: instant and idle without arguments, honest where the tests folder is missing; the set-up behind it."""
from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time

import pytest


def run(*arguments, cwd=None, flags=()):
    return subprocess.run([sys.executable, *flags, *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
                          check=False)


@pytest.fixture
def bootstrap(repository, tmp_path, monkeypatch):
    """tests/bootstrap.py as a module whose .venv lies in a temporary folder."""
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", repository / "tests" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", str(tmp_path / ".venv"))
    return module


def clock() -> float:
    """Processor seconds of finished child processes, whatever else runs; on Windows, which counts none, the time."""
    spent = os.times()
    return time.perf_counter() if os.name == "nt" else spent.children_user + spent.children_system


def test_without_arguments_it_is_instant_and_idle(repository, tmp_path):
    seconds = []
    for _ in range(3):
        started = clock()
        done = run(repository / "install.py", cwd=tmp_path)
        seconds.append(clock() - started)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert min(seconds) < 0.3, seconds
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_it_imports_nothing_heavy(repository):
    done = run(repository / "install.py", flags=("-X", "importtime"))
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "numpy", "subprocess", "pip", "runpy"}


def test_published_package_says_what_is_missing(repository, tmp_path):
    shutil.copy(repository / "install.py", tmp_path)
    for command in ("demo", "test"):
        done = run(tmp_path / "install.py", command)
        assert done.returncode == 1 and done.stdout == ""
        assert "clone of the repository" in done.stderr and done.stderr.count("\n") == 1


def test_unknown_command_is_a_usage_error(repository):
    done = run(repository / "install.py", "everything")
    assert done.returncode == 2 and done.stderr.startswith("usage:")
    assert run(repository / "install.py", "--help").returncode == 0


def test_running_python_is_used_where_all_imports(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "_make_venv", lambda modules: pytest.fail("no environment is needed"))
    assert bootstrap.choose_python(["json", "torch"]) == sys.executable


def test_environment_is_made_once_and_an_unfinished_one_anew(bootstrap, tmp_path, monkeypatch):
    made = []
    venv = tmp_path / ".venv"

    def make(command, otherwise):
        made.append(command)
        (venv / "bin").mkdir()
        (venv / "left-over").touch()

    monkeypatch.setattr(bootstrap, "_run", make)
    for step in ("_add_torch", "_install", "_add_optional"):
        monkeypatch.setattr(bootstrap, step, lambda *_: None)
    monkeypatch.setattr(bootstrap, "imports", lambda python, modules, here=False: not here and bool(made))
    assert bootstrap.choose_python(["torch"]) == bootstrap._venv_python()
    assert bootstrap.choose_python(["torch"]) == bootstrap._venv_python()
    assert len(made) == 1
    (venv / bootstrap.MARKER).unlink()                    # as after a kill
    assert not bootstrap._ready()
    monkeypatch.setattr(bootstrap, "_somebody_elses_is_complete", lambda modules: False)
    bootstrap.choose_python(["torch"])
    assert len(made) == 2 and (venv / bootstrap.MARKER).is_file()


def test_changed_requirements_make_it_outdated(bootstrap, tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "imports", lambda *_, **__: True)
    (tmp_path / ".venv").mkdir()
    marker = tmp_path / ".venv" / bootstrap.MARKER
    marker.write_text(json.dumps(bootstrap._wanted()))
    assert bootstrap._ready()
    marker.write_text(json.dumps({**bootstrap._wanted(), "requirements": ["safetensors==0.1"]}))
    assert not bootstrap._ready()


@pytest.mark.skipif(sys.platform == "win32", reason="an empty file is no Python there either, but chmod is")
def test_somebody_elses_environment_is_left_alone(bootstrap, tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(bootstrap.SetupError, match="not made by this command"):
        bootstrap._clear_old()
    assert python.is_file()


@pytest.mark.parametrize(("there", "cores", "processes"), [(True, 2, "2"), (True, 1, None), (False, 2, None)])
def test_everything_runs_in_two_processes_of_one_thread_where_it_can(bootstrap, monkeypatch, there, cores, processes):
    environment = {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    arguments = bootstrap.side_by_side()
    assert dict(zip(arguments[::2], arguments[1::2])).get("-n") == processes
    assert environment.get("OMP_NUM_THREADS") == (None if processes is None else "1")


def test_two_setups_wait_for_each_other(repository, tmp_path):
    """The second holder gets the lock only after the first let go, also when the first is killed."""
    code = f"""
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("b", {str(repository / 'tests' / 'bootstrap.py')!r})
b = importlib.util.module_from_spec(spec); spec.loader.exec_module(b)
with b._locked({str(tmp_path / 'lock')!r}):
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""
    first = subprocess.Popen([sys.executable, "-c", code, "60"], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    second = subprocess.Popen([sys.executable, "-c", code, "0"], stdout=subprocess.PIPE, text=True)
    assert "waiting" in second.stdout.readline()
    assert second.poll() is None
    first.kill()
    assert second.communicate(timeout=20)[0] == "held\n"
    first.wait()
    first.stdout.close()


def test_ci_runs_the_documented_command(repository):
    script = (repository / ".ci" / "run").read_text(encoding="utf-8")
    assert script.count("python3 install.py test 2>&1") == 1
