"""The weight error of each layer while a file is being made, for who wants to watch."""
from __future__ import annotations

from collections.abc import Callable, Iterable

from .coded_item import CodedItem
from .writer import Writer


class ErrorsSoFar:
    """show(errors): layer key -> squared error over squared norm, None before it is coded, in network order."""

    def __init__(self, show: Callable[[dict[str, float | None]], None] | None = None):
        self._show, self._errors = show, {}

    def begin(self, keys: Iterable[str], writer: Writer) -> None:
        """The layers to be coded; an earlier run may have coded some."""
        self._errors = {key: self._known(key, writer) for key in keys}

    def add(self, key: str, item: CodedItem) -> None:
        """One more is coded; nothing where it is kept as it was."""
        if item.code is not None:
            self._errors[key] = item.code.relative_error
            if self._show is not None:
                self._show(self._errors)

    @staticmethod
    def _known(key: str, writer: Writer) -> float | None:
        row = (writer.note(key) or {}).get("layer") if key in writer else None
        return None if row is None else row["relative_error"]
