"""Measure open-set retrieval: is the person in the gallery at all?

One threshold for all queries accepts the pairs of a query and a gallery picture that score above it. The false
positive rate (FPR) is the share of accepted pairs among those of different people (negatives), the true positive
rate (TPR) among positives; junk is left out. `TPR at FPR f` is the highest TPR of a threshold whose FPR is at most
f: a point of the receiver operating characteristic, without interpolation.

Where at most a of the negatives may be accepted, that threshold is the (a + 1)-th highest of their scores. So only
the highest of them decide, a share of f, and no others are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.retrieval.counting import Items
from clip3dreid.retrieval.settings import check_rates
from clip3dreid.retrieval.similarity import Scores

Gather = Callable[[Tensor], Tensor]
"""Numbers (n,) of each process, n the same for all -> (processes, n) in all of them."""

BLOCK = 2**20
"""Scores that travel between processes, or are gathered before the highest are picked out anew, at least."""


def gather_alone(numbers: Tensor) -> Tensor:
    """Return the numbers of a single process (n,) as (1, n)."""
    return numbers[None]


class OpenSet:
    """True positive rates at given false positive rates, from the scores of a ranking; a `ranking.Observer`.

    Takes one and a half times the highest rate's share of all negatives, 4 or 8 bytes each, and the positives.

    Args:
        rates: false positive rates, between 0 and 1.
        negatives: number of pairs of different people over all processes and draws.
        offsets: what to add to scores of some queries, (R,) row numbers, so that queries compare; None: nothing.
        dtype: of the scores, float32 or float64.

    Raises:
        InputError: as `check_rates`.
    """

    def __init__(
        self,
        rates: Sequence[float],
        negatives: int,
        offsets: Callable[[Tensor], Scores | None],
        dtype: np.dtype[np.floating],
    ) -> None:
        self.rates = check_rates(rates)
        self._negatives = negatives
        self._offsets = offsets
        self._dtype = dtype
        self._highest = _Highest(max(map(self._allowed, self.rates)) + 1, dtype)
        self._positives: list[Scores] = []

    def _allowed(self, rate: float) -> int:
        """Return the most negatives that may be accepted."""
        most = math.floor(rate * self._negatives)
        # The product may be rounded down, as 0.29 * 100 is, to just under 29.
        return most + (self._negatives > 0 and (most + 1) / self._negatives <= rate)

    def update(
        self,
        rows: Tensor,
        negatives: Scores,
        items: Items,
        matches: Scores,
        positives: npt.NDArray[np.bool_],
    ) -> None:
        """Take in a block of scores: see `ranking.Observer`."""
        offsets = self._offsets(rows)
        for row in np.flatnonzero(positives.any(1)).tolist():
            negative = negatives[row] if items is None else negatives[row, items]
            positive = matches[row, positives[row]]
            if offsets is not None:
                negative, positive = negative + offsets[row], positive + offsets[row]
            self._positives.append(positive)
            self._highest.add(negative)

    def tpr_at_fpr(self, gather: Gather = gather_alone) -> dict[str, float] | None:
        """Return the true positive rates.

        Args:
            gather: gives every process the numbers of all, which must all call this.

        Returns:
            false positive rate, as text -> true positive rate, both 0..1; None where there are no negatives.
        """
        if not self._negatives:
            return None
        highest = self._highest if gather is gather_alone else self._highest.of_all(gather)
        thresholds = np.array([highest.rank(self._allowed(rate) + 1) for rate in self.rates])
        positives = np.concatenate([np.empty(0, self._dtype), *self._positives])
        accepted = (positives > thresholds[:, None]).sum(1)
        counts = torch.from_numpy(np.array([*accepted, len(positives)], np.float64))
        *hits, all_positives = gather(counts).sum(0).tolist()
        return {f"{rate:g}": hit / all_positives for rate, hit in zip(self.rates, hits, strict=True)}


class _Highest:
    """The highest of many scores.

    Args:
        count: how many to keep.
        dtype: of the scores.
    """

    def __init__(self, count: int, dtype: np.dtype[np.floating]) -> None:
        self._count = count
        self._floor = -math.inf
        self._size = 0
        self._memory: Scores = np.empty(count + max(count // 2, BLOCK), dtype)

    def add(self, scores: Scores) -> None:
        """Take scores (n,) into account; -inf is none."""
        scores = scores[scores > self._floor]
        while len(scores):
            free = self._memory[self._size :]
            taken, scores = scores[: len(free)], scores[len(free) :]
            free[: len(taken)] = taken
            self._size += len(taken)
            if self._size == len(self._memory):
                self._memory.partition(self._size - self._count)
                self._memory[: self._count] = self._memory[-self._count :].copy()
                self._size, self._floor = self._count, float(self._memory[: self._count].min())

    def rank(self, place: int) -> float:
        """Return the score at a place, 1 the highest and `count` the last that is known; -inf of fewer."""
        if place > self._size:
            return -math.inf
        kept = self._memory[: self._size]
        kept.partition(self._size - place)
        return float(kept[self._size - place])

    def of_all(self, gather: Gather) -> _Highest:
        """Return the highest scores of all processes, which travel in blocks, each process's highest first."""
        kept = self._memory[: self._size]
        kept.sort()
        union, width = _Highest(self._count, kept.dtype), min(BLOCK, self._count)
        while True:
            block = np.full(width, -np.inf, kept.dtype)
            kept, sent = kept[:-width], kept[-width:]
            block[width - len(sent) :] = sent
            blocks = gather(torch.from_numpy(block)).numpy()
            union.add(blocks.ravel())
            # What a process has left is no higher than the lowest that it sent.
            if blocks[:, 0].max() <= union._floor:
                return union
