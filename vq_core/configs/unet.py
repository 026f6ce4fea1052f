"""The diffusers configuration of a UNet, read from its shapes; covers every family in arch/families.py."""
from __future__ import annotations

from ..arch import UNet
from ..errors import UnsupportedError

HEAD_CHANNELS = 64                         # of one attention head in all of SDXL's relatives; no shape tells it


def unet_config(unet: UNet, base: dict) -> dict:
    """base (what no shape tells) completed with blocks, channels and depths -> arguments of UNet2DConditionModel."""
    channels = [unet.model_channels * mult for mult in unet.channel_mult]
    down = [tuple(block.depth for block in level) for level in unet.levels]
    up = _up_depths(unet, len(down))
    config = {**base, "in_channels": unet.in_channels, "block_out_channels": channels,
              "attention_head_dim": [count // HEAD_CHANNELS for count in channels],
              "cross_attention_dim": unet.context_dim, "projection_class_embeddings_input_dim": unet.adm_in_channels,
              "use_linear_projection": unet.linear_projections, "layers_per_block": [len(level) for level in down],
              "down_block_types": ["CrossAttnDownBlock2D" if any(level) else "DownBlock2D" for level in down],
              "up_block_types": ["CrossAttnUpBlock2D" if any(level) else "UpBlock2D" for level in up],
              "mid_block_type": _middle_type(unet.middle),
              "transformer_layers_per_block": [list(level) if any(level) else 1 for level in down],
              "reverse_transformer_layers_per_block": [list(level) if any(level) else 1 for level in up]}
    if unet.middle is not None and unet.middle > 0:
        _set_middle_depth(config, down[-1], unet.middle)
    if len(set(config["layers_per_block"])) == 1:
        config["layers_per_block"] = config["layers_per_block"][0]
    return config


def _up_depths(unet: UNet, levels: int) -> list[tuple[int, ...]]:
    """Transformer blocks behind each output resnet, one tuple per resolution, lowest first."""
    up: list[list[int]] = [[]]
    for block in unet.outputs:
        up[-1].append(block.depth)
        if block.upsample is not None:
            up.append([])
    if len(up) != levels or not all(up):
        raise UnsupportedError(f"the UNet has {levels} resolutions on its way down and {len(up)} on its way up: "
                               f"diffusers has no such model")
    return [tuple(level) for level in up]


def _middle_type(depth: int | None) -> str | None:
    if depth is None:
        return None
    return "UNetMidBlock2DCrossAttn" if depth > 0 else "UNetMidBlock2D"


def _set_middle_depth(config: dict, last: tuple[int, ...], middle: int) -> None:
    """diffusers takes the middle's depth from the last level's entry."""
    if not any(last):
        config["transformer_layers_per_block"][-1] = middle
    elif set(last) != {middle}:
        raise UnsupportedError(f"the UNet's middle block has {middle} transformer blocks and its neighbor {last}: "
                               f"diffusers cannot build that")
    else:
        config["transformer_layers_per_block"][-1] = middle
