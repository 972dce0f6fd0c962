"""Rank the positives exactly, block by block.

A score says how near query and gallery item are: their cosine, their negated Euclidean distance, or what a
re-ranking makes of them. It comes from a source of scores, block by block. A positive with score s has the
rank

    1 + (kept items with a score above s) + (kept items with exactly s that stand earlier in the gallery),

its place in a stable sort by falling score. So a model that gives every pair the same score is at chance, and
results depend on nothing but features, labels and gallery order. Junk is never counted.

No row is sorted with its indices. Of the kept items ahead of a positive, those of the query's own person are
few and known by label. The negatives are counted by looking the positive's score up among the sorted values
of those negatives that score no less than the query's worst positive; where these are most of them, among all.
How many negatives are ahead depends on the gallery alone, not on the rule, so all protocols with one gallery
share the scores, the sort and the look-up.

A positive's score is read from the one block of scores of its query, never computed again. Products of other
shapes may round differently in the last bit, so block size, number of processes and device can swap items
that are closer than rounding; features whose products are exact (small whole numbers) always give the same
ranks.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.retrieval.counting import Items, SortBuffer, negatives_ranked_above
from clip3dreid.retrieval.metrics import RANKS, PerQuery, score_ranks
from clip3dreid.retrieval.protocol import PictureLabels, Protocol, ProtocolRows, same_picture
from clip3dreid.retrieval.similarity import Scores

MEMORY = 128 * 2**20
"""Bytes that a block of queries may take."""


class ScoreSource(typing.Protocol):
    """What scores gallery items: similarities of features, or a re-ranking."""

    def block(self, rows: Tensor) -> Scores:
        """Return the scores of some queries.

        Args:
            rows: (R,) row numbers of queries.

        Returns:
            (R, G), finite, higher is nearer, comparable within a row. It may be overwritten by the caller, and
            be the same memory at the next call.
        """
        ...  # pragma: no cover


class Observer(typing.Protocol):
    """What is shown the scores while a protocol is ranked."""

    def update(
        self,
        rows: Tensor,
        negatives: Scores,
        items: Items,
        matches: Scores,
        positives: npt.NDArray[np.bool_],
    ) -> None:
        """Take in the scores of a block, under one drawn gallery after another.

        Args:
            rows: (R,) row numbers of queries.
            negatives: (R, G), -inf where an item shows the query's own person.
            items: gallery columns that take part; None: all.
            matches: (R, P) scores of items of the query's own person.
            positives: (R, P) which of them are positives; none where the protocol does not ask the query.
        """
        ...  # pragma: no cover


class SamePerson:
    """Look-up of the gallery items that show the person of a query.

    Args:
        query: labels (Q,), on the CPU.
        gallery: labels (G,), on the CPU, G > 0.
    """

    def __init__(self, query: PictureLabels, gallery: PictureLabels) -> None:
        self.query, self.gallery = query, gallery
        # Stable, so that the items of a person stay in gallery order: ties rely on it.
        self._order = torch.argsort(gallery.person, stable=True)
        people = gallery.person[self._order]
        self._start = torch.searchsorted(people, query.person)
        self._count = torch.searchsorted(people, query.person, right=True) - self._start

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gallery columns of the people of some queries.

        Args:
            rows: (R,) row numbers of queries.

        Returns:
            columns (R, P) int64, ascending, and (R, P) bool: which of them are real. The others are padding:
            the person's last item again, or any item where the person has none.
        """
        count = self._count[rows, None]
        offset = torch.arange(self.width(rows))
        place = self._start[rows, None] + torch.minimum(offset, count - 1).clamp(min=0)
        return self._order[place.clamp(max=len(self._order) - 1)], offset < count

    def width(self, rows: Tensor) -> int:
        """Return P, the most gallery items that a person of these queries has, at least 1."""
        return max(1, int(self._count[rows].amax())) if len(rows) else 1


class Job(NamedTuple):
    """A protocol on given labels, with what can be said before any feature is known: what is to be ranked."""

    protocol: Protocol
    queries: Tensor
    """(Q,) bool: the queries that it asks."""
    gallery: Tensor
    """(G,) bool: the gallery that it asks them of."""
    positives: Tensor
    """(Q,) int64: zero for queries that it does not ask."""
    junk: Tensor
    """(Q,) int64: likewise."""
    in_gallery: Tensor
    """(Q,) bool: queries that it asks whose own picture is in the gallery that it asks them of."""

    @property
    def valid(self) -> Tensor:
        """Return (Q,) bool: queries with at least one positive."""
        return self.positives > 0


def plan(protocol: Protocol, pairs: SamePerson, selection: ProtocolRows) -> Job:
    """Count positives and junk of every query.

    Args:
        protocol: whose rule to apply.
        pairs: labels of queries and gallery.
        selection: the rows that take part.
    """
    asked = selection.queries.nonzero()[:, 0]
    positives, junk = (torch.zeros(len(selection.queries), dtype=torch.int64) for _ in range(2))
    in_gallery = torch.zeros(len(selection.queries), dtype=torch.bool)
    for rows in _blocks(asked, block_rows(0, pairs.width(asked), 0)):
        columns, known = pairs.of(rows)
        inside = known & selection.gallery[columns]
        query, gallery = pairs.query.at(rows[:, None]), pairs.gallery.at(columns)
        dropped = inside & protocol.junk(query, gallery)
        positives[rows] = (inside & ~dropped).sum(1)
        junk[rows] = dropped.sum(1)
        in_gallery[rows] = (inside & same_picture(query, gallery)).any(1)
    return Job(protocol, selection.queries, selection.gallery, positives, junk, in_gallery)


def block_rows(gallery: int, matches: int, itemsize: int, memory: int = MEMORY) -> int:
    """Return how many queries to rank at once.

    Args:
        gallery: G, gallery items.
        matches: P, the most gallery items that a person has.
        itemsize: bytes of a score.
        memory: bytes that the block may take; one query's worth is always taken.
    """
    # A row holds G scores, up to as many again to sort, and about a dozen arrays of P eight-byte numbers.
    return max(1, memory // (2 * gallery * itemsize + matches * 100))


def _blocks(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def rank(
    source: ScoreSource,
    pairs: SamePerson,
    jobs: Sequence[Job],
    rows: Tensor | None = None,
    memory: int = MEMORY,
    itemsize: int = 4,
    observers: Mapping[int, Observer] = MappingProxyType({}),
) -> list[PerQuery]:
    """Rank the gallery for queries, under several protocols at once.

    Counting is done on the CPU, with as many threads as torch uses.

    Args:
        source: what scores gallery items.
        pairs: labels of queries and gallery.
        jobs: protocols, from `plan` on the same labels.
        rows: (R,) queries to rank, by default all: a process's share.
        memory: bytes that a block of queries may take beside what the source holds.
        itemsize: bytes of one of the source's scores.
        observers: what is shown the scores, by the number of their job.

    Returns:
        For each job, results of the queries in `rows`, in that order.
    """
    rows = torch.arange(len(pairs.query.person)) if rows is None else rows
    results = [_Result(job, len(rows)) for job in jobs]
    passes = _passes(jobs, pairs.gallery.person)
    asked = torch.stack([job.valid[rows] for job in jobs]).any(0).nonzero()[:, 0]
    size = block_rows(len(pairs.gallery.person), pairs.width(rows[asked]), itemsize, memory)
    with torch.no_grad(), ThreadPoolExecutor(torch.get_num_threads()) as workers:
        buffer = SortBuffer(workers)
        for block in _blocks(asked, size):
            scores = source.block(rows[block])
            _rank_block(scores, rows[block], block, pairs, results, passes, buffer, observers)
    return [result.per_query(rows) for result in results]


class _Result:
    """The results of a job, summed over blocks and draws."""

    def __init__(self, job: Job, size: int) -> None:
        self.job = job
        shapes = ((size,), (size, len(RANKS)), (size,), (size,))
        self.scores = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]

    def add(self, places: Tensor, ranks: Tensor, kept: Tensor) -> None:
        scores = score_ranks(ranks, kept, self.job.protocol.average_precision)
        for total, score in zip(self.scores, scores, strict=True):
            total[places] += score

    def per_query(self, rows: Tensor) -> PerQuery:
        job = self.job
        means = (total / max(1, job.protocol.draws) for total in self.scores)
        return PerQuery(job.valid[rows], job.positives[rows], job.junk[rows], *means)


class _Pass(NamedTuple):
    """One gallery, and the jobs that are ranked against it."""

    items: Items
    members: list[int]
    """Indices of jobs."""
    lots: Tensor | None
    """(G,) for a draw: each item's lot; the lowest lots of a person are drawn. None: no draw."""


def _passes(jobs: Sequence[Job], person: Tensor) -> list[_Pass]:
    shared: dict[bytes, _Pass] = {}
    drawn: list[_Pass] = []
    for index, job in enumerate(jobs):
        if job.protocol.draws:
            generator = torch.Generator().manual_seed(job.protocol.seed)
            for _ in range(job.protocol.draws):
                lots = torch.randperm(len(person), generator=generator)
                drawn.append(_Pass(_draw(job, lots, person), [index], lots))
        else:
            items = None if bool(job.gallery.all()) else job.gallery.nonzero()[:, 0].numpy()
            key = job.gallery.numpy().tobytes()
            shared.setdefault(key, _Pass(items, [], None)).members.append(index)
    return [*shared.values(), *drawn]


def _draw(job: Job, lots: Tensor, person: Tensor) -> npt.NDArray[np.int64]:
    """Return the gallery items with the lowest lots of each person, ascending."""
    items = job.gallery.nonzero()[:, 0]
    items = items[torch.argsort(lots[items])]
    items = items[torch.argsort(person[items], stable=True)]
    people = person[items]
    place = torch.arange(len(items)) - torch.searchsorted(people, people)
    drawn: npt.NDArray[np.int64] = items[place < job.protocol.per_person].sort().values.numpy()
    return drawn


def _draw_positives(positives: Tensor, lots: Tensor, per_person: int) -> Tensor:
    """Return (R, P) bool: of the positives of each row, those with the lowest lots."""
    place = torch.where(positives, lots, torch.iinfo(torch.int64).max).argsort(1).argsort(1)
    return positives & (place < per_person)


def _rank_block(
    scores: Scores,
    queries: Tensor,
    places: Tensor,
    pairs: SamePerson,
    results: Sequence[_Result],
    passes: Sequence[_Pass],
    buffer: SortBuffer,
    observers: Mapping[int, Observer],
) -> None:
    """Add the results of a block.

    Args:
        scores: (R, G), used up.
        queries: (R,) rows of the query labels.
        places: (R,) rows of the results.
        pairs: labels.
        results: one a job.
        passes: what to rank.
        buffer: where to sort.
        observers: by the index of their result.
    """
    matches, columns = _take_matches(scores, pairs, queries)
    query, gallery = pairs.query.at(queries[:, None]), pairs.gallery.at(columns)
    known = torch.from_numpy(np.isfinite(matches))
    for items, members, lots in passes:
        positives = []
        for member in members:
            job = results[member].job
            asked = known & job.queries[queries, None] & job.gallery[columns]
            left = asked & ~job.protocol.junk(query, gallery)
            draw = job.protocol.per_person
            positives.append(left if lots is None else _draw_positives(left, lots[columns], draw))
        needed = torch.stack(positives).any(0).numpy()
        above = negatives_ranked_above(scores, items, matches, columns.numpy(), needed, buffer)
        for member, positive in zip(members, positives, strict=True):
            if member in observers:
                observers[member].update(queries, scores, items, matches, positive.numpy())
            # Matches stand in ranking order, so the i-th positive has i - 1 others above it.
            results[member].add(places, torch.from_numpy(above) + positive.cumsum(1), positive)


def _take_matches(scores: Scores, pairs: SamePerson, queries: Tensor) -> tuple[Scores, Tensor]:
    """Take the scores of the queries' own people out of a block, leaving -inf, in ranking order.

    Returns:
        (R, P) scores, falling, -inf for padding; (R, P) gallery columns.
    """
    columns, known = pairs.of(queries)
    index = columns.numpy()
    matches = np.where(known.numpy(), np.take_along_axis(scores, index, 1), -np.inf).astype(scores.dtype)
    np.put_along_axis(scores, index, np.array(-np.inf, scores.dtype), 1)
    order = np.argsort(-matches, axis=1, kind="stable")
    return np.take_along_axis(matches, order, 1), columns.gather(1, torch.from_numpy(order))
