"""The set-up behind `python install.py demo` and `python install.py test`, then the command itself.

Uses the running Python where everything imports; otherwise makes `.venv` in the repository. A `.venv` counts only
once its marker file is written, last; an unfinished one is made anew, and a lock lets one run at a time work on it.
Only the standard library here, and no syntax younger than Python 3.8: an old Python must reach its own message.
"""
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
MARKER = "vqpack-ready.json"          # written last, inside .venv
OURS = "vqpack-made-this"             # written first, inside .venv: only such a folder is ever deleted
REQUIREMENTS = os.path.join(ROOT, "tests", "requirements.txt")
RANGES = ["numpy>=1.26,<3", "safetensors>=0.4.3", "diffusers>=0.35", "transformers>=4.56", "pillow>=10", "pytest>=8"]
TORCH = ["torch==2.13.0", "torch>=2.4"]
NUMBA = ["numba==0.68.1", "numba>=0.60"]
TRITON = ["triton==3.9.0", "triton>=3.1"]
XDIST = ["pytest-xdist==3.8.0", "pytest-xdist>=3.6"]
NEEDED = ["torch", "numpy", "safetensors", "diffusers", "transformers", "PIL"]
SETUP_VERSION = 2                     # raise it when the steps below change


class SetupError(Exception):
    """One sentence: what is missing and what to do."""


def main(argv):
    """argv: the command ("demo" or "test") and its arguments -> exit code."""
    if sys.version_info < (3, 10):
        print("vqpack: expected Python 3.10 or newer, this is %d.%d" % sys.version_info[:2], file=sys.stderr)
        return 1
    try:
        python = choose_python(NEEDED + (["pytest"] if argv[0] == "test" else []))
        sys.stdout.flush()
        return subprocess.call([python, os.path.abspath(__file__), *argv], env=_environment())
    except SetupError as error:
        print("vqpack: %s" % error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nvqpack: stopped", file=sys.stderr)
        return 1


def choose_python(modules):
    """Path of a Python in which all modules import: the running one, else that of .venv, made if need be."""
    if imports(sys.executable, modules, here=True):
        _say("using the running Python %s: %s import" % (sys.version.split()[0], ", ".join(modules)))
        return sys.executable
    with _locked(VENV + ".lock"):
        if not _ready() and not _somebody_elses_is_complete(modules):
            _make_venv(modules)
    _say("using %s" % os.path.relpath(VENV, ROOT))
    return _venv_python()


def imports(python, modules, here=False):
    """Whether all modules can really be imported there; a cheap look first where `python` is this one."""
    if here and any(importlib.util.find_spec(name) is None for name in modules):
        return False
    code = "import sys; sys.path[:] = [p for p in sys.path if p]; import " + ", ".join(modules)
    try:
        done = subprocess.run([python, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _environment():
    """Nothing is ever taken from a model hub; the user's own settings stay."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def _say(text):
    print("set-up: %s" % text, flush=True)


def _venv_python():
    folder, name = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(VENV, folder, name)


def _wanted():
    """What a finished .venv must have been made from."""
    with open(REQUIREMENTS, encoding="utf-8") as file:
        requirements = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    return {"setup": SETUP_VERSION, "folder": VENV, "requirements": requirements}


def _ready():
    try:
        with open(os.path.join(VENV, MARKER), encoding="utf-8") as file:
            made_from = json.load(file)
    except (OSError, ValueError):
        return False
    return made_from == _wanted() and imports(_venv_python(), ["torch"])


def _somebody_elses_is_complete(modules):
    return not os.path.exists(os.path.join(VENV, OURS)) and imports(_venv_python(), modules)


def _make_venv(modules):
    _clear_old()
    _say("making %s with Python %s" % (VENV, sys.version.split()[0]))
    _touch(OURS)
    _run([sys.executable, "-m", "venv", VENV], "could not make a virtual environment in '%s' (on Debian and Ubuntu: "
         "apt install python3-venv; otherwise check that the folder is writable)" % VENV)
    _add_torch()
    _install([["-r", REQUIREMENTS], RANGES], "diffusers, transformers, safetensors, pytest, pillow")
    _add_optional("numba", NUMBA, "trellis coding on the CPU falls back to plain torch, about ten times slower")
    _add_optional("xdist", XDIST, "the tests run one after the other")
    if sys.platform.startswith("linux"):
        _add_optional("triton", TRITON, "GPU kernels and their interpreter tests are left out")
    if not imports(_venv_python(), sorted({*NEEDED, *modules})):
        raise SetupError("the packages were installed into '%s' but do not import there; delete that folder and try "
                         "again, or run the command with a Python that has them" % VENV)
    with open(os.path.join(VENV, MARKER), "w", encoding="utf-8") as file:
        json.dump(_wanted(), file, indent=1)
    _say("done")


def _clear_old():
    """Remove what an interrupted or older set-up left; leave a .venv that somebody else made."""
    if not os.path.lexists(VENV):
        return
    if os.path.isfile(os.path.join(VENV, OURS)) or not os.path.isfile(_venv_python()):
        _say("removing an unfinished or outdated %s" % os.path.relpath(VENV, ROOT))
        shutil.rmtree(VENV)
        return
    raise SetupError("'%s' was not made by this command and lacks what it needs: activate it and run "
                     "'pip install torch -r tests/requirements.txt', or remove it" % VENV)


def _touch(name):
    os.makedirs(VENV, exist_ok=True)
    with open(os.path.join(VENV, name), "w", encoding="utf-8"):
        pass


def _add_torch():
    """torch by link where the running Python has one (it is the large part), else from the registry."""
    if importlib.util.find_spec("torch") is not None and imports(sys.executable, ["torch"], here=True):
        folder = os.path.dirname(os.path.dirname(importlib.util.find_spec("torch").origin))
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = subprocess.check_output([_venv_python(), "-c", code], text=True).strip()
        with open(os.path.join(packages, "vqpack-torch.pth"), "w", encoding="utf-8") as file:
            file.write(folder + "\n")
        _say("torch: the one in %s" % folder)
        return
    _install([[name] for name in TORCH], "torch (the large one; minutes)")


def _install(choices, what):
    """The first of the choices that installs; SetupError with the installer's last line if none does."""
    said = ""
    for choice in choices:
        _say("installing %s%s" % (what, "" if choice is choices[0] else ", second choice: " + " ".join(choice)))
        code, said = _pip(choice)
        if code == 0:
            return
    raise SetupError("could not install %s: %s" % (what, said))


def _add_optional(name, choices, without):
    if imports(_venv_python(), [name]):
        _say("%s: there already" % name)
        return
    _say("installing %s (optional)" % name)
    for choice in choices:
        if _pip(["--only-binary=:all:", choice])[0] == 0 and imports(_venv_python(), [name]):
            return
    _say("%s cannot be had here: %s" % (name, without))


def _pip(arguments):
    """-> (exit code, last error line)"""
    command = [_venv_python(), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet",
               "--prefer-binary", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          stdin=subprocess.DEVNULL, check=False, close_fds=False)
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    return done.returncode, (errors or done.stdout.splitlines() or ["no message"])[-1][:300]


def _run(command, otherwise):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          check=False, close_fds=False)
    if done.returncode:
        raise SetupError(otherwise)


@contextlib.contextmanager
def _locked(path):
    """Hold a lock file; the system lets go of it when this process and the installers it started have ended."""
    try:
        file = open(path, "a+b")
    except OSError as error:
        raise SetupError("expected a writable folder at '%s' for the virtual environment (%s): "
                         "copy the repository somewhere else" % (ROOT, error.strerror)) from None
    with file:
        os.set_inheritable(file.fileno(), True)     # an installer that outlives a killed set-up keeps the lock
        if not _try_lock(file):
            _say("another set-up is at work in this folder, waiting for it")
            _wait_lock(file)
        yield


def _try_lock(file):
    try:
        if os.name == "nt":
            import msvcrt
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _wait_lock(file):
    import time

    while not _try_lock(file):
        time.sleep(0.5)


def run_inside(argv):
    """In the chosen Python: load the root folder as `vqpack` and run the command."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.getcwd()) not in (here, ROOT)]
    if argv[0] == "test":
        import pytest

        os.chdir(ROOT)
        return int(pytest.main(argv[1:] or side_by_side()))
    spec = importlib.util.spec_from_file_location("vqpack", os.path.join(ROOT, "__init__.py"),
                                                  submodule_search_locations=[ROOT])
    sys.modules["vqpack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["vqpack"])
    from vqpack.vq_core.cli.main import main as command_line

    return command_line(argv)


def side_by_side():
    """Arguments for all tests in two processes of one thread each, where pytest-xdist and a second core are there."""
    if importlib.util.find_spec("xdist") is None or (os.cpu_count() or 1) < 2:
        return []
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    return ["-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder"]          # groups: tests/conftest.py


if __name__ == "__main__":
    sys.exit(run_inside(sys.argv[1:]))
