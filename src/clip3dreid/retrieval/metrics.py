"""Score rankings: CMC, mAP and mINP, query by query and as means.

`score_ranks` holds the definitions, `summarise` the means, `intervals` how sure these are, and
`distributed.RetrievalScores` carries the means' sums across processes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.retrieval.bootstrap import confidences
from clip3dreid.retrieval.settings import AveragePrecision

RANKS = (1, 5, 10, 20)
SCORES = (*(f"r{k}" for k in RANKS), "map", "minp")


class PerQuery(NamedTuple):
    """Results of each of Q queries, on the CPU; where a protocol draws galleries, means over the draws.

    A query that is not valid has zeros.
    """

    valid: Tensor
    """(Q,) bool: the protocol asks this query and its gallery holds at least one positive."""
    positives: Tensor
    """(Q,) int64: gallery items of the same person that are not junk (before any draw)."""
    junk: Tensor
    """(Q,) int64: gallery items of the same person that the protocol drops."""
    first_hit: Tensor
    """(Q,) float64: rank of the first positive, from 1."""
    hits: Tensor
    """(Q, 4) float64: 1 where a positive is among the first 1, 5, 10, 20."""
    ap: Tensor
    """(Q,) float64: average precision."""
    inp: Tensor
    """(Q,) float64: positives divided by the rank of the last of them."""

    def at(self, index: Tensor) -> PerQuery:
        """Return the queries at `index`: row numbers or a mask."""
        return PerQuery(*(column[index] for column in self))


def score_ranks(ranks: Tensor, kept: Tensor, average_precision: AveragePrecision) -> tuple[Tensor, ...]:
    """Score rankings, given the ranks of their positives.

    With n positives at ranks r_1 < ... < r_n:

    - a hit within k is r_1 <= k; its mean over queries is the cumulative matching characteristic (CMC) at k,
      "multi-shot" where the gallery holds several pictures a person;
    - average precision, `plain`, is the mean of i / r_i, precision at each positive;
    - `trapezoid` is the mean of (b_i + i / r_i) / 2, where b_i = (i - 1) / (r_i - 1) is precision just before
      the positive, taken as 1 at rank 1: the area under the precision-recall curve of the original
      Market-1501 code (Zheng et al., "Scalable person re-identification", ICCV 2015). It mostly reads lower;
    - the inverse negative penalty is n / r_n (Ye et al., "Deep learning for person re-identification: a
      survey and outlook", TPAMI 2021); its mean over queries is mINP.

    Args:
        ranks: (Q, P) int64, from 1, ascending along each row where `kept`.
        kept: (Q, P) bool: which entries are positives.
        average_precision: `plain` or `trapezoid`.

    Returns:
        first hit (Q,), hits (Q, 4), average precision (Q,) and inverse negative penalty (Q,), float64; zeros
        for rows without positives.
    """
    count = kept.sum(1)
    rank = torch.where(kept, ranks, 1).to(torch.float64)
    hit = kept.cumsum(1).to(torch.float64)
    precision = hit / rank
    if average_precision == "trapezoid":
        before = torch.where(rank > 1, (hit - 1) / (rank - 1).clamp(min=1), 1.0)
        precision = (before + precision) / 2
    average = torch.where(kept, precision, 0.0).sum(1) / count.clamp(min=1)
    last = torch.where(kept, rank, 0.0).amax(1)
    first = torch.where(kept, rank, torch.inf).amin(1)
    hits = (first[:, None] <= torch.tensor(RANKS, device=first.device)).to(torch.float64)
    valid = count > 0
    return first.where(valid, 0.0), hits, average, (count / last).where(valid, 0.0)


def summarise(per_query: PerQuery) -> dict[str, Any]:
    """Return means over the valid queries.

    Returns:
        `r1`, `r5`, `r10`, `r20`, `map`, `minp` (fractions 0..1), and the numbers `queries` and
        `valid_queries`.

    Raises:
        InputError: if no query is valid.
    """
    return means(add_up(per_query))


def add_up(per_query: PerQuery) -> Tensor:
    """Return (8,) float64: queries, valid queries, then the sums of `SCORES`."""
    valid = per_query.valid
    scores = torch.cat([per_query.hits, per_query.ap[:, None], per_query.inp[:, None]], dim=1)[valid]
    numbers = torch.tensor([len(valid), int(valid.sum())], dtype=torch.float64)
    return torch.cat([numbers, scores.sum(0)])


def means(sums: Tensor) -> dict[str, Any]:
    """Return what `summarise` does, from the sums of `add_up`.

    Raises:
        InputError: if no query is valid.
    """
    queries, valid, *scores = sums.tolist()
    if not valid:
        raise InputError(
            f"none of {int(queries)} queries has a positive in the gallery; there is nothing to report"
        )
    shares = {name: score / valid for name, score in zip(SCORES, scores, strict=True)}
    return {**shares, "queries": int(queries), "valid_queries": int(valid)}


NUMBERS = ("row", "person", "first_hit", "r1", "ap", "inp", "positives", "junk")
"""Columns of `numbers`."""


def numbers(rows: Tensor, person: Tensor, per_query: PerQuery) -> Tensor:
    """Return what is kept of each valid query, as one tensor that can travel between processes.

    Args:
        rows: (Q,) row numbers.
        person: (Q,) codes of people.
        per_query: results of Q queries.

    Returns:
        (valid queries, 8) float64, columns as in `NUMBERS`.
    """
    columns = (
        *(rows, person, per_query.first_hit, per_query.hits[:, 0]),
        *(per_query.ap, per_query.inp, per_query.positives, per_query.junk),
    )
    return torch.stack([column.double() for column in columns], 1)[per_query.valid]


def intervals(scored: Tensor) -> dict[str, list[float]] | None:
    """Return 95 % bootstrap intervals over query people, with the gallery as it is (`bootstrap.confidences`).

    Args:
        scored: (Q, 8) as `numbers` gives them, of all processes, in the order of rows.

    Returns:
        `r1`, `map`, `minp` -> [low, high], 0..1; None where all queries are of one person.
    """
    columns = {"r1": "r1", "map": "ap", "minp": "inp"}
    values = scored[:, [NUMBERS.index(column) for column in columns.values()]].T.numpy()
    spread = confidences(values, scored[:, NUMBERS.index("person")].numpy())
    return None if spread is None else dict(zip(columns, map(list, spread), strict=True))
