"""quantize_activations(): hooks on a diffusers UNet that fake-quantize what its layers are given; all can be undone."""
from __future__ import annotations

from torch import nn

from ..errors import PlanError
from .attention import ScoreProcessor, attentions
from .levels import Clock
from .points import Point, find_points
from .quantizers import TableQuantizer, make_quantizer
from .ranges import Ranges
from .specs import Activations, make_activations


class Attached:
    """What was put on a UNet. `quantizers`: name of a point -> what its values go through. Usable in `with`."""

    def __init__(self):
        self.quantizers: dict[str, object] = {}
        self._undo: list = []

    def remove(self) -> None:
        """Leave the UNet as it was."""
        while self._undo:
            self._undo.pop()()

    def axes(self) -> dict[str, str]:
        """Name of a point -> the axis its table has ranges along."""
        return {name: each.table.axis for name, each in self.quantizers.items() if isinstance(each, TableQuantizer)}

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_) -> None:
        self.remove()


def quantize_activations(unet: nn.Module, settings: Activations | str | None, ranges: Ranges | None = None) -> Attached:
    """Quantize a UNet's activations from now on, in floating point (emulated), until `remove`.

    unet: diffusers' UNet2DConditionModel; coded layers (load_unet(..., decode="per_call")) get their rotation and
    concatenated sources from their codes, dense ones have none. settings: a preset's name or a plan's. ranges: what
    calibrate_activations found, for all but token specs. PlanError, UnsupportedError in one sentence; nothing is
    attached then.
    """
    settings = make_activations(settings) if isinstance(settings, str) else settings
    attached = Attached()
    if settings is None:
        return attached
    if any(isinstance(hook, Clock) for hook in unet._forward_pre_hooks.values()):
        raise PlanError("this UNet's activations are quantized already: remove that first")
    clock, points = Clock(None if ranges is None else ranges.levels), find_points(unet)
    _check_layers(settings, points)
    try:
        attached._undo.append(unet.register_forward_pre_hook(clock, with_kwargs=True).remove)
        for point in points:
            module, spec = unet.get_submodule(point.module), settings.spec_for(point.key, point.side)
            made = make_quantizer(point, module, spec, ranges, clock, settings.scores.keep_start)
            if made is not None:
                attached.quantizers[point.name] = made
                attached._undo.append(_hook(module, point, made))
        if settings.scores.method != "keep":
            for module in attentions(unet).values():
                attached._undo.append(_undo_processor(module, module.processor))
                module.set_processor(ScoreProcessor(settings.scores))
    except BaseException:
        attached.remove()
        raise
    return attached


def _hook(module: nn.Module, point: Point, quantizer):
    if point.side == "output":
        return module.register_forward_hook(lambda _, __, output: quantizer(output)).remove
    return module.register_forward_pre_hook(lambda _, args: (quantizer(args[0]), *args[1:])).remove


def _undo_processor(module: nn.Module, processor):
    return lambda: module.set_processor(processor)


def _check_layers(settings: Activations, points: list[Point]) -> None:
    known = {point.key for point in points}
    unknown = next((key for key, _ in settings.layers if key not in known), None)
    if unknown is not None:
        raise PlanError(f"the activations name layer '{unknown}', which this UNet does not have: check the name with "
                        f"`vqpack inspect`")
