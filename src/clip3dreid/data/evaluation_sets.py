"""Make queries and galleries of data sets, with a word on pictures that are both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from clip3dreid.data.manifest import Manifest
from clip3dreid.data.same_pictures import mark_same_pictures
from clip3dreid.data.sources import shared_name
from clip3dreid.data.tracklets import Tracklets, tracklets
from clip3dreid.io.formats import read_table, write_table

_WHAT, _AGAIN = "what the first process has found out for the others", "start the run again"


class EvaluationSet(NamedTuple):
    """Queries and gallery of one data set and split; a batch's `row` counts queries first, then gallery.

    The tables have the manifest's columns and `picture`, as `mark_same_pictures` makes it. A row is a picture, or a
    tracklet with the path of its middle frame.
    """

    name: str
    query: pl.DataFrame
    gallery: pl.DataFrame
    files: list[Path]
    """A picture of each row."""
    read: pl.Series
    """(F,) paths of all pictures that are looked at, those of queries first."""
    tracklets: Tracklets | None = None
    """Rows of `read` that belong together; None: each is by itself."""


def evaluation_sets(
    manifests: Sequence[Manifest], split: str, shared: Path | None = None, *, clips: bool = False
) -> list[EvaluationSet]:
    """Return the sets of a split (`val` or `test`) that have both queries and a gallery.

    Args:
        manifests: the data sets.
        split: which people.
        shared: folder where another process has put the sets (`share_evaluation_sets`), whose files are then not
            looked at again; None: they are looked at.
        clips: whether tracklets are queries and gallery, and not pictures.

    Raises:
        InputError: as `tracklets`.
    """
    sets = []
    for manifest in manifests:
        query, gallery = manifest.part(split, "query"), manifest.part(split, "gallery")
        if query.is_empty() or gallery.is_empty():
            continue
        read, together = pl.concat([query["path"], gallery["path"]]), None
        if clips:
            sides = [tracklets(side, manifest.name) for side in (query, gallery)]
            together = sides[0].and_then(sides[1], len(query))
            query, gallery = sides[0].table, sides[1].table
        if shared is None:
            query, gallery, *_ = mark_same_pictures(manifest.root, query, gallery)
        else:
            query, gallery = (
                read_table(
                    shared / shared_name(f"{split}-{side}", manifest.name), _WHAT, _AGAIN, sealed=False
                )[0]
                for side in ("query", "gallery")
            )
        files = manifest.files(query) + manifest.files(gallery)
        sets.append(EvaluationSet(manifest.name, query, gallery, files, read, together))
    return sets


def share_evaluation_sets(sets: Sequence[EvaluationSet], split: str, folder: Path) -> None:
    """Write sets to a folder, for the other processes of a run."""
    for one in sets:
        for side, table in (("query", one.query), ("gallery", one.gallery)):
            write_table(folder / shared_name(f"{split}-{side}", one.name), table)
