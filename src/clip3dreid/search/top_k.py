"""Find exact nearest neighbours, block by block: the k best of a gallery of any size, in flat memory.

What cannot be avoided is the matrix product. What comes after it touches every score once: a block's scores are
reduced to the best of every `SEGMENT` columns, and only segments whose best beats the query's k-th best so far are
looked into. In a gallery in no particular order those soon become few, since block number i holds k/i of a query's
best k so far. Where they are many, as in the first blocks or a gallery that gets nearer and nearer, the k-th best of
the segments' bests says what need not be looked at: k scores are no lower.

On an accelerator a block's own best are picked out instead (`torch.topk`), and the host waits once a block: to ask
whether a score is broken, or several tie for the last place.

Order is that of a stable sort by falling score: of equal scores the earlier gallery row comes first. Products of
other shapes may round differently in the last bit, so block size and device can swap rows that are closer than
rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.retrieval.similarity import GalleryTerms, full_precision, gallery_terms, write_similarities

Metric: TypeAlias = Literal["cosine", "product", "euclidean"]

MEMORY = 16 * 2**20
"""Bytes that a block may take. More is no faster: the scores leave the processor's cache."""
DEVICE_MEMORY = 2**30
"""The same on an accelerator, which is idle between blocks."""
SEGMENT = 64
"""Columns that share a best score."""
QUERIES = 1024
"""Most queries at once: enough for the product to run at its peak."""
ROWS = 65_536
"""Most gallery rows at once: enough that the steps of a block do not count."""
CROWDED = 0.2
"""Share of segments to look into above which a block's own bar is found first."""


class TopK(NamedTuple):
    """The nearest gallery rows of each query."""

    rows: Tensor
    """(Q, k) int64 gallery rows, nearest first; -1 where there are fewer than k."""
    scores: Tensor
    """(Q, k) float32, falling; -inf where there is no row."""


def top_k(
    query: Tensor,
    gallery: Tensor | Iterable[Tensor],
    k: int,
    metric: Metric = "cosine",
    allowed: Tensor | None = None,
    memory: int | None = None,
) -> TopK:
    """Find the k nearest gallery rows of each query, exactly.

    Half-precision features are multiplied in float32, and reduced matrix precision (TF32, autocast) is switched
    off. Everything runs on the device of the queries; gallery blocks are moved there.

    Args:
        query: (Q, D) floating-point features, finite. float64 is multiplied in float64.
        gallery: (G, D) features, or blocks (n, D) of them, each of any n, read once and in order.
        k: how many to find, 1 or more.
        metric: `cosine`; `product`, which is the cosine of features of length 1 and saves their norms; or
            `euclidean`, whose scores are negated distances.
        allowed: (G,) bool, rows that may be found; all by default.
        memory: bytes that a block may take beside features and result; one segment of columns always fits.
            None: `MEMORY`, on an accelerator `DEVICE_MEMORY`. Where many scores tie or a
            gallery gets nearer and nearer, some five times as much.

    Returns:
        Rows and scores of each query, on its device.

    Raises:
        InputError: if k, metric or shapes do not fit, scores are NaN or infinite, or, for `cosine`, a feature has
            length 0.

    Example:
        >>> import torch
        >>> from clip3dreid.search.top_k import top_k
        >>> top_k(torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 2], [3, 0], [1, 1]]), k=2).rows.tolist()
        [[1, 2]]
    """
    _check(query, k, metric)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with full_precision(query.device):
        queries = query.detach().to(dtype)
        if metric == "cosine":
            queries = unit(queries, "query")
        on_cpu = query.device.type == "cpu"
        if memory is None:
            memory = MEMORY if on_cpu else DEVICE_MEMORY
        best = (_Best if on_cpu else _BestOnDevice)(len(query), k, queries)
        for rows, block in _blocks(queries, gallery, allowed, memory):
            terms = gallery_terms(block, metric)
            for start in range(0, len(queries), QUERIES):
                part = slice(start, start + QUERIES)
                scores = best.buffer(len(queries[part]), len(block))
                write_similarities(queries[part], block, terms, scores)
                best.add(start, scores, rows, terms)
        scores = best.scores
        if metric == "euclidean":
            squares = torch.einsum("qd,qd->q", queries, queries)[:, None] - 2 * scores
            scores = -squares.clamp(min=0).sqrt()
    return TopK(best.rows, scores.float())


def unit(features: Tensor, what: str, first: int = 0) -> Tensor:
    """Return features (n, D) of length 1, in float32, or float64 if they are.

    Args:
        features: (n, D) floating-point.
        what: `query` or `gallery`, for messages.
        first: number of the first row, for messages.

    Raises:
        InputError: if one is NaN or infinite or has length 0, naming it.
    """
    wide = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    lengths = torch.linalg.vector_norm(wide, dim=1)
    rows = torch.arange(first, first + len(features), device=features.device)
    _refuse(~lengths.isfinite(), what, "is NaN or infinite; the model is broken", rows)
    _refuse(lengths == 0, what, "has length 0 and so no cosine; leave it out", rows)
    return wide.div(lengths[:, None])


def _check(query: Tensor, k: int, metric: str) -> None:
    check_number("k", k, Range(1), whole=True)
    choose("metric", metric, get_args(Metric))
    if query.dim() != 2 or not query.is_floating_point():
        raise InputError(
            f"queries are {query.dtype} {tuple(query.shape)}; give floating-point features (Q, D)"
        )
    _refuse(~query.isfinite().all(1), "query", "is NaN or infinite; the model is broken")


def _refuse(wrong: Tensor, what: str, why: str, rows: Tensor | None = None) -> None:
    """Refuse features of which any of `wrong` (n,) is true, naming the first, by its number in `rows` if given."""
    if bool(wrong.any()):
        place = wrong.nonzero()[0, 0]
        raise InputError(f"{what} feature {int(place if rows is None else rows[place])} {why}")


def _blocks(
    queries: Tensor, gallery: Tensor | Iterable[Tensor], allowed: Tensor | None, memory: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield allowed gallery rows (n,) ascending, and their features (n, D) as the queries are."""
    done = 0
    for whole in [gallery] if isinstance(gallery, Tensor) else gallery:
        if whole.dim() != 2 or whole.shape[1] != queries.shape[1]:
            raise InputError(
                f"gallery features are {tuple(whole.shape)}, queries {tuple(queries.shape)}; "
                "both must come from one model"
            )
        mask = None
        if allowed is not None:
            mask = allowed[done : done + len(whole)]
            if len(mask) < len(whole):
                raise InputError(f"allowed has {len(allowed)} rows, the gallery more; give one for each row")
        like = whole.dtype == queries.dtype and whole.device == queries.device
        # A block that must be copied takes memory too.
        width = min(len(queries), QUERIES) + (0 if like and mask is None else whole.shape[1])
        size = memory // (queries.element_size() * max(1, width)) // SEGMENT * SEGMENT
        size = min(max(size, SEGMENT), ROWS)
        for start in range(0, len(whole), size):
            block = whole[start : start + size].detach()
            rows = torch.arange(done + start, done + start + len(block), device=queries.device)
            if mask is not None and not bool((kept := mask[start : start + size]).all()):
                index = kept.nonzero()[:, 0]
                rows, block = rows[index.to(rows.device)], block[index.to(block.device)]
            if len(block):
                yield rows, block.to(queries)
        done += len(whole)
    if allowed is not None and len(allowed) != done:
        raise InputError(f"allowed has {len(allowed)} rows, the gallery {done}; give one for each row")


def _explain(scores: Tensor, rows: Tensor, terms: GalleryTerms) -> None:
    """Refuse a block with scores (R, n) that are NaN or infinite, naming the first gallery row (n,) with one."""
    if terms.factor is not None:
        _refuse(terms.factor.isinf(), "gallery", "has length 0 and so no cosine; leave it out", rows)
    wrong = ~scores.isfinite().all(0)
    _refuse(wrong, "gallery", "gives scores that are NaN or infinite; the model is broken", rows)


class _Best:
    """The best k of each query so far.

    Args:
        queries: Q.
        k: how many to keep.
        like: a tensor on the device and of the dtype of the scores.
    """

    def __init__(self, queries: int, k: int, like: Tensor) -> None:
        self.k = k
        self.scores = like.new_full((queries, k), -torch.inf)
        self.rows = torch.full((queries, k), -1, device=like.device)
        self._buffer = like.new_empty(0)

    def buffer(self, queries: int, columns: int) -> Tensor:
        """Return memory (queries, columns) to be filled with scores; the same each time."""
        width = -(-columns // SEGMENT) * SEGMENT
        if self._buffer.numel() < queries * width:
            self._buffer = self._buffer.new_empty(queries * width)
        whole = self._buffer[: queries * width].view(queries, width)
        # The rest of the last segment.
        whole[:, columns:] = -torch.inf
        return whole[:, :columns]

    def add(self, start: int, scores: Tensor, rows: Tensor, terms: GalleryTerms) -> None:
        """Take in a block.

        Args:
            start: the first of its queries.
            scores: (R, n) what `buffer` gave, filled.
            rows: (n,) gallery rows, ascending and after all rows before.
            terms: of these rows, for messages.

        Raises:
            InputError: if a score is NaN or infinite.
        """
        segments = self._buffer[: len(scores) * scores.stride(0)].view(len(scores), -1, SEGMENT)
        peaks = segments.amax(2)
        if not bool(peaks.isfinite().all()):
            _explain(scores, rows, terms)
        # Later rows lose ties, so to come in a score must be above the k-th best.
        bar = self.scores[start : start + len(scores), -1:]
        hot = peaks > bar
        floor = None
        if int(hot.sum()) > CROWDED * hot.numel():
            many = peaks if peaks.shape[1] >= self.k else scores
            floor = many.topk(min(self.k, many.shape[1]), 1).values[:, -1:]
            hot = hot & (peaks >= floor)
        query, segment = hot.nonzero(as_tuple=True)
        values = segments[query, segment]
        above = values > bar[query]
        if floor is not None:
            above &= values >= floor[query]
        which, place = above.nonzero(as_tuple=True)
        if len(which):
            columns = segment[which] * SEGMENT + place
            self._merge(start + query[which], rows[columns], values[which, place])

    def _merge(self, query: Tensor, rows: Tensor, values: Tensor) -> None:
        """Merge new rows (n,), ordered by query and then by gallery row, into the best."""
        touched, count = torch.unique_consecutive(query, return_counts=True)
        owner = torch.arange(len(touched), device=query.device).repeat_interleave(count)
        place = self.k + torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[owner]
        more = int(count.max())
        scores = F.pad(self.scores[touched], (0, more), value=-torch.inf)
        found = F.pad(self.rows[touched], (0, more), value=-1)
        scores[owner, place], found[owner, place] = values, rows
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.scores[touched], self.rows[touched] = scores.gather(1, order), found.gather(1, order)


class _BestOnDevice(_Best):
    """The same where the device works while the host goes on: no step but one waits for another's outcome."""

    def add(self, start: int, scores: Tensor, rows: Tensor, terms: GalleryTerms) -> None:
        """Take in a block, as `_Best.add` does."""
        part, count = slice(start, start + len(scores)), min(self.k, len(rows))
        # One more than is kept, to see whether others tie with the last.
        values, places = scores.topk(min(count + 1, len(rows)), dim=1)
        broken = ~values[:, 0].isfinite()
        tied = torch.zeros_like(broken)
        if len(rows) > count:
            last = values[:, count - 1]
            tied = (values[:, count] == last) & (last > self.scores[part, -1])
        wrong, several = torch.stack([broken.any(), tied.any()]).tolist()
        if wrong:
            _explain(scores, rows, terms)
        values, places = values[:, :count], places[:, :count]
        if several:
            for some in torch.split(tied.nonzero()[:, 0], SEGMENT):
                ordered = scores[some].sort(dim=1, descending=True, stable=True)
                values[some], places[some] = ordered.values[:, :count], ordered.indices[:, :count]
        # By gallery row, behind what was found in earlier rows: so of equal scores the earlier row stands first.
        places, order = places.sort(dim=1)
        values = torch.cat([self.scores[part], values.gather(1, order)], 1)
        found = torch.cat([self.rows[part], rows[places]], 1)
        best = values.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.scores[part], self.rows[part] = values.gather(1, best), found.gather(1, best)
