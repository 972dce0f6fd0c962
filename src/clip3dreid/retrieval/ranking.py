"""Rank the positives exactly, block by block.

A score says how near query and gallery item are: their cosine, their negated Euclidean distance, or what a
re-ranking makes of them. It comes from a source of scores, block by block. A positive with score s has the
rank

    1 + (kept items with a score above s) + (kept items with exactly s that stand earlier in the gallery),

its place in a stable sort by falling score. So a model that gives every pair the same score is at chance, and
results depend on nothing but features, labels and gallery order. Junk is never counted.

On an accelerator all of it happens where the scores are, and the host waits a few times a block
(`counting.negatives_ranked_above_on_device`); on the CPU it is done as follows.

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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.retrieval.counting import (
    Items,
    SortBuffer,
    negatives_ranked_above,
    negatives_ranked_above_on_device,
)
from clip3dreid.retrieval.metrics import RANKS, PerQuery, score_ranks
from clip3dreid.retrieval.protocol import PictureLabels, Protocol, ProtocolRows, same_picture
from clip3dreid.retrieval.similarity import Scores

MEMORY = 128 * 2**20
"""Bytes that a block of queries may take."""
Counting: TypeAlias = Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor], Tensor]
"""As `counting.negatives_ranked_above_on_device`."""
DEVICE_MEMORY = 2**30
"""The same on an accelerator, which is idle between blocks."""
CPU = torch.device("cpu")


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


class DeviceScores(ScoreSource, typing.Protocol):
    """A source whose scores are on a device."""

    def tensor(self, rows: Tensor) -> Tensor:
        """Return what `block` does as a tensor, where it is."""
        ...  # pragma: no cover


class GalleryShare(NamedTuple):
    """A process's part of a gallery that several processes hold together."""

    columns: Tensor
    """(g,) int64 gallery columns, ascending, on the CPU; each is one process's."""
    greatest: Callable[[Tensor], Tensor]
    """From a tensor of each process to their element-wise maximum; all processes must call it."""
    total: Callable[[Tensor], Tensor]
    """Likewise to their sum."""


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
        device: where the look-up takes place.

    Attributes:
        query, gallery: the labels, on that device; a label that nobody knows is a single -1.
    """

    def __init__(self, query: PictureLabels, gallery: PictureLabels, device: torch.device = CPU) -> None:
        # Stable, so that the items of a person stay in gallery order: ties rely on it.
        order = torch.argsort(gallery.person, stable=True)
        people = gallery.person[order]
        start = torch.searchsorted(people, query.person)
        self._count = torch.searchsorted(people, query.person, right=True) - start
        self._order, self._start, self._counts = (part.to(device) for part in (order, start, self._count))
        known = [
            bool((one >= 0).any() or (other >= 0).any()) for one, other in zip(query, gallery, strict=True)
        ]
        self.query, self.gallery = (_known(labels, known).to(device) for labels in (query, gallery))

    def on(self, device: torch.device) -> SamePerson:
        """Return the same on a device."""
        return self if device == self._order.device else copy(self)._move(device)

    def _move(self, device: torch.device) -> SamePerson:
        self._order, self._start, self._counts = (
            part.to(device) for part in (self._order, self._start, self._counts)
        )
        self.query, self.gallery = self.query.to(device), self.gallery.to(device)
        return self

    def of(self, rows: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the gallery columns of the people of some queries.

        Args:
            rows: (R,) row numbers of queries.
            width: of these, P, where it is known.

        Returns:
            columns (R, P) int64, ascending, and (R, P) bool: which of them are real. The others are padding:
            the person's last item again, or any item where the person has none.
        """
        width = self.width(rows) if width is None else width
        rows = rows.to(self._order.device)
        count = self._counts[rows, None]
        offset = torch.arange(width, device=rows.device)
        place = self._start[rows, None] + torch.minimum(offset, count - 1).clamp(min=0)
        return self._order[place.clamp(max=len(self._order) - 1)], offset < count

    def width(self, rows: Tensor) -> int:
        """Return P, the most gallery items that a person of these queries has, at least 1; rows are on the CPU."""
        return max(1, int(self._count[rows].amax())) if len(rows) else 1


def _known(labels: PictureLabels, known: Sequence[bool]) -> PictureLabels:
    return PictureLabels(
        *(column if there else torch.tensor(-1) for column, there in zip(labels, known, strict=True))
    )


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
    memory: int | None = None,
    itemsize: int = 4,
    observers: Mapping[int, Observer] = MappingProxyType({}),
    device: torch.device = CPU,
    share: GalleryShare | None = None,
) -> list[PerQuery]:
    """Rank the gallery for queries, under several protocols at once.

    On the CPU counting takes as many threads as torch uses.

    Args:
        source: what scores gallery items.
        pairs: labels of queries and gallery, on the CPU.
        jobs: protocols, from `plan` on the same labels.
        rows: (R,) queries to rank, by default all: a process's share.
        memory: bytes that a block of queries may take beside what the source holds; None: `MEMORY`, on an accelerator
            `DEVICE_MEMORY`.
        itemsize: bytes of one of the source's scores.
        observers: what is shown the scores, by the number of their job.
        device: where scores are looked at; if it is not the CPU, the source has its scores there (`DeviceScores`).
        share: the part of the gallery whose scores the source has; every process ranks the same queries, against its
            part, and scores of positives and counts of negatives travel, R x P of each a block. None: all of it.

    Returns:
        For each job, results of the queries in `rows`, in that order, on the CPU.
    """
    if memory is None:
        memory = MEMORY if device.type == "cpu" else DEVICE_MEMORY
    rows = torch.arange(len(pairs.query.person)) if rows is None else rows
    asked = torch.stack([job.valid[rows] for job in jobs]).any(0).nonzero()[:, 0]
    scored = len(pairs.gallery.person) if share is None else len(share.columns)
    size = block_rows(scored, pairs.width(rows[asked]), itemsize, memory)
    if share is not None:
        # The same blocks everywhere: each of them is exchanged.
        size = -int(share.greatest(torch.tensor(-size)))
    results = [_Result(job, len(rows), device) for job in jobs]
    passes = _passes(jobs, pairs.gallery.person, device)
    held = None if share is None else _Held(share, device)
    if held is not None:
        passes = [one._replace(items=held.items(one.items)) for one in passes]
    widths = [pairs.width(rows[block]) for block in _blocks(asked, size)]
    pairs = pairs.on(device)
    with torch.no_grad(), ThreadPoolExecutor(torch.get_num_threads()) as workers:
        count = _counting(device, SortBuffer(workers))
        # What is where the scores are need not wait for them.
        places, queries = asked.to(device), rows[asked].to(device)
        for block, at, width in zip(_blocks(queries, size), _blocks(places, size), widths, strict=True):
            if device.type == "cpu":
                scores = torch.from_numpy(source.block(block))
            else:
                scores = typing.cast(DeviceScores, source).tensor(block)
            _rank_block(scores, block, at, width, pairs, results, passes, count, observers, held)
    return [result.per_query(rows) for result in results]


def _counting(device: torch.device, buffer: SortBuffer) -> Counting:
    """Return what counts negatives above positives on a device."""
    if device.type != "cpu":
        return negatives_ranked_above_on_device

    def count(
        negatives: Tensor, items: Tensor | None, matches: Tensor, columns: Tensor, needed: Tensor
    ) -> Tensor:
        at = None if items is None else items.numpy()
        arrays = negatives.numpy(), at, matches.numpy(), columns.numpy(), needed.numpy()
        return torch.from_numpy(negatives_ranked_above(*arrays, buffer))

    return count


class _Result:
    """The results of a job, summed over blocks and draws."""

    def __init__(self, job: Job, size: int, device: torch.device) -> None:
        self.job = job
        self.queries, self.gallery = job.queries.to(device), job.gallery.to(device)
        shapes = ((size,), (size, len(RANKS)), (size,), (size,))
        self.scores = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]

    def add(self, places: Tensor, ranks: Tensor, kept: Tensor) -> None:
        scores = score_ranks(ranks, kept, self.job.protocol.average_precision)
        for total, score in zip(self.scores, scores, strict=True):
            total[places] += score

    def per_query(self, rows: Tensor) -> PerQuery:
        job = self.job
        means = (total.cpu() / max(1, job.protocol.draws) for total in self.scores)
        return PerQuery(job.valid[rows], job.positives[rows], job.junk[rows], *means)


class _Pass(NamedTuple):
    """One gallery, and the jobs that are ranked against it."""

    items: Tensor | None
    """Gallery columns, ascending; None: all of them."""
    members: list[int]
    """Indices of jobs."""
    lots: Tensor | None
    """(G,) for a draw: each item's lot; the lowest lots of a person are drawn. None: no draw."""


def _passes(jobs: Sequence[Job], person: Tensor, device: torch.device) -> list[_Pass]:
    shared: dict[bytes, _Pass] = {}
    drawn: list[_Pass] = []
    for index, job in enumerate(jobs):
        if job.protocol.draws:
            generator = torch.Generator().manual_seed(job.protocol.seed)
            for _ in range(job.protocol.draws):
                lots = torch.randperm(len(person), generator=generator)
                items = _draw(job, lots, person).to(device)
                drawn.append(_Pass(items, [index], lots.to(device)))
        else:
            whole = bool(job.gallery.all())
            chosen = None if whole else job.gallery.nonzero()[:, 0].to(device)
            key = job.gallery.numpy().tobytes()
            shared.setdefault(key, _Pass(chosen, [], None)).members.append(index)
    return [*shared.values(), *drawn]


def _draw(job: Job, lots: Tensor, person: Tensor) -> Tensor:
    """Return the gallery items with the lowest lots of each person, ascending."""
    items = job.gallery.nonzero()[:, 0]
    items = items[torch.argsort(lots[items])]
    items = items[torch.argsort(person[items], stable=True)]
    people = person[items]
    place = torch.arange(len(items)) - torch.searchsorted(people, people)
    return items[place < job.protocol.per_person].sort().values


def _draw_positives(positives: Tensor, lots: Tensor, per_person: int) -> Tensor:
    """Return (R, P) bool: of the positives of each row, those with the lowest lots."""
    place = torch.where(positives, lots, torch.iinfo(torch.int64).max).argsort(1).argsort(1)
    return positives & (place < per_person)


def _rank_block(
    scores: Tensor,
    queries: Tensor,
    places: Tensor,
    width: int,
    pairs: SamePerson,
    results: Sequence[_Result],
    passes: Sequence[_Pass],
    count: Counting,
    observers: Mapping[int, Observer],
    held: _Held | None,
) -> None:
    """Add the results of a block; all tensors are on one device.

    Args:
        scores: (R, G), used up.
        queries: (R,) rows of the query labels.
        places: (R,) rows of the results.
        width: P, the most gallery items that a person of these queries has.
        pairs: labels.
        results: one a job.
        passes: what to rank.
        count: counts negatives above positives.
        observers: by the index of their result.
        held: the part of the gallery that scores are of; None: all of it.
    """
    matches, columns, known = _take_matches(scores, pairs, queries, width, held)
    order = columns if held is None else held.before(columns)
    query, gallery = pairs.query.at(queries[:, None]), pairs.gallery.at(columns)
    for items, members, lots in passes:
        positives = []
        for member in members:
            result = results[member]
            asked = known & result.queries[queries, None] & result.gallery[columns]
            left = asked & ~result.job.protocol.junk(query, gallery)
            draw = result.job.protocol.per_person
            positives.append(left if lots is None else _draw_positives(left, lots[columns], draw))
        needed = positives[0] if len(positives) == 1 else torch.stack(positives).any(0)
        above = count(scores, items, matches, order, needed)
        if held is not None:
            above = held.share.total(torch.where(needed, above, 0))
        for member, positive in zip(members, positives, strict=True):
            if member in observers:
                at = None if items is None else items.cpu().numpy()
                shown = (one.cpu().numpy() for one in (matches, positive))
                observers[member].update(queries.cpu(), scores.cpu().numpy(), at, *shown)
            # Matches stand in ranking order, so the i-th positive has i - 1 others above it.
            results[member].add(places, above + positive.cumsum(1), positive)


class _Held:
    """A part of a gallery, by the places of its columns.

    Args:
        share: the part.
        device: where scores are.
    """

    def __init__(self, share: GalleryShare, device: torch.device) -> None:
        self.share, self._columns = share, share.columns.to(device)

    def before(self, columns: Tensor) -> Tensor:
        """Return how many columns of the part stand before gallery columns: their place in it, if they are."""
        return torch.searchsorted(self._columns, columns)

    def items(self, items: Tensor | None) -> Tensor | None:
        """Return the places in the part of gallery columns, of those that are in it."""
        return None if items is None else torch.isin(self._columns, items).nonzero()[:, 0]

    def take(self, scores: Tensor, columns: Tensor, known: Tensor) -> Tensor:
        """Take the scores of gallery columns (R, P) out of (R, g), leaving -inf; whoever holds them, tells all."""
        place = self.before(columns).clamp(max=max(0, len(self._columns) - 1))
        matches = scores.new_full(columns.shape, -torch.inf)
        if len(self._columns):
            ours = known & (self._columns[place] == columns)
            matches = scores.gather(1, place).masked_fill_(~ours, -torch.inf)
            row, which = ours.nonzero(as_tuple=True)
            scores[row, place[row, which]] = -torch.inf
        return self.share.greatest(matches)


def _take_matches(
    scores: Tensor, pairs: SamePerson, queries: Tensor, width: int, held: _Held | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the scores of the queries' own people out of a block, leaving -inf, in ranking order.

    Returns:
        (R, P) scores, falling, -inf for padding; (R, P) gallery columns; (R, P) which are no padding.
    """
    columns, known = pairs.of(queries, width)
    if held is None:
        matches = scores.gather(1, columns).masked_fill_(~known, -torch.inf)
        scores.scatter_(1, columns, -torch.inf)
    else:
        matches = held.take(scores, columns, known)
    matches, order = matches.sort(dim=1, descending=True, stable=True)
    return matches, columns.gather(1, order), known.gather(1, order)
