"""card: a model page (README.md) about one vqpack file, for the site it is shared on, made from the file alone."""
from __future__ import annotations

import html
import re
from pathlib import Path

from .card_pictures import comparison_sheet
from .compare.output import write_bytes
from .container import Reader
from .describe import interval_text, size
from .errors import VQError
from .file_names import numbered
from .file_report import error_groups, plan_line
from .inspection import inspect_file, stored_tensors
from .progress import Progress
from .provenance import LICENSE_KEY, LOST, Hashes, file_hashes, license_note, one_line
from .version import __version__
from .writer import HASH_KEY

NAME, SHEET = "README.md", "comparison.png"
_FRONT = """---
license: other
license_name: as-the-source
base_model_relation: quantized
pipeline_tag: text-to-image
tags: [stable-diffusion-xl, vqpack, quantized]
---
"""
_USE = """## How to load it

- **ComfyUI**: install the node pack *vqpack*, put the file into `models/vq_checkpoints` and use
  *Load Checkpoint (VQ)*. LoRA, ControlNet and the other nodes work as with any checkpoint.
- **A1111, Forge**: the same pack is an extension there; its tab *VQ* has *Decompress and select*.
- **Python**: `pip install .` in the pack's folder, then `vqpack.load_pipeline("{name}")`, a diffusers pipeline.

## How to get an ordinary fp16 file back

`vqpack decompress {name} -o model-fp16.safetensors`, or the node *Decompress Checkpoint (VQ)*. It has the
original's names, shapes and size and every program reads it; its weights are those of this file, with the error stated
above, not the original's.
"""


def write_card(path: str | Path, output: str | Path | None = None, comparison: str | Path | None = None,
               overwrite: bool = False, progress: Progress | None = None) -> Path:
    """Write the model page of a vqpack file -> README.md, under a free name unless `overwrite`.

    output: the page or its folder, None = beside the file. comparison: folder or compare.html of a `vqpack compare` of
    this very file, whose pictures go beside the page as one PNG, without the prompts. Nothing in either tells who made
    them, where or when. Raises VQError in one sentence.
    """
    path, target = Path(path), _target(Path(path), output)
    sheet = comparison_sheet(path, comparison) if comparison is not None else None
    text = card_text(path, file_hashes(path, progress), SHEET if sheet else None)
    target = target if overwrite else numbered(target)
    try:
        if sheet:
            picture = target.with_name(SHEET) if overwrite else numbered(target.with_name(SHEET))
            write_bytes(picture, sheet)
            text = text.replace(f"]({SHEET})", f"]({picture.name})")
        write_bytes(target, text.encode())
    except OSError as error:
        raise VQError(f"cannot write '{target.name}' into '{target.parent}' ({error.strerror or error}): choose "
                      f"another folder with -o") from None
    return target


def card_text(path: str | Path, hashes: Hashes, picture: str | None = None) -> str:
    """The page's Markdown: the same file gives the same text."""
    info = inspect_file(path)
    with Reader(path) as reader:
        tensors = stored_tensors(reader)
    return "\n".join([_FRONT, f"# {_safe(Path(path).stem)}", "", *_intro(info), *_facts(Path(path).name, info, hashes),
                      *_losses(info, tensors), *_comparison(info, picture), *_license(info),
                      _USE.format(name=_safe(Path(path).name, code=True)), *_foot(info)]).rstrip() + "\n"


def _target(path: Path, output: str | Path | None) -> Path:
    target = path.parent if output is None else Path(output)
    return target / NAME if target.is_dir() else target if target.suffix == ".md" else target.with_name(
        target.name + ".md")


def _intro(info: dict) -> list[str]:
    source = info["source"].get("name")
    if source is None:
        return [f"A checkpoint whose weights are quantized by vqpack. Its {LOST}.", ""]
    saved = f", {info['source']['bytes'] / info['file_bytes']:.1f} times smaller" if info["source"].get("bytes") else ""
    return [f"**{_safe(source)}** with its weights quantized by vqpack to {info['bits']['unet']:.2f} bits a weight "
            f"of the UNet: {size(info['file_bytes'])}{saved}.", ""]


def _facts(name: str, info: dict, hashes: Hashes) -> list[str]:
    source, bits = info["source"], info["bits"]
    rows = [("file", f"`{_safe(name, code=True)}`, {size(info['file_bytes'])}"),
            ("made from", f"{_safe(source['name'])}, {size(source['bytes'])}, SHA-256 `{_safe(source['sha256'], True)}`"
             if source.get("name") and source.get("bytes") else "not known"),
            ("architecture", _safe(info["architecture"])),
            ("bits a weight", f"coded layers {bits['coded']:.3f}, whole UNet {bits['unet']:.3f}, "
                              f"whole file {bits['file']:.3f}; everything counted"),
            ("plan", _safe(plan_line(info["plan"]).removeprefix("plan: "))),
            ("SHA-256", f"`{hashes.sha256}`"), ("AutoV2", f"`{hashes.auto_v2}`"), ("AutoV3", f"`{hashes.auto_v3}`")]
    stated = info["modelspec"].get(HASH_KEY)
    if stated is not None and stated != f"0x{hashes.data_sha256}":
        rows.append(("warning", f"`{HASH_KEY}` is not the hash of the data: the file was changed, get a fresh copy"))
    return ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows), ""]


def _losses(info: dict, tensors) -> list[str]:
    groups = error_groups(info, tensors)
    if not groups:
        return ["## What it lost", "", "The file does not say: `vqpack verify FILE --against ORIGINAL` measures it.",
                ""]
    return ["## What it lost", "", "Error of the weights: squared error over squared norm.", "",
            "| layers | number | bits a weight | mean error | worst layer |", "|---|---|---|---|---|",
            *(f"| {g.part}, {g.what} | {g.layers} | {g.bits:.2f} | {g.mean:.4f} | {g.worst:.4f} |" for g in groups), ""]


def _comparison(info: dict, picture: str | None) -> list[str]:
    found = info["comparison"]
    lines = [f"![the reference above, this file below, the same prompts and noise]({picture})", ""] if picture else []
    if not found:
        return ["## Against the original", "", *lines] if lines else []
    drawn = found["settings"]
    what = "its own original" if found["reference"]["is_source"] else _safe(found["reference"]["name"])
    return ["## Against the original", "", f"Drawn with the same prompts and noise as {what}: {drawn['prompts']} "
            f"prompts, seeds of each: {drawn['seeds']}, {drawn['steps']} steps, guidance {drawn['guidance']:g}, "
            f"{drawn['size'][1]} x {drawn['size'][0]} pixels; distances with 95 % intervals over the prompts.", "",
            *lines, "| metric | value |", "|---|---|",
            *(f"| {_safe(m['title'])} | {_safe(interval_text(m))} |" for m in found["metrics"]), ""]


def _license(info: dict) -> list[str]:
    text, warning = info["modelspec"].get(LICENSE_KEY), license_note(info["modelspec"])
    stated = f"The source states: {_safe(text)}." if text else "The source's file states no license: look at its page."
    made = _safe(info["tool"] or f"vqpack {__version__}")
    return ["## License", "", f"Modified: weights quantized by {made}. {stated}", "",
            "A quantized file is a derivative and keeps the license of its source. **Many merges and fine-tunes forbid "
            "re-uploading them or anything made from them: make sure that you may before you publish this file.**",
            *(["", f"**Here {_safe(warning)}.**"] if warning else []), ""]


def _foot(info: dict) -> list[str]:
    return [f"Format version {info['format_version']} of vqpack, documented byte by byte in its `docs/format.md`."]


def _safe(text, code: bool = False) -> str:
    """Foreign text inside Markdown: one line, no markup."""
    text = one_line(text)
    if code:
        return re.sub(r"[`|<>]", "_", text)
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", html.escape(text, quote=False))
