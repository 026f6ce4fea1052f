"""From kept values to quality.csv: metrics with intervals over the prompts, and verdicts at equal bits."""
from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from alias import load_vqpack, machine
from quality_measure import Settings, as_images, captions
from quality_students import CHECK_ERROR, CHECK_SNR, LINEARS, TRELLIS
from quality_verdict import LEAST_SHARE, Verdict, judge

load_vqpack()
from vqpack.vq_core import metrics, trajectory  # noqa: E402

COLUMNS = ("model", "method", "family", "bits_layers", "bits_unet", "coded_share", "metric", "statistic", "low",
           "value", "high", "prompts", "verdict", "note", "machine", "commit")
COMPARED = ("latent_psnr", "noise_snr")    # where our curve is read at a peer's bits
HALVES = ("without_prompt", "with_prompt")
# The dB of white noise over one latent's 1,024 numbers: spread 10 / ln 10 * sqrt(2 / 1024), a mean 0.004 too high.
WHITE_SPREAD, WHITE_BIAS, STANDARD_ERRORS = 0.192, 0.0042, 3
Values = dict[str, tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Judged:
    """One student's row: metric -> (statistic, interval or why there is none), metric -> verdict."""

    found: dict                            # as kept
    values: Values                         # metric -> (statistic, one value a prompt)
    metrics: dict[str, tuple[str, metrics.Interval | str]]
    verdicts: dict[str, Verdict]

    @property
    def name(self) -> str:
        """Of the student."""
        return self.found["name"]


def judge_all(kept: list[dict], teacher: trajectory.Trajectory, pictures: torch.Tensor, settings: Settings
              ) -> list[Judged]:
    """kept: what Kept.load gives of each student; pictures: the teacher's, uint8 [n, height, width, 3]."""
    values = {found["name"]: per_prompt(found) | _of_pictures(found["pictures"], pictures) for found in kept}
    scores, why = attribute_scores({found["name"]: found["pictures"] for found in kept}, pictures, settings)
    judged = []
    for found in kept:
        own: Values = {**values[found["name"]], **scores.get(found["name"], {})}
        table = {name: (statistic, metrics.bootstrap(some, statistic)) for name, (statistic, some) in own.items()}
        table |= {name: ("", reason) for name, reason in why.items()}
        table["kernel_distance"] = ("", kernel_distance(found["pictures"], pictures))
        judged.append(Judged(found, own, table, _verdicts(found, own, kept, values, teacher)))
    return judged


def per_prompt(found: dict) -> Values:
    """From the way to the picture. Medians, because one mirrored composition decides a mean."""
    psnr = torch.tensor(found["latent_psnr"], dtype=torch.float64)                  # [steps, n]
    snr = torch.tensor(found["noise_snr"], dtype=torch.float64)                     # [steps, halves, n]
    values = {"latent_psnr": psnr[-1], "noise_snr": snr.mean((0, 1))}
    values |= {f"latent_psnr step {i + 1}": step for i, step in enumerate(psnr)}
    times = torch.tensor(found["timesteps"])
    for half, name in enumerate(HALVES[-snr.shape[1]:]):
        for (low, high), some in trajectory.by_interval(snr[:, half], times).items():
            values[f"noise_snr {name} {low:g}-{high:g}"] = some
    return {name: ("median", some) for name, some in values.items()}


def _of_pictures(ours: torch.Tensor, theirs: torch.Tensor) -> Values:
    ours, theirs = as_images(ours), as_images(theirs)
    values = {"image_psnr": ("median", metrics.image_psnr(ours, theirs)), "ssim": ("mean", metrics.ssim(ours, theirs))}
    perceptual = metrics.lpips(ours, theirs)
    return values if perceptual is None else {**values, "lpips": ("mean", perceptual)}


def attribute_scores(pictures: dict[str, torch.Tensor], teacher: torch.Tensor, settings: Settings
                     ) -> tuple[dict[str, Values], dict[str, str]]:
    """-> attribute scores of all students, and metrics that are not stated with the reason"""
    why = {} if metrics.lpips_is_here() else {"lpips": "not stated: its package or weights are not here"}
    try:
        from scenes import alignment
        reference = alignment.score(as_images(teacher), list(captions(settings)))
    except (ImportError, OSError) as error:
        return {}, {**why, "attributes": f"not stated: the classifier is not here ({type(error).__name__})"}
    except ValueError as error:
        return {}, {**why, "attributes": f"not stated: {error}"}
    found = {}
    for name, some in pictures.items():
        terms = alignment.score(as_images(some), list(captions(settings)), reference)["per_image"]
        found[name] = {"attributes": ("mean", torch.tensor(terms, dtype=torch.float64))}
    return found, why


def kernel_distance(ours: torch.Tensor, theirs: torch.Tensor) -> metrics.Interval | str:
    """Between the classifier's features of the pictures."""
    if len(ours) < metrics.MIN_FEATURES:
        return f"not stated: too few pictures, {len(ours)} of the {metrics.MIN_FEATURES} it needs"
    try:
        from scenes.classifier import features
        return metrics.kernel_bootstrap(features(as_images(ours)), features(as_images(theirs)))
    except (ImportError, OSError) as error:
        return f"not stated: the classifier is not here ({type(error).__name__})"


def _verdicts(found: dict, own: Values, kept: list[dict], values: dict[str, Values],
              teacher: trajectory.Trajectory) -> dict[str, Verdict]:
    """Checks against what they must be; everything else against our curve on the same layers."""
    if not found["family"]:
        return _checked(found, own, teacher)
    if found["family"] in (TRELLIS, LINEARS):
        return {}
    family, share = curve_of(found)
    verdicts = {}
    for name in COMPARED:
        curve = [(other["bits_unet"], values[other["name"]][name][1]) for other in kept if other["family"] == family]
        verdicts[name] = judge(own[name][1], found["bits_unet"], share, curve, own[name][0])
    return verdicts


def curve_of(found: dict) -> tuple[str, float]:
    """-> our curve a student compares with: ours with its linear layers alone coded where it codes just those"""
    only_linear = found["share"] < LEAST_SHARE <= found["linear_share"]
    return (LINEARS, found["linear_share"]) if only_linear else (TRELLIS, found["share"])


def _checked(found: dict, own: Values, teacher: trajectory.Trajectory) -> dict[str, Verdict]:
    """The instrument's own proof: what was put in must come out."""
    name = found["name"]
    if name == "check-fp16":
        exact = {"ssim": 1.0, "lpips": 0.0}
        return {metric: Verdict("exact" if bool((some == exact.get(metric, math.inf)).all()) else "not exact")
                for metric, (_, some) in own.items() if metric != "attributes"}
    if name == "check-last-step":
        peak = (teacher.latents.amax((1, 2, 3)) - teacher.latents.amin((1, 2, 3))).double()
        expected = 10 * (peak.square() / CHECK_ERROR**2).log10()
        return {"latent_psnr": _recovered(own["latent_psnr"][1] - expected, 1)}
    snr = {metric: some - CHECK_SNR for metric, (_, some) in own.items() if metric.startswith("noise_snr")}
    return {metric: _recovered(some, _averaged(metric, found)) for metric, some in snr.items()}


def _averaged(metric: str, found: dict) -> int:
    """Predictions in one prompt's value of a noise_snr metric"""
    if metric == "noise_snr":
        return len(found["timesteps"]) * len(found["noise_snr"][0])
    low, high = map(float, metric.split()[-1].split("-"))
    return sum(low <= time < high for time in found["timesteps"])


def _recovered(difference: torch.Tensor, averaged: int) -> Verdict:
    """measured minus put in [n], each a mean over `averaged` predictions; white noise says how far off it may be"""
    allowed = STANDARD_ERRORS * WHITE_SPREAD / math.sqrt(len(difference) * averaged)
    good = abs(float(difference.mean()) - WHITE_BIAS) <= allowed
    return Verdict("recovered" if good else "not recovered", f"measured minus put in, {allowed:.3f} dB allowed",
                   difference=metrics.bootstrap(difference, "mean"))


def lines(judged: list[Judged], failed: dict[str, str]):
    """CSV lines: each student's metrics, then ours minus it; students that failed with the reason."""
    here = machine()
    last = {"model": "testbed", "machine": f"{here['cpu']}, torch {here['torch']}", "commit": here["commit"]}
    for one in judged:
        shared = {"method": one.name, "family": one.found["family"] or "check", **last,
                  "bits_layers": _text(one.found["bits_layers"]), "bits_unet": _text(one.found["bits_unet"]),
                  "coded_share": _text(one.found["share"])}
        for name, (statistic, interval) in one.metrics.items():
            stated = {"note": interval} if isinstance(interval, str) else _numbers(interval)
            yield {**shared, "metric": name, "statistic": statistic, **stated}
        for name, verdict in one.verdicts.items():
            yield {**shared, **_verdict_line(one, name, verdict)}
    for name, reason in failed.items():
        yield {"method": name, **last, "metric": "failed", "note": reason}


def _verdict_line(one: Judged, name: str, verdict: Verdict) -> dict:
    kind = "check" if not one.found["family"] else "ours minus it"
    where = "" if verdict.ours_bits is None else f"ours read at {verdict.ours_bits:.3f} bits"
    layers = "linear layers alone" if curve_of(one.found)[0] == LINEARS else ""
    note = "; ".join(part for part in (verdict.reason, where, layers) if part)
    numbers = {} if verdict.difference is None else _numbers(verdict.difference)
    statistic = "mean" if kind == "check" else one.values[name][0]
    return {"metric": f"{name} {kind}", "statistic": statistic, "verdict": verdict.word, "note": note, **numbers}


def _numbers(interval: metrics.Interval) -> dict:
    return {"low": _text(interval.low), "value": _text(interval.value), "high": _text(interval.high),
            "prompts": interval.count}


def _text(value: float) -> str:
    return f"{value:.4f}"


def write_csv(path: Path, table) -> None:
    """Complete or not at all; infinity is written as inf."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".csv.part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(table)
    os.replace(part, path)


def markdown(judged: list[Judged]) -> str:
    """The tables of docs/quality.md: ours, peers that code all layers, those that code linear layers, checks."""
    def group(one: Judged) -> str:
        if not one.found["family"]:
            return "Checks"
        if one.found["family"] == LINEARS or curve_of(one.found)[0] == LINEARS:
            return "Linear layers alone"
        return "Ours" if one.found["family"].startswith("ours") else "Peers"

    text = []
    for title in ("Ours", "Peers", "Linear layers alone", "Checks"):
        some = [one for one in judged if group(one) == title]
        text += [f"### {title}", "", *_table(some), ""] if some else []
    return "\n".join(text)


def _table(judged: list[Judged]) -> list[str]:
    head = ("method", "bits: layers", "UNet", "latent PSNR", "prediction SNR", "image PSNR", "SSIM", "attributes",
            "ours at its bits: latent PSNR", "prediction SNR")
    text = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * 7 + "---|---|"]
    for one in judged:
        cells = [one.name, f"{one.found['bits_layers']:.2f}", f"{one.found['bits_unet']:.2f}"]
        cells += [_cell(one, name, digits, name in COMPARED) for name, digits in
                  (("latent_psnr", 1), ("noise_snr", 1), ("image_psnr", 1), ("ssim", 3), ("attributes", 2))]
        cells += [_verdict_cell(one.verdicts.get(name)) for name in COMPARED]
        text.append("| " + " | ".join(cells) + " |")
    return text


def _cell(one: Judged, name: str, digits: int, ends: bool) -> str:
    interval = one.metrics.get(name, ("", ""))[1]
    if isinstance(interval, str):
        return "-"
    between = f" ({interval.low:.{digits}f} to {interval.high:.{digits}f})" if ends else ""
    return f"{interval.value:.{digits}f}{between}"


def _verdict_cell(verdict: Verdict | None) -> str:
    """Ours minus the peer's in words and dB; a star where ours stores fewer bits."""
    if verdict is None:
        return ""
    if verdict.difference is None:
        return f"{verdict.word}: {verdict.reason}".removesuffix(": ")
    gap, star = verdict.difference, " \\*" if "fewer" in verdict.reason else ""
    return f"{verdict.word} {gap.value:+.1f} ({gap.low:+.1f} to {gap.high:+.1f}){star}"
