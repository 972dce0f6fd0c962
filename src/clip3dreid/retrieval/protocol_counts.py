"""Count what a protocol makes of a data set, without any features."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.retrieval.galleries import galleries
from clip3dreid.retrieval.protocol import Protocol, data_name, encode, labels_of, select
from clip3dreid.retrieval.ranking import Job, SamePerson, plan

NAMED = 10
"""How many queries without a positive are named; all are counted."""


class ProtocolCounts(NamedTuple):
    """What a protocol makes of a data set, features aside."""

    queries: int
    """Queries that the protocol asks."""
    valid_queries: int
    """Those with at least one positive: the denominator of every number."""
    gallery: int
    """Gallery pictures that it asks them of; where there are several galleries, of the mean one."""
    positives_per_query: float
    """Mean over the valid queries, before any draw."""
    junk_per_query: float
    """Gallery pictures dropped, mean over all queries."""
    junk_share: float
    """The same as a share of the gallery, 0..1."""
    chance_r1: float
    """R1 to be expected of a random ranking, 0..1."""
    queries_in_gallery: int
    """Queries whose own picture, by path or byte for byte, is in the gallery: dropped there, or kept, as the
    protocol's `same_picture` says."""
    in_gallery: tuple[str, ...]
    """The first ten of these, named as those without a positive are."""
    without_positive: tuple[str, ...]
    """The first ten queries that are not valid, by path, or by row where there are no paths."""


def count(protocol: Protocol, query_table: pl.DataFrame, gallery_table: pl.DataFrame) -> ProtocolCounts:
    """Count valid queries and junk under a protocol, without any features.

    Raises:
        InputError: as `evaluate` does where the protocol and the labels do not fit.
    """
    for side, table in (("query", query_table), ("gallery", gallery_table)):
        if table.is_empty():
            raise InputError(f"there are no {side} pictures to evaluate on")
    if protocol.gallery_people:
        plain = dataclasses.replace(protocol, gallery_people=0)
        return _together(
            [
                count(plain, query_table[one.query.tolist()], gallery_table[one.gallery.tolist()])
                for one in galleries(protocol, query_table, gallery_table)
            ]
        )
    pairs = SamePerson(*encode(query_table, gallery_table))
    return prepare(protocol, pairs, query_table, gallery_table)[1]


def _together(parts: Sequence[ProtocolCounts]) -> ProtocolCounts:
    """Return the counts of several galleries as one: sums of queries, means over queries, the mean gallery."""
    queries, valid = sum(one.queries for one in parts), sum(one.valid_queries for one in parts)

    def mean(of: str, by: str, total: int) -> float:
        return float(sum(getattr(one, of) * getattr(one, by) for one in parts) / total)

    return ProtocolCounts(
        queries,
        valid,
        round(sum(one.gallery for one in parts) / len(parts)),
        positives_per_query=mean("positives_per_query", "valid_queries", valid),
        junk_per_query=mean("junk_per_query", "queries", queries),
        junk_share=mean("junk_share", "queries", queries),
        chance_r1=mean("chance_r1", "valid_queries", valid),
        queries_in_gallery=sum(one.queries_in_gallery for one in parts),
        in_gallery=tuple(name for one in parts for name in one.in_gallery)[:NAMED],
        without_positive=tuple(name for one in parts for name in one.without_positive)[:NAMED],
    )


def prepare(
    protocol: Protocol, pairs: SamePerson, query_table: pl.DataFrame, gallery_table: pl.DataFrame
) -> tuple[Job, ProtocolCounts]:
    """Return the plan of a protocol on these labels, and its counts.

    Raises:
        InputError: if the protocol does not fit the labels, or leaves no query a positive.
    """
    job = plan(protocol, pairs, select(protocol, query_table, gallery_table))
    queries, valid, gallery = (int(mask.sum()) for mask in (job.queries, job.valid, job.gallery))
    junk = int(job.junk.sum())
    if not valid:
        alone = " (and same_picture=drop the queries' own pictures)" if bool(job.in_gallery.any()) else ""
        reason = (
            f"its rule {protocol.rule}{alone} drops all {junk} gallery pictures of the queries' own people"
            if junk
            else f"no person of its {queries} queries is among its {gallery} gallery pictures"
        )
        raise InputError(
            f"protocol {protocol.name}: no query of {data_name(query_table)} has a positive, because "
            f"{reason}; choose another protocol or check the labels"
        )
    return job, ProtocolCounts(
        queries,
        valid,
        gallery,
        positives_per_query=int(job.positives.sum()) / valid,
        junk_per_query=junk / queries,
        junk_share=junk / queries / gallery,
        chance_r1=_chance_r1(job, pairs),
        queries_in_gallery=int(job.in_gallery.sum()),
        in_gallery=_names(query_table, job.in_gallery),
        without_positive=_names(query_table, job.queries & ~job.valid),
    )


def _chance_r1(job: Job, pairs: SamePerson) -> float:
    """Return the mean over the valid queries of the share of positives among what is ranked."""
    ranked, positives = ranked_pictures(job, pairs)
    return float((positives / ranked).double().mean())


def ranked_pictures(job: Job, pairs: SamePerson) -> tuple[Tensor, Tensor]:
    """Return, of each valid query, how many gallery pictures are ranked in a draw, and how many are positives."""
    positives, matches = job.positives[job.valid], (job.positives + job.junk)[job.valid]
    pictures = torch.bincount(pairs.gallery.person[job.gallery])
    if job.protocol.draws:
        positives, matches, pictures = (
            count.clamp(max=job.protocol.per_person) for count in (positives, matches, pictures)
        )
    return pictures.sum() - matches + positives, positives


def _names(table: pl.DataFrame, rows: Tensor) -> tuple[str, ...]:
    """Return names of the first ten of the rows where (N,) `rows` is true."""
    return tuple(name_of(table, row) for row in rows.nonzero()[:NAMED, 0].tolist())


def name_of(table: pl.DataFrame, row: int) -> str:
    """Return what to call a row of a table in a message."""
    return labels_of(table, "path")[row] or f"row {row}"
