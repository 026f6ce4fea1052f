"""Subjects that no model here has seen: two shapes with textures of their own on the testbed's grounds, captioned.

Their colors are those of the scenes: the testbed's VAE shows no others.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .classifier import BATCH, load
from .data import scenes

COLORS = {"sks": ("yellow", "purple"), "zwx": ("white", "red")}        # of the textures
NAMES = tuple(COLORS)                      # no words of the testbed's: spelled in letters, as DreamBooth's rare tokens
SEED = 21                                  # of their pictures; scenes have 1 to 11
SUPERSAMPLING = 2
PROBED, PROBE_STEPS = 160, 300


def picture(name: str, index: int, attributes: tuple[str, str, str] | None = None, side: int = 64
            ) -> tuple[np.ndarray, str]:
    """-> uint8 [side, side, 3], caption. attributes: (size, ground, background), None = drawn; fixed by all of them."""
    rng = np.random.default_rng((SEED, NAMES.index(name), index))
    colors = backgrounds(name)
    drawn = (list(scenes.SIZES)[rng.integers(2)], scenes.GROUNDS[rng.integers(4)], colors[rng.integers(len(colors))])
    size, ground, background = attributes or drawn
    full = side * SUPERSAMPLING
    yy, xx = np.mgrid[0:full, 0:full].astype(np.float32) / full
    image = scenes._background(rng, background, ground, xx, yy)
    (cx, cy), angle = rng.uniform(0.36, 0.64, 2), rng.uniform(-0.3, 0.3)
    radius = scenes.SIZES[size] * 1.1 * rng.uniform(0.92, 1.08)
    c, s = np.cos(angle), np.sin(angle)
    x, y = (c * (xx - cx) + s * (yy - cy)) / radius, (-s * (xx - cx) + c * (yy - cy)) / radius
    mask, texture = _heart(x, y) if name == "sks" else _arrow(x, y)
    image[mask] = texture[mask]
    image = image.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING, 3).mean((1, 3)) + rng.normal(0, 3, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8), caption(name, size, ground, background)


def caption(name: str, size: str, ground: str, background: str) -> str:
    """As the testbed's captions are."""
    return f"a {size} {name} on a {ground} {background} background"


def write(folder: Path, name: str, count: int) -> Path:
    """A folder of pictures and captions as `vqpack personalize` takes it."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, said = picture(name, index)
        Image.fromarray(image).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(said)
    return folder


def backgrounds(name: str) -> list[str]:
    """Colors that a subject does not have itself."""
    return [color for color in scenes.COLORS if color not in COLORS[name]]


def asked(name: str, count: int) -> list[tuple[str, str, str]]:
    """(size, ground, background) of prompts, spread over all there are."""
    every = [(size, ground, color) for color in backgrounds(name) for ground in scenes.GROUNDS
             for size in scenes.SIZES]
    return [every[(7 + 11 * i) % len(every)] for i in range(count)]


def real(name: str, attributes: tuple[str, str, str], count: int = 8) -> torch.Tensor:
    """Pictures of a subject that were never learned from, as a prompt asks for them -> [count, 3, 64, 64] of 0..1"""
    return as_tensor([picture(name, 1000 + i, attributes)[0] for i in range(count)])


def as_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 [64, 64, 3] each -> [n, 3, 64, 64] of 0..1"""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def texture_features(images: torch.Tensor) -> torch.Tensor:
    """The classifier's last maps, averaged over places -> [n, 96]: what is there, wherever it is."""
    net = load()
    return torch.cat([net.trunk[:6](batch * 2 - 1).amax((2, 3)) for batch in images.split(BATCH)])


class Judge:
    """How much pictures show of the subjects. Means and probe come from drawn pictures alone."""

    def __init__(self):
        ordinary = as_tensor([scenes.scene(SEED, i)[0] for i in range(PROBED)])
        drawn = [as_tensor([picture(name, 2000 + i)[0] for i in range(PROBED)]) for name in NAMES]
        features = [texture_features(images) for images in (ordinary, *drawn)]
        self.center, self.spread = features[0].mean(0), features[0].std(0).clamp(min=1e-3)
        labels = torch.arange(len(features)).repeat_interleave(PROBED)
        self.probe = _fit(torch.cat([self._standard(f) for f in features]), labels)

    def cosine(self, images: torch.Tensor, wanted: list[torch.Tensor]) -> torch.Tensor:
        """Each picture's features against those of real ones [k, 3, 64, 64] of the same prompt, mean cosine [n]"""
        ours = torch.nn.functional.normalize(self._standard(texture_features(images)), dim=1)
        theirs = [torch.nn.functional.normalize(self._standard(texture_features(real)), dim=1) for real in wanted]
        return torch.stack([(one @ other.T).mean() for one, other in zip(ours, theirs)]).double()

    def recognized(self, images: torch.Tensor, name: str) -> torch.Tensor:
        """Whether the probe takes each picture for this subject, and not for the other or an ordinary scene [n]"""
        said = self.probe(self._standard(texture_features(images))).argmax(1)
        return (said == 1 + NAMES.index(name)).double()

    def _standard(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.center) / self.spread


def _fit(features: torch.Tensor, labels: torch.Tensor) -> torch.nn.Linear:
    """A linear classifier, the same every time."""
    probe = torch.nn.Linear(features.shape[1], int(labels.max()) + 1)
    torch.nn.init.zeros_(probe.weight)
    torch.nn.init.zeros_(probe.bias)
    optimizer = torch.optim.AdamW(probe.parameters(), 1e-2, weight_decay=1e-2)
    for _ in range(PROBE_STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(probe(features), labels).backward()
        optimizer.step()
    return probe.requires_grad_(False)


def _heart(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A coarse checkerboard in the form of a heart -> where it is, its colors"""
    u, v = x * 1.25, -y * 1.25 + 0.15
    mask = (u**2 + v**2 - 1)**3 - u**2 * v**3 < 0
    return mask, _two((np.floor(x * 1.8) + np.floor(y * 1.8)) % 2 > 0, *COLORS["sks"])


def _arrow(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An arrow upwards in rings of two colors"""
    head = (y < 0) & (y > -1 + 1.2 * np.abs(x))
    shaft = (np.abs(x) < 0.3) & (y >= 0) & (y < 0.95)
    return head | shaft, _two(np.sin(np.hypot(x, y) * 9) > 0, *COLORS["zwx"])


def _two(first: np.ndarray, one: str, other: str) -> np.ndarray:
    return np.where(first[..., None], *(np.array(scenes.COLORS[name], np.float32) for name in (one, other)))
