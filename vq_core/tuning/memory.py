"""How much memory a fine-tune takes, counted before it starts, from the shapes alone."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..calibration.settings import Settings

LARGEST_COPIES = 6                         # of the largest layer in float32: weight, its gradient and what leads there
RECORDING = "recording takes the teacher's pipeline beside the student"
CHECKPOINT_FROM = 1 << 30                  # bytes of activations; below that nothing is computed twice


@dataclass(frozen=True)
class Memory:
    """Bytes on the device while learning, an upper bound: activations are counted in float32."""

    student: int                           # codes, and dense tensors in float32
    trained: int                           # gradients and two moments of what is trained
    activations: int                       # of the calls made together
    largest: int                           # working space of the largest layer
    checkpoint: bool                       # whether blocks are computed again in the backward pass
    copies: int                            # the best state so far, in main memory

    @property
    def total(self) -> int:
        """On the device."""
        return self.student + self.trained + self.activations + self.largest

    def sentence(self, beside: str = RECORDING) -> str:
        """For people. beside: what else takes memory, and when."""
        again = ", blocks computed again in the backward pass" if self.checkpoint else ""
        return (f"Learning takes at most {self.total / 1e9:.2f} GB: the student {self.student / 1e9:.2f}, gradients "
                f"and moments {self.trained / 1e9:.2f}, activations {self.activations / 1e9:.2f}{again}, work on the "
                f"largest layer {self.largest / 1e9:.2f}; {beside}.")


def needed(config: Mapping, codes: int, dense: int, trained: int, largest: int, samples: int,
           latent: tuple[int, int]) -> Memory:
    """config: of diffusers' UNet; codes: bytes of the blobs; dense, trained: numbers; largest: weights of the largest
    layer; samples: UNet inputs at once (calls together x guidance halves); latent: their height and width.
    """
    plain, _ = activations(config, samples, latent, checkpoint=False)
    checkpoint = plain > CHECKPOINT_FROM
    held, block = activations(config, samples, latent, checkpoint=True) if checkpoint else (plain, 0)
    return Memory(codes + 4 * dense, 12 * trained, held + block, LARGEST_COPIES * 4 * largest, checkpoint, 8 * trained)


def of_student(student, together: int, settings: Settings, factor: int) -> Memory:
    """needed() of a loaded student. factor: pixels a latent."""
    halves = 2 if settings.guidance > 1 else 1
    layers = student.layers.values()
    held = sum(buffer.nbytes for layer in layers for part in layer.parts if part.assigned is not None
               for buffer in part.assigned.buffers())          # the teacher's weights, or candidates
    return needed(student.unet.config, held + sum(layer.coded.nbytes for layer in layers),
                  sum(p.numel() for p in student.unet.parameters()), sum(student.numbers().values()),
                  max(layer.coded.numel for layer in layers), halves * together,
                  (settings.size[0] // factor, settings.size[1] // factor))


def activations(config: Mapping, samples: int, latent: tuple[int, int], checkpoint: bool) -> tuple[int, int]:
    """-> (bytes kept for the backward pass, those of the largest block that is computed again; 0 without checkpoints)

    A UNet without memory (torch's meta device) is run forward and asked what autograd keeps, in float32.
    """
    return _activations(json.dumps(dict(config), sort_keys=True, default=str), samples, tuple(latent), checkpoint)


@lru_cache(maxsize=16)
def _activations(config: str, samples: int, latent: tuple[int, int], checkpoint: bool) -> tuple[int, int]:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(config))
    kept, blocks = _Kept(unet), [0]

    def again(function, *args):
        kept.add(args)
        inside = _Kept(unet)
        with inside.listening():
            out = function(*args)
        blocks.append(inside.bytes)
        return out

    if checkpoint:
        unet.enable_gradient_checkpointing(again)
    with kept.listening():
        unet(**_inputs(unet.config, samples, latent), return_dict=False)
    return kept.bytes, max(blocks)


def _inputs(config, samples: int, latent: tuple[int, int]) -> dict:
    meta = {"device": "meta"}
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {"sample": torch.empty(samples, config.in_channels, *latent, requires_grad=True, **meta),
            "timestep": torch.empty(samples, **meta),
            "encoder_hidden_states": torch.empty(samples, 77, config.cross_attention_dim, **meta),
            "added_cond_kwargs": {"text_embeds": torch.empty(samples, pooled, **meta),
                                  "time_ids": torch.empty(samples, 6, **meta)}}


class _Kept:
    """Distinct memory that autograd holds on to, weights apart."""

    def __init__(self, model: torch.nn.Module):
        self.bytes = 0
        self._seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._alive: list[torch.Tensor] = []           # so that no address is given away twice

    def add(self, values) -> None:
        for value in values:
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in self._seen:
                self._seen.add(value.untyped_storage()._cdata)
                self._alive.append(value)
                self.bytes += math.prod(value.shape) * value.element_size()

    def listening(self):
        """Inside, everything that is saved for a backward pass is counted."""
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            self.add([tensor])
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
