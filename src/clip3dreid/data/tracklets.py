"""Tracklets: the frames of one person under one camera in one outfit, in order of time.

A manifest stays a table of frames, whatever they are used for: what knows nothing of time (inspection, pictures that
cannot be read, extraction, face blurring) goes on as it is. Its columns say already which frames belong together;
this module puts them together, once, into a table of tracklets with the same columns, which labels, protocols and
evaluation read as they read one of pictures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from clip3dreid.data.manifest import SCHEMA
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some

T = TypeVar("T")

KEYS = ("data_set", "split", "role", "query_set", "person", "camera", "tracklet")
"""What a tracklet is known by: many tables count them anew under each camera or for each person."""
SHARED = {"clothes": "outfits", "location": "locations", "scale": "scales"}
"""What all frames of a tracklet have in common, and what several of it are called."""


class Tracklets(NamedTuple):
    """M tracklets of F frames."""

    table: pl.DataFrame
    """M rows, columns as of the table of frames, with path, frame and box those of the middle frame, which stands for
    the tracklet wherever one picture is shown, and `frames`, how many there are."""
    rows: npt.NDArray[np.int64]
    """(F,) rows of the table of frames, tracklet after tracklet, in order of time."""
    starts: npt.NDArray[np.int64]
    """(M + 1,) where in `rows` each tracklet begins, and the last one ends."""

    def frames(self, tracklet: int) -> npt.NDArray[np.int64]:
        """Return the rows of a tracklet's frames, in order of time."""
        return self.rows[self.starts[tracklet] : self.starts[tracklet + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Return (M,) how many frames each has."""
        return np.diff(self.starts)

    def and_then(self, others: Tracklets, frames: int) -> Tracklets:
        """Return these and others as one, whose table of frames stands behind this one's.

        Args:
            others: of another table.
            frames: rows of this one's table.
        """
        return Tracklets(
            pl.concat([self.table, others.table]),
            np.concatenate([self.rows, others.rows + frames]),
            np.concatenate([self.starts, others.starts[1:] + len(self.rows)]),
        )


def tracklets(table: pl.DataFrame, name: str) -> Tracklets:
    """Put the frames of a manifest's table, or of a list of pictures, together.

    Time is the column `frame`; where it is null, numbers in paths are compared as numbers, so that `9.jpg` comes
    before `10.jpg`.

    Args:
        table: of frames, as `Manifest.part` returns it; or with some of its columns, `path` and `tracklet` among
            them, and a box perhaps.
        name: of the data set, for messages.

    Returns:
        Tracklets in the order in which the table first names them; columns are the table's.

    Raises:
        InputError: if frames have no tracklet, or a tracklet shows several outfits, locations or scales.
    """
    if nulls := table["tracklet"].null_count():
        raise InputError(
            f"{name}: {nulls} of {len(table)} pictures have no tracklet; clips need the column `tracklet`, or take a "
            "student of pictures"
        )
    absent = [
        pl.lit(None, kind).alias(column) for column, kind in SCHEMA.items() if column not in table.columns
    ]
    frames = table.with_columns(absent).with_row_index("_row")
    frames = frames.with_columns(_by_number(frames).alias("_order"))
    # What is none of the keys is the middle frame's: path and number, and the box that a detector gave.
    middle = [column for column in frames.columns if column not in (*KEYS, *SHARED, "_row", "_order")]
    together = (
        frames.sort("frame", "_order", nulls_last=True, maintain_order=True)
        .group_by(KEYS)
        .agg("_row", pl.col(middle).get(pl.len() // 2), pl.first(*SHARED), *_several())
        .sort(pl.col("_row").list.min())
    )
    for column, what in SHARED.items():
        mixed = together.filter(f"several {column}")
        if not mixed.is_empty():
            raise InputError(
                f"{name}: {len(mixed)} tracklets show several {what}: {some(mixed['tracklet'].to_list(), 3)}; all "
                f"frames of a tracklet have one label of {column}: divide them"
            )
    counts = together["_row"].list.len()
    starts = np.concatenate([[0], np.cumsum(counts.to_numpy())]).astype(np.int64)
    rows = together["_row"].explode().to_numpy().astype(np.int64)
    return Tracklets(together.select(*table.columns, counts.alias("frames").cast(pl.Int64)), rows, starts)


def _several() -> list[pl.Expr]:
    """Return of each tracklet whether its frames differ in what they are to share; unknown differs from known."""
    return [(pl.col(column).n_unique() > 1).alias(f"several {column}") for column in SHARED]


def _by_number(table: pl.DataFrame) -> pl.Series:
    """Return what orders paths as people count, null where a frame has a number."""
    path = table.select(pl.when(pl.col("frame").is_null()).then("path").alias("path"))["path"]
    if path.null_count() == len(path):
        return path
    # Part by part: of hundreds of thousands of frames many are in one folder, and are called alike.
    folder, name = (_padded(path.str.extract(pattern)) for pattern in (r"^((?s:.*)/)", r"([^/]*)$"))
    return folder.fill_null("") + name


def _padded(texts: pl.Series) -> pl.Series:
    """Return texts as `as_people_count` has them."""
    different = texts.unique()
    padded = [None if text is None else as_people_count(text) for text in different]
    return texts.replace_strict(different, pl.Series(padded, dtype=pl.String), return_dtype=pl.String)


def as_people_count(path: str) -> str:
    """Return what orders paths with numbers in them: `9.jpg` before `10.jpg`."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), path)


def spread(frames: Sequence[T], count: int) -> list[T]:
    """Take up to `count` frames at equal distances, from the first on; 0 takes all."""
    count = min(count or len(frames), len(frames))
    return [frames[index * len(frames) // count] for index in range(count)]
