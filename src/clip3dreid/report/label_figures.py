"""Draw what labels look like: how often each word was chosen, all scores, and people with their words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image, ImageDraw

from clip3dreid.io.files import atomic
from clip3dreid.report.label_units import as_text, noun_of, title_of, with_unit, word_counts
from clip3dreid.report.parts import BLUE, GREY, INK, font, readable, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = npt.NDArray[np.floating[Any]]
PicturesOf = Callable[[str], Sequence[Path]]
"""Unit (`data_set/person`, or `data_set/path`) -> its pictures, the most telling first."""

_MOST_CLUSTERED = 2000
"""Units up to which rows are put in the order of a dendrogram, whose distances grow with their square."""
_NAMED_ROWS = 60
_MOST_ROWS = 900
"""Rows of the picture of the scores; of more units, neighbours share one."""


def draw_words(path: Path, table: pl.DataFrame, groups: Mapping[str, Sequence[str]]) -> None:
    """Draw how often each word was chosen, and write the picture; arguments as of `words_figure`."""
    _save(words_figure(table, groups), path)


def words_figure(table: pl.DataFrame, groups: Mapping[str, Sequence[str]]) -> Figure:
    """Draw how often each word was chosen, a panel a group.

    Args:
        table: of labels.
        groups: name -> its words.
    """
    across = min(4, len(groups))
    down = -(-len(groups) // across)
    figure = _figure(3.3 * across + 0.3, 1.75 * down + 0.5)
    grid = figure.subplots(down, across, squeeze=False)
    units = with_unit(table)["unit"].n_unique()
    for place, axes in enumerate(grid.flat):
        if place >= len(groups):
            axes.set_axis_off()
            continue
        group, words = list(groups.items())[place]
        counts = word_counts(table, group, words)
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
        axes.set_title(title_of(group), fontsize=10, loc="left", fontweight="bold")
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
    figure.suptitle(f"Words of {units} {noun_of(table, units)}", fontsize=12, x=0.01, ha="left")
    return figure


def draw_scores(
    path: Path,
    units: pl.DataFrame,
    scores: Scores,
    groups: Mapping[str, Sequence[str]],
    table: pl.DataFrame | None = None,
) -> None:
    """Draw the scores, a row a unit and a column a word; rows that are alike lie together.

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
    names = with_unit(units)["unit"].to_list()
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
        axes.set_ylabel(f"{len(names)} {noun_of(units, len(names))}, those alike together", fontsize=10)
    if named and table is not None:
        _dots(axes, [names[index] for index in order], words, table)
    edge = 0
    for group, members in groups.items():
        axes.text(
            edge + len(members) / 2 - 0.5,
            -0.6,
            title_of(group),
            rotation=45,
            fontsize=8.5,
            fontweight="bold",
            ha="left",
            va="bottom",
            rotation_mode="anchor",
        )
        edge += len(members)
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
    pictures: PicturesOf,
    *,
    height: int = 220,
    count: int = 3,
) -> None:
    """Draw people, a row each: pictures, and beside them their words with margins.

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
    chosen = with_unit(table).filter(pl.col("unit").is_in(list(names)))
    rows = {name: chosen.filter(pl.col("unit") == name) for name in names}
    entries = {name: _entries(rows[name], groups) for name in names}
    title = max((max(map(len, map(title_of, groups)), default=0)), 6)
    left = 2 * gap + count * (across + gap)
    label = int(small.getlength("m" * title) * 0.72)
    column = (
        label
        + 34
        + max(int(small.getlength(word + margin)) for words in entries.values() for _, word, margin in words)
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
        mean = f"   mean margin {as_text(float(margins.to_numpy().mean()))}" if len(margins) else ""
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


def _entries(rows: pl.DataFrame, groups: Mapping[str, Sequence[str]]) -> list[tuple[str, str, str]]:
    """Return group, word and margin of a unit."""
    own = {group: rest for group, *rest in rows.select("group", "word", "margin").iter_rows()}
    return [(title_of(group), own[group][0], as_text(own[group][1])) for group in groups if group in own]


def _dots(axes: Axes, names: Sequence[str], words: Sequence[str], table: pl.DataFrame) -> None:
    rows = {name: index for index, name in enumerate(names)}
    columns = {word: index for index, word in enumerate(words)}
    chosen = [
        (columns[word], rows[unit])
        for unit, word in with_unit(table).select("unit", "word").iter_rows()
        if unit in rows and word in columns
    ]
    if chosen:
        across, down = zip(*chosen, strict=True)
        axes.scatter(across, down, s=7, color="black", linewidths=0)


def _reading_order(scores: Scores) -> npt.NDArray[np.int64]:
    """Return an order in which rows alike lie together: a dendrogram's, or of many rows the main direction's."""
    if len(scores) < 3:
        return np.arange(len(scores))
    centred = np.asarray(scores, np.float64) - scores.mean(0)
    if len(scores) <= _MOST_CLUSTERED:
        from scipy.cluster.hierarchy import leaves_list, linkage  # here: few who import this draw scores

        leaves: npt.NDArray[np.int64] = leaves_list(
            linkage(centred, "ward", optimal_ordering=len(scores) <= 500)
        )
        return leaves
    _, vectors = np.linalg.eigh(centred.T @ centred)
    order: npt.NDArray[np.int64] = np.argsort(centred @ vectors[:, -1], kind="stable")
    return order


def _pooled(values: Scores) -> Scores:
    """Return means of neighbouring rows, so that no more than `_MOST_ROWS` are left."""
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
