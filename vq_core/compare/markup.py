"""Pieces of HTML: every text from a file or a user goes through here and comes out escaped."""
from __future__ import annotations

import html
import math
import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
LONGEST = 4000
_SAID = 400                                # characters of a foreign text in a line


def text(value: object) -> str:
    """Escaped, without control characters, at most LONGEST long."""
    plain = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))
    return html.escape(plain if len(plain) <= LONGEST else plain[:LONGEST] + "…", quote=True)


def shortened(value: object) -> str:
    """Foreign text without direction marks, which a page that is copied from would carry on; not escaped."""
    said = "".join(c for c in str(value) if unicodedata.category(c) != "Cf")
    return said if len(said) <= _SAID else f"{said[:_SAID]}… ({len(said)} characters)"


def bdi(value: object) -> str:
    """Foreign text in a bidirectional isolate: a name cannot turn the sentence around it."""
    return f"<bdi>{text(value)}</bdi>"


def tag(name: str, value: object, kind: str = "") -> str:
    """<name class=kind>escaped value</name>"""
    attribute = f' class="{kind}"' if kind else ""
    return f"<{name}{attribute}>{text(value)}</{name}>"


def cell(shown: str, key: float | None = None, kind: str = "", small: str = "") -> str:
    """A table cell. shown, small: already escaped; key: what it sorts by, None = last."""
    value = "" if key is None or math.isnan(key) else f"{max(-1e300, min(1e300, key)):.10g}"
    attribute = f' class="{kind}"' if kind else ""
    return f'<td{attribute} data-v="{value}">{shown}{f"<small>{small}</small>" if small else ""}</td>'


def text_cell(value: object, kind: str = "text") -> str:
    """A cell of foreign text, sorted as text."""
    return f'<td class="{kind}">{text(value)}</td>'


def heading(title: str, column: int | None = None, kind: str = "", rows: int = 1) -> str:
    """A heading; with a column number it sorts."""
    kinds = " ".join(filter(None, (kind, "sortable" if column is not None else "")))
    sorts = f' data-column="{column}"' if column is not None else ""
    return (f'<th scope="col"{f" class={chr(34)}{kinds}{chr(34)}" if kinds else ""}{sorts}'
            f'{f" rowspan={chr(34)}{rows}{chr(34)}" if rows > 1 else ""}>{text(title)}</th>')


def number(value: float | None, digits: int) -> str:
    """`31.2`, `∞`, `–∞`, `–` for what is not there or no number"""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}".replace("-", "−")


def interval(found: dict, digits: int) -> str:
    """`28.9 to 33.4`; with one prompt there is none"""
    if found["count"] < 2:
        return "one prompt"
    return f"{number(found['low'], digits)} to {number(found['high'], digits)}"
