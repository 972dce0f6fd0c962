"""Print tables on the terminal, and write them as files."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip3dreid.io.formats import write_table

if TYPE_CHECKING:  # only handed through here
    import polars as pl


_WIDTH = 160
"""Columns of a table that goes to no terminal."""
_SAME_PICTURE = {"drop": "dropped there", "keep": "KEPT, so that they find themselves"}


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers to the right, wide enough that a pipe or a log file keeps every column."""
    table = _laid_out(header, rows)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    # On a line of its own: a table's own title is broken at the table's width, a path in it with it. As text:
    # brackets in a file's name are no markup.
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as `print_table` prints it to a file, without a title and without a line break behind it."""
    # A notebook would show what is captured, too.
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_jupyter=False)
    with console.capture() as captured:
        console.print(_laid_out(header, rows))
    return captured.get().rstrip("\n")


def html_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str]) -> str:
    """Return a table for a notebook, with lines below it."""

    def line(cells: Sequence[Any], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(_cell(cell))}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    below = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return (
        f"<p><b>{html.escape(title)}</b></p><table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"
        f"<ul>{below}</ul>"
    )


def _laid_out(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table()
    for index, name in enumerate(header):
        numeric = bool(rows) and all(isinstance(row[index], int | float) or row[index] == "" for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(cell)) for cell in row))
    return table


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


_SHOWN_LABELS = (
    *("path", "left", "top", "right", "bottom"),
    *("person", "camera", "clothes", "tracklet", "frame"),
)


def print_hits(query: str, score: str, hits: pl.DataFrame, understood: Sequence[str] = ()) -> None:
    """Print what was found for a query.

    Args:
        query: a path, or the text.
        score: what the scores are.
        hits: `rank`, `score` and labels, of which those are shown that are known of any hit.
        understood: words of a text that were searched for.
    """
    shown = [
        name for name in _SHOWN_LABELS if name in hits.columns and hits[name].null_count() < max(1, len(hits))
    ]
    print_table(
        query,
        ["rank", score, *shown],
        [[row["rank"], f"{row['score']:.3f}", *(row[name] for name in shown)] for row in hits.to_dicts()],
    )
    if understood:
        print(f"  understood: {', '.join(understood)}")  # noqa: T201


def print_scores(title: str, results: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
    """Print the scores of every protocol, in per cent, with what they were measured on.

    Args:
        title: data set and checkpoint.
        results: protocol name -> `r1`, `r5`, `r10`, `r20`, `map`, `minp`, `chance_r1` in 0..1 and the counts
            `valid_queries`, `queries`, `gallery`, and what the protocol is: `shots`, `average_precision`,
            `metric`, `same_picture`, `description`; `queries_in_gallery`; also `interval`, `tpr_at_fpr` and `rerank`,
            each of which may be None.
        notes: what must be known of the data, printed below.
    """
    print_table(title, _SCORES, _score_rows(results))
    for line in score_notes(results, notes):
        print(f"  {line}")  # noqa: T201


def text_scores(title: str, results: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """Return the scores of every protocol as `print_scores`, whose arguments these are, prints them to a file."""
    lines = (f"  {line}" for line in score_notes(results, notes))
    return "\n".join([title, text_table(_SCORES, _score_rows(results)), *lines])


_SCORES = ("protocol", "R1", "R5", "R10", "R20", "mAP", "mINP", "chance R1", "queries", "valid", "gallery")


def _score_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    return [
        [
            name,
            *(100.0 * scores[key] for key in ("r1", "r5", "r10", "r20", "map", "minp", "chance_r1")),
            scores["queries"],
            scores["valid_queries"],
            scores["gallery"],
        ]
        for name, scores in results.items()
    ]


def score_notes(
    results: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = (), *, intervals: bool = True
) -> Iterator[str]:
    """Yield, line by line, what scores were measured by; what belongs to the line before begins with two spaces.

    Args:
        results: as of `print_scores`.
        notes: what must be known of the data, which ends the lines.
        intervals: whether the 95 % intervals are among the lines.
    """
    for name, scores in results.items():
        how = f"{scores['shots']}, {scores['average_precision']} AP, {scores['metric']}"
        same = scores.get("same_picture", "keep")  # as results without the key were made
        how += f", same_picture={same}"
        if scores["rerank"] is not None:
            how += ", re-ranked: " + ", ".join(f"{key}={value}" for key, value in scores["rerank"].items())
        yield f"{name} ({how}): {scores['description']}"
        if found := scores.get("queries_in_gallery"):
            where = (
                f"{found} of {scores['queries']} queries are in the gallery themselves, by path or by bytes"
            )
            yield f"  {where}: {_SAME_PICTURE[same]}"
        if intervals and scores["interval"] is not None:
            spread = {"R1": "r1", "mAP": "map", "mINP": "minp"}
            cells = (f"{title} {_range(scores['interval'][key])}" for title, key in spread.items())
            yield f"  95 % over query people: {', '.join(cells)}"
        if scores["tpr_at_fpr"] is not None:
            cells = (f"{100 * tpr:.1f} at {rate}" for rate, tpr in scores["tpr_at_fpr"].items())
            yield f"  open set, TPR at FPR: {', '.join(cells)}"
    for note in notes:
        yield f"note: {note}"


def percent(score: float, interval: Sequence[float] | None) -> str:
    """Return a score of 0..1 in per cent, with its interval."""
    return f"{100 * score:.1f}" + ("" if interval is None else f" {_range(interval)}")


def _range(interval: Sequence[float]) -> str:
    low, high = interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def save_tables(tables: Mapping[Path, pl.DataFrame]) -> None:
    """Write tables as Parquet files, each whole or not at all."""
    for path, table in tables.items():
        write_table(path, table)
