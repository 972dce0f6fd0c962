"""Join the training pictures of several data sets, and number their people, outfits and cameras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from clip3dreid.data.manifest import Manifest, TrainingLabels, concatenate, training_labels
from clip3dreid.errors import InputError


class TrainingSet(NamedTuple):
    """All training pictures of a run; row i of a batch is row i here."""

    manifests: tuple[Manifest, ...]
    """The data sets; their training rows stand one behind the other."""
    joined: Manifest
    """All of them as one: paths of several data sets are absolute."""
    table: pl.DataFrame
    """(N rows) the training rows of `joined`."""
    labels: TrainingLabels
    """(N,) class indices."""

    @property
    def parts(self) -> pl.DataFrame:
        """Return the same rows with paths as they are within each data set."""
        return pl.concat([manifest.part("train") for manifest in self.manifests])

    def check(self) -> None:
        """Raise InputError if there is nothing to train on."""
        if self.table.is_empty():
            names = [manifest.name for manifest in self.manifests]
            raise InputError(f"{names} hold no training pictures; nothing can be trained on them")


def training_set(manifests: Sequence[Manifest]) -> TrainingSet:
    """Join the training pictures of data sets.

    Raises:
        InputError: if two data sets have the same name.
    """
    joined = concatenate(list(manifests))
    table = joined.part("train")
    return TrainingSet(tuple(manifests), joined, table, training_labels(table))
