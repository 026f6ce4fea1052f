"""A coded weight as ComfyUI sees it: one uint8 blob that presents the logical shape and dtype of the weight.

All the memory of a weight is its blob, so the host's sums over `nbytes` are exact. Shared tables are kept once per
device by vq_core.weight.Tables, never per weight.
"""
from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
import weakref
import zlib
from collections.abc import Mapping

import torch

from ..vq_core.activations.int8 import int8_product
from ..vq_core.activations.specs import TokenSpec
from ..vq_core.errors import FormatError
from ..vq_core.layout import Layout
from ..vq_core.weight import CodedWeight, Tables
from . import host

NAME = "VQPackLayout"
_OPERATIONS: dict = {}                     # name -> torch operation, filled by _define
_TABLES = Tables()
_HEADS: weakref.WeakValueDictionary[str, Layout] = weakref.WeakValueDictionary()     # for the operation, by name
_NUMBERS = itertools.count()
_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class VQParams(host.BaseLayoutParams):
    """What goes with a blob: plain values only, so nothing is copied, counted or streamed beside it."""

    head: Layout
    name: str                              # of the head, a constant in a compiled graph

    def _tensor_fields(self) -> list[str]:
        return []


class VQLayout(host.QuantizedLayout):
    """Our entry in comfy-kitchen's table of layouts. There is no way back: nothing may re-encode a weight."""

    Params = VQParams

    @classmethod
    def quantize(cls, tensor, **kwargs):
        """Refused: the host would re-encode a weight with its LoRA, silently and with a loss."""
        raise NotImplementedError("a VQ weight is never encoded again; use Quantize Checkpoint (VQ)")

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: VQParams) -> torch.Tensor:
        """-> [*logical shape] in params.orig_dtype, on the blob's device"""
        return _OPERATIONS["decode"](qdata, params.name).to(params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor) -> tuple[torch.Tensor, ...]:
        """The blob."""
        return (qtensor._qdata,)

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: VQParams) -> dict[str, torch.Tensor]:
        """None: a module of ours puts the blob into its state dict itself."""
        return {}


def wrap(weight: CodedWeight, dtype: torch.dtype | None = None):
    """CodedWeight -> QuantizedTensor of its logical shape and dtype (the source's, or fp16 where that has no math)."""
    host.require_quantized_tensors()
    # Under inference mode `.to(device, dtype)` arrives as this overload, which comfy-kitchen 0.2.31 does not know: it
    # would decode the weight.
    host.register_layout(NAME, VQLayout, {torch.ops.aten.to.device: _move})
    _register_tables(weight.tables)
    dtype = dtype or _math_dtype(weight.source_dtype)
    _define()
    name = str(next(_NUMBERS))
    _HEADS[name] = weight.layout
    params = VQParams(scale=None, orig_dtype=dtype, orig_shape=tuple(weight.shape), head=weight.layout, name=name)
    return host.QuantizedTensor(weight.blob, NAME, params)


def is_coded(tensor) -> bool:
    """Whether a tensor or parameter holds one of our blobs."""
    return isinstance(tensor, host.QuantizedTensor) and getattr(tensor, "_layout_cls", None) == NAME


def unwrap(tensor) -> CodedWeight:
    """QuantizedTensor of ours -> CodedWeight over the same blob."""
    return CodedWeight(tensor._qdata, tensor._params.head, _TABLES)


def decode(coded: CodedWeight, dtype: torch.dtype, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Rows of a weight as the decompressed checkpoint holds them, in dtype -> [stop - start, ...]

    Rounded to the source's dtype first: in fp32 (on the CPU) the unrounded weights of a full-size model moved its
    latents by 1.2e-3 from those of the decompressed file.
    """
    return coded.decode(rounded_to(coded), start, stop).to(dtype)


def rounded_to(coded: CodedWeight) -> torch.dtype:
    """The dtype a decoded weight is rounded to before anything else: its source's."""
    return _math_dtype(coded.source_dtype)


@functools.cache
def _define() -> None:
    """Nodes of a compiled graph. decode: blob and name of its head -> the weight in its own dtype; int8: its product.

    torch.compile cannot follow the decoder, and refuses tables that are not arguments: inside the operation both are
    out of its sight. Defined with the first weight, so that an import defines nothing; the namespace is this copy's
    own, for a second copy of the package keeps its own heads.
    """
    namespace = f"vqpack_{zlib.crc32(__name__.encode()):08x}"
    library = torch.library.Library(namespace, "DEF")
    library.define("decode(Tensor blob, str head) -> Tensor")
    library.impl("decode", _decode_named, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{namespace}::decode", _shape_named, lib=library)
    library.define("int8(Tensor x, Tensor blob, str head, Tensor? bias, Tensor? integers, int bits, bool rotated) "
                   "-> Tensor")
    library.impl("int8", _int8_named, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{namespace}::int8", _int8_shape, lib=library)
    _LIBRARIES.append(library)
    found = getattr(torch.ops, namespace)
    _OPERATIONS.update(decode=found.decode.default, int8=found.int8.default)


_LIBRARIES: list = []                      # an operation lives as long as its library


def _decode_named(blob: torch.Tensor, head: str) -> torch.Tensor:
    coded = CodedWeight(blob, _HEADS[head], _TABLES)
    return decode(coded, rounded_to(coded))                                         # [*logical shape]


def _shape_named(blob: torch.Tensor, head: str) -> torch.Tensor:
    layout = _HEADS[head]
    return blob.new_empty(layout.shape, dtype=_math_dtype(layout.source_dtype))     # [*logical shape]


def int8_operation(x: torch.Tensor, weight, bias, spec: TokenSpec, integers: torch.Tensor | None) -> torch.Tensor:
    """int8_product with a coded Linear weight as one node of a compiled graph -> [..., out]"""
    return _OPERATIONS["int8"](x, weight._qdata, weight._params.name, bias, integers, spec.bits, spec.rotated)


def _int8_named(x, blob, head: str, bias, integers, bits: int, rotated: bool) -> torch.Tensor:
    return int8_product(x, CodedWeight(blob, _HEADS[head], _TABLES), bias, TokenSpec(bits, rotated), integers)


def _int8_shape(x, blob, head: str, bias, integers, bits: int, rotated: bool) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], _HEADS[head].shape[0])                        # [..., out]


def plain(tensor):
    """The decoded weight of a coded tensor; anything else as it is."""
    return tensor.dequantize() if is_coded(tensor) else tensor


def _move(tensor, args: tuple, kwargs: dict):
    """aten::to.device(self, device, dtype, non_blocking=False, copy=False)"""
    _, device, dtype, non_blocking, copy = (*args, *(None, None, None, False, False)[len(args):])[:5]
    blob = tensor._qdata.to(kwargs.get("device", device), non_blocking=kwargs.get("non_blocking", non_blocking),
                            copy=kwargs.get("copy", copy))
    params = dataclasses.replace(tensor._params, orig_dtype=kwargs.get("dtype", dtype) or tensor.dtype)
    return host.QuantizedTensor(blob, NAME, params)


def _math_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float16


def _register_tables(tables: Mapping[int, torch.Tensor]) -> None:
    """Add a file's shared tables; a table's id is the checksum of its bytes, so equal ids mean equal tables."""
    with _LOCK:
        for identity, table in tables.items():
            known = _TABLES.get(identity)
            if known is None:
                _TABLES[identity] = table
            elif known is not table and not torch.equal(known, table):
                raise FormatError(f"the file's table {identity:08x} differs from one of the same id in a file loaded "
                                  f"before: one of the two files is damaged; check them with `vqpack verify`")
