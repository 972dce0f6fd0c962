"""Count the negatives that score above a query's positives, without sorting indices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.retrieval.similarity import Scores

Items: TypeAlias = npt.NDArray[np.int64] | None
"""Gallery columns, ascending; None: all of them."""

_MANY = 4
"""Where more than one in so many negatives is a rival, to sort all of them is faster than to pick rivals out."""
_SAMPLE = 1024
"""Negatives by which that share is judged."""
_TILE = 2**20
"""Bytes that are copied and sorted at a time: they should fit into a core's cache."""
_AT_ONCE = 4
"""Positives that an accelerator compares with every negative at a time: a byte each beside the four of a score."""
_RIVAL = 24
"""Bytes that an accelerator takes for a rival and a positive."""


class SortBuffer:
    """Memory and threads to sort in, kept from block to block."""

    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self._workers = workers
        self._memory: Scores = np.empty(0, np.float32)

    def sorted(self, scores: Scores, rows: npt.NDArray[np.int64], items: Items) -> Scores:
        """Return (R, n) sorted values of some rows of scores (…, G), at `items`; the same memory each time."""
        width = scores.shape[1] if items is None else len(items)
        if len(self._memory) < len(rows) * width or self._memory.dtype != scores.dtype:
            self._memory = np.empty(len(rows) * width, scores.dtype)
        table = self._memory[: len(rows) * width].reshape(len(rows), width)
        step = max(1, _TILE // (width * scores.itemsize))

        def sort(start: int) -> None:
            for place in range(start, min(start + step, len(rows))):
                table[place] = _at(scores, rows[place], items)
            table[start : start + step].sort(axis=1)

        starts = range(0, len(rows), step)
        # A single worker would sort on another core, away from the scores in this one's cache.
        list(map(sort, starts) if torch.get_num_threads() == 1 else self._workers.map(sort, starts))
        return table


def _at(scores: Scores, row: int, items: Items) -> Scores:
    values: Scores = scores[row] if items is None else scores[row, items]
    return values


def negatives_ranked_above(
    negatives: Scores,
    items: Items,
    matches: Scores,
    columns: npt.NDArray[np.int64],
    needed: npt.NDArray[np.bool_],
    buffer: SortBuffer,
) -> npt.NDArray[np.int64]:
    """Count the negatives that rank above gallery items of the queries' own people.

    Args:
        negatives: (R, G) scores, -inf where an item shows the query's own person.
        items: gallery columns that take part.
        matches: (R, P) scores of items of the query's own person.
        columns: (R, P) gallery columns of these items.
        needed: (R, P) which of them to count for.
        buffer: where to sort.

    Returns:
        (R, P): negatives with a higher score, or the same one and an earlier column, where `needed`.
    """
    above = np.zeros(needed.shape, np.int64)
    tied = np.zeros(needed.shape, np.bool_)
    worst = np.where(needed, matches, np.inf).min(1)
    crowded = []
    for row in np.flatnonzero(needed.any(1)).tolist():
        scores = _at(negatives, row, items)
        # The worst positive of a good model stands far before the end: what is behind it need not be sorted.
        sample = scores[:_SAMPLE] >= worst[row]
        if np.count_nonzero(sample) * _MANY > len(sample):
            crowded.append(row)
            continue
        rivals = scores[scores >= worst[row]]
        rivals.sort()
        below = np.searchsorted(rivals, matches[row], "right")
        above[row] = len(rivals) - below
        if len(rivals):
            tied[row] = (below > 0) & (rivals[below - 1] == matches[row])
    if crowded:
        rows = np.array(crowded)
        table = buffer.sorted(negatives, rows, items)
        # Torch, unlike numpy, looks up row by row, in threads.
        values = matches[rows]
        below = torch.searchsorted(torch.from_numpy(table), torch.from_numpy(values), right=True).numpy()
        above[rows] = table.shape[1] - below
        tied[rows] = (below > 0) & (np.take_along_axis(table, np.maximum(below - 1, 0), 1) == values)
    tied &= needed
    for row in np.flatnonzero(tied.any(1)).tolist():
        places = tied[row]
        above[row, places] += _earlier(
            _at(negatives, row, items), items, matches[row, places], columns[row, places]
        )
    return above


def _earlier(
    negatives: Scores, items: Items, value: Scores, column: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Count, for each of some scores and columns, the negatives of the same score earlier in the gallery."""
    earlier = np.empty(len(value), np.int64)
    for score in np.unique(value):
        equal = np.flatnonzero(negatives == score)
        asked = value == score
        earlier[asked] = np.searchsorted(equal if items is None else items[equal], column[asked])
    return earlier


def negatives_ranked_above_on_device(
    negatives: Tensor, items: Tensor | None, matches: Tensor, columns: Tensor, needed: Tensor
) -> Tensor:
    """Count as `negatives_ranked_above` does, where the scores are; nothing is sorted.

    Each negative that scores no less than the query's worst positive is compared with all its positives. Where these
    are too many to be picked out, all negatives are, a few positives at a time: reading scores is nearly free there.
    The host waits twice: for how many are to be picked out, and for picking them.

    Args:
        negatives: (R, G) scores, -inf where an item shows the query's own person.
        items: gallery columns that take part, ascending; None: all of them.
        matches: (R, P) scores of items of the query's own person.
        columns: (R, P) gallery columns of these items.
        needed: (R, P) which of them to count for.

    Returns:
        (R, P) int64: negatives with a higher score, or the same one and an earlier column, where `needed`.
    """
    if items is not None:
        negatives = negatives[:, items]
    worst = torch.where(needed, matches, torch.inf).amin(1, keepdim=True)
    rivals = negatives >= worst
    above = torch.zeros_like(columns)
    if int(rivals.sum()) * matches.shape[1] * _RIVAL <= negatives.nbytes:
        row, place = rivals.nonzero(as_tuple=True)
        score = negatives[row, place][:, None]
        column = (place if items is None else items[place])[:, None]
        ahead = (score > matches[row]) | ((score == matches[row]) & (column < columns[row]))
        return above.index_add_(0, row, ahead.long())
    del rivals
    column = torch.arange(negatives.shape[1], device=negatives.device) if items is None else items
    equal = torch.zeros_like(columns)
    for start in range(0, matches.shape[1], _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        score = matches[:, part, None]
        above[:, part] = (negatives[:, None] > score).sum(2)
        equal[:, part] = (negatives[:, None] >= score).sum(2)
    row, place = (needed & (equal > above)).nonzero(as_tuple=True)
    for start in range(0, len(row), len(negatives)):
        some, at = row[start : start + len(negatives)], place[start : start + len(negatives)]
        tied = negatives[some] == matches[some, at][:, None]
        above[some, at] += (tied & (column < columns[some, at][:, None])).sum(1)
    return above
