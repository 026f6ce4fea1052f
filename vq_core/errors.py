"""Errors a user or a file can cause: one sentence saying what was expected, what came, where, and what to do."""


class VQError(Exception):
    """Base of every error this package raises on purpose; its text is one line fit to show a user."""


class FormatError(VQError):
    """A file or blob is not what its format demands (truncated, edited, wrong length, unknown version)."""


class UnsupportedError(VQError):
    """The input is valid but not something vqpack works on (another model family, another quantization)."""


class PlanError(VQError):
    """A plan or spec cannot be carried out (unknown kind, bits out of range, layer that does not exist)."""


class Interrupted(VQError):
    """The user stopped the work; nothing was left half-written."""
