"""Name the units that labels are of, and their words, as pages and figures print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl


def with_unit(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table of labels with a column `unit`: `data_set/person`, or `data_set/path` of pictures."""
    last = "path" if "path" in table.columns else "person"
    return table.with_columns(unit=pl.concat_str("data_set", last, separator="/"))


def noun_of(table: pl.DataFrame, count: int) -> str:
    """Return what so many units are called: people, or pictures."""
    one, many = ("picture", "pictures") if "path" in table.columns else ("person", "people")
    return one if count == 1 else many


def word_counts(table: pl.DataFrame, group: str, words: Sequence[str]) -> list[int]:
    """Return how many units have each word of a group."""
    chosen = table.filter(pl.col("group") == group)["word"]
    return [int((chosen == word).sum()) for word in words]


def title_of(name: str) -> str:
    """Return a name as a heading has it."""
    return name.replace("_", " ")


def as_text(value: Any) -> str:
    """Return a fact or a number as text."""
    if value is None:
        return ""
    if isinstance(value, float):
        # Margins of raw similarities are in the third decimal place.
        return f"{value:.2f}" if abs(value) >= 0.1 or abs(value) < 1e-6 else f"{value:.2g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
