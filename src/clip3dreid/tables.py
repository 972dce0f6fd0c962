"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; numbers to the right, wide enough that a pipe or a log file keeps every column."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        numeric = bool(rows) and all(isinstance(row[index], int | float) or row[index] == "" for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def print_scores(title: str, results: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
    """Prints the scores of every protocol, in per cent, with what they were measured on.

    Args:
        title: data set and checkpoint.
        results: protocol name -> `r1`, `r5`, `r10`, `r20`, `map`, `minp`, `chance_r1` in 0..1 and the counts
            `valid_queries`, `queries`, `gallery`, and what the protocol is: `shots`, `average_precision`,
            `metric`, `description`.
        notes: what must be known of the data, printed below.
    """
    header = ["protocol", "R1", "R5", "R10", "R20", "mAP", "mINP", "chance R1", "queries", "valid", "gallery"]
    rows = [
        [
            name,
            *(100.0 * scores[key] for key in ("r1", "r5", "r10", "r20", "map", "minp", "chance_r1")),
            scores["queries"],
            scores["valid_queries"],
            scores["gallery"],
        ]
        for name, scores in results.items()
    ]
    print_table(title, header, rows)
    for name, scores in results.items():
        how = f"{scores['shots']}, {scores['average_precision']} AP, {scores['metric']}"
        print(f"  {name} ({how}): {scores['description']}")  # noqa: T201
    for note in notes:
        print(f"  note: {note}")  # noqa: T201
