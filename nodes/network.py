"""The host's diffusion model as calibration asks it: diffusers' signature, its calls recorded, its weights' gradients.

The gradient of a weight is made from a layer's input and the gradient of its output: the host's weights are inference
tensors, coded, or moved for each call, none of which autograd takes.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..vq_core.calibration.sensitivity import Sensitivities
from . import host
from .layout import plain

_PATH = {"cond_or_uncond", "uuids", "sigmas", "sample_sigmas"}           # of one call: made anew


class Network(nn.Module):
    """One MODEL's UNet. options: transformer_options of a call, so that patches of attention are applied again."""

    def __init__(self, model):
        super().__init__()
        self.__dict__["_model"] = model                    # not a submodule: nothing of it may be moved or listed
        self.options: dict = {}

    @property
    def inner(self) -> nn.Module:
        """The host's own module."""
        return self._model.model.diffusion_model

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._model.load_device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return host.computed_in(self._model)

    def get_submodule(self, target: str) -> nn.Module:
        """A layer by its LDM path."""
        return self.inner.get_submodule(target)

    def forward(self, sample, timestep, encoder_hidden_states, added_cond_kwargs, return_dict=False):
        """-> (answer [halves, 4, h, w],)"""
        halves, y = sample.shape[0], added_cond_kwargs["y"]
        times = timestep.to(sample.device, torch.float32).expand(halves)
        if torch.is_grad_enabled():        # what was read in inference mode cannot stand in a graph
            sample, times, y, encoder_hidden_states = (x.clone() for x in (sample, times, y, encoder_hidden_states))
        sigma = self._model.get_model_object("model_sampling").sigma(times[:1]).to(times)
        options = {**self.options, "cond_or_uncond": [1, 0][2 - halves:], "sigmas": sigma,
                   "uuids": self.options.get("uuids", [])[:halves]}
        return (self.inner(sample, times, context=encoder_hidden_states, y=y, control=None,
                           transformer_options=options),)


class Recorder:
    """What a UNet is asked while the host draws. asked, answered: as calls.chosen_calls takes them."""

    def __init__(self, network: Network):
        self.network = network
        self._questions: list[dict[int, tuple]] = []       # half (0: without prompt, 1: with it) -> what was asked
        self._finite: list[bool] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the host draws."""
        hooks = [self.network.inner.register_forward_pre_hook(self._asked, with_kwargs=True),
                 self.network.inner.register_forward_hook(self._answered)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def result(self) -> tuple[list[tuple], list[bool]]:
        """(asked, answered): calls with all halves; what patches ask beside them (one half once more) is left out."""
        most = max((len(question) for question in self._questions), default=0)
        full = [i for i, question in enumerate(self._questions) if len(question) == most]
        return [_joined(self._questions[i]) for i in full], [self._finite[i] for i in full]

    def _asked(self, _, args: tuple, named: dict) -> None:
        sample, times, options = args[0], args[1], named["transformer_options"]
        self.network.options = {name: value for name, value in options.items() if name not in _PATH}
        self.network.options["uuids"] = list(options.get("uuids", []))
        for row, index in enumerate(options["cond_or_uncond"]):
            half, time = 1 - index, float(times[row])
            last = self._questions[-1] if self._questions else None
            if last is None or half in last or any(asked[1] != time for asked in last.values()):
                self._questions.append({})
                self._finite.append(True)
            self._questions[-1][half] = (_kept(sample[row:row + 1]), time, _kept(named["context"][row:row + 1]),
                                         _kept(named["y"][row:row + 1]))

    def _answered(self, _, __, output: torch.Tensor) -> None:
        self._finite[-1] = self._finite[-1] and bool(torch.isfinite(output).all())


def _joined(question: Mapping[int, tuple]) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    """The halves of a call -> sample [halves, 4, h, w], timestep, conditions; a shorter text is repeated."""
    rows = [question[half] for half in sorted(question)]
    tokens = torch.tensor([row[2].shape[1] for row in rows])
    length = int(torch.lcm(tokens[0], tokens[-1]))
    text = torch.cat([row[2].repeat(1, length // row[2].shape[1], 1) for row in rows])
    return torch.cat([row[0] for row in rows]), rows[0][1], {"text": text,
                                                              "added.y": torch.cat([row[3] for row in rows])}


class HostSensitivities(Sensitivities):
    """Sensitivities of a Network."""

    def __init__(self, network: Network, modules: Mapping[str, nn.Module]):
        super().__init__(modules)
        self.network = network

    @staticmethod
    def row_squares(module: nn.Module) -> torch.Tensor:
        """Mean squared weight of each output row, also of coded weights, float64 [out]."""
        host.run_every_op()                # all layers one after the other, before the first answer
        return plain(module.weight.detach()).float().square().flatten(1).mean(1).double().cpu()

    def add(self, halves: Sequence[tuple[float, Callable[[], torch.Tensor]]], generator: torch.Generator) -> None:
        """One answer, out of the host's inference mode; as Sensitivities.add."""
        largest, waiting = max(abs(factor) for factor, _ in halves), {}
        found: dict[str, torch.Tensor] = {}

        def take(last: bool, key: str, gradient: torch.Tensor) -> None:
            gradient = waiting.pop(key, 0) + gradient
            if last:
                found[key] = gradient.float().square().flatten(1).sum(1).double().cpu() * largest**2
            else:
                waiting[key] = gradient

        answer, signs = 0.0, None
        with torch.inference_mode(False), torch.enable_grad():
            for number, (factor, ask) in enumerate(halves, 1):
                with self._differentiable(partial(take, number == len(halves))):
                    answer, signs = self._ask(answer, factor, largest, ask, signs, generator)
        self._count(found, float(torch.as_tensor(answer).double().square().sum()))

    @contextmanager
    def _differentiable(self, take: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
        """Every layer with weights lets gradients through; take(key, weight gradient) for those of `modules`."""
        keys = {id(module): key for key, module in self.modules.items()}
        anchor = torch.zeros(1, device=self.network.device, requires_grad=True)
        changed: list[tuple[nn.Module, Callable | None, dict]] = []
        try:
            for module in self.network.inner.modules():
                if not module._parameters:
                    continue
                changed.append((module, module.__dict__.get("forward"), dict(module._parameters)))
                if isinstance(module, nn.Linear | nn.Conv2d):
                    own = partial(take, keys[id(module)]) if id(module) in keys else None
                    module.forward = partial(_through, anchor, module, module.forward, own)
                else:                      # norms: small enough to be copied
                    module._parameters.update({name: nn.Parameter(value.detach().clone(), requires_grad=False)
                                               for name, value in module._parameters.items() if value is not None})
            yield
        finally:
            for module, forward, parameters in changed:
                module._parameters.update(parameters)
                if forward is not None:
                    module.forward = forward
                else:
                    module.__dict__.pop("forward", None)


def _through(anchor: torch.Tensor, module: nn.Module, forward: Callable, take: Callable | None, x: torch.Tensor):
    return _Through.apply(x, anchor, module, forward, take)


class _Through(torch.autograd.Function):
    """A linear layer or convolution whose weight is fetched from the host again in the backward pass."""

    @staticmethod
    def forward(ctx, x, anchor, module, forward, take):
        """anchor: needs a gradient, so that layers are asked for theirs whose input needs none."""
        ctx.save_for_backward(x)
        ctx.module, ctx.take = module, take
        return forward(x)

    @staticmethod
    def backward(ctx, gradient):
        """-> gradient of the input; take(gradient of the weight, [out, in] or [out, in, kh, kw])"""
        host.run_every_op()
        x, = ctx.saved_tensors
        module, ours = ctx.module, None
        if ctx.take is not None:
            ctx.take(_weight_gradient(module, x, gradient))
        if ctx.needs_input_grad[0]:
            weight, bias, state = host.cast_bias_weight(module, input=x, offloadable=True)
            ours = _input_gradient(module, x, plain(weight), gradient)
            host.uncast_bias_weight(module, weight, bias, state)
        return ours, None, None, None, None


def _weight_gradient(module: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.Linear):
        return gradient.reshape(-1, gradient.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return torch.nn.grad.conv2d_weight(x, shape, gradient, module.stride, module.padding, module.dilation,
                                       module.groups)


def _input_gradient(module: nn.Module, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.Linear):
        return F.linear(gradient, weight.t())
    return torch.nn.grad.conv2d_input(x.shape, weight, gradient, module.stride, module.padding, module.dilation,
                                      module.groups)


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
