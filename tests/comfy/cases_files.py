"""Model folders as a real ComfyUI has them: usage cases_files.py HOST FILES CASE; prints one line `FOUND {json}`.

Not imported by pytest: it runs under ComfyUI's own Python (conftest.py starts it).
"""
from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

HOST, FILES, CASE = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
ROOT = Path(__file__).resolve().parents[2]
TOP = Path(tempfile.mkdtemp(prefix="folders-", dir=FILES)).resolve()
BASE, EXTRA, FAR = TOP / "base", TOP / "extra", TOP / "far"
YAML = f"""
first:
    base_path: {EXTRA}
    is_default: true
    checkpoints: ckpts
    vq_checkpoints: ours
second:
    checkpoints: |
        {TOP}/other/checkpoints
        {BASE}/models/checkpoints/inner/checkpoints
"""


def start_host() -> None:
    """ComfyUI's modules with the folders above, its yaml read by itself; then the pack under its alias."""
    sys.argv = ["main.py", "--cpu", "--base-directory", str(BASE)]
    sys.path[0] = HOST
    import comfy.options

    comfy.options.enable_args_parsing()
    from utils.extra_config import load_extra_path_config

    (TOP / "extra_model_paths.yaml").write_text(YAML, encoding="utf-8")
    load_extra_path_config(str(TOP / "extra_model_paths.yaml"))
    spec = importlib.util.spec_from_file_location("vqpack", ROOT / "__init__.py",
                                                  submodule_search_locations=[str(ROOT)])
    sys.modules["vqpack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["vqpack"])


def lay_out() -> None:
    """Files in every kind of place; VQ files and checkpoints are links to the tests' own."""
    vq, unet, plain = (FILES / f"{name}.safetensors" for name in ("tiny-vq", "unet-vq", "dense"))
    models = BASE / "models"
    for source, target in ((plain, EXTRA / "ckpts/same"), (plain, models / "checkpoints/same"),
                           (plain, models / "checkpoints/sub/deep"), (plain, TOP / "other/checkpoints/other"),
                           (plain, models / "checkpoints/inner/checkpoints/nested"), (plain, FAR / "a"),
                           (vq, EXTRA / "ours/yaml"), (vq, models / "vq_checkpoints/sub/mine"),
                           (vq, models / "checkpoints/among"), (unet, models / "vq_checkpoints/unet"),
                           (vq, FAR / "linked"), (plain, models / "vq_checkpoints/twice"),
                           (vq, models / "checkpoints/twice"), (vq, models / "diffusion_models/only")):
        target = target.with_name(target.name + ".safetensors")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    (models / "checkpoints/folder").symlink_to(FAR, target_is_directory=True)
    (models / "checkpoints/file.safetensors").symlink_to(FAR / "a.safetensors")
    (models / "vq_checkpoints/file.safetensors").symlink_to(FAR / "linked.safetensors")
    (models / "vq_checkpoints/broken.safetensors").symlink_to(TOP / "nowhere")
    (EXTRA / "ours/notes.txt").write_text("not a model", encoding="utf-8")
    (EXTRA / "ours/x.safetensors.spool").write_bytes(b"x")


start_host()
lay_out()

import comfy.model_management  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from vqpack.nodes import files, host  # noqa: E402
from vqpack.nodes.node_progress import NodeProgress  # noqa: E402
from vqpack.vq_core.device_memory import CODING_BYTES  # noqa: E402


def short(path) -> str:
    return Path(path).relative_to(TOP).as_posix()


def refused(call, *arguments) -> str:
    try:
        return f"accepted: {call(*arguments)}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def case_folders() -> dict:
    """Lists, names to paths, and where results go."""
    files.register_folders()
    files.register_folders()               # twice changes nothing
    found = {"keys": [short(p) for p in folder_paths.get_folder_paths("vq_checkpoints")],
             "extensions": sorted(folder_paths.folder_names_and_paths["vq_checkpoints"][1]),
             "listed": folder_paths.get_filename_list("vq_checkpoints"), "vq": files.vq_files(),
             "sources": files.source_files()}
    sources = ("same.safetensors", "sub/deep.safetensors", "sub\\deep.safetensors", "folder/a.safetensors",
               "file.safetensors", "other.safetensors", "inner/checkpoints/nested.safetensors")
    found["source"] = {name: short(files.source_path(name)) for name in sources}
    found["output"] = {name: short(files.output_path(files.source_path(name), "")) for name in sources}
    found["named"] = {name: short(files.output_path(files.source_path("same.safetensors"), name)) for name in
                      ("a", "b.safetensors", "B.SafeTensors", "sub\\c", "con", "d/nul.safetensors", "e. ", "./f")}
    outside = ("../x", "a/../../x", "/x", "\\x", "C:\\x", "a/..\\x")
    found["outside"] = [refused(files.output_path, files.source_path("same.safetensors"), name) for name in outside]
    found["not_found"] = [refused(files.vq_path, name) for name in
                          ("../ours/yaml.safetensors", str(EXTRA / "ours/yaml.safetensors"), "broken.safetensors", "")]
    vq = ("yaml.safetensors", "sub/mine.safetensors", "among.safetensors", "unet.safetensors", "file.safetensors",
          "folder/linked.safetensors", "twice.safetensors", "only.safetensors")
    found["vq_path"] = {name: short(files.vq_path(name)) for name in vq}
    found["checkpoint"] = {n: short(files.checkpoint_path(files.vq_path(n), n[:4] == "unet", "")) for n in vq}
    found["names"] = [files.name_of(files.vq_path(name)) for name in vq]
    return found


def case_states() -> dict:
    """What changes while ComfyUI runs: metadata lost, results deleted, folders that cannot be written."""
    files.register_folders()
    found = {"host": case_host()}
    bare, other = BASE / "models/checkpoints/bare.safetensors", BASE / "models/checkpoints/bytes.safetensors"
    save_file(load_file(FILES / "tiny-vq.safetensors"), bare)
    save_file({"a": torch.zeros(500, dtype=torch.uint8), "b": torch.zeros(3)}, other)
    found |= {"bare": files.is_vq_file(bare), "bytes": files.is_vq_file(other)}
    shutil.copy(FILES / "dense.safetensors", bare)
    found["replaced"] = files.is_vq_file(bare)
    files.remember_result(["x", 1], other)
    found["lost"] = [files.lost_results(["x", 1]), files.lost_results(["x", 2])]
    other.unlink()
    found["lost"] += [files.lost_results(["x", 1]), files.lost_results(["x", 1])]
    source, access = files.source_path("other.safetensors"), os.access
    os.access = lambda path, mode: not str(path).startswith(str(TOP / "other")) and access(path, mode)
    found["read_only"] = short(files.output_path(source, ""))
    os.access = access
    shutil.rmtree(TOP / "other/vq_checkpoints", ignore_errors=True)
    (TOP / "other/vq_checkpoints").write_bytes(b"a file where the folder should be")
    found["blocked"] = short(files.output_path(source, ""))
    (BASE / "models/vq_checkpoints/taken").write_bytes(b"")
    found["taken"] = refused(files.output_path, files.source_path("sub/deep.safetensors"), "taken/x")
    return found


def case_host() -> dict:
    """One bar for all stages of a node, and room on a device: what is asked of ComfyUI."""
    values, room = [], []
    shown = NodeProgress(None)
    shown._bar = SimpleNamespace(update_absolute=lambda value, total: values.append(value))
    for stage in ("reading the source", "coding", "writing the file"):
        for done in (0, 5, 10):
            shown(stage, done, 10, "", None)
    shown("decompress", 0, 10, "", None)
    real, comfy.model_management.free_memory = comfy.model_management.free_memory, lambda *a: room.append(a)
    for device in ("cuda:0", "cpu"):
        host.make_room(CODING_BYTES, torch.device(device))
    comfy.model_management.free_memory = real
    return {"values": values, "room": [[nbytes, str(device)] for nbytes, device in room], "needed": CODING_BYTES}


if __name__ == "__main__":
    try:
        print("FOUND " + json.dumps(globals()[f"case_{CASE}"]()))
    finally:
        shutil.rmtree(TOP)
