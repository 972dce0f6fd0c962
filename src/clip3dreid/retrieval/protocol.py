"""Say which gallery items a query is compared with, and which queries count: protocols.

This is the only place where rules about same clothes and other clothes live. A rule is a function of the
labels of a query and of a gallery item of the same person: True means junk, an item that counts neither as a
hit nor as a miss. Items of other people are never junk. A `Protocol` names a rule, with the filters and the
number of gallery pictures a person that go with it, and is printed and stored with every number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Count, Positive, check, choose, some
from clip3dreid.retrieval.settings import AveragePrecision, SamePicture


class PictureLabels(NamedTuple):
    """Labels of pictures as int64 codes, of any shape that broadcasts; equal codes mean equal labels, -1 unknown."""

    person: Tensor
    camera: Tensor
    clothes: Tensor
    tracklet: Tensor
    frame: Tensor
    """The frame or picture number itself, not a code."""
    picture: Tensor = torch.tensor(-1)
    """Equal where the pictures themselves are: one file, or two with the same bytes. A single -1 is unknown for
    all."""
    location: Tensor = torch.tensor(-1)
    """Where cameras stand, as far as a data set tells it: indoors or outdoors. A single -1 is unknown for all."""
    scale: Tensor = torch.tensor(-1)
    """How large the person is in the picture, in a data set's classes. A single -1 is unknown for all."""

    def at(self, index: Tensor) -> PictureLabels:
        """Return the labels at `index`, in the shape of `index`."""
        return PictureLabels(*(column[index] if column.ndim else column for column in self))

    def to(self, device: torch.device) -> PictureLabels:
        """Return the same on a device."""
        return PictureLabels(*(column.to(device) for column in self))


_FEW = 4
"""Where a label stands on more than so many pictures, to sort labels is faster than to sort pictures."""

Rule: TypeAlias = Callable[[PictureLabels, PictureLabels], Tensor]


def _same(query: Tensor, gallery: Tensor) -> Tensor:
    """Return where labels are known and equal: two unknown labels are not the same label."""
    return (query == gallery) & (query >= 0)


def same_picture(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Return which gallery items are the query's own picture: no rule, but asked beside each by `Protocol.junk`."""
    return _same(query.picture, gallery.picture)


def nothing(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop nothing."""
    return torch.zeros_like(query.person == gallery.person)


def same_camera(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop what the query's own camera took."""
    return _same(query.camera, gallery.camera)


def same_camera_or_clothes(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop the query's own camera and the query's outfit: only other clothes are left to be found."""
    return _same(query.camera, gallery.camera) | _same(query.clothes, gallery.clothes)


def same_camera_or_other_clothes(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop the query's own camera and every other outfit: only the same clothes are left to be found."""
    return _same(query.camera, gallery.camera) | ~_same(query.clothes, gallery.clothes)


def same_camera_or_location(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop the query's own camera and all others where it stands: only the other locations are left."""
    return _same(query.camera, gallery.camera) | _same(query.location, gallery.location)


def same_camera_or_other_location(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop the query's own camera and every other location: only other cameras of the query's are left."""
    return _same(query.camera, gallery.camera) | ~_same(query.location, gallery.location)


def same_camera_or_scale(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop the query's own camera and the person at the query's scale: only other scales are left to be found."""
    return _same(query.camera, gallery.camera) | _same(query.scale, gallery.scale)


def same_camera_or_other_scale(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop the query's own camera and every other scale: only the query's scale is left to be found."""
    return _same(query.camera, gallery.camera) | ~_same(query.scale, gallery.scale)


def same_tracklet(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop the query's own tracklet; the same camera at another time counts."""
    return _same(query.tracklet, gallery.tracklet)


def same_first_digit(query: PictureLabels, gallery: PictureLabels) -> Tensor:
    """Drop pictures whose number starts with the same decimal digit as the query's, as 1, 10 and 19 do."""
    return _same(_first_digit(query.frame), _first_digit(gallery.frame))


def _first_digit(number: Tensor) -> Tensor:
    while bool((number >= 10).any()):
        number = torch.where(number >= 10, number // 10, number)
    return number


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A named way of evaluating.

    Attributes:
        name: the name that goes with every number.
        drop: the rule that says which gallery items of the query's own person are junk.
        description: what the protocol does, in a sentence; printed with every number.
        needs: columns (of `PictureLabels`) that the rule cannot do without; asking it of data without them is an
            error, where a rule that merely finds nothing to drop is not.
        queries: which query pictures take part: manifest column -> values, all of which must hold.
        gallery: the same for gallery pictures.
        draws: 0 ranks the whole gallery (multi-shot). N repeats the ranking N times against `per_person`
            random gallery pictures of each person (single-shot, for `per_person` = 1) and reports the mean.
            A query's own person is drawn from what the rule leaves, so that a query is valid in every draw
            or in none.
        per_person: gallery pictures of each person in a draw.
        seed: of the draws.
        average_precision: `plain` or `trapezoid`, as `metrics.score_ranks` defines them.
        gallery_people: 0 ranks all people together; N ranks them in galleries of N people each, every query in that
            of its own person: with many test people, each ranking is as hard as with N, and what is random about who
            was tested is smaller.
        same_picture: `drop`: a query's own picture in the gallery (one path, or the same bytes) is junk, whatever the
            rule; `keep`: the rule alone decides. A query that finds itself is a hit that says nothing.
    """

    name: str
    drop: Rule
    description: str
    needs: Sequence[str] = ()
    queries: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    gallery: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    draws: Count = 0
    per_person: Positive = 1
    seed: int = 0
    average_precision: AveragePrecision = "plain"
    same_picture: SamePicture = "drop"
    gallery_people: Count = 0

    def __post_init__(self) -> None:
        """Check the values, and spell labels as tables do: as strings, whatever they are given as."""
        key = f"protocol {self.name}: "
        check(self, key)
        object.__setattr__(self, "needs", tuple(self.needs))
        for side in ("queries", "gallery"):
            filters = {str(column): tuple(map(str, values)) for column, values in getattr(self, side).items()}
            object.__setattr__(self, side, filters)
        for column in self.needs:
            choose(f"{key}needs", column, [field for field in PictureLabels._fields if field != "picture"])

    def junk(self, query: PictureLabels, gallery: PictureLabels) -> Tensor:
        """Return which items of a query's own person are junk: what the rule drops, and the query's own picture."""
        dropped = self.drop(query, gallery)
        return dropped | same_picture(query, gallery) if self.same_picture == "drop" else dropped

    @property
    def rule(self) -> str:
        """Return the name of the rule."""
        return getattr(self.drop, "__name__", str(self.drop))

    @property
    def shots(self) -> str:
        """Return `multi-shot`, or how many draws of how many pictures a person, for people to read."""
        if not self.draws:
            return "multi-shot"
        return f"{self.per_person} picture(s) a person, mean of {self.draws} draw(s), seed {self.seed}"

    def facts(self) -> dict[str, Any]:
        """Return what is stored with a number to tell it apart from another protocol's; JSON-ready."""
        return {
            "protocol": self.name,
            "description": self.description,
            "drop": self.rule,
            "query_filter": {column: list(values) for column, values in self.queries.items()},
            "gallery_filter": {column: list(values) for column, values in self.gallery.items()},
            "shots": self.shots,
            "average_precision": self.average_precision,
            "same_picture": self.same_picture,
            # Named only where it is asked for: numbers of before it was thought of are of the same protocol.
            **({"gallery_people": self.gallery_people} if self.gallery_people else {}),
        }


class ProtocolSet(NamedTuple):
    """The protocols that a data set is evaluated under."""

    protocols: Mapping[str, Protocol]
    """Name -> protocol, in the order of reports."""
    headline: str
    """Name of the one that selects checkpoints and stands for a run; empty where there are no protocols."""


Protocols: TypeAlias = Mapping[str, Mapping[str, Protocol]]
"""Data set -> name -> protocol."""


class ProtocolRows(NamedTuple):
    """The rows of the two tables that take part in a protocol."""

    queries: Tensor
    """(Q,) bool."""
    gallery: Tensor
    """(G,) bool."""


def encode(query_table: pl.DataFrame, gallery_table: pl.DataFrame) -> tuple[PictureLabels, PictureLabels]:
    """Turn label strings into integer codes that mean the same in both tables.

    People, cameras, outfits, tracklets, locations and scales of different data sets are different. A missing
    column counts as unknown.

    Args:
        query_table: Q rows with columns as in the manifest; `person` is required. Two rows show the same picture
            where their `picture` is equal, or, without that column, their `path`.
        gallery_table: G rows, likewise.

    Returns:
        Labels of the queries (Q,) and of the gallery (G,), int64, on the CPU.

    Raises:
        InputError: if a person is unknown.
    """
    for side, table in (("query", query_table), ("gallery", gallery_table)):
        if unknown := labels_of(table, "person").null_count():
            raise InputError(f"{unknown} {side} pictures have no person label; leave them out or label them")
    tables = (query_table, gallery_table)
    coded = [_codes(*tables, column) for column in ("person", "camera", "clothes", "tracklet")]
    frames = [_tensor(labels_of(table, "frame").cast(pl.Int64)) for table in tables]
    pictures = _codes(*tables, "picture" if all("picture" in table.columns for table in tables) else "path")
    conditions = [_codes(*tables, column) for column in ("location", "scale")]
    query, gallery = zip(*coded, frames, pictures, *conditions, strict=True)
    return PictureLabels(*query), PictureLabels(*gallery)


def _codes(query_table: pl.DataFrame, gallery_table: pl.DataFrame, column: str) -> tuple[Tensor, Tensor]:
    tables = query_table, gallery_table
    both = pl.concat([labels_of(table, column) for table in tables])
    if both.null_count() == len(both):
        return tuple(torch.full((len(table),), -1) for table in tables)  # type: ignore[return-value]
    sets = pl.concat([labels_of(table, "data_set").fill_null("") for table in tables])
    if not (sets == sets[0]).all():
        both = sets + "\0" + both
    distinct = both.drop_nulls().unique()
    if len(distinct) * _FEW < len(both):
        ordered = both.cast(pl.Enum(distinct.sort())).to_physical().cast(pl.Int64)
    else:
        ordered = both.rank("dense").cast(pl.Int64) - 1
    codes = _tensor(ordered)
    return codes[: len(query_table)], codes[len(query_table) :]


def _tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.fill_null(-1).to_numpy().astype(np.int64))


def labels_of(table: pl.DataFrame, column: str) -> pl.Series:
    """Return a column as strings; all null where the table does not have it."""
    if column not in table.columns:
        return pl.Series(column, [None] * len(table), dtype=pl.String)
    return table[column].cast(pl.String)


def data_name(table: pl.DataFrame) -> str:
    """Return what to call the data of a table in a message."""
    return "+".join(labels_of(table, "data_set").drop_nulls().unique().sort()) or "this data"


def select(protocol: Protocol, query_table: pl.DataFrame, gallery_table: pl.DataFrame) -> ProtocolRows:
    """Apply a protocol's filters and check that the labels it needs are there.

    Args:
        protocol: what to apply.
        query_table: Q rows with columns as in the manifest.
        gallery_table: G rows, likewise.

    Returns:
        Which rows take part.

    Raises:
        InputError: if a filter leaves nothing, or a needed label is unknown on a query or on a gallery
            picture of a person with queries (other people's labels never matter).
    """
    queries = _filter(protocol, "query", query_table, protocol.queries)
    gallery = _filter(protocol, "gallery", gallery_table, protocol.gallery)
    people = labels_of(query_table, "person").filter(queries).unique()
    concerned = gallery & labels_of(gallery_table, "person").is_in(people.implode())
    for column in protocol.needs:
        for side, table, chosen in (("query", query_table, queries), ("gallery", gallery_table, concerned)):
            labels = labels_of(table, column).filter(chosen)
            if missing := labels.null_count():
                raise InputError(
                    f"protocol {protocol.name} needs {column} labels, and {data_name(table)} has none on "
                    f"{missing} of {len(labels)} {side} pictures; choose another protocol, such as general, "
                    "or add the labels"
                )
    return ProtocolRows(
        torch.from_numpy(queries.to_numpy().copy()), torch.from_numpy(gallery.to_numpy().copy())
    )


def _filter(
    protocol: Protocol, side: str, table: pl.DataFrame, filters: Mapping[str, Sequence[str]]
) -> pl.Series:
    chosen = pl.Series([True] * len(table), dtype=pl.Boolean)
    for column, allowed in filters.items():
        labels = labels_of(table, column)
        chosen &= labels.is_in(list(allowed)).fill_null(False)
        if not chosen.any():
            there = labels.drop_nulls().unique().sort().to_list()
            raise InputError(
                f"protocol {protocol.name} takes {side} pictures with {column} among {list(allowed)}, and "
                f"{data_name(table)} has none (found: {some(there, 10) or 'no labels'}); choose a "
                "protocol made for this data"
            )
    return chosen
