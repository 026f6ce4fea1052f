"""How one layer is coded: frozen, versioned, JSON in and out. Encoders read specs, files carry them."""
from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from .errors import PlanError

SPEC_VERSION = 1
TRELLIS_RATES = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6)
DEFAULT_WINDOW = 12
ROUNDINGS = ("auto", "nearest", "gptq", "adaround", "block")
CONV_GROUPS = ("channels", "kernel")
MOST_TAPS = 64                              # of a kernel that is one group (layout.MAX_GROUP)
MERGINGS = ("none", "usage", "ward")
# Fields younger than the format: written only where they say something.
LATER = {"rounding": "auto", "conv_group": "channels", "merging": "none"}


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise PlanError(message)


@dataclass(frozen=True)
class TrellisSpec:
    """Trellis code: `bits` a weight from a sliding window of `window` bits (design: QTIP-like bitshift trellis).

    rotation: Hadamard block along the input channels, 0 none, -1 chosen per layer by measured error.
    """

    bits: float = 3
    window: int = DEFAULT_WINDOW
    rotation: int = -1
    kind = "trellis"

    def __post_init__(self):
        _check(self.bits in TRELLIS_RATES, f"trellis bits must be one of {TRELLIS_RATES}, got {self.bits}")
        _check(self.window in (8, 12), f"trellis window must be 8 or 12, got {self.window}")
        _check(self.rotation in (-1, 0, 16, 32, 64, 128),
               f"trellis rotation must be -1 (chosen), 0 (none), 16, 32, 64 or 128, got {self.rotation}")

    @property
    def vector(self) -> int:
        """Weights a step: 2 at half rates, else 1."""
        return 1 if float(self.bits).is_integer() else 2

    @property
    def step_bits(self) -> int:
        """Bits a step."""
        return int(self.bits * self.vector)


@dataclass(frozen=True)
class AdditiveSpec:
    """Sum of `num_codebooks` books of 256 entries over 8 weights (VQDM 1.2; AQLM).

    conv_group: what a convolution's groups are: "channels", 8 channels at one kernel tap, or "kernel", all taps of one
    channel (AQ thesis' kernel-aware groups; 3x3: 8/9 of the bits). Linear layers and 1x1 have groups of 8 in any case.
    """

    bits: int = 3
    group: int = 8
    codebook_size: int = 256
    conv_group: str = "channels"
    kind = "additive"

    def __post_init__(self):
        _check(self.bits in (1, 2, 3, 4), f"additive bits must be 1, 2, 3 or 4, got {self.bits}")
        _check(self.group == 8 and self.codebook_size == 256, "additive codes use groups of 8 and books of 256")
        _check(self.conv_group in CONV_GROUPS,
               f"conv_group must be one of {', '.join(CONV_GROUPS)}, got '{self.conv_group}'")

    def by_channel(self, taps: int) -> bool:
        """Whether a weight of so many kernel taps is coded channel by channel, one kernel a group."""
        return self.conv_group == "kernel" and 1 < taps <= MOST_TAPS

    @property
    def num_codebooks(self) -> int:
        """Books summed for one group."""
        return int(self.bits)


@dataclass(frozen=True)
class ProductSpec:
    """The book is chosen by position (DPQ 2.2); books shared by blocks of positions cost <= max_codebook_bits.

    Unless given, that is 0.25; at 1 bit 0.125, so that SDXL's UNet with its books is below a 24th of float32 (DPQ).
    merging: how the books of a block become one (encode/merging.py): "none", they are trained together; "usage" (DPQ's
    codebook compression) and "ward", every position's own book is merged until they fit max_codebook_bits.
    """

    bits: int = 3
    max_codebook_bits: float | None = None
    merging: str = "none"
    kind = "product"

    def __post_init__(self):
        if self.max_codebook_bits is None:
            object.__setattr__(self, "max_codebook_bits", 0.125 if self.bits == 1 else 0.25)
        _check(self.bits in (1, 2, 3, 4), f"product bits must be 1, 2, 3 or 4, got {self.bits}")
        _check(0 < self.max_codebook_bits <= 16,
               f"max_codebook_bits must lie above 0 and not above 16, got {self.max_codebook_bits}")
        _check(self.merging in MERGINGS, f"merging must be one of {', '.join(MERGINGS)}, got '{self.merging}'")

    @property
    def group(self) -> int:
        """Weights coded together: 8, 4, 2, 2 at 1, 2, 3, 4 bits (methods 2.2, step 6)."""
        return {1: 8, 2: 4, 3: 2, 4: 2}[int(self.bits)]

    @property
    def codebook_size(self) -> int:
        """Entries of one book."""
        return 2 ** (int(self.bits) * self.group)


@dataclass(frozen=True)
class PaletteSpec:
    """Scalar codebook of 2**bits entries per layer (Lloyd-Max), one scale a row or a group."""

    bits: int = 3
    group_size: int = 0
    kind = "palette"

    def __post_init__(self):
        _check(self.bits in range(1, 9), f"palette bits must be 1 to 8, got {self.bits}")
        _check(self.group_size == 0 or self.group_size >= 16, f"group_size must be 0 or >= 16, got {self.group_size}")


@dataclass(frozen=True)
class UniformSpec:
    """Integer grid with scale and zero point a row or a group (Q-Diffusion 3.2's quantizer).

    rounding, where the layer's inputs are known: "gptq" (error feedback), "adaround" (learned), "nearest"; "auto" is
    gptq. "block": adaround, then those of all layers of a block learned together (calibration/reconstruct.py), where
    blocks are coded one after the other. Without a calibration every rounding is to the nearest.
    """

    bits: int = 4
    group_size: int = 0
    rounding: str = "auto"
    kind = "uniform"

    def __post_init__(self):
        _check(self.bits in range(1, 9), f"uniform bits must be 1 to 8, got {self.bits}")
        _check(self.group_size == 0 or self.group_size >= 16, f"group_size must be 0 or >= 16, got {self.group_size}")
        _check(self.rounding in ROUNDINGS, f"rounding must be one of {', '.join(ROUNDINGS)}, got '{self.rounding}'")


@dataclass(frozen=True)
class DenseSpec:
    """Kept as it is."""

    kind = "dense"


Spec = TrellisSpec | AdditiveSpec | ProductSpec | PaletteSpec | UniformSpec | DenseSpec
KINDS = {cls.kind: cls for cls in (TrellisSpec, AdditiveSpec, ProductSpec, PaletteSpec, UniformSpec, DenseSpec)}


def make_spec(kind: str, bits: float | None = None, **options) -> Spec:
    """Build a spec from a method name and code rate, e.g. make_spec("trellis", 2.5)."""
    if kind not in KINDS:
        raise PlanError(f"unknown method '{kind}': expected one of {', '.join(KINDS)}")
    cls = KINDS[kind]
    known = {f.name for f in fields(cls)}
    for name in options:
        _check(name in known, f"{kind} has no option '{name}': it takes {', '.join(sorted(known)) or 'none'}")
    if bits is not None and "bits" in known:
        options["bits"] = int(bits) if float(bits).is_integer() else float(bits)
    return cls(**options)


def spec_to_json(spec: Spec) -> dict:
    """-> {"kind", its fields}; those of LATER only where they differ from their default."""
    found = {"kind": spec.kind, **asdict(spec)}
    return {name: value for name, value in found.items() if name not in LATER or value != LATER[name]}


def spec_from_json(data: dict) -> Spec:
    """Inverse of spec_to_json; unknown kinds and fields are refused by name."""
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise PlanError(f"a spec must be an object with a 'kind', got {data!r:.80}")
    options = {k: v for k, v in data.items() if k != "kind"}
    try:
        return make_spec(data["kind"], **options)
    except TypeError as error:
        raise PlanError(f"bad spec {data!r:.80}: {error}") from None
