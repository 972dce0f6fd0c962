"""Choose which gallery pictures to search: by camera, clothes, person or any other label, and by time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.checks import hint, some
from clip3dreid.io.spelling import label

Value: TypeAlias = str | int
FRAME = "frame"
SHOWN = 10
"""Labels that a message lists."""


class Condition(NamedTuple):
    """One of the things that a filter asks for."""

    column: str
    text: str
    """As a user writes it."""
    expression: pl.Expr


class Clause(NamedTuple):
    """The same, for an engine that reads SQL."""

    column: str
    text: str
    sql: str


@dataclasses.dataclass(frozen=True, init=False)
class Filter:
    """Gallery pictures whose labels are all among those asked for.

    A picture whose label is unknown is not among them. Labels compare as manifests hold them, in the one spelling of
    `spelling.label`: camera 1 is "1" and "01".

    Args:
        frame: (from, to), both included, null for an open end; or one frame. A number, in the data set's own time.
        labels: column -> one value or several; null or none at all allows everything.

    Attributes:
        labels: column -> allowed values, those that restrict.
        frames: (from, to), each None where open.

    Raises:
        InputError: if a value is neither a string nor a whole number, or `frame` is no range.

    Example:
        >>> import polars as pl
        >>> from clip3dreid.search.filters import Filter
        >>> table = pl.DataFrame({"camera": ["1", "2", "3"], "frame": [5, 6, 7]})
        >>> Filter(camera=[1, 3], frame=[None, 6]).mask(table).tolist()
        [True, False, False]
    """

    labels: Mapping[str, tuple[str, ...]]
    frames: tuple[int | None, int | None]

    def __init__(
        self,
        /,
        frame: int | Sequence[int | None] | None = None,
        **labels: Value | Sequence[Value] | None,
    ) -> None:
        allowed = {}
        for column, values in labels.items():
            several: list[Value] = list(_values(values))
            if wrong := [
                value for value in several if isinstance(value, bool) or not isinstance(value, str | int)
            ]:
                raise InputError(
                    f"where.{column}: {wrong[0]!r} is no label; give a word or a whole number, in quotes"
                )
            if several:
                allowed[column] = tuple(label(str(value)) for value in several)
        object.__setattr__(self, "labels", allowed)
        object.__setattr__(self, "frames", _range(frame))

    def mask(self, table: pl.DataFrame) -> Tensor | None:
        """Return which rows are searched.

        Args:
            table: G rows of labels.

        Returns:
            (G,) bool; None where the filter allows everything.

        Raises:
            InputError: if the table lacks a column, knows none of its labels, or no picture is left, naming the
                condition that took the last one.
        """
        kept = pl.repeat(True, len(table), eager=True)
        before: list[str] = []
        for condition in self.conditions(table):
            values = _known(table, condition.column)
            still = kept & table.select(condition.expression).to_series()
            if not still.any():
                there = values.filter(kept).drop_nulls().unique().sort().cast(pl.String).to_list()
                raise nothing_left(condition, there, before, int(kept.sum()))
            kept = still
            before.append(condition.text)
        return torch.from_numpy(kept.to_numpy().copy()) if before else None

    def clauses(self, stored: Mapping[str, str]) -> Iterator[Clause]:
        """Yield what is asked for as SQL, one column at a time; nothing where the filter allows everything.

        Args:
            stored: label -> the column that holds it in the one spelling of `spelling.label`; that of `frame` holds
                numbers.

        Raises:
            InputError: if a label is none of these.
        """
        for column, values in self.labels.items():
            check_label(column, list(stored))
            quoted = ", ".join("'" + text.replace("'", "''") + "'" for text in values)
            yield Clause(column, _said(column, values), f"{identifier(stored[column])} IN ({quoted})")
        if ends := self._ends():
            check_label(FRAME, list(stored))
            name = identifier(stored[FRAME])
            yield Clause(
                FRAME, self._range_said(), " AND ".join(f"{name} {sign} {end}" for sign, end in ends)
            )

    def _ends(self) -> list[tuple[str, int]]:
        return [(sign, end) for sign, end in zip((">=", "<="), self.frames, strict=True) if end is not None]

    def _range_said(self) -> str:
        return _said(FRAME, ["null" if end is None else str(end) for end in self.frames])

    def conditions(self, table: pl.DataFrame) -> Iterator[Condition]:
        """Yield what is asked for of a table, one column at a time."""
        for column, values in self.labels.items():
            known = _known(table, column).cast(pl.String).drop_nulls().unique(maintain_order=True)
            spelled = [text for text in known if label(text) in values]
            # Unknown is not among them, whatever polars makes of null.
            among = pl.col(column).cast(pl.String).is_in(spelled).fill_null(False)
            yield Condition(column, _said(column, values), among)
        if ends := self._ends():
            frame = pl.col(FRAME).cast(pl.Int64, strict=False)
            inside = [frame >= end if sign == ">=" else frame <= end for sign, end in ends]
            yield Condition(FRAME, self._range_said(), pl.all_horizontal(inside).fill_null(False))


def read_values(column: str, text: str) -> list[Value | None] | None:
    """Read what somebody types as the values of a label: `3`, `[1,2]`, `[100,null]`; None for `null`, everything.

    Args:
        column: the label; those of `frame` are numbers.
        text: as typed.
    """
    typed = [one.strip() for one in text.strip().removeprefix("[").removesuffix("]").split(",")]
    values: list[Value | None] = [None if value == "null" else value for value in typed]
    if column == FRAME:
        values = [int(value) if isinstance(value, str) and value.isdecimal() else value for value in values]
    return None if values == [None] else values


def _range(frame: int | Sequence[int | None] | None) -> tuple[int | None, int | None]:
    if frame is None:
        return None, None
    ends = tuple(frame) if isinstance(frame, Iterable) else (frame, frame)
    whole = all(end is None or type(end) is int for end in ends)
    if len(ends) != 2 or not whole:
        raise InputError(f"where.frame={frame} is no range; give [FROM,TO], null for an open end")
    low, high = ends
    if low is not None and high is not None and low > high:
        raise InputError(f"where.frame=[{low},{high}] ends before it starts; give the smaller first")
    return low, high


def _values(given: Any) -> Iterable[Any]:
    """Return what is asked for as several."""
    if given is None:
        return ()
    return given if isinstance(given, Iterable) and not isinstance(given, str) else (given,)


def nothing_left(
    condition: Condition | Clause, there: Sequence[str], before: Sequence[str], left: int
) -> InputError:
    """Return the error of a condition that no picture fulfils.

    Args:
        condition: it.
        there: labels of its column, of the pictures that were left.
        before: conditions, as text, that have left these.
        left: how many they are.
    """
    of = f"of the {left} that {' and '.join(before)} left" if before else f"of {left}"
    return InputError(
        f"{condition.text} leaves no picture {of}; there is {condition.column} {some(there, SHOWN) or 'unknown'}"
    )


def check_label(column: str, there: Sequence[str]) -> None:
    """Check that a gallery has a label to filter by.

    Raises:
        InputError: if it is not among those that are there.
    """
    if column not in there:
        unlabelled = {"person", "camera", "clothes", "tracklet", "frame"}.isdisjoint(there)
        remedy = "; extract from a data set or a table to have labels, a folder of pictures has none"
        raise InputError(
            f"where.{column}: the gallery has no such label; it has {', '.join(there)}{hint(column, there)}"
            + (remedy if unlabelled else "")
        )


def unknown_label(column: str) -> InputError:
    """Return the error of a label that no picture has."""
    return InputError(
        f"where.{column}: the gallery knows it of no picture; leave it out, or extract from a table that has it"
    )


def _known(table: pl.DataFrame, column: str) -> pl.Series:
    """Return a column to filter by."""
    check_label(column, [name for name, kind in table.schema.items() if not kind.is_nested()])
    if table[column].null_count() == len(table):
        raise unknown_label(column)
    return table[column]


def _said(column: str, values: Sequence[str]) -> str:
    return f"where.{column}=[{','.join(values)}]"


def identifier(column: str) -> str:
    """Return a column's name in SQL, whatever is in it."""
    return "`" + column.replace("`", "``") + "`"
