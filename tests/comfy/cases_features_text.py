"""Prompts through coded text encoders: usage cases_features_text.py HOST FILES CASE."""
from __future__ import annotations

import json

from cases import CASE, FILES, apart, text_state_dict  # starts ComfyUI

import comfy.sd  # isort: skip
import torch  # isort: skip
from safetensors.torch import save_file  # isort: skip
from vqpack.nodes import ops, patcher  # isort: skip

SMALL = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}


def encoders(kind: str):
    operations = {"compressed": ops.VQOps, "decoded": ops.VQOpsDecoded}.get(kind)
    custom = {"custom_operations": operations} if operations else {}
    options = {"clip_l_model_config": SMALL, "clip_g_model_config": SMALL, "dtype": torch.float32, **custom}
    clip = comfy.sd.load_state_dict_guess_config(text_state_dict(operations is not None), output_vae=False,
                                                 embedding_directory=[str(FILES / "embeddings")],
                                                 model_options=custom, te_model_options=options)[1]
    if operations:
        patcher.adopt(clip.patcher)
    return clip


def encode(clip, words: str) -> torch.Tensor:
    """-> [1, 77 * 128 + 64] conditioning and pooled"""
    (cond, extra), = clip.encode_from_tokens_scheduled(clip.tokenize(words))
    return torch.cat([cond.flatten(1), extra["pooled_output"].flatten(1)], 1)


def skipping(clip, layer: int):
    clip = clip.clone()
    clip.clip_layer(layer)
    return clip


def case_text() -> dict:
    """Weights, CLIP skip, a textual inversion and a long prompt, by the stock encoders and by ours in both modes."""
    (FILES / "embeddings").mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(5)
    save_file({key: torch.randn(2, 64, generator=generator) * 0.1 for key in ("clip_l", "clip_g")},
              FILES / "embeddings" / "mine.safetensors")
    ways = {"plain": lambda clip: encode(clip, "a red fox in the snow"),
            "weights": lambda clip: encode(clip, "a (red:1.4) fox in the [snow] ((deep))"),
            "skip": lambda clip: encode(skipping(clip, -3), "a red fox in the snow"),
            "embedding": lambda clip: encode(clip, "a red fox in the embedding:mine"),
            "weighted_embedding": lambda clip: encode(clip, "a red fox in the (embedding:mine:1.3)"),
            "long": lambda clip: encode(clip, "a red fox in the snow, " * 30)[:, :77 * 128 + 64]}
    results = {kind: {name: way(encoders_of[kind]) for name, way in ways.items()}
               for kind in ("stock", "compressed", "decoded") if encoders_of.setdefault(kind, encoders(kind))}
    stock = results["stock"]
    return {"effect": {name: apart(value, stock["plain"]) for name, value in stock.items() if name != "plain"},
            **{kind: {name: apart(value, stock[name]) for name, value in results[kind].items()}
               for kind in ("compressed", "decoded")}}


encoders_of: dict = {}


if __name__ == "__main__":
    with torch.inference_mode():
        outcome = globals()[f"case_{CASE}"]()
    print("FOUND " + json.dumps(outcome))
