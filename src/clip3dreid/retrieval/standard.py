"""Hold the field's most common protocols as Python values: those of `conf/protocol` by the same names."""

from __future__ import annotations

import polars as pl

from clip3dreid.retrieval.protocol import (
    Protocol,
    ProtocolSet,
    labels_of,
    same_camera,
    same_camera_or_clothes,
    same_camera_or_other_clothes,
)

_ALL = (
    Protocol(
        "general",
        same_camera,
        "Every picture of the person from another camera counts; the query's own camera is dropped.",
    ),
    Protocol(
        "same_clothes",
        same_camera_or_other_clothes,
        "Only the person in the query's clothes, from another camera, is to be found; the person's other clothes are "
        "dropped.",
        needs=("clothes",),
    ),
    Protocol(
        "clothes_changing",
        same_camera_or_clothes,
        "Only the person in other clothes, from another camera, is to be found; the query's own clothes are dropped.",
        needs=("clothes",),
    ),
)
GENERAL = ProtocolSet({"general": _ALL[0]}, "general")
"""Every other camera's pictures: the one that every data set allows."""
CLOTHES = ProtocolSet({protocol.name: protocol for protocol in _ALL}, "clothes_changing")
"""That one, and those that tell the query's outfit from others: all outfits must be labelled."""


def fitting(*tables: pl.DataFrame) -> ProtocolSet:
    """Return `CLOTHES` where the outfit of every row of some tables is labelled, and `GENERAL` otherwise."""
    return GENERAL if any(labels_of(table, "clothes").null_count() for table in tables) else CLOTHES
