"""Owns decoding and coded_linear as torch operations, so that torch.compile keeps one graph around them.

torch.compile cannot follow the dispatcher, and an operation takes tensors and plain values only: flatten a part once,
outside the compiled code, and hand its operand to decode or linear inside.
"""
from __future__ import annotations

import functools
import json
import threading
import zlib
from dataclasses import fields
from typing import NamedTuple

import torch

from . import dispatch
from . import linear as linears
from .checks import check_part
from .parts import AdditivePart, LutPart, Part, Scales, TrellisPart

_FAMILIES = {kind.__name__: kind for kind in (LutPart, AdditivePart, TrellisPart)}
_OPERATIONS: dict[str, object] = {}        # name -> operation, filled by the first flatten: an import defines nothing
_LIBRARIES: list = []                      # an operation lives as long as its library
_LOCK = threading.Lock()


class Operand(NamedTuple):
    """A part as an operation takes it: its tensors, and everything else about it as one constant."""

    tensors: list[torch.Tensor]
    head: str


def flatten(part: Part) -> Operand:
    """A checked part -> its operand, over the same memory."""
    check_part(part)
    _define()
    found = {**_split(part), **{f"scales.{name}": value for name, value in _split(part.scales).items()}}
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in found.items() if name not in tensors and name != "scales"}
    head = {"part": type(part).__name__, "tensors": list(tensors), **plain}
    return Operand(list(tensors.values()), json.dumps(head, sort_keys=True))


def decode(operand: Operand, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The whole part as dispatch.decode_part gives it, [out_features, cols]; one node of a compiled graph."""
    return _OPERATIONS["decode"](operand.tensors, operand.head, dtype)


def linear(x: torch.Tensor, operand: Operand, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x times the part as linear.coded_linear gives it, [..., out_features]; one node of a compiled graph."""
    return _OPERATIONS["linear"](x, bias, operand.tensors, operand.head)


def _split(record) -> dict:
    return {field.name: getattr(record, field.name) for field in fields(record)}


@functools.lru_cache(maxsize=4096)
def _plain(head: str) -> dict:
    return json.loads(head)


def _part(tensors: list[torch.Tensor], head: str) -> Part:
    plain = _plain(head)
    values = {**plain, **dict(zip(plain["tensors"], tensors, strict=True))}
    scales = {name.removeprefix("scales."): value for name, value in values.items() if name.startswith("scales.")}
    own = {name: value for name, value in values.items() if "." not in name and name not in ("part", "tensors")}
    return _FAMILIES[plain["part"]](**own, scales=Scales(**scales))


def _decode(tensors: list[torch.Tensor], head: str, dtype: torch.dtype) -> torch.Tensor:
    return dispatch.decode_part(_part(tensors, head), dtype=dtype)


def _decode_shape(tensors: list[torch.Tensor], head: str, dtype: torch.dtype) -> torch.Tensor:
    plain = _plain(head)
    return tensors[0].new_empty(plain["out_features"], plain["channels"] * plain["taps"], dtype=dtype)


def _linear(x: torch.Tensor, bias: torch.Tensor | None, tensors: list[torch.Tensor], head: str) -> torch.Tensor:
    return linears.coded_linear(x, _part(tensors, head), bias)


def _linear_shape(x: torch.Tensor, bias: torch.Tensor | None, tensors: list[torch.Tensor], head: str) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], _plain(head)["out_features"])


def _define() -> None:
    """Once a process, in a namespace of this copy's own: a second copy of the package defines its own."""
    with _LOCK:
        if _OPERATIONS:
            return
        namespace = f"vqpack_{zlib.crc32(__name__.encode()):08x}"
        library = torch.library.Library(namespace, "DEF")
        _LIBRARIES.append(library)
        for name, arguments, run, shape in (
                ("linear", "Tensor x, Tensor? bias, Tensor[] tensors, str head", _linear, _linear_shape),
                ("decode", "Tensor[] tensors, str head, ScalarType dtype", _decode, _decode_shape)):
            library.define(f"{name}({arguments}) -> Tensor")
            library.impl(name, run, "CompositeExplicitAutograd")
            torch.library.register_fake(f"{namespace}::{name}", shape, lib=library)
        found = getattr(torch.ops, namespace)
        _OPERATIONS.update(decode=found.decode.default, linear=found.linear.default)
