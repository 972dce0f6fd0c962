"""Write the page about labels: figures, words group by group, and who is most and least certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from clip3dreid.errors import InputError
from clip3dreid.io.files import write_text
from clip3dreid.report.label_figures import PicturesOf, Scores, draw_scores, draw_sheet, draw_words
from clip3dreid.report.label_units import as_text, noun_of, title_of, with_unit, word_counts
from clip3dreid.report.parts import cell, grid
from clip3dreid.report.tables import print_table


def write_page(
    folder: Path,
    table: pl.DataFrame,
    groups: Mapping[str, Sequence[str]],
    facts: Mapping[str, Any],
    *,
    units: pl.DataFrame | None = None,
    scores: Scores | None = None,
    pictures: PicturesOf | None = None,
    agreement: pl.DataFrame | None = None,
    shown: int = 8,
    listed: int = 500,
) -> Path:
    """Write `labels.md` and its figures.

    These are `words.png`, with scores `scores.png`, and with pictures `certain.jpg` and `uncertain.jpg`.

    Args:
        folder: to write to.
        table: a row a unit and group: `data_set`, `person` (and `path`, of pictures), `group`, `word`, and, nullable,
            `score` and `margin`.
        groups: name -> its words, in their order.
        facts: the settings to print, such as teacher and calibration.
        units: U rows, whose scores are given.
        scores: (U, W) of all words, in the order of `groups`.
        pictures: where the pictures of a unit are.
        agreement: a row a group, `group` first, then numbers.
        shown: people on each sheet and in each list.
        listed: people in the table at the end.

    Returns:
        The page.

    Raises:
        InputError: if there are no labels, or the folder cannot be written.
    """
    people = certainty(table)
    draw_words(folder / "words.png", table, groups)
    figures = ["words.png"]
    if units is not None and scores is not None:
        draw_scores(folder / "scores.png", units, scores, groups, table)
        figures.append("scores.png")
    known = people.drop_nulls("margin")
    best, worst = known.head(shown), known.tail(shown).reverse()
    sheets = {}
    if pictures is not None:
        for name, chosen in (("certain.jpg", best), ("uncertain.jpg", worst)):
            if not chosen.is_empty():
                draw_sheet(folder / name, chosen["unit"].to_list(), table, groups, pictures)
                sheets[name] = f"![{name.removesuffix('.jpg')} people]({name})"
    path = folder / "labels.md"
    write_text(path, _page(table, people, best, worst, groups, facts, figures, sheets, agreement, listed))
    return path


def print_agreement(agreement: pl.DataFrame) -> None:
    """Print how far labels agree with the truth of a rendered world.

    Args:
        agreement: as `language.agreement.agreement` gives it.
    """
    header = ["group", "Spearman", "right, %", "balanced, %", "chance, %"]
    rows: list[list[Any]] = [
        [
            row["group"],
            "" if row["spearman"] is None else f"{row['spearman']:.2f}",
            100 * row["accuracy"],
            100 * row["balanced_accuracy"],
            100 * row["chance"],
        ]
        for row in agreement.iter_rows(named=True)
    ]
    print_table("agreement with the truth of the rendered world", header, rows)


def certainty(table: pl.DataFrame) -> pl.DataFrame:
    """Return units from the most to the least certain.

    Args:
        table: of labels.

    Returns:
        `unit`, and `margin`: mean over the groups, from high to low; null, at the end, where no group has a margin.

    Raises:
        InputError: if there are no labels.
    """
    if table.is_empty():
        raise InputError("there are no labels to show; label a training set first")
    named = with_unit(table)
    return (
        named.group_by("unit", maintain_order=True)
        .agg(pl.col("margin").cast(pl.Float64).mean())
        .sort("margin", descending=True, nulls_last=True, maintain_order=True)
    )


def _page(
    table: pl.DataFrame,
    people: pl.DataFrame,
    best: pl.DataFrame,
    worst: pl.DataFrame,
    groups: Mapping[str, Sequence[str]],
    facts: Mapping[str, Any],
    figures: Sequence[str],
    sheets: Mapping[str, str],
    agreement: pl.DataFrame | None,
    listed: int,
) -> str:
    noun = noun_of(table, 2)
    lines = [f"# Labels of {len(people)} {noun_of(table, len(people))}", ""]
    lines += grid(["setting", "value"], [[title_of(key), as_text(value)] for key, value in facts.items()])
    lines += [
        "",
        "A word's score is the mean over the pictures of how well it fits, and its margin the lead over the second",
        f"word of its group. The certainty of {noun} is the mean margin of their words.",
        "",
        *(f"![{name}]({name})\n" for name in figures),
    ]
    if agreement is not None:
        rows = [[as_text(value) for value in row] for row in agreement.iter_rows()]
        lines += [
            "## Agreement with the truth",
            "",
            *grid([title_of(name) for name in agreement.columns], rows),
            "",
        ]
    words = _words_of(table, groups)
    for title, name, chosen in (
        ("The most certain", "certain.jpg", best),
        ("The least certain", "uncertain.jpg", worst),
    ):
        if not chosen.is_empty():
            lines += [f"## {title}", ""]
            lines += [sheets[name], ""] if name in sheets else []
            rows = [[unit, as_text(margin), words[unit]] for unit, margin in chosen.iter_rows()]
            lines += [*grid([noun_of(table, 1), "mean margin", "words"], rows), ""]
    lines += ["## Words, group by group", ""]
    for group, own in groups.items():
        lines += [f"### {title_of(group)}", "", *_group(table, group, own, len(people)), ""]
    lines += [
        f"## All {noun}" if len(people) <= listed else f"## The first {listed} of {len(people)} {noun}",
        "",
    ]
    rows = [
        [unit, as_text(margin), words[unit]] for unit, margin in people.sort("unit").head(listed).iter_rows()
    ]
    lines += grid([noun_of(table, 1), "mean margin", "words"], rows)
    if len(people) > listed:
        lines += ["", "The rest is in the file of labels."]
    return "\n".join(lines) + "\n"


def _group(table: pl.DataFrame, group: str, words: Sequence[str], units: int) -> list[str]:
    """Return a table of the group's words, and who is most and least certain of them."""
    own = with_unit(table.filter(pl.col("group") == group))
    rows = []
    for word, count in zip(words, word_counts(table, group, words), strict=True):
        mean = own.filter(pl.col("word") == word)["margin"].cast(pl.Float64).mean()
        rows.append([word, str(count), f"{100 * count / units:.0f}%", as_text(mean)])
    lines = grid(["word", noun_of(table, 2), "share", "mean margin"], rows)
    known = own.drop_nulls("margin").sort("margin", descending=True, maintain_order=True)
    if known.is_empty():
        return lines

    def names_of(part: pl.DataFrame) -> str:
        chosen = part.select("unit", "word", "margin").iter_rows()
        return ", ".join(f"{cell(unit)} ({cell(word)}, {as_text(margin)})" for unit, word, margin in chosen)

    return [
        *lines,
        "",
        f"Most certain: {names_of(known.head(3))}.",
        f"Least certain: {names_of(known.tail(3).reverse())}.",
    ]


def _words_of(table: pl.DataFrame, groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return unit -> its words in the order of the groups."""
    order = pl.col("group").replace_strict(list(groups), range(len(groups)))
    joined = with_unit(table).sort(order).group_by("unit").agg(pl.col("word").str.join(", "))
    return dict(joined.iter_rows())
