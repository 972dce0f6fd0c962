"""What labels look like: a page, figures of words and scores, and who is most and least certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image, ImageDraw
from scipy.cluster.hierarchy import leaves_list, linkage

from clip3dreid.errors import InputError
from clip3dreid.io.files import atomic, write_text
from clip3dreid.report.parts import BLUE, GREY, INK, cell, font, grid, readable, short
from clip3dreid.report.tables import print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = npt.NDArray[np.floating[Any]]
Pictures = Callable[[str], Sequence[Path]]
"""Unit (`data_set/person`, or `data_set/path`) -> its pictures, the most telling first."""

_MOST_CLUSTERED = 2000
"""Units up to which rows are put in the order of a dendrogram, whose distances grow with their square."""
_NAMED_ROWS = 60
_MOST_ROWS = 900
"""Rows of the picture of the scores; of more units, neighbours share one."""


def write_page(
    folder: Path,
    table: pl.DataFrame,
    groups: Mapping[str, Sequence[str]],
    facts: Mapping[str, Any],
    *,
    units: pl.DataFrame | None = None,
    scores: Scores | None = None,
    pictures: Pictures | None = None,
    agreement: pl.DataFrame | None = None,
    shown: int = 8,
    listed: int = 500,
) -> Path:
    """Writes `labels.md` and its figures.

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
    """Units from the most to the least certain.

    Args:
        table: of labels.

    Returns:
        `unit`, and `margin`: mean over the groups, from high to low; null, at the end, where no group has a margin.

    Raises:
        InputError: if there are no labels.
    """
    if table.is_empty():
        raise InputError("there are no labels to show; label a training set first")
    named = _with_unit(table)
    return (
        named.group_by("unit", maintain_order=True)
        .agg(pl.col("margin").cast(pl.Float64).mean())
        .sort("margin", descending=True, nulls_last=True, maintain_order=True)
    )


def draw_words(path: Path, table: pl.DataFrame, groups: Mapping[str, Sequence[str]]) -> None:
    """Draws how often each word was chosen, a panel a group."""
    across = min(4, len(groups))
    down = -(-len(groups) // across)
    figure = _figure(3.3 * across + 0.3, 1.75 * down + 0.5)
    grid = figure.subplots(down, across, squeeze=False)
    units = _with_unit(table)["unit"].n_unique()
    for place, axes in enumerate(grid.flat):
        if place >= len(groups):
            axes.set_axis_off()
            continue
        group, words = list(groups.items())[place]
        counts = _counts(table, group, words)
        axes.barh(range(len(words)), counts, color=BLUE, height=0.7)
        axes.set_yticks(range(len(words)), words, fontsize=9)
        axes.invert_yaxis()
        # Room for the number behind the longest bar.
        axes.set_xlim(0, 1.25 * units)
        for row, count in enumerate(counts):
            share = f"{count} ({100 * count / units:.0f}%)"
            inside = count > 0.8 * units
            axes.text(
                count - 0.02 * units if inside else count + 0.02 * units,
                row,
                share,
                va="center",
                ha="right" if inside else "left",
                fontsize=8,
                color="white" if inside else INK,
            )
        axes.set_title(_title(group), fontsize=10, loc="left", fontweight="bold")
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
    figure.suptitle(f"Words of {units} {_noun(table, units)}", fontsize=12, x=0.01, ha="left")
    _save(figure, path)


def draw_scores(
    path: Path,
    units: pl.DataFrame,
    scores: Scores,
    groups: Mapping[str, Sequence[str]],
    table: pl.DataFrame | None = None,
) -> None:
    """Draws the scores, a row a unit and a column a word; rows that are alike lie together.

    Args:
        path: of the picture.
        units: U rows with `data_set` and `person` (and `path`).
        scores: (U, W), words in the order of `groups`.
        groups: name -> its words.
        table: labels, whose words get a dot where the rows are high enough.
    """
    words = [word for group in groups.values() for word in group]
    if scores.shape != (len(units), len(words)):
        raise ValueError(
            f"scores of shape {scores.shape} do not fit {len(units)} units and {len(words)} words"
        )
    names = _with_unit(units)["unit"].to_list()
    order = _reading_order(scores)
    # Raw similarities differ far more between words than between people; a column's mean says nothing of anybody.
    shown = scores[order] - scores.mean(0)
    limit = float(np.percentile(np.abs(shown), 98)) or 1.0
    named = len(names) <= _NAMED_ROWS
    wide = 0.21 * len(words)
    high = max(0.19 * len(names), 2.2) if named else 9.0
    longest = max(len(short(name)) for name in names) if named else 6
    figure = _figure(wide + 0.08 * longest + 1.6, high + 2.6)
    axes: Axes = figure.subplots()
    image = axes.imshow(
        _pooled(shown), aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axes.set_xticks(range(len(words)), words, rotation=90, fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    if named:
        axes.set_yticks(
            range(len(names)), [short(names[index]) for index in order], fontsize=8, parse_math=False
        )
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(names)} {_noun(units, len(names))}, those alike together", fontsize=10)
    if named and table is not None:
        _dots(axes, [names[index] for index in order], words, table)
    edge = 0
    for group, own in groups.items():
        axes.text(
            edge + len(own) / 2 - 0.5,
            -0.6,
            _title(group),
            rotation=45,
            fontsize=8.5,
            fontweight="bold",
            ha="left",
            va="bottom",
            rotation_mode="anchor",
        )
        edge += len(own)
        if edge < len(words):
            axes.axvline(edge - 0.5, color="white", linewidth=2.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.02, pad=0.015, extend="both")
    bar.set_label(
        "score, less the word's mean" + (" (dot: chosen word)" if named and table is not None else ""),
        fontsize=9,
    )
    bar.ax.tick_params(labelsize=8)
    _save(figure, path)


def draw_sheet(
    path: Path,
    names: Sequence[str],
    table: pl.DataFrame,
    groups: Mapping[str, Sequence[str]],
    pictures: Pictures,
    *,
    height: int = 220,
    count: int = 3,
) -> None:
    """Draws people, a row each: pictures, and beside them their words with margins.

    Args:
        path: of the JPEG.
        names: units, from the top.
        table: of labels.
        groups: name -> its words.
        pictures: where the pictures of a unit are; those that cannot be read are skipped.
        height: of a picture, pixels.
        count: pictures of a unit at most.
    """
    gap, across = 8, round(height * 0.5)
    heading, small = font(17, bold=True), font(14)
    lines = -(-len(groups) // 2)
    step = 20
    tall = max(height, 34 + step * lines)
    own = _with_unit(table).filter(pl.col("unit").is_in(list(names)))
    rows = {name: own.filter(pl.col("unit") == name) for name in names}
    entries = {name: _entries(rows[name], groups) for name in names}
    title = max((max(map(len, map(_title, groups)), default=0)), 6)
    left = 2 * gap + count * (across + gap)
    label = int(small.getlength("m" * title) * 0.72)
    column = (
        label
        + 34
        + max(int(small.getlength(word + margin)) for own in entries.values() for _, word, margin in own)
    )
    sheet = Image.new("RGB", (left + 2 * column + gap, len(names) * (tall + 2 * gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        top = gap + row * (tall + 2 * gap)
        if row:
            draw.line((gap, top - gap, sheet.width - gap, top - gap), fill="#d9dce1")
        found = readable(pictures(name), count, across, height)
        for index, picture in enumerate(found):
            x = gap + index * (across + gap) + (across - picture.width) // 2
            sheet.paste(picture, (x, top + (tall - picture.height) // 2))
        if not found:
            draw.text((gap, top + 4), "no readable picture", font=small, fill=GREY)
        margins = rows[name]["margin"].drop_nulls()
        mean = f"   mean margin {_plain(float(margins.to_numpy().mean()))}" if len(margins) else ""
        shown = short(name)
        draw.text((left, top), shown, font=heading, fill=INK)
        draw.text((left + heading.getlength(shown), top + 3), mean, font=small, fill=GREY)
        for index, (group, word, margin) in enumerate(entries[name]):
            x = left + (index // lines) * column
            y = top + 34 + (index % lines) * step
            draw.text((x, y), group, font=small, fill=GREY)
            draw.text((x + label, y), word, font=small, fill=INK)
            draw.text((x + label + small.getlength(word) + 10, y), margin, font=small, fill=GREY)
    with atomic(path) as temporary:
        sheet.save(temporary, quality=92)


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
    noun = _noun(table, 2)
    lines = [f"# Labels of {len(people)} {_noun(table, len(people))}", ""]
    lines += grid(["setting", "value"], [[_title(key), _plain(value)] for key, value in facts.items()])
    lines += [
        "",
        "A word's score is the mean over the pictures of how well it fits, and its margin the lead over the second",
        f"word of its group. The certainty of {noun} is the mean margin of their words.",
        "",
        *(f"![{name}]({name})\n" for name in figures),
    ]
    if agreement is not None:
        rows = [[_plain(value) for value in row] for row in agreement.iter_rows()]
        lines += [
            "## Agreement with the truth",
            "",
            *grid([_title(name) for name in agreement.columns], rows),
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
            rows = [[unit, _plain(margin), words[unit]] for unit, margin in chosen.iter_rows()]
            lines += [*grid([_noun(table, 1), "mean margin", "words"], rows), ""]
    lines += ["## Words, group by group", ""]
    for group, own in groups.items():
        lines += [f"### {_title(group)}", "", *_group(table, group, own, len(people)), ""]
    lines += [
        f"## All {noun}" if len(people) <= listed else f"## The first {listed} of {len(people)} {noun}",
        "",
    ]
    rows = [
        [unit, _plain(margin), words[unit]] for unit, margin in people.sort("unit").head(listed).iter_rows()
    ]
    lines += grid([_noun(table, 1), "mean margin", "words"], rows)
    if len(people) > listed:
        lines += ["", "The rest is in the file of labels."]
    return "\n".join(lines) + "\n"


def _group(table: pl.DataFrame, group: str, words: Sequence[str], units: int) -> list[str]:
    """A table of the group's words, and who is most and least certain of them."""
    own = _with_unit(table.filter(pl.col("group") == group))
    rows = []
    for word, count in zip(words, _counts(table, group, words), strict=True):
        mean = own.filter(pl.col("word") == word)["margin"].cast(pl.Float64).mean()
        rows.append([word, str(count), f"{100 * count / units:.0f}%", _plain(mean)])
    lines = grid(["word", _noun(table, 2), "share", "mean margin"], rows)
    known = own.drop_nulls("margin").sort("margin", descending=True, maintain_order=True)
    if known.is_empty():
        return lines

    def some(part: pl.DataFrame) -> str:
        chosen = part.select("unit", "word", "margin").iter_rows()
        return ", ".join(f"{cell(unit)} ({cell(word)}, {_plain(margin)})" for unit, word, margin in chosen)

    return [
        *lines,
        "",
        f"Most certain: {some(known.head(3))}.",
        f"Least certain: {some(known.tail(3).reverse())}.",
    ]


def _with_unit(table: pl.DataFrame) -> pl.DataFrame:
    last = "path" if "path" in table.columns else "person"
    return table.with_columns(unit=pl.concat_str("data_set", last, separator="/"))


def _noun(table: pl.DataFrame, count: int) -> str:
    one, many = ("picture", "pictures") if "path" in table.columns else ("person", "people")
    return one if count == 1 else many


def _counts(table: pl.DataFrame, group: str, words: Sequence[str]) -> list[int]:
    chosen = table.filter(pl.col("group") == group)["word"]
    return [int((chosen == word).sum()) for word in words]


def _words_of(table: pl.DataFrame, groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Unit -> its words in the order of the groups."""
    order = pl.col("group").replace_strict(list(groups), range(len(groups)))
    joined = _with_unit(table).sort(order).group_by("unit").agg(pl.col("word").str.join(", "))
    return dict(joined.iter_rows())


def _entries(rows: pl.DataFrame, groups: Mapping[str, Sequence[str]]) -> list[tuple[str, str, str]]:
    """Group, word and margin of a unit."""
    own = {group: rest for group, *rest in rows.select("group", "word", "margin").iter_rows()}
    return [(_title(group), own[group][0], _plain(own[group][1])) for group in groups if group in own]


def _dots(axes: Axes, names: Sequence[str], words: Sequence[str], table: pl.DataFrame) -> None:
    rows = {name: index for index, name in enumerate(names)}
    columns = {word: index for index, word in enumerate(words)}
    chosen = [
        (columns[word], rows[unit])
        for unit, word in _with_unit(table).select("unit", "word").iter_rows()
        if unit in rows and word in columns
    ]
    if chosen:
        across, down = zip(*chosen, strict=True)
        axes.scatter(across, down, s=7, color="black", linewidths=0)


def _reading_order(scores: Scores) -> npt.NDArray[np.int64]:
    """Rows so that those alike lie together: by a dendrogram, or along the main direction where there are many."""
    if len(scores) < 3:
        return np.arange(len(scores))
    centred = np.asarray(scores, np.float64) - scores.mean(0)
    if len(scores) <= _MOST_CLUSTERED:
        leaves: npt.NDArray[np.int64] = leaves_list(
            linkage(centred, "ward", optimal_ordering=len(scores) <= 500)
        )
        return leaves
    _, vectors = np.linalg.eigh(centred.T @ centred)
    order: npt.NDArray[np.int64] = np.argsort(centred @ vectors[:, -1], kind="stable")
    return order


def _pooled(values: Scores) -> Scores:
    """Means of neighbouring rows, so that no more than `_MOST_ROWS` are left."""
    share = -(-len(values) // _MOST_ROWS)
    starts = np.arange(0, len(values), share)
    sums: Scores = np.add.reduceat(values, starts, axis=0)
    return sums / np.diff(starts, append=len(values))[:, None]


def _figure(width: float, height: float) -> Figure:
    # Imported here: only those who draw wait for it. A Figure without pyplot draws with Agg, whatever the screen.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _title(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    """A fact or a number as text."""
    if value is None:
        return ""
    if isinstance(value, float):
        # Margins of raw similarities are in the third decimal place.
        return f"{value:.2f}" if abs(value) >= 0.1 or abs(value) < 1e-6 else f"{value:.2g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
