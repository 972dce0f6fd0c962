"""Split a gallery into several smaller ones: many test people, and each ranking as hard as with a few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.retrieval.metrics import PerQuery
from clip3dreid.retrieval.protocol import Protocol, labels_of


class Gallery(NamedTuple):
    """Who is ranked against whom, in rows of the two tables."""

    query: Tensor
    """(q,) int64, ascending."""
    gallery: Tensor
    """(g,) int64, ascending."""


def galleries(protocol: Protocol, query_table: pl.DataFrame, gallery_table: pl.DataFrame) -> list[Gallery]:
    """Split the people who are asked for into galleries of `protocol.gallery_people`, in the order of their labels.

    Everybody else's pictures, of distractors, are in every gallery. The last gallery takes those who are left over
    if they are fewer than half of one, so that none is much smaller than the others.

    Args:
        protocol: with `gallery_people` above 0.
        query_table: Q rows with `person`, and `data_set` where there are several.
        gallery_table: G rows, likewise.

    Raises:
        InputError: if there are fewer people than a gallery takes.
    """
    whose = [_names(table) for table in (query_table, gallery_table)]
    people, size = np.unique(whose[0]), protocol.gallery_people
    if len(people) < size:
        raise InputError(
            f"protocol {protocol.name}: gallery_people={size}, and there are {len(people)} people; give fewer, or 0"
        )
    count = max(1, int(len(people) / size + 0.5))
    number = np.minimum(np.arange(len(people)) // size, count - 1)
    query, gallery = (_at(people, number, names) for names in whose)
    return [
        Gallery(
            torch.from_numpy(np.flatnonzero(query == one)),
            torch.from_numpy(np.flatnonzero((gallery == one) | (gallery < 0))),
        )
        for one in range(count)
    ]


def _names(table: pl.DataFrame) -> np.ndarray:
    return (
        (labels_of(table, "data_set").fill_null("") + "\0" + labels_of(table, "person"))
        .to_numpy()
        .astype(str)
    )


def _at(people: np.ndarray, number: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Return the gallery of each of the names; -1 for those who are not among the people."""
    place = np.searchsorted(people, names).clip(max=len(people) - 1)
    return np.where(people[place] == names, number[place], -1)


def in_order(parts: Sequence[PerQuery], rows: Sequence[Tensor]) -> tuple[PerQuery, Tensor]:
    """Return results of several galleries as one, and their rows, which then ascend."""
    joined = torch.cat(list(rows))
    order = joined.argsort()
    return PerQuery(*(torch.cat(columns)[order] for columns in zip(*parts, strict=True))), joined[order]
