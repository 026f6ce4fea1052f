"""CLIP's tokenizer from the repository's merge list; the vocabulary follows from the merges (openai/CLIP, MIT)."""
from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

from . import HERE

START, END = "<|startoftext|>", "<|endoftext|>"


def load_tokenizer(pad_token: str = END, folder: Path | None = None):
    """-> transformers' CLIPTokenizer of 77 tokens; SDXL's second one pads with "!". folder: another model's files."""
    from transformers import CLIPTokenizer

    if folder is not None and folder.is_dir():
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    with tempfile.TemporaryDirectory() as made:
        merges = read_merges()
        Path(made, "vocab.json").write_text(json.dumps(vocabulary(merges)), encoding="utf-8")
        Path(made, "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        Path(made, "tokenizer_config.json").write_text(json.dumps(_settings(pad_token)), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(made, local_files_only=True)


def read_merges() -> list[str]:
    """48,894 lines "left right", most frequent first."""
    return gzip.decompress((HERE / "clip_merges.txt.gz").read_bytes()).decode("utf-8").splitlines()


def vocabulary(merges: list[str]) -> dict[str, int]:
    """256 bytes, the same at a word's end, one token a merge, start and end -> token -> id (49,408 of them)."""
    tokens = byte_letters()
    tokens += [token + "</w>" for token in tokens]
    tokens += [merge.replace(" ", "") for merge in merges]
    return {token: index for index, token in enumerate([*tokens, START, END])}


def byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes: printable ones first, the others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(others)]


def _settings(pad_token: str) -> dict:
    return {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": START, "eos_token": END,
            "unk_token": END, "pad_token": pad_token, "do_lower_case": True, "add_prefix_space": False,
            "errors": "replace", "clean_up_tokenization_spaces": True}
