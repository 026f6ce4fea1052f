"""The drawn scenes as tensors and class indices: the generator, captions read back, what a picture can show of them."""
from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
TESTBED = ROOT / "testbed"
TEACHER_SEED, CLASSIFIER_SEED, HELD_OUT_SEED, PROMPT_SEED = 1, 5, 7, 11     # of scenes.scene; 1 trained the testbed


def load_scenes():
    """testbed/scenes.py as the module `testbed_scenes`, without putting its folder on sys.path."""
    if "testbed_scenes" not in sys.modules:
        spec = importlib.util.spec_from_file_location("testbed_scenes", TESTBED / "scenes.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["testbed_scenes"] = module
    return sys.modules["testbed_scenes"]


scenes = load_scenes()
LAYOUTS = ("single", "side by side", "stacked")
GROUPS = {"layout": LAYOUTS, "ground": scenes.GROUNDS, "background": tuple(scenes.COLORS),
          "shape 1": scenes.SHAPES, "color 1": tuple(scenes.COLORS), "size 1": tuple(scenes.SIZES),
          "shape 2": scenes.SHAPES, "color 2": tuple(scenes.COLORS), "size 2": tuple(scenes.SIZES)}
SECOND = slice(6, 9)                       # columns of the second object, absent (-1) where there is one only


def draw(seed: int, count: int, first: int = 0, cache: Path | None = None,
         workers: int = 1) -> tuple[torch.Tensor, list[dict]]:
    """-> pictures [count, 3, 64, 64] uint8 and their attributes; `cache` keeps the pictures in that folder."""
    stored = cache / f"scenes-{seed}-{first}-{count}.npz" if cache else None
    if stored and stored.is_file():
        with np.load(stored) as file:
            return torch.from_numpy(file["pictures"]), [parse(caption) for caption in file["captions"].tolist()]
    drawn = _drawn(seed, range(first, first + count), workers)
    pictures = np.stack([image for image, _, _ in drawn]).transpose(0, 3, 1, 2).copy()
    if stored:
        cache.mkdir(parents=True, exist_ok=True)
        part = stored.with_name(stored.name + ".part")
        with open(part, "wb") as file:
            np.savez(file, pictures=pictures, captions=np.array([caption for _, caption, _ in drawn]))
        part.replace(stored)
    return torch.from_numpy(pictures), [attributes for _, _, attributes in drawn]


def _drawn(seed: int, indices: range, workers: int) -> list[tuple]:
    if workers < 2:
        return [scenes.scene(seed, index) for index in indices]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_one, [(seed, index) for index in indices], chunksize=100))


def _one(which: tuple[int, int]) -> tuple:
    return scenes.scene(*which)


def parse(caption: str) -> dict:
    """A caption's attributes, as scenes.scene gives them; ValueError says which caption is none."""
    try:
        said, ground = caption.lower().strip().split(" on a ")
        ground, background, last = ground.split(" ")
        relation = next((r for r in scenes.RELATIONS if f" {r} " in said), None)
        objects = [_object(text) for text in (said.split(f" {relation} ") if relation else [said])]
        known = ground in scenes.GROUNDS and background in scenes.COLORS and last == "background"
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"expected a caption like 'a small red ring above a large blue star on a dotted white "
                         f"background', got {caption!r}: use captions of testbed/scenes.py")
    return {"objects": objects, "relation": relation, "ground": ground, "background": background}


def _object(text: str) -> tuple[str, str, str]:
    article, size, color, shape = text.split(" ")
    if article != "a" or size not in scenes.SIZES or color not in scenes.COLORS or shape not in scenes.SHAPES:
        raise ValueError(text)
    return shape, color, size


def labels(attributes: list[dict]) -> torch.Tensor:
    """-> [n, 9] class indices in the order of GROUPS, -1 for a second object that is not there.

    "A left of B" and "B right of A" are the same picture: objects stand in reading order, left or upper one first.
    """
    rows = []
    for one in attributes:
        objects, relation = list(one["objects"]), one["relation"]
        if relation in ("right of", "below"):
            objects.reverse()
        layout = 0 if relation is None else 1 if relation in ("left of", "right of") else 2
        row = [layout, scenes.GROUNDS.index(one["ground"]), GROUPS["background"].index(one["background"])]
        for shape, color, size in objects:
            row += [scenes.SHAPES.index(shape), GROUPS["color 1"].index(color), GROUPS["size 1"].index(size)]
        rows.append(row + [-1] * (len(GROUPS) - len(row)))
    return torch.tensor(rows)


def named(row: list[int]) -> dict:
    """Attributes in words of one row of class indices; the inverse of labels up to the order of the objects."""
    objects = [(scenes.SHAPES[row[at]], GROUPS["color 1"][row[at + 1]], GROUPS["size 1"][row[at + 2]])
               for at in ((3, 6) if row[0] else (3,))]
    return {"objects": objects, "relation": (None, "left of", "above")[row[0]],
            "ground": scenes.GROUNDS[row[1]], "background": GROUPS["background"][row[2]]}


def mirrored(wanted: torch.Tensor) -> torch.Tensor:
    """Labels [n, 9] of the same pictures seen in a mirror: objects side by side change places."""
    swapped = torch.cat([wanted[:, :3], wanted[:, 6:9], wanted[:, 3:6]], 1)
    return torch.where((wanted[:, :1] == 1), swapped, wanted)
