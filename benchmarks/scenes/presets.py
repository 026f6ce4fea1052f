"""The models train_testbed.py makes: their sizes, their untrained parts, and the words' tokenizer."""
from __future__ import annotations

from dataclasses import dataclass, field, replace

from .data import scenes

TOKENS, DROPPED = 40, 0.1              # tokens of a prompt; share of prompts left empty, for guidance
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SHARD = "15MB"                          # of a weight file: repositories reject large ones


@dataclass(frozen=True)
class Preset:
    """One model and how it is trained. Steps, batches and rates are guesses: no run to the end has tested them."""

    kind: str                           # "unet", "dit", or "student" of a finished unet
    text: tuple[int, int] = (64, 128)   # widths of the text encoders
    model: dict = field(default_factory=dict)
    vae_steps: int = 4000
    steps: int = 12000
    batch: int = 64
    rate: float = 5e-4
    scenes: int = 24_000
    sampling: tuple[int, float] = (20, 3.0)      # steps and guidance of the sample grid
    ema: float = 0.999


PRESETS = {
    "testbed": Preset("unet", model={"block_out_channels": (64, 128, 128), "heads": (2, 4, 4), "time_dim": 32}),
    "wide": Preset("unet", (256, 256), {"block_out_channels": (256, 256), "heads": (4, 4), "time_dim": 128},
                   steps=20_000, batch=256, rate=3e-4, scenes=48_000),
    "lcm": Preset("student", steps=4000, rate=1e-4, sampling=(4, 1.0), ema=0.95),
    "dit": Preset("dit", (256, 256), {"num_layers": 11, "heads": 4}, steps=25_000, batch=256, rate=3e-4, scenes=48_000,
                  sampling=(28, 3.0)),
}


def smoke(preset: Preset) -> Preset:
    """The same model with almost no training: shows that every stage runs."""
    return replace(preset, vae_steps=2, steps=2, batch=4, scenes=8, sampling=(2, preset.sampling[1]))


def tokenizer():
    """CLIP's tokenizer over single letters and the scenes' words, each word one token."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary, merges = [piece for letter in letters for piece in (letter, letter + "</w>")], []
    for word in scenes.WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = (pieces[0], pieces[1])
            pieces[:2] = ["".join(merge)]
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(pieces[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=TOKENS, pad_token="<|endoftext|>",
                         unk_token="<|endoftext|>")


def token_ids(made, captions: list[str]):
    """-> int64 [n, 40]"""
    return made(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def make_vae():
    """4x autoencoder, 4 latent channels, 64 x 64 -> 16 x 16."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                         block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, sample_size=64,
                         latent_channels=4, mid_block_add_attention=False)


def make_encoder(width: int, projected: bool, words):
    """A CLIP text encoder of 3 layers; the first of SDXL's has no projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(vocab_size=len(words), hidden_size=width, intermediate_size=4 * width, projection_dim=width,
                            num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=TOKENS,
                            hidden_act="gelu" if projected else "quick_gelu", bos_token_id=words.bos_token_id,
                            eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def make_denoiser(preset: Preset):
    """The untrained UNet or transformer of a preset."""
    return (_transformer if preset.kind == "dit" else _unet)(preset)


def _unet(preset: Preset):
    from diffusers import UNet2DConditionModel

    size, deeper = preset.model, len(preset.model["block_out_channels"]) - 1      # the first level has no attention
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=size["block_out_channels"], layers_per_block=1,
        attention_head_dim=size["heads"], cross_attention_dim=sum(preset.text), use_linear_projection=True,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * deeper),
        up_block_types=(*["CrossAttnUpBlock2D"] * deeper, "UpBlock2D"),
        transformer_layers_per_block=(1,) * (deeper + 1), addition_embed_type="text_time",
        addition_time_embed_dim=size["time_dim"],
        projection_class_embeddings_input_dim=6 * size["time_dim"] + preset.text[1])


def _transformer(preset: Preset):
    from diffusers import SD3Transformer2DModel

    heads = preset.model["heads"]
    return SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=preset.model["num_layers"],
        attention_head_dim=64, num_attention_heads=heads, caption_projection_dim=64 * heads, pos_embed_max_size=16,
        joint_attention_dim=sum(preset.text), pooled_projection_dim=sum(preset.text))


def make_pipeline(preset: Preset, words, vae, encoders, denoiser):
    """A diffusers pipeline of the parts: SDXL's for a UNet, Stable Diffusion 3's without T5 for a transformer."""
    from diffusers import (
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        StableDiffusion3Pipeline,
        StableDiffusionXLPipeline,
    )

    shared = {"vae": vae, "text_encoder": encoders[0], "text_encoder_2": encoders[1], "tokenizer": words,
              "tokenizer_2": words}
    if preset.kind == "dit":
        return StableDiffusion3Pipeline(**shared, transformer=denoiser, text_encoder_3=None, tokenizer_3=None,
                                        scheduler=FlowMatchEulerDiscreteScheduler())
    return StableDiffusionXLPipeline(**shared, unet=denoiser, force_zeros_for_empty_prompt=False, add_watermarker=False,
                                     scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading",
                                                                      steps_offset=1))
