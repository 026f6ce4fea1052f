"""What a set of keys and shapes is: an architecture vqpack works on, or which other thing, said in one sentence."""
from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UnsupportedError
from .unet import Shapes, UNet, family_of, read_unet


@dataclass(frozen=True)
class Architecture:
    """A recognized checkpoint."""

    name: str                              # a Family's name or "sdxl-like"
    prediction: str                        # "eps", "v", "edm", "edm-v"
    zero_terminal_snr: bool
    unet: UNet


# Weights another tool already quantized: (format, pattern over keys). First match wins.
QUANTIZED = (
    ("scaled fp8 or int8 (ComfyUI mixed precision)", r"(.*\.)?comfy_quant"),
    ("scaled fp8", r"(.*\.)?(scaled_fp8|scale_weight|scale_input)"),
    ("scaled fp8 or int8", r".*\.(weight_scale(_2)?|weight_scale_inv|input_scale)"),
    ("bitsandbytes", r".*\.(quant_state\..*|absmax|quant_map|SCB)"),
    ("Nunchaku (SVDQuant)", r".*\.(qweight|wscales|smooth_factor)"),
)

# Other things that come as .safetensors: (what it is, patterns that must each match a key).
OTHERS = (
    ("a LoRA", (r"(lora_|.*\.lora_|.*\.lora\.|.*\.hada_w|.*\.lokr_|.*\.oft_).*",)),
    ("a ControlNet", (r"(.*\.)?(input_hint_block|controlnet_cond_embedding|zero_convs|controlnet_down_blocks)\..*",)),
    ("an IP-Adapter", (r"(ip_adapter|image_proj)\..*",)),
    ("a Flux model", (r"(.*\.)?double_blocks\.0\.img_attn\..*",)),
    ("a Flux model", (r"(.*\.)?single_transformer_blocks\.0\..*",)),
    ("a Stable Diffusion 3 model", (r"(.*\.)?joint_blocks\.0\.(context_block|x_block)\..*",)),
    ("a Stable Diffusion 3 model", (r"(.*\.)?transformer_blocks\.0\.attn\.add_q_proj\..*", r"(.*\.)?pos_embed\..*")),
    ("an AuraFlow model", (r"(.*\.)?double_layers\.0\.attn\..*",)),
    ("a Stable Cascade model", (r"(.*\.)?clip_(txt_)?mapper\.weight",)),
    ("a PixArt model", (r"(.*\.)?(adaln_single|t_block)\..*",)),
    ("a Hunyuan model", (r"(.*\.)?(mlp_t5\.0\.weight|txt_in\.individual_token_refiner\..*)",)),
    ("a Qwen-Image model", (r"(.*\.)?transformer_blocks\.0\.attn\.add_[qkv]_proj\..*",)),
    ("a Wan model", (r"(.*\.)?blocks\.0\.cross_attn\..*",)),
    ("a Lumina or Z-Image model", (r"(.*\.)?(noise_refiner|context_refiner)\.0\..*",)),
    ("an LTX-Video, Cosmos or other transformer model", (r"(.*\.)?(transformer_blocks|blocks)\.0\..*",)),
    ("a VAE", (r"(first_stage_model\.)?(encoder|decoder)\.conv_in\.weight",)),
    ("a text encoder", (r"(.*\.)?(text_model\.encoder|transformer\.resblocks|encoder\.block)\..*",)),
)
SUPPORTED = "vqpack works on SDXL and its relatives (refiner, inpaint, SSD-1B, Segmind-Vega, KOALA)"


def detect(shapes: Shapes, name: str = "the file") -> Architecture:
    """Recognize a checkpoint (LDM key -> shape); UnsupportedError names what it is instead."""
    refuse_quantized(shapes, name)
    unet = read_unet(shapes)
    if unet is None:
        raise UnsupportedError(_no_unet(shapes, name))
    other = _other_unet(shapes, unet)
    if other:
        raise UnsupportedError(f"'{name}' is {other}; {SUPPORTED}")
    prediction, zero_snr = _prediction(shapes)
    return Architecture(family_of(unet), prediction, zero_snr, unet)


def refuse_quantized(shapes: Shapes, name: str) -> None:
    """UnsupportedError where another tool's quantization left its keys."""
    for what, pattern in QUANTIZED:
        match = re.compile(pattern)
        key = next((key for key in shapes if match.fullmatch(key)), None)
        if key is not None:
            raise UnsupportedError(f"'{name}' is already quantized: {what} (tensor '{key:.80}'); give the original "
                                   f"fp16, bf16, fp32 or plain fp8 checkpoint")


def _no_unet(shapes: Shapes, name: str) -> str:
    for what, patterns in OTHERS:
        if all(any(map(re.compile(pattern).fullmatch, shapes)) for pattern in patterns):
            return f"'{name}' is {what}, not an SDXL checkpoint; {SUPPORTED}"
    return (f"'{name}' has no UNet: expected keys under 'model.diffusion_model.', 'input_blocks.' or 'down_blocks.', "
            f"found {len(shapes)} tensors without them")


def _other_unet(shapes: Shapes, unet: UNet) -> str | None:
    """What another UNet is, None for one of ours."""
    if any(".time_stack." in key or ".time_mixer." in key for key in shapes):
        return "a video model (Stable Video Diffusion)"
    if unet.context_dim == 768:
        return "a Stable Diffusion 1.x model (context 768)"
    if unet.context_dim == 1024:
        return "a Stable Diffusion 2.x model (context 1024)"
    if unet.adm_in_channels is None or not unet.linear_projections:
        label = "no" if unet.adm_in_channels is None else "a"
        projections = "linear" if unet.linear_projections else "convolution"
        return f"an unknown UNet (context {unet.context_dim}, {label} label embedding, {projections} projections)"
    if not unet.outputs or len(unet.outputs) != len(unet.inputs):
        return f"an incomplete UNet ({len(unet.inputs)} input blocks, {len(unet.outputs)} output blocks)"
    return None


def _prediction(shapes: Shapes) -> tuple[str, bool]:
    """Prediction type from marker keys, as ComfyUI reads them -> (prediction, zero terminal SNR)."""
    if "edm_mean" in shapes and "edm_std" in shapes:
        return "edm", False
    if "edm_vpred.sigma_max" in shapes:
        return "edm-v", False
    if "v_pred" in shapes:
        return "v", "ztsnr" in shapes
    return "eps", False
