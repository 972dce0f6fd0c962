"""Open-set retrieval: is the person in the gallery at all?

One threshold for all queries accepts the pairs of a query and a gallery picture that score above it. The false
positive rate (FPR) is the share of accepted pairs among those of different people, the true positive rate
(TPR) among positives; junk is left out. `TPR at FPR f` is the highest TPR of a threshold whose FPR is at most
f: a point of the receiver operating characteristic, without interpolation.

Of the strangers' scores only the highest decide, a share of f. No others are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.retrieval.counting import Items, Scores

Total = Callable[[Tensor], Tensor]
"""Sum over all processes of a float64 tensor; with one process the tensor itself."""

_ROOM = 2**20
"""Scores, at least, that are gathered before the highest are picked out anew."""


def check_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """The rates as numbers.

    Raises:
        InputError: unless there is at least one, all are between 0 and 1, and no two are equal.
    """
    try:
        found = tuple(float(rate) for rate in rates)
    except (TypeError, ValueError):
        found = ()
    if (
        not found
        or len({f"{rate:g}" for rate in found}) < len(found)
        or not all(0 < rate < 1 for rate in found)
    ):
        raise InputError(
            f"open_set={rates} must be null, or a list of different false positive rates between 0 and 1, "
            "such as [1e-4,1e-3,1e-2]"
        )
    return found


class OpenSet:
    """Looks on while a protocol is ranked, and keeps the scores that decide; an `Observer`.

    Takes one and a half times the highest rate's share of all strangers, 4 or 8 bytes each, and the positives.

    Args:
        rates: false positive rates, between 0 and 1.
        strangers: pairs of different people over all processes and draws.
        offsets: what to add to scores of some queries, (R,) row numbers, so that queries compare; None: nothing.
        dtype: of the scores, float32 or float64.

    Raises:
        InputError: as `check_rates`.
    """

    def __init__(
        self,
        rates: Sequence[float],
        strangers: int,
        offsets: Callable[[Tensor], Scores | None],
        dtype: np.dtype[np.floating],
    ) -> None:
        self.rates = check_rates(rates)
        self._strangers = strangers
        self._offsets = offsets
        self._dtype = dtype
        self._highest = _Highest(max(map(self._allowed, self.rates)) + 1, dtype)
        self._positives: list[Scores] = []

    def _allowed(self, rate: float) -> int:
        """The most strangers that may be accepted."""
        most = math.floor(rate * self._strangers)
        # The product may be rounded down, as 0.29 * 100 is, to just under 29.
        return most + (self._strangers > 0 and (most + 1) / self._strangers <= rate)

    def see(
        self, rows: Tensor, strangers: Scores, items: Items, own: Scores, kept: npt.NDArray[np.bool_]
    ) -> None:
        """Is shown a block of scores: see `ranking.Observer`."""
        offsets = self._offsets(rows)
        for row in np.flatnonzero(kept.any(1)).tolist():
            scores = strangers[row] if items is None else strangers[row, items]
            mine = own[row, kept[row]]
            if offsets is not None:
                scores, mine = scores + offsets[row], mine + offsets[row]
            self._positives.append(mine)
            self._highest.add(scores)

    def tpr_at_fpr(self, total: Total = lambda counts: counts) -> dict[str, float] | None:
        """The true positive rates.

        Args:
            total: sums counts over all processes, which must all call this.

        Returns:
            false positive rate, as text -> true positive rate, both 0..1; None where there are no strangers.
        """
        if not self._strangers:
            return None
        highest = self._highest.sorted()
        positives = np.concatenate([np.empty(0, self._dtype), *self._positives])
        wanted = torch.tensor([self._allowed(rate) + 1 for rate in self.rates], dtype=torch.float64)

        def at_least(key: npt.NDArray[np.int64]) -> Tensor:
            below = np.searchsorted(highest, _number(key, self._dtype), "left")
            return torch.from_numpy((len(highest) - below).astype(np.float64))

        # The threshold is the highest number that enough strangers reach. Bisection finds it exactly, since
        # floating-point numbers can be numbered in their order, and only counts travel between processes.
        infinity = _key(np.array([-np.inf, np.inf], self._dtype))
        low, high = (np.full(len(self.rates), end, np.int64) for end in infinity)
        for _ in range(8 * self._dtype.itemsize + 1):
            middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without overflow
            enough = (total(at_least(middle)) >= wanted).numpy()
            low, high = np.where(enough, middle, low), np.where(enough, high, middle - 1)
        accepted = positives[None] > _number(low, self._dtype)[:, None]
        counts = [*accepted.sum(1), len(positives)]
        *hits, all_positives = total(torch.tensor(counts, dtype=torch.float64)).tolist()
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
        self._room: Scores = np.empty(count + max(count // 2, _ROOM), dtype)

    def add(self, scores: Scores) -> None:
        """Takes scores (n,) into account; -inf is none."""
        scores = scores[scores > self._floor]
        while len(scores):
            room = self._room[self._size :]
            taken, scores = scores[: len(room)], scores[len(room) :]
            room[: len(taken)] = taken
            self._size += len(taken)
            if self._size == len(self._room):
                self._room.partition(self._size - self._count)
                self._room[: self._count] = self._room[-self._count :].copy()
                self._size, self._floor = self._count, float(self._room[: self._count].min())

    def sorted(self) -> Scores:
        """The scores kept so far, rising: at least the highest `count` of all."""
        return np.sort(self._room[: self._size])


def _key(numbers: Scores) -> npt.NDArray[np.int64]:
    """The place of floating-point numbers among all of their type, as whole numbers of the same order."""
    bits = numbers.view(np.dtype(f"i{numbers.itemsize}"))
    # Of a negative number the bits below the sign say how far it is from zero.
    return np.where(bits < 0, np.iinfo(bits.dtype).min - bits, bits).astype(np.int64)


def _number(keys: npt.NDArray[np.int64], dtype: np.dtype[np.floating]) -> Scores:
    """The numbers of some keys."""
    kind = np.dtype(f"i{dtype.itemsize}")
    keys = keys.astype(kind)
    numbers: Scores = np.where(keys < 0, np.iinfo(kind).min - keys, keys).view(dtype)
    return numbers
