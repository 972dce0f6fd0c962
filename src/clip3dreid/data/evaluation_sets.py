"""Make queries and galleries of data sets, with a word on pictures that are both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from clip3dreid.data.manifest import Manifest
from clip3dreid.data.same_pictures import mark_same_pictures
from clip3dreid.data.sources import shared_name
from clip3dreid.io.formats import read_table, write_table

_WHAT, _AGAIN = "what the first process has found out for the others", "start the run again"


class EvaluationSet(NamedTuple):
    """Queries and gallery of one data set and split; a batch's `row` counts queries first, then gallery.

    The tables have the manifest's columns and `picture`, as `mark_same_pictures` makes it.
    """

    name: str
    query: pl.DataFrame
    gallery: pl.DataFrame
    files: list[Path]


def evaluation_sets(
    manifests: Sequence[Manifest], split: str, shared: Path | None = None
) -> list[EvaluationSet]:
    """Return the sets of a split (`val` or `test`) that have both queries and a gallery.

    Args:
        manifests: the data sets.
        split: which people.
        shared: folder where another process has put the sets (`share_evaluation_sets`), whose files are then not
            looked at again; None: they are looked at.
    """
    sets = []
    for manifest in manifests:
        query, gallery = manifest.part(split, "query"), manifest.part(split, "gallery")
        if len(query) and len(gallery):
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
            sets.append(EvaluationSet(manifest.name, query, gallery, files))
    return sets


def share_evaluation_sets(sets: Sequence[EvaluationSet], split: str, folder: Path) -> None:
    """Write sets to a folder, for the other processes of a run."""
    for one in sets:
        for side, table in (("query", one.query), ("gallery", one.gallery)):
            write_table(folder / shared_name(f"{split}-{side}", one.name), table)
