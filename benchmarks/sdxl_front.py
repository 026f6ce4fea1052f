"""SDXL's UNet from its input to the end of one block, so that this block's layers get real inputs without the rest."""
from __future__ import annotations

from pathlib import Path

import torch
from alias import load_vqpack
from torch import nn

load_vqpack()
from vqpack.vq_core.arch import UNET_PREFIX, Layer, detect, unet_names  # noqa: E402
from vqpack.vq_core.arch import layers as arch_layers  # noqa: E402
from vqpack.vq_core.calibration.calls import Calls  # noqa: E402
from vqpack.vq_core.calibration.groups import CodedLayer  # noqa: E402
from vqpack.vq_core.configs import read_config  # noqa: E402
from vqpack.vq_core.configs.unet import unet_config  # noqa: E402
from vqpack.vq_core.keymap import PrefixTable  # noqa: E402
from vqpack.vq_core.source import Source, open_source  # noqa: E402

BLOCK = 2                                  # of diffusers' down_blocks: input_blocks.7 and 8 of SDXL
TOKENS, LATENT = 77, 8                     # text states of a prompt; pixels a latent


class _Reached(Exception):
    """The block's output is there: the rest of the UNet is not computed."""


class Front(nn.Module):
    """Called like diffusers' UNet, answers with what its down_blocks[BLOCK] gives; the rest has no weights."""

    def __init__(self, unet: nn.Module, block: int = BLOCK):
        super().__init__()
        self.unet, self.block = unet, unet.down_blocks[block]
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, *args, **named) -> tuple[torch.Tensor]:
        """-> (the block's hidden states [n, channels, h, w],)"""
        def stop(_, __, output) -> None:
            raise _Reached(output[0])

        hook = self.block.register_forward_hook(stop)
        try:
            self.unet(*args, **named)
        except _Reached as reached:
            return reached.args
        finally:
            hook.remove()
        raise RuntimeError("the UNet answered without passing through the block")

    def get_submodule(self, target: str) -> nn.Module:
        """By the UNet's own names."""
        return self.unet.get_submodule(target)


def empty_unet(shapes: dict[str, tuple[int, ...]]):
    """diffusers' UNet on the meta device. shapes: LDM key -> shape of a whole checkpoint."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(unet_config(detect(shapes).unet, read_config("unet"))).eval()


def load_front(source: Source, block: int = BLOCK) -> Front:
    """The UNet's input side up to the block in float32."""
    shapes = {key: tuple(source.shape(key)) for key in source.keys()}
    names, weights = _names(shapes), {}
    for key in shapes:
        name = names.apply(key.removeprefix(UNET_PREFIX)) if key.startswith(UNET_PREFIX) else ""
        if _before(name, block):
            weights[name] = source.load(key).float()
    unet = empty_unet(shapes)
    unet.load_state_dict(weights, strict=False, assign=True)
    missing = [name for name, value in unet.state_dict().items() if value.is_meta and _before(name, block)]
    if missing:
        raise RuntimeError(f"the checkpoint lacks {len(missing)} weights before the block's end, first '{missing[0]}'")
    return Front(unet.requires_grad_(False), block)


def block_layers(checkpoint: Path, block: int = BLOCK) -> list[tuple[Layer, CodedLayer]]:
    """The block's coded layers in forward order."""
    with open_source(checkpoint) as source:
        found = arch_layers(source)
    names = _names({layer.key: layer.shape for layer in found})
    pairs = [(layer, names.apply(layer.key.removeprefix(UNET_PREFIX)).removesuffix(".weight"))
             for layer in found if layer.component == "unet" and not layer.dense]
    return [(layer, CodedLayer(layer.key, layer.shape, name)) for layer, name in pairs
            if name.startswith(f"down_blocks.{block}.")]


def made_calls(config, picture: int, steps: int, side: int) -> Calls:
    """Questions of SDXL's shapes: unit noise as a scheduler scales it, random text states; both guidance halves.

    config: of the UNet; side: in pixels. With untrained weights no better picture exists.
    """
    generator = torch.Generator().manual_seed(picture)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    latents = torch.randn(steps, 1, config.in_channels, side // LATENT, side // LATENT, generator=generator)
    levels = tuple(float(v) for v in torch.linspace(1000, 0, steps + 2)[1:-1])
    fixed = {"text": torch.randn(2, TOKENS, config.cross_attention_dim, generator=generator),
             "added.text_embeds": torch.randn(2, pooled, generator=generator),
             "added.time_ids": torch.tensor([[side, side, 0, 0, side, side]] * 2, dtype=torch.float32)}
    return Calls(tuple(range(steps)), levels, (True,) * steps, torch.tensor(levels),
                 latents.expand(-1, 2, -1, -1, -1).contiguous(), fixed)


def operations(shapes: dict[str, tuple[int, ...]], side: int, block: int = BLOCK) -> dict[str, float]:
    """Floating point operations of one call (both halves): of the whole UNet, and up to the block's end."""
    from torch.utils.flop_counter import FlopCounterMode

    unet, found = empty_unet(shapes).requires_grad_(False), {}
    calls = made_calls(unet.config, 0, 1, side)
    for name, asked in (("whole", unet), ("front", Front(unet, block))):
        fixed = {key: value.to("meta") for key, value in calls.fixed.items()}
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            asked(calls.samples[0].to("meta"), torch.tensor(1.0, device="meta"), encoder_hidden_states=fixed["text"],
                  added_cond_kwargs={key: fixed[f"added.{key}"] for key in ("text_embeds", "time_ids")},
                  return_dict=False)
        found[name] = float(counter.get_total_flops())
    return found


def _names(shapes) -> PrefixTable:
    keys = [key.removeprefix(UNET_PREFIX) for key in shapes if key.startswith(UNET_PREFIX)]
    return PrefixTable(unet_names.pairs_from_ldm(keys))


def _before(name: str, block: int) -> bool:
    """Whether the UNet needs this weight to get to the block's end."""
    if name.startswith("down_blocks."):
        return int(name.split(".")[1]) <= block
    return name.startswith(("conv_in.", "time_embedding.", "add_embedding."))
