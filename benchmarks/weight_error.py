"""Weight error against stored bits: ours and every peer on the same layers, each by its own code.

    python benchmarks/weight_error.py [--sets sdxl-trained-like,testbed] [--methods REGEX] [--layers N] [--fresh]

Two errors, both squared and relative: of the weights, and of the outputs for correlated inputs (weight_layers.py).
Everything a method stores is in its bits. Needs the peers' packages (`pip install vqpack[peers]`) for the peers; says
which are absent and why. A killed run goes on where it was (out/weight_error.jsonl); --fresh starts anew.
Writes weight_error.csv and .json into benchmarks/results and, with matplotlib, docs/images/weight-error.png.
"""
from __future__ import annotations

import argparse
import csv
import json
import logging
import re
import time
from pathlib import Path

import torch
from alias import RESULTS, ROOT, machine
from equal_bits import CURVE, compare
from peers import METHODS, Method, absent
from weight_layers import SETS, NamedWeight, correlated_inputs, load_layers, sdxl_share
from weight_plot import draw

SPOOL = ROOT / "out" / "weight_error.jsonl"
PICTURE = ROOT / "docs" / "images" / "weight-error.png"
COLUMNS = ("model", "method", "family", "bits", "bits_where_coded", "metric", "low", "value", "high", "layers",
           "coded_share", "sdxl_unet_coded_share", "sdxl_unet_bits", "verdict", "machine", "commit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", default="", help="regular expression of whole names or families, "
                        "e.g. 'gguf|hqq|sdnq-uint4.*'; our trellis is always measured")
    parser.add_argument("--layers", type=int, default=0, help="of each set, 0 = all it has")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="folder for everything, instead of the two in the repository")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run measured")
    parser.add_argument("--report", action="store_true", help="measure nothing, write what was measured")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)       # the peers' own chatter
    chosen = choose(args.methods)
    if args.fresh:
        SPOOL.unlink(missing_ok=True)
    missing = {} if args.report else absent(chosen)
    for family, why in missing.items():
        print(f"absent: {family}: {why}", flush=True)
    layers = [] if args.report else [layer for name in args.sets.split(",") for layer in load_layers(name, args.layers)]
    rows = measure_all(layers, [m for m in chosen if m.family not in missing])
    write(rows, missing, args.out or RESULTS)
    draw([row for row in rows if "failed" not in row],
         args.out / "weight_error.png" if args.out else PICTURE)


def choose(pattern: str) -> list[Method]:
    """The methods whose name or family the pattern matches as a whole, and our curve; all where it is empty."""
    return [method for name, method in METHODS.items() if not pattern or name.startswith(CURVE)
            or re.fullmatch(pattern, name) or re.fullmatch(pattern, method.family)]


def measure_all(layers: list[NamedWeight], methods) -> list[dict]:
    """Every method on every layer, one line of SPOOL each; lines that are there already are not measured again."""
    SPOOL.parent.mkdir(exist_ok=True)
    rows, commit = load_rows(SPOOL), machine()["commit"]
    done = {(row["set"], row["layer"], row["method"]) for row in rows}
    with SPOOL.open("a+") as spool:
        _end_line(spool)
        for number, layer in enumerate(layers, 1):
            inputs = correlated_inputs(tuple(layer.weight.shape), layer.name)
            outputs = float((layer.weight.flatten(1) @ inputs).double().square().sum())
            for method in methods:
                if (layer.set, layer.name, method.name) not in done:
                    rows.append({**measure(layer, method, inputs, outputs), "commit": commit})
                    spool.write(json.dumps(rows[-1]) + "\n")
                    spool.flush()
            print(f"{number}/{len(layers)} {layer.set} {layer.name} {list(layer.weight.shape)}", flush=True)
    return rows


def _end_line(spool) -> None:
    """End a line cut short by a kill, so that the next one is not lost with it."""
    if spool.tell():
        spool.seek(spool.tell() - 1)
        if spool.read() != "\n":
            spool.write("\n")


def measure(layer: NamedWeight, method, inputs: torch.Tensor, outputs: float) -> dict:
    """One method on one layer; an error of the peer's code is a row without numbers that says so."""
    row = {"set": layer.set, "layer": layer.name, "shape": list(layer.weight.shape), "method": method.name,
           "family": method.family, "weights": layer.weight.numel()}
    started = time.monotonic()
    torch.manual_seed(0)                   # some peers draw random numbers
    try:
        coded = method.code(layer.weight.clone())
    except Exception as error:  # noqa: BLE001  foreign code: whatever it raises is a result
        return {**row, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    lost = (coded.decoded - layer.weight).flatten(1)
    return {**row, "bits": coded.bits, "stored_bytes": coded.stored_bytes, "coded_share": coded.coded_share,
            "plain": float(lost.double().square().sum() / layer.weight.double().square().sum()),
            "correlated": float((lost @ inputs).double().square().sum()) / outputs,
            "settings": coded.settings, "seconds": round(time.monotonic() - started, 3)}


def load_rows(path: Path) -> list[dict]:
    """Rows of an earlier run; a line cut short by a kill is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write(rows: list[dict], missing: dict[str, str], folder: Path) -> None:
    """The results as weight_error.csv and .json."""
    folder.mkdir(exist_ok=True)
    good = [row for row in rows if "failed" not in row]
    here = {**machine(), "commit": "+".join(sorted({row["commit"] for row in rows}))}
    compared = compare(good)
    for row in compared:
        share, _ = sdxl_share(METHODS[row["method"]])
        row["sdxl_unet_coded_share"] = share
        row["sdxl_unet_bits"] = None if row["bits_where_coded"] is None else \
            share * row["bits_where_coded"] + 16 * (1 - share)
    with (folder / "weight_error.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(line for row in compared for line in _lines(row, here))
    found = {"machine": here, "absent": missing, "failed": [row for row in rows if "failed" in row],
             "settings": {row["method"]: row["settings"] for row in good}, "comparisons": compared,
             "layers": _by_layer(good)}
    (folder / "weight_error.json").write_text(
        json.dumps(found, separators=(",", ":")).replace('},{', '},\n{') + "\n")


def _by_layer(rows: list[dict]) -> list[dict]:
    """One entry a layer: what every method stored and lost there, six digits"""
    layers: dict[tuple[str, str], dict] = {}
    for row in rows:
        entry = layers.setdefault((row["set"], row["layer"]), {key: row[key] for key in ("set", "layer", "shape")}
                                  | {"columns": ["stored_bytes", "coded_share", "plain", "correlated"], "methods": {}})
        entry["methods"][row["method"]] = [row["stored_bytes"], row["coded_share"],
                                           *(float(f"{row[metric]:.6g}") for metric in ("plain", "correlated"))]
    return list(layers.values())


def _lines(row: dict, here: dict):
    """CSV lines of one comparison: its error, and ours over it"""
    for metric, interval in (("error", row["error"]), ("ours_over_it", row["ours_over_it"])):
        if interval is not None:
            low, value, high = (f"{number:.6g}" for number in interval)
            shown = {key: f"{row[key]:.4f}" if row[key] is not None else "" for key in
                     ("bits", "bits_where_coded", "coded_share", "sdxl_unet_coded_share", "sdxl_unet_bits")}
            yield {**row, **shown, "model": row["set"], "metric": f"{row['metric']} {metric}", "low": low,
                   "value": value, "high": high, "machine": here["cpu"], "commit": here["commit"],
                   "verdict": row["verdict"] if metric == "ours_over_it" else ""}


if __name__ == "__main__":
    main()
