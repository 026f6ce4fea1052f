"""The testbed's data: captioned pictures of drawn shapes, deterministic in (seed, index). Training used seed 1."""
from __future__ import annotations

import numpy as np

COLORS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 80, 220), "yellow": (240, 210, 50),
          "purple": (150, 60, 190), "orange": (245, 140, 30), "white": (240, 240, 240), "black": (25, 25, 25)}
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
SIZES = {"small": 0.16, "large": 0.27}      # radius, share of the picture's side
GROUNDS = ("plain", "striped", "dotted", "graded")
RELATIONS = ("left of", "right of", "above", "below")
SUPERSAMPLING = 2
WORDS = sorted({"a", "on", "of", "background", "left", "right", "above", "below",
                *COLORS, *SHAPES, *SIZES, *GROUNDS})


def scene(seed: int, index: int, size: int = 64) -> tuple[np.ndarray, str, dict]:
    """-> (uint8 [size, size, 3], caption, attributes). The order of the random draws is part of the data."""
    rng = np.random.default_rng((seed, index))
    side = size * SUPERSAMPLING
    yy, xx = np.mgrid[0:side, 0:side].astype(np.float32) / side
    names = list(COLORS)
    background, ground = names[rng.integers(8)], GROUNDS[rng.integers(4)]
    image = _background(rng, background, ground, xx, yy)
    objects = _objects(rng, background, 2 if rng.random() < 0.6 else 1)
    relation, centers, scale = _placement(rng, len(objects))
    light = rng.uniform(-0.25, 0.25, 2)
    for (shape, color, named_size), (cx, cy) in list(zip(objects, centers))[::-1]:     # the first one lies on top
        radius = SIZES[named_size] * scale * rng.uniform(0.92, 1.08)
        mask = _mask(shape, xx - cx, yy - cy, radius, rng.uniform(-0.2, 0.2))
        shade = 1 + light[0] * (xx - cx) / radius + light[1] * (yy - cy) / radius
        image[mask] = (np.array(COLORS[color], np.float32)[None, None] * shade[..., None])[mask]
    image = image.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean((1, 3))
    image = image + rng.normal(0, 3, image.shape)
    attributes = {"objects": objects, "relation": relation, "ground": ground, "background": background}
    return np.clip(image, 0, 255).astype(np.uint8), caption(attributes), attributes


def caption(attributes: dict) -> str:
    """The exact description of a scene."""
    said = [f"a {size} {color} {shape}" for shape, color, size in attributes["objects"]]
    where = f" {attributes['relation']} " if attributes["relation"] else ""
    return f"{where.join(said)} on a {attributes['ground']} {attributes['background']} background"


def _background(rng, color: str, ground: str, xx: np.ndarray, yy: np.ndarray) -> np.ndarray:
    base = np.array(COLORS[color], np.float32)
    image = np.ones((*xx.shape, 3), np.float32) * base      # [side, side, 3]
    other = base * 0.62 + 40 if base.mean() > 90 else base * 0.6 + 75
    if ground == "striped":
        angle = rng.uniform(0, np.pi)
        image[np.sin((np.cos(angle) * xx + np.sin(angle) * yy) * 2 * np.pi * 6) > 0] = other
    elif ground == "dotted":
        ox, oy = rng.uniform(0, 1, 2)
        image[np.hypot((xx * 6 + ox) % 1 - 0.5, (yy * 6 + oy) % 1 - 0.5) < 0.27] = other
    elif ground == "graded":
        angle = rng.uniform(0, 2 * np.pi)
        share = np.clip(0.5 + (np.cos(angle) * (xx - .5) + np.sin(angle) * (yy - .5)), 0, 1)[..., None]
        image = base * share + other * (1 - share) * 0.8
    return image


def _objects(rng, background: str, count: int) -> list[tuple[str, str, str]]:
    names, objects = list(COLORS), []
    for _ in range(count):
        color = names[rng.integers(8)]
        while color == background:
            color = names[rng.integers(8)]
        objects.append((SHAPES[rng.integers(6)], color, list(SIZES)[rng.integers(2)]))
    return objects


def _placement(rng, count: int):
    """-> (relation or None, centers, scale)"""
    if count == 1:
        return None, [tuple(rng.uniform(0.36, 0.64, 2))], 1.1
    relation = RELATIONS[rng.integers(4)]
    d = rng.uniform(0.24, 0.28)
    j = rng.uniform(-0.08, 0.08, 4)
    v = {"left of": (-d, 0), "right of": (d, 0), "above": (0, -d), "below": (0, d)}[relation]
    return relation, [(0.5 + v[0] + j[0], 0.5 + v[1] + j[1]), (0.5 - v[0] + j[2], 0.5 - v[1] + j[3])], 0.85


def _mask(shape: str, xx: np.ndarray, yy: np.ndarray, radius: float, theta: float) -> np.ndarray:
    """Where a shape around (0, 0), turned by theta, covers the plane."""
    c, s = np.cos(theta), np.sin(theta)
    x, y = (c * xx + s * yy) / radius, (-s * xx + c * yy) / radius
    distance = np.hypot(x, y)
    if shape == "circle":
        return distance < 1
    if shape == "ring":
        return (distance < 1) & (distance > 0.55)
    if shape == "square":
        return (np.abs(x) < 0.85) & (np.abs(y) < 0.85)
    if shape == "cross":
        return ((np.abs(x) < 0.32) & (np.abs(y) < 1)) | ((np.abs(y) < 0.32) & (np.abs(x) < 1))
    if shape == "triangle":
        return (y < 0.75) & (y > 1.75 * np.abs(x) * 1.15 - 0.95)
    turn = np.abs(((np.arctan2(x, -y) / (2 * np.pi) * 5) % 1) - 0.5) * 2
    return distance < (0.42 + 0.62 * turn)
