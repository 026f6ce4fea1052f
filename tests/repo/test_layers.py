"""The law of layers, read from syntax trees: who imports whom, and what may happen at import."""
from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
LAYERS = ("kernels", "vq_core", "nodes", "webui")
# nodes and webui: one for each family of hosts
MAY_IMPORT = {"kernels": ("kernels",), "vq_core": ("kernels", "vq_core"), "nodes": ("kernels", "vq_core", "nodes"),
              "webui": ("kernels", "vq_core", "webui"), "": LAYERS}
OWN_NAMES = {*LAYERS, "vqpack"}
HOST_INTERNALS = {"comfy", "comfy_execution", "comfy_extras", "comfy_kitchen", "execution", "folder_paths",
                  "latent_preview", "node_helpers", "server"}   # nodes/host.py only; comfy_api is public
WEBUI_INTERNALS = {"modules", "modules_forge"}                  # of A1111 and Forge; webui/host.py and the script only
STDLIB = set(sys.stdlib_module_names)
AT_IMPORT = {"kernels": {"torch", "numpy"}, "vq_core": {"torch", "numpy", "safetensors"},
             "nodes": {"PIL", "torch", "comfy_api", "typing_extensions"}, "webui": set(), "": set()}
INSIDE_FUNCTIONS = {"kernels": {"triton", "numba", "comfy_kitchen"},
                    "vq_core": {"diffusers", "transformers", "tokenizers", "PIL", "triton", "numba", "lpips"},
                    "nodes": {"numpy", "safetensors", "PIL", "aiohttp"}, "webui": {"gradio"}, "": set()}
ACCELERATED = {"triton": ("triton",), "numba": ("numba",), "llvm": ("numba", "llvmlite")}    # _triton.py ...
HARMLESS_CALLS = {
    "dataclass", "dataclasses.dataclass", "field", "dataclasses.field", "namedtuple", "NamedTuple", "TypeVar",
    "frozenset", "set", "tuple", "list", "dict", "range", "len", "sorted", "min", "max", "zip", "enumerate", "sum",
    "int", "float", "bool", "str", "bytes", "bytearray", "property", "isinstance", "auto", "type", "getattr",
    "re.compile", "re.escape", "struct.Struct", "Struct", "struct.calcsize", "math.sqrt", "math.log", "math.log2",
    "logging.getLogger", "itertools.count", "weakref.WeakValueDictionary",
    "threading.Event", "threading.Lock",
    "threading.RLock", "threading.local", "MappingProxyType", "functools.lru_cache", "lru_cache",
    "functools.partial", "partial", "Path", "weakref.WeakKeyDictionary", "WeakKeyDictionary", "weakref.WeakSet",
    "collections.OrderedDict", "OrderedDict", "defaultdict", "torch.no_grad", "torch.inference_mode",
}
REGISTERED = {"scripts/vq_webui.py": {"_register"}}              # the host runs this file to be told of the tab
HARMLESS_METHODS = {"items", "keys", "values", "split", "join", "format", "encode", "strip", "splitlines", "resolve",
                    "with_name", "setter", "index", "lower", "upper", "calcsize"}
ACCELERATED_CALLS = {"triton.jit", "triton.autotune", "triton.Config", "numba.njit", "njit", "prange", "tl.constexpr",
                     "numba.jit", "ir.IntType", "ir.VectorType"}


def shipped() -> list[Path]:
    """Every Python file of the published package, relative to the root."""
    files = [ROOT / "__init__.py", ROOT / "install.py", ROOT / "preload.py"]
    for layer in (*LAYERS, "scripts"):
        files += [p for p in (ROOT / layer).rglob("*.py") if "__pycache__" not in p.parts]
    return sorted(p.relative_to(ROOT) for p in files)


def layer_of(path: Path) -> str:
    return path.parts[0] if path.parts[0] in LAYERS else ""


def accelerator_of(path: Path) -> str | None:
    """A key of ACCELERATED for a file that may import it at its top, and is itself imported inside functions only."""
    return next((name for name in ACCELERATED if path.stem.endswith("_" + name)), None)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path):
    """(node, is at import time, absolute top name or None, path parts inside the pack or None) of every import."""
    module, package = tree(path), path.parent.parts
    later = [node for node in ast.walk(module) if isinstance(node, FUNCTION) or is_type_checking(node)]
    deferred = {id(child) for node in later for child in ast.walk(node)}
    for node in ast.walk(module):
        now = id(node) not in deferred
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, now, alias.name.split(".")[0], None
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, now, node.module.split(".")[0], None
        elif isinstance(node, ast.ImportFrom):
            assert node.level - 1 <= len(package), f"{path}:{node.lineno} leaves the pack"
            base = package[:len(package) - node.level + 1] + tuple(node.module.split(".") if node.module else ())
            for alias in node.names:
                yield node, now, None, (*base, alias.name)


def is_type_checking(node) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@pytest.mark.parametrize("path", shipped(), ids=str)
def test_imports_follow_the_layers(path):
    layer = layer_of(path)
    allowed = MAY_IMPORT[layer]
    for node, now, _, inside in imports(path):
        if inside is None:
            continue
        where = f"{path}:{node.lineno}"
        assert inside[0] in allowed, f"{where}: {layer or 'the root'} must not import {inside[0]}"
        assert layer or not now, f"{where}: the root imports inside its functions only"
        names_accelerated = any(accelerator_of(Path(part)) for part in inside)
        assert not (names_accelerated and now and accelerator_of(path) is None), (
            f"{where}: {'.'.join(inside)} needs an optional package, import it inside a function")


@pytest.mark.parametrize("path", shipped(), ids=str)
def test_foreign_imports_are_known_and_light(path):
    layer = layer_of(path)
    for node, now, name, inside in imports(path):
        if inside is not None or name in STDLIB:
            continue
        where = f"{path}:{node.lineno}"
        is_host = path.as_posix() == "nodes/host.py"
        assert name not in OWN_NAMES or (is_host and name == "nodes"), f"{where}: import '{name}' relatively"
        kitchen = name == "comfy_kitchen" and not now and path.stem.endswith("_kitchen")     # a package of its own, too
        if (name in HOST_INTERNALS or name == "nodes") and not kitchen:
            assert is_host, f"{where}: only nodes/host.py imports ComfyUI's {name}"
            continue
        if name in WEBUI_INTERNALS:
            ours = path.as_posix() in ("webui/host.py", "scripts/vq_webui.py")
            assert ours and not now, f"{where}: only webui/host.py imports {name}, inside its functions"
            continue
        allowed = AT_IMPORT[layer] | set(ACCELERATED.get(accelerator_of(path), ()))
        if not now:
            allowed |= INSIDE_FUNCTIONS[layer]
        assert name in allowed, f"{where}: {name} {'at import' if now else ''} is not among {sorted(allowed)}"


def calls_at_import(module: ast.Module):
    """Call nodes and environment reads that run when the module is imported."""
    pending = list(module.body)
    while pending:
        node = pending.pop()
        if isinstance(node, FUNCTION | ast.Lambda):
            arguments = node.args
            pending += [d for d in (*arguments.defaults, *arguments.kw_defaults) if d is not None]
            pending += getattr(node, "decorator_list", [])
            continue
        if is_type_checking(node) or is_main_guard(node):
            continue
        if isinstance(node, ast.Call) or (isinstance(node, ast.Attribute) and node.attr == "environ"):
            yield node
        pending += list(ast.iter_child_nodes(node))


def is_main_guard(node) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).replace('"', "'") == "__name__ == '__main__'"


@pytest.mark.parametrize("path", shipped(), ids=str)
def test_nothing_happens_at_import(path):
    module = tree(path)
    own_classes = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
    imported = {alias.asname or alias.name for node in module.body if isinstance(node, ast.ImportFrom) and node.level
                for alias in node.names}
    for node in calls_at_import(module):
        where = f"{path}:{node.lineno}: {ast.unparse(node)[:60]}"
        assert isinstance(node, ast.Call), f"{where} reads the environment at import"
        name = ast.unparse(node.func)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        ours = name in own_classes or (name in imported and name[:1].isupper())      # records made of constants
        harmless = HARMLESS_CALLS | REGISTERED.get(path.as_posix(), set())
        known = name in harmless or method in HARMLESS_METHODS or ours
        assert known or (accelerator_of(path) and name in ACCELERATED_CALLS), f"{where} runs at import"


@pytest.mark.parametrize("path", shipped(), ids=str)
def test_library_code_does_not_print(path):
    if path.parts[:2] == ("vq_core", "cli") or path.as_posix() in ("vq_core/demo.py", "install.py"):
        return
    found = [node.lineno for node in ast.walk(tree(path))
             if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "breakpoint")]
    assert not found, f"{path} prints in lines {found}"


@pytest.mark.parametrize("path", shipped(), ids=str)
def test_files_say_what_they_own_and_stay_readable(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    if not source.strip():
        return
    assert ast.get_docstring(tree(path)), f"{path}: the first line must say what the file owns"
    assert source.count("\n") <= 400, f"{path} has {source.count(chr(10))} lines: a second topic means a second file"
    for node in ast.walk(tree(path)):
        if isinstance(node, FUNCTION):
            limit = 120 if accelerator_of(path) else 60
            assert node.end_lineno - node.lineno < limit, f"{path}:{node.lineno} {node.name} is over {limit} lines"


def test_importing_everything_is_silent_and_light():
    """The same, observed: import all of vq_core and kernels and look at what that loaded and printed."""
    modules = [".".join(("vqpack", *path.with_suffix("").parts)) for path in shipped()
               if layer_of(path) in ("kernels", "vq_core") and accelerator_of(path) is None]
    modules = [name.removesuffix(".__init__") for name in modules]
    code = f"""
import importlib, importlib.util, os, sys
import numpy, safetensors.torch, torch
before, threads = set(sys.modules), torch.get_num_threads()
spec = importlib.util.spec_from_file_location("vqpack", {str(ROOT / '__init__.py')!r},
                                              submodule_search_locations=[{str(ROOT)!r}])
sys.modules["vqpack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["vqpack"])
for name in {modules!r}:
    importlib.import_module(name)
heavy = {{name.split(".")[0] for name in set(sys.modules) - before}} & {{
    "triton", "numba", "diffusers", "transformers", "PIL", "comfy", "server", "folder_paths", "nodes", "kernels"}}
assert not heavy, heavy
assert not torch.cuda.is_initialized() and torch.get_num_threads() == threads
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""
