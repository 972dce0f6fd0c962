"""How many strangers score above a query's positives, counted without sorting indices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Scores: TypeAlias = npt.NDArray[Any]
"""float32 or float64, finite."""
Items: TypeAlias = npt.NDArray[np.int64] | None
"""Gallery columns, ascending; None: all of them."""

_MANY = 4
"""Where more than one in so many strangers is a rival, to sort all of them is faster than to pick rivals out."""
_SAMPLE = 1024
"""Strangers by which that share is judged."""
_TILE = 2**20
"""Bytes that are copied and sorted at a time: they should fit into a core's cache."""


class Desk:
    """Room and threads to sort in, kept from block to block."""

    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self._workers = workers
        self._room: Scores = np.empty(0, np.float32)

    def sorted(self, scores: Scores, rows: npt.NDArray[np.int64], items: Items) -> Scores:
        """(R, n) sorted values of some rows of scores (…, G), at `items`; the same memory each time."""
        width = scores.shape[1] if items is None else len(items)
        if len(self._room) < len(rows) * width or self._room.dtype != scores.dtype:
            self._room = np.empty(len(rows) * width, scores.dtype)
        table = self._room[: len(rows) * width].reshape(len(rows), width)
        step = max(1, _TILE // (width * scores.itemsize))

        def sort(start: int) -> None:
            for place in range(start, min(start + step, len(rows))):
                table[place] = _strangers(scores, rows[place], items)
            table[start : start + step].sort(axis=1)

        starts = range(0, len(rows), step)
        # A single worker would sort on another core, away from the scores in this one's cache.
        list(map(sort, starts) if torch.get_num_threads() == 1 else self._workers.map(sort, starts))
        return table


def _strangers(scores: Scores, row: int, items: Items) -> Scores:
    found: Scores = scores[row] if items is None else scores[row, items]
    return found


def strangers_ahead(
    scores: Scores,
    items: Items,
    own: Scores,
    columns: npt.NDArray[np.int64],
    needed: npt.NDArray[np.bool_],
    desk: Desk,
) -> npt.NDArray[np.int64]:
    """Counts the strangers that rank ahead of items of the queries' own people.

    Args:
        scores: (R, G), -inf where an item shows the query's own person.
        items: gallery columns that take part.
        own: (R, P) scores of items of the query's own person.
        columns: (R, P) gallery columns of these items.
        needed: (R, P) which of them to count for.
        desk: where to sort.

    Returns:
        (R, P): strangers with a higher score, or the same one and an earlier column, where `needed`.
    """
    ahead = np.zeros(needed.shape, np.int64)
    tied = np.zeros(needed.shape, np.bool_)
    worst = np.where(needed, own, np.inf).min(1)
    crowded = []
    for row in np.flatnonzero(needed.any(1)).tolist():
        strangers = _strangers(scores, row, items)
        # The worst positive of a good model stands far before the end: what is behind it need not be sorted.
        sample = strangers[:_SAMPLE] >= worst[row]
        if np.count_nonzero(sample) * _MANY > len(sample):
            crowded.append(row)
            continue
        rivals = strangers[strangers >= worst[row]]
        rivals.sort()
        below = np.searchsorted(rivals, own[row], "right")
        ahead[row] = len(rivals) - below
        if len(rivals):
            tied[row] = (below > 0) & (rivals[below - 1] == own[row])
    if crowded:
        rows = np.array(crowded)
        table = desk.sorted(scores, rows, items)
        # Torch, unlike numpy, looks up row by row, in threads.
        values = own[rows]
        below = torch.searchsorted(torch.from_numpy(table), torch.from_numpy(values), right=True).numpy()
        ahead[rows] = table.shape[1] - below
        tied[rows] = (below > 0) & (np.take_along_axis(table, np.maximum(below - 1, 0), 1) == values)
    tied &= needed
    for row in np.flatnonzero(tied.any(1)).tolist():
        mine = tied[row]
        strangers = _strangers(scores, row, items)
        ahead[row, mine] += _earlier(strangers, items, own[row, mine], columns[row, mine])
    return ahead


def _earlier(
    strangers: Scores, items: Items, value: Scores, column: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """For each of some own items, how many strangers of the same score stand earlier in the gallery."""
    earlier = np.empty(len(value), np.int64)
    for score in np.unique(value):
        places = np.flatnonzero(strangers == score)
        mine = value == score
        earlier[mine] = np.searchsorted(places if items is None else items[places], column[mine])
    return earlier
