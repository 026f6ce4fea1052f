"""VAE key names (AutoencoderKL): LDM <-> diffusers, as prefix pairs derived from the keys. Keys without prefix.

The middle attention's four projections are 1x1 convolutions in LDM and linear layers in diffusers: same numbers,
shape [out, in, 1, 1] against [out, in].
"""
from __future__ import annotations

import re
from collections.abc import Iterable

Pair = tuple[str, str]                     # (LDM prefix, diffusers prefix)

ATTENTION = (("norm.", "group_norm."), ("q.", "to_q."), ("k.", "to_k."), ("v.", "to_v."), ("proj_out.", "to_out.0."))
OLD_ATTENTION = (("norm.", "group_norm."), ("q.", "query."), ("k.", "key."), ("v.", "value."),
                 ("proj_out.", "proj_attn."))   # diffusers before 0.15, still found in folders
SHORTCUT = ("nin_shortcut.", "conv_shortcut.")
_PROJECTION = re.compile(r"(encoder|decoder)\.mid\.attn_1\.(q|k|v|proj_out)\.weight")


def pairs_from_ldm(keys: Iterable[str]) -> list[Pair]:
    """Prefix pairs of a VAE given by its LDM keys."""
    keys = set(keys)
    return _pairs(_highest(keys, r"decoder\.up\.(\d+)\."),
                  _highest(keys, r"(?:en|de)coder\.[a-z]+\.\d+\.block\.(\d+)\."), ATTENTION)


def pairs_from_diffusers(keys: Iterable[str]) -> list[Pair]:
    """Prefix pairs of a VAE given by its diffusers keys (names before and after diffusers 0.15)."""
    keys = set(keys)
    old = any(".attentions.0.query." in key for key in keys)
    return _pairs(_highest(keys, r"decoder\.up_blocks\.(\d+)\."), _highest(keys, r".*_blocks\.\d+\.resnets\.(\d+)\."),
                  OLD_ATTENTION if old else ATTENTION)


def ldm_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of LDM key `key` where diffusers has `shape`."""
    return (*shape, 1, 1) if _PROJECTION.fullmatch(key) and len(shape) == 2 else tuple(shape)


def diffusers_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape that diffusers has for LDM key `key` of `shape`."""
    return tuple(shape[:2]) if _PROJECTION.fullmatch(key) and len(shape) == 4 else tuple(shape)


def _pairs(top: int, last_resnet: int, attention: tuple[Pair, ...]) -> list[Pair]:
    """top: highest level; last_resnet: highest resnet index met anywhere (a pair without keys does no harm)."""
    pairs = [(f"{side}.norm_out.", f"{side}.conv_norm_out.") for side in ("encoder", "decoder")]
    for level in range(top + 1):
        for side, ldm, diffusers in (("encoder", f"down.{level}", f"down_blocks.{level}"),
                                     ("decoder", f"up.{top - level}", f"up_blocks.{level}")):
            for resnet in range(last_resnet + 1):
                block = (f"{side}.{ldm}.block.{resnet}.", f"{side}.{diffusers}.resnets.{resnet}.")
                pairs += [block, (block[0] + SHORTCUT[0], block[1] + SHORTCUT[1])]
        pairs.append((f"encoder.down.{level}.downsample.", f"encoder.down_blocks.{level}.downsamplers.0."))
        pairs.append((f"decoder.up.{top - level}.upsample.", f"decoder.up_blocks.{level}.upsamplers.0."))
    for side in ("encoder", "decoder"):
        pairs += [(f"{side}.mid.block_{i + 1}.", f"{side}.mid_block.resnets.{i}.") for i in (0, 1)]
        pairs += [(f"{side}.mid.attn_1.{a}", f"{side}.mid_block.attentions.0.{b}") for a, b in attention]
    return pairs


def _highest(keys: Iterable[str], pattern: str) -> int:
    return max((int(match[1]) for match in map(re.compile(pattern).match, keys) if match), default=0)
