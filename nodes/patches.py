"""What is added to a decoded weight in each call: a model's patches (LoRA, merges), and for a while those of a hook."""
from __future__ import annotations

import copy
import logging
import weakref

import torch

from ..vq_core.low_rank import Term
from . import host, low_rank

_LOG = logging.getLogger(__name__)
_TEXT_ENCODER_KEYS = ("lora_te", "text_encoder")
_said_of_hooks: weakref.WeakSet = weakref.WeakSet()
_said_of: dict | None = None               # the host hands one and the same empty dict to the model and to the CLIP


class Patches:
    """Patches of one weight in the host's form, their tensors kept on the compute device."""

    def __init__(self, key: str, patches: list, original_weights: dict | None = None):
        self.key, self.bytes_held = key, 0
        self._original, self._held, self._on = patches, patches, None
        self._original_weights, self._tried = original_weights, False
        self._terms, self._terms_of = None, None

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        if not self._tried:
            return self._try(weight)
        return self._calculate(self._held, weight)

    def terms(self, shape: tuple[int, ...]) -> tuple[Term, ...] | None:
        """These patches as side products of a Linear layer of this shape; None where the weight itself must change."""
        if self._terms_of is not self._held:
            self._terms, self._terms_of = low_rank.terms_of(self._held, shape), self._held
        return self._terms

    def _calculate(self, patches: list, weight: torch.Tensor) -> torch.Tensor:
        return host.calculate_weight(patches, weight, self.key, intermediate_dtype=weight.dtype,
                                     original_weights=self._original_weights)

    def _try(self, weight: torch.Tensor) -> torch.Tensor:
        """The first call. The host logs a patch that does not fit and goes on; dropped, it is logged no more."""
        fits = []
        for patch in self._held:
            called = []
            weight = self._calculate([(*patch[:4], _noting(patch[4], called))], weight)
            fits.append(bool(called) or patch[2] != 1.0 or _is_silent(patch[1]))      # [2] scales the weight itself
        self._tried = True
        self._original = [patch for patch, fit in zip(self._original, fits, strict=True) if fit]
        self._held = [patch for patch, fit in zip(self._held, fits, strict=True) if fit]
        return weight

    def move_to(self, device) -> int:
        """Hold the patch tensors on a device (CPU: the originals) -> bytes that moved. The host calls this as well."""
        before = self.bytes_held
        if host.is_cpu(device):
            self._held, self._on, self.bytes_held = self._original, None, 0
            return before
        if self._on == device:
            return 0
        counter = [0]
        self._held = [(p[0], _on_device(p[1], device, counter), *p[2:]) for p in self._original]
        self._on, self.bytes_held = device, counter[0]
        return self.bytes_held


class VQPatch(Patches):
    """All patches that a model's patcher holds for one weight; uuid tells one set of patches from the next."""

    def __init__(self, key: str, patches: list, uuid):
        super().__init__(key, patches)
        self.uuid = uuid


class HookPatch(Patches):
    """The patches a hook adds to one weight for a while, after VQPatch."""

    def move_if_room(self, device, counter) -> None:
        """Hold the tensors on a device as far as the host's counter of free bytes allows (None: whole)."""
        if counter is None or counter.is_useable(patch_bytes(self._original)):
            moved = self.move_to(device)
            if counter is not None:
                counter.decrement(moved)


def patch_bytes(patches: list) -> int:
    """Bytes of the tensors in patches of the host's form."""
    counter = [0]
    _on_device([patch[1] for patch in patches], torch.device("meta"), counter)
    return counter[0]


def say_if_nothing_matches(patches: dict, is_clip: bool) -> None:
    """One sentence for a LoRA none of whose keys the host could place, also where model and CLIP are told both."""
    global _said_of
    if not patches and patches is not _said_of:
        _said_of = patches
        part = "text encoders" if is_clip else "model"
        _LOG.warning("VQ: this LoRA changes nothing: none of its keys matches a layer of the %s; it was made for "
                     "another kind of model", part)


def say_if_hook_matches_nothing(hook, patches: dict, is_clip: bool) -> None:
    """The same for a LoRA that comes by hook, of which the host says nothing at all; once per hook."""
    names = getattr(hook, "weights", None) or ()
    if patches or is_clip or hook.hook_ref in _said_of_hooks or any(n.startswith(_TEXT_ENCODER_KEYS) for n in names):
        return
    _said_of_hooks.add(hook.hook_ref)
    _LOG.warning("VQ: the LoRA of this hook changes nothing: none of its keys matches a layer of the model; it was "
                 "made for another kind of model")


def _noting(function, called: list):
    """The function the host applies to what it is about to add, which notes that it was called."""
    def noting(value):
        called.append(True)
        return value if function is None else function(value)
    return noting


def _is_silent(value) -> bool:
    """Whether the host never calls the function of such a patch ("set")."""
    return isinstance(value, tuple) and len(value) == 2 and value[0] not in ("diff", "model_as_lora")


def _on_device(value, device, counter: list[int]):
    """A patch value (adapter, tensor, or tuples, lists and dicts of them) with its tensors on `device`."""
    if isinstance(value, host.WeightAdapterBase):
        moved = copy.copy(value)
        moved.weights = _on_device(value.weights, device, counter)
        return moved
    if isinstance(value, torch.Tensor):
        moved = value.to(device)
        counter[0] += value.nbytes if value.device != device else 0
        return moved
    if isinstance(value, (list, tuple)):
        return type(value)(_on_device(item, device, counter) for item in value)
    if isinstance(value, dict):
        return {key: _on_device(item, device, counter) for key, item in value.items()}
    return value
