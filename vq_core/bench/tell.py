"""The benchmark's numbers as text: a table for each part, and what the layers of a whole call come to."""
from __future__ import annotations

from collections.abc import Iterable

from .run import PARTS


def tell(found: dict) -> str:
    """Lines of text."""
    about = found["machine"]
    hardware = about.get("gpu") or about.get("cpu")
    lines = [f"vqpack {found['vqpack']}, torch {about['torch']}, {hardware}", found["label"]]
    for part in (name for name in PARTS if name in found):
        write = {"ceilings": _ceilings, "decode": _decode}.get(part, _layers)
        if found[part]:
            lines += ["", part, *write([row for row in found[part] if "error" not in row])]
            lines += [f"  failed: {row['error']}" for row in found[part] if "error" in row]
    return "\n".join([*lines, "", *_whole(found)])


def _ceilings(rows: Iterable[dict]) -> list[str]:
    return [f"  copy {row['mbytes']:4d} MB   {row['gigabytes_per_second']:9.1f} GB/s" if row["what"] == "copy" else
            f"  matmul {row['dtype']:9s}{row['teraflops']:9.2f} T operations/s" for row in rows]


def _decode(rows: Iterable[dict]) -> list[str]:
    return [f"  {row['spec']:40s} {row['backend']:10s} {row['weights_per_second'] / 1e6:10.0f} M weights/s"
            for row in rows]


def _layers(rows: Iterable[dict]) -> list[str]:
    return [f"  {row['shape']:28s} {row['way']:36s} {row['us']:12.1f} us {row['over_dense']:7.2f} x dense"
            for row in rows]


def _whole(found: dict) -> list[str]:
    """Time of the measured shapes in one call, each as often as SDXL has it, by way."""
    rows = [row for part in ("linears", "convs") for row in found.get(part, ()) if "error" not in row]
    shapes = {row["shape"] for row in rows}
    totals: dict[str, list] = {}
    for row in rows:
        seen = totals.setdefault(row["way"], [0.0, set()])
        seen[0] += row["count"] * row["us"] / 1e3
        seen[1].add(row["shape"])
    whole = {way: total for way, (total, seen) in totals.items() if seen == shapes and "dense" in totals}
    return [f"all these shapes, as often as SDXL has them: {way} {total:.1f} ms, {total / whole['dense']:.2f} x dense"
            for way, total in whole.items() if "dense" in whole]
