"""Describe the tracklets of a data set: how many, how long, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import polars as pl

from clip3dreid.data.tracklets import KEYS, SHARED
from clip3dreid.io.checks import some

CLIP = 8
"""Frames of a usual clip."""
_ANEW = 0.1
"""Share of tracklet names that several people (or cameras) may have before it is how the data set counts."""
_NAMED = 3
"""How many of what is wrong are named."""


class Spread(NamedTuple):
    """Least, median and most of a quantity."""

    least: float
    median: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:g} / {self.median:g} / {self.most:g}"


class TrackletCounts(NamedTuple):
    """The tracklets of a part of a data set."""

    tracklets: int
    per_person: Spread
    frames: Spread
    """Of a tracklet."""
    short: int
    """Tracklets of fewer than `CLIP` frames, which clips of so many begin anew."""
    with_gaps: int
    """Those somewhere in which frame numbers grow by more than they mostly do."""
    missing: int
    """Frames that would fill these gaps."""
    several_sizes: int
    """Those whose frames differ in size; clips resize them to one."""


class DescribedTracklets(NamedTuple):
    """The tracklets of a data set."""

    counts: dict[str, TrackletCounts]
    """By part: `train`, `val_query`, `val_gallery`, `query`, `gallery` and `all`."""
    faults: tuple[str, ...]
    """What is wrong, a line each."""
    notes: tuple[str, ...]
    """What is to be known of how tracklets are named."""


def describe_tracklets(table: pl.DataFrame, sizes: pl.DataFrame) -> DescribedTracklets:
    """Describe the tracklets of a table of frames.

    Args:
        table: columns as in `manifest.SCHEMA`.
        sizes: `path` and `size` of the pictures whose size is known.
    """
    frames = table.filter(pl.col("tracklet").is_not_null()).join(sizes, on="path", how="left")
    if frames.is_empty():
        return DescribedTracklets({}, (), ())
    each = frames.group_by(KEYS, maintain_order=True).agg(
        frames=pl.len(),
        numbers=pl.col("frame").drop_nulls().sort(),
        sizes=pl.col("size").drop_nulls().n_unique(),
        **{what: pl.col(column).n_unique() for column, what in SHARED.items()},
    )
    steps = pl.col("numbers").list.diff().list.drop_nulls()
    each = each.with_columns(steps=steps).with_columns(
        # Two modes, as of two steps: the lesser, beside which the other is a gap.
        usual=pl.col("steps").list.eval(pl.element().filter(pl.element() > 0).mode().min()).list.first(),
        twice=pl.col("steps").list.eval((pl.element() == 0).any()).list.first().fill_null(value=False),
    )
    each = each.with_columns(missing=_missing(each))
    counts = {part: _counted(rows) for part, rows in _parts(each) if not rows.is_empty()}
    shared, notes = _shared_names(each)
    return DescribedTracklets(counts, (*_faults(table, each), *shared), tuple(notes))


def _missing(each: pl.DataFrame) -> pl.Series:
    """Return how many frames would fill the gaps of each tracklet."""
    steps = each.with_row_index("row").select("row", "usual", "steps").explode("steps")
    gaps = (
        steps.filter(pl.col("steps") > pl.col("usual"))
        .group_by("row")
        .agg(missing=((pl.col("steps") - 1) // pl.col("usual")).sum())
    )
    rows = pl.DataFrame({"row": range(len(each))}, schema={"row": pl.get_index_type()})
    return rows.join(gaps, on="row", how="left", maintain_order="left")["missing"].fill_null(0)


def _parts(each: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    yield "train", each.filter(split="train")
    for split, prefix in (("val", "val_"), ("test", "")):
        for role in ("query", "gallery"):
            yield f"{prefix}{role}", each.filter(split=split, role=role)
    yield "all", each


def _counted(rows: pl.DataFrame) -> TrackletCounts:
    return TrackletCounts(
        tracklets=len(rows),
        per_person=spread_of(rows.group_by("data_set", "split", "person").len()["len"]),
        frames=spread_of(rows["frames"]),
        short=int((rows["frames"] < CLIP).sum()),
        with_gaps=int((rows["missing"] > 0).sum()),
        missing=int(rows["missing"].sum()),
        several_sizes=int((rows["sizes"] > 1).sum()),
    )


def _faults(table: pl.DataFrame, each: pl.DataFrame) -> Iterator[str]:
    if nulls := table["tracklet"].null_count():
        yield f"{nulls:,} of {len(table):,} pictures have no tracklet: no clips can be made of them"
    for column, what in SHARED.items():
        mixed = each.filter(pl.col(what) > 1)
        if not mixed.is_empty():
            yield (
                f"{len(mixed):,} tracklets show several {what} ({_some(mixed['tracklet'])}): all frames of a "
                f"tracklet have one label of {column}; divide them"
            )
    twice = each.filter("twice")
    if not twice.is_empty():
        yield (
            f"{len(twice):,} tracklets have a frame number twice ({_some(twice['tracklet'])}): two tracklets "
            "may be under one name"
        )


def _shared_names(each: pl.DataFrame) -> tuple[list[str], list[str]]:
    """Return faults and notes of tracklet names that several people, or cameras of one person, have."""
    faults, notes = [], []
    for of, within in (("person", ()), ("camera", ("person",))):
        names = each.group_by("data_set", "split", "tracklet", *within, maintain_order=True).agg(
            pl.col(of).n_unique()
        )
        shared = names.filter(pl.col(of) > 1)
        if shared.is_empty():
            continue
        if len(shared) > _ANEW * len(names):
            notes.append(f"tracklets are numbered anew for each {of}")
            continue
        several = "people" if of == "person" else "cameras of one person"
        faults.append(
            f"{len(shared):,} of {len(names):,} tracklet names stand under several {several} "
            f"({_some(shared['tracklet'])}): taken as a tracklet of each"
        )
    return faults, notes


def spread_of(values: pl.Series) -> Spread:
    """Return least, median and most of numbers, of which there is at least one."""
    least, median, most = (float(v) for v in (values.min(), values.median(), values.max()))  # type: ignore[arg-type]
    return Spread(least, median, most)


def _some(names: Sequence[str] | pl.Series) -> str:
    return some(list(names), _NAMED)
