"""Text alignment of pictures of scenes: the share of the teacher's excess over chance that a model keeps."""
from __future__ import annotations

import torch

from .classifier import predicted
from .data import labels, parse

KINDS = ("shape", "color", "size", "relation", "ground", "background")
PAIRINGS = 256        # most shifts of the captions that chance is counted on: 64 prompts use all 63


def score(images: torch.Tensor, wanted: list, teacher: dict | None = None) -> dict:
    """How well pictures [n, 3, 64, 64] (0 to 1) follow `wanted`, n captions or attributes of scenes.

    match       mean share of right attributes, each of KINDS with equal weight
    chance      the same for these pictures against all captions of the others: what the set alone gives
    excess      match - chance
    score       excess over the teacher's excess (`teacher`: its own result for the same captions), or over the excess
                of pictures that show everything right: 1 is the reference, 0 is chance; with `teacher=row`, the
                teacher's own pictures have a score of exactly 1
    per_image   its terms, whose mean is `score`: feed them to a bootstrap
    kinds       match and chance of each kind; all_right: share of pictures with nothing wrong
    """
    rows = labels([parse(one) if isinstance(one, str) else one for one in wanted])
    if len(rows) != len(images):
        raise ValueError(f"expected one caption per picture, got {len(images)} pictures and {len(rows)} captions")
    if teacher and teacher["pictures"] != len(rows):
        raise ValueError(f"expected the teacher's result for the same {len(rows)} captions, got one for "
                         f"{teacher['pictures']}: score its pictures of these captions first")
    seen = predicted(images)
    right, chance = matches(seen, rows), _chance(seen, rows)
    match, base = right.mean(1), float(chance.mean())
    reference = teacher["excess"] if teacher else 1 - float(_chance(rows, rows).mean())
    if reference <= 0:
        raise ValueError("the teacher's pictures follow their captions no better than chance, so there is no share "
                         "to state: use another teacher or more prompts")
    terms = (match - base) / reference
    kinds = {kind: {"match": float(right[:, i].mean()), "chance": float(chance[i])} for i, kind in enumerate(KINDS)}
    return {"pictures": len(rows), "match": float(match.mean()), "chance": base, "excess": float(match.mean()) - base,
            "score": float(terms.mean()), "all_right": float((match > 1 - 1e-6).double().mean()), "kinds": kinds,
            "per_image": terms.tolist()}


def matches(seen: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """-> [n, 6] share right of each of KINDS for label rows [n, 9].

    Objects are paired with the wanted ones the way that makes most right; the relation is right if number, direction
    and order are. A picture with A and B in each other's places has a wrong relation and right objects.
    """
    same, crossed = _objects(seen[:, 3:9], wanted[:, 3:9]), _objects(seen[:, [6, 7, 8, 3, 4, 5]], wanted[:, 3:9])
    swapped = crossed.sum(1) > same.sum(1)
    objects = torch.where(swapped[:, None], crossed, same)                     # [n, 3]
    relation = (seen[:, 0] == wanted[:, 0]) & ~(swapped & (wanted[:, 0] > 0))
    return torch.cat([objects, relation[:, None], seen[:, 1:3] == wanted[:, 1:3]], 1).double()


def _objects(seen: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """-> [n, 3] share of the wanted objects whose shape, color, size [n, 6] is right."""
    there = (wanted >= 0).view(-1, 2, 3)
    right = (seen == wanted).view(-1, 2, 3) & there
    return right.sum(1).double() / there.sum(1)


def _chance(seen: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """-> [6] mean match of pictures with the captions of others, over shifts; pairs with equal captions left out."""
    total, pairs = torch.zeros(len(KINDS), dtype=torch.float64), 0
    count = len(wanted)
    step = max(1, -(-(count - 1) // PAIRINGS))
    for shift in range(1, count, step):
        others = wanted.roll(shift, 0)
        different = (others != wanted).any(1)
        total += matches(seen[different], others[different]).sum(0)
        pairs += int(different.sum())
    if not pairs:
        raise ValueError("expected at least two different captions, got one: chance is what pictures match of the "
                         "captions of others")
    return total / pairs
