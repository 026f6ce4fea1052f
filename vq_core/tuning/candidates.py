"""Soft codes: a group is a mixture of its nearest entries whose shares are trained and sharpened into a choice.

After VQ4DiT (AAAI 2025, arXiv 2408.17131): shares are a softmax over trained logits that begin at log(d_last / d_i) for
distances d. There a penalty drives them apart; here the logits are multiplied by a growing sharpness, and from
HARD_FROM of the run on the largest share is the code.
"""
from __future__ import annotations

import torch
from torch import nn

from ...kernels.decode_torch import Finish
from ...kernels.gradients import book_ranges, grouped, ungrouped
from ...kernels.parts import AdditivePart
from ..encode.assign import nearest_entries
from .assigned import codes_of

HARD_FROM = 0.75                           # of the run: books and scales learn with the final codes after it
MOST_LOGIT = 5.0                           # a share of .99 against .01: the entry itself is no distance away


class Candidates(nn.Module):
    """The nearest entries of each group of one part with one book a group, and the logits of their shares."""

    def __init__(self, part: AdditivePart, vectors: torch.Tensor, count: int):
        """vectors: what is coded, in integers of the part, [out, groups, group]."""
        super().__init__()
        count = min(count, part.codebooks.shape[2])
        near = torch.empty(*vectors.shape[:2], count, dtype=torch.int32, device=vectors.device)
        logits = torch.empty(near.shape, device=vectors.device)
        for block, first, stop, width in book_ranges(part):
            book = part.codebooks[block, 0, :, :width].float()
            some, distances = nearest_entries(vectors[:, first:stop, :width].flatten(0, 1), book, count)
            begin = (distances[:, -1:] / distances.clamp(min=1e-30)).clamp(min=1.0).log().clamp(max=MOST_LOGIT)
            near[:, first:stop], logits[:, first:stop] = (x.view(-1, stop - first, count) for x in (some, begin))
        self.register_buffer("near", near, persistent=False)
        self.trained = nn.Parameter(logits)
        self.sharpness, self.hard = 1.0, False

    def sharpen(self, progress: float) -> None:
        """progress: share of the run that is over."""
        self.hard = progress >= HARD_FROM
        self.sharpness = 1 / max(1e-3, 1 - progress / HARD_FROM)

    def codes(self, now: AdditivePart, branch: torch.Tensor | None = None) -> torch.Tensor:
        """The entries of the largest shares, int64 [out, groups, 1]; rows that are multiplied with 0 keep theirs."""
        found = self.near.gather(2, self.trained.detach().argmax(2, keepdim=True)).long()
        return found if now.scales.row is None else torch.where((now.scales.row == 0)[:, None, None], codes_of(now),
                                                                found)

    def decode(self, now: AdditivePart, dtype: torch.dtype) -> torch.Tensor:
        """The part's matrix [out, cols] with every group the mixture."""
        mixed, books = self.trained.new_empty(*self.near.shape[:2], now.group), now.codebooks.float()
        shares = self.shares()
        for block, first, stop, _ in book_ranges(now):
            entries = books[block, 0][self.near[:, first:stop].long()]                 # [out, groups, count, group]
            mixed[:, first:stop] = (shares[:, first:stop, :, None] * entries).sum(2)
        out = mixed.new_empty(now.out_features, now.taps, now.channels, dtype=dtype)
        Finish.of(now).write(ungrouped(mixed, now), 0, out)
        return out.flatten(1)

    def pull_back(self, integers: torch.Tensor, now: AdditivePart) -> dict[nn.Parameter, torch.Tensor]:
        """Gradient of the decoded integers [out, cols] -> that of the logits."""
        if self.hard:
            return {}
        gradient, books, shares = grouped(integers, now), now.codebooks.float(), self.shares()
        of_shares = torch.empty_like(shares)
        for block, first, stop, _ in book_ranges(now):
            entries = books[block, 0][self.near[:, first:stop].long()]
            of_shares[:, first:stop] = (gradient[:, first:stop, None] * entries).sum(3)
        mean = (shares * of_shares).sum(2, keepdim=True)
        return {self.trained: self.sharpness * shares * (of_shares - mean)}

    def entry_sums(self, integers: torch.Tensor, now: AdditivePart) -> torch.Tensor:
        """As kernels.gradients.entry_sums, a group's gradient shared out: float32 [blocks, 1, K, group]."""
        gradient, shares = grouped(integers, now), self.shares()
        sums = torch.zeros(now.codebooks.shape, device=gradient.device)
        for block, first, stop, _ in book_ranges(now):
            some = (shares[:, first:stop, :, None] * gradient[:, first:stop, None]).flatten(0, 2)
            sums[block, 0].index_add_(0, self.near[:, first:stop].flatten().long(), some)
        return sums

    def shares(self) -> torch.Tensor:
        """[out, groups, count], of the mixture."""
        return (self.sharpness * self.trained.detach()).softmax(2)
