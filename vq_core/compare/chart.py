"""One curve a checkpoint: latent PSNR after each step, as an SVG drawing."""
from __future__ import annotations

import math

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 266, 44, 40, 12, 40


def step_chart(data: dict) -> str:
    """The chart with its heading; empty where no checkpoint differs or there are fewer than two steps."""
    curves = [(order, c["letter"], c["steps"]) for order, c in enumerate(data["checkpoints"]) if c["steps"]]
    finite = [value for _, _, steps in curves for value in steps if math.isfinite(value)]
    steps = max((len(curve) for _, _, curve in curves), default=0)
    if not finite or steps < 2:
        return ""
    low, high, tick = _scale(min(finite), max(finite))

    def x(step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / (steps - 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
             f'<text x="{LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
             for v in _ticks(low, high, tick)]
    every = max(1, math.ceil(steps / 10))
    parts += [f'<text x="{x(step):.1f}" y="{HEIGHT - 20}" text-anchor="middle">{step}</text>'
              for step in range(1, steps + 1) if (step - 1) % every == 0]
    parts += _curves(curves, x, y)
    return ("<h2>On the way</h2><p class=\"soft small\">Latent PSNR in dB after each step, median over the pictures: "
            "small differences early in the path decide where it ends.</p>"
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Latent PSNR after each step">{"".join(parts)}'
            f'<text x="{(WIDTH + LEFT - RIGHT) / 2:.0f}" y="{HEIGHT - 5}" text-anchor="middle">step</text></svg>')


def _curves(curves, x, y) -> list[str]:
    parts, labels = [], []
    for order, letter, curve in curves:
        points = [(x(step), y(value)) for step, value in enumerate(curve, 1) if math.isfinite(value)]
        if points:
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            parts.append(f'<polyline class="l{order % 6}" points="{line}"/>')
            labels.append((points[-1][1], points[-1][0], order, letter))
    last = -math.inf
    for height, right, order, letter in sorted(labels):                                 # labels keep their distance
        last = max(height, last + 14)
        parts.append(f'<text class="t{order % 6}" x="{right + 8:.1f}" y="{last + 4:.1f}">{letter}</text>')
    return parts


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Round ends and the distance of lines: 1, 2, 5 or 10 dB."""
    tick = next((tick for tick in (1, 2, 5, 10, 20) if (high - low) / tick <= 7), 50)
    low, high = math.floor(low / tick) * tick, math.ceil(high / tick) * tick
    return low, high if high > low else low + tick, tick


def _ticks(low: float, high: float, tick: float) -> list[float]:
    return [low + tick * i for i in range(round((high - low) / tick) + 1)]
