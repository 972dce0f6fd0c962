"""Spell labels by one rule, so that the same person is never two because of a zero or a space."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import polars as pl

from clip3dreid.io.checks import some

# A whole number, as pandas writes it too where a column has gaps: "8.0".
_WHOLE = re.compile(r"(-?)0*([0-9]+)(?:\.0*)?")
_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")
_INVISIBLE = "\ufeff\u200b"
SHOWN = 3
"""How many pairs a note names."""


def label(text: str) -> str:
    """Return a label in its one spelling.

    Args:
        text: a person, camera, outfit … as a file spells it.

    Returns:
        The text without space around it; a whole number without leading zeros and without `.0` behind it: `" 08"` and
        `"8.0"` are `"8"`. Letters keep their case, in their composed form (NFC).

    Example:
        >>> from clip3dreid.io.spelling import label
        >>> [label(text) for text in ("08", "Ann ", "-1", "c01")]
        ['8', 'Ann', '-1', 'c01']
    """
    text = unicodedata.normalize("NFC", text).strip().strip(_INVISIBLE).strip()
    number = _WHOLE.fullmatch(text)
    if number is None:
        return text
    digits = number[2]
    return digits if digits == "0" else number[1] + digits


def labels(column: pl.Series) -> pl.Series:
    """Return a column as labels: strings in their one spelling; null where there is nothing but space.

    Args:
        column: (N,) strings, or what can be cast to them.
    """
    if column.dtype.is_float():  # as pandas has whole numbers with gaps
        column = column.fill_nan(None)
    column = column.cast(pl.String)
    # Of the different ones: a data set has far fewer people than pictures.
    spellings = column.drop_nulls().unique()
    changed = {text: new or None for text in spellings if (new := label(text)) != text or not new}
    return column.replace_strict(changed, default=column, return_dtype=pl.String) if changed else column


def merged(before: pl.Series, column: str) -> list[str]:
    """Return notes about labels that were spelled in several ways and are one label now.

    Args:
        before: (N,) labels as they were.
        column: their name, for the note.
    """
    spellings: dict[str, set[str]] = {}
    for text in before.cast(pl.String).drop_nulls().unique():
        spellings.setdefault(label(text), set()).add(text)
    several = [(new, sorted(old)) for new, old in sorted(spellings.items()) if len(old) > 1 and new]
    if not several:
        return []
    pairs = [f"{', '.join(map(repr, old))} are {new!r}" for new, old in several]
    shown = some(pairs, SHOWN, "; ")
    return [f"{len(several)} {column} labels are spelled in several ways and read as one: {shown}"]


def alike(values: Iterable[str], column: str) -> list[str]:
    """Return notes about labels that differ by case, zeros or spaces alone, and are kept apart.

    Args:
        values: labels in their one spelling.
        column: their name, for the note.
    """
    groups: dict[str, set[str]] = {}
    for value in values:
        key = _ZEROS.sub("", "".join(value.casefold().split()))
        groups.setdefault(key, set()).add(value)
    doubtful = sorted(sorted(group) for group in groups.values() if len(group) > 1)
    if not doubtful:
        return []
    shown = some([" and ".join(map(repr, group)) for group in doubtful], SHOWN, "; ")
    return [
        f"{len(doubtful)} {column} labels differ from another by case, zeros or spaces alone and are kept apart: "
        f"{shown}"
    ]
