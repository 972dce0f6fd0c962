"""Draw what becomes of a run: from arrays to figures of matplotlib, for pages, papers and dashboards alike."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clip3dreid.report.parts import BLUE, GREY, INK, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.floating[Any]]

PALETTE = (BLUE, "#c2571a", "#2e7d5b", "#8a4f9e", "#9a7b12", "#5f6773")
"""Colours of lines, told apart with the common kinds of colour blindness too; lines differ in dashes besides."""
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "os^Dv<>pPX*hd"
_FAINT = "#e3e5e9"
_LONGEST = 60
"""Letters of a line's name."""
_MOST_POINTS = 1000
"""Of a line; of more, neighbours are averaged."""


class Line(NamedTuple):
    """A line of a figure."""

    x: Values
    """(N,) ascending."""
    y: Values
    """(N,)."""


def cmc(first_hit: Values, most: int) -> Values:
    """Return the share of queries with a positive among the first k, for k = 1..`most`, as (most,) in 0..1.

    Args:
        first_hit: (Q,) rank of each query's first positive, from 1.
        most: how many ranks.
    """
    ranks = np.arange(1, most + 1)
    found: Values = (first_hit[None, :] <= ranks[:, None]).mean(1)
    return found


def chance_cmc(positives: npt.NDArray[Any], candidates: npt.NDArray[Any], most: int) -> Values:
    """Return the curve that a random order is expected to have, (most,) in 0..1.

    With p positives among n candidates the first k hold none with probability (n-p)/n · (n-p-1)/(n-1) · …, k factors.

    Args:
        positives: (Q,) of each query.
        candidates: (Q,) gallery pictures that it is compared with, junk left out.
        most: how many ranks.
    """
    p, n = (np.asarray(values, np.float64)[:, None] for values in (positives, candidates))
    drawn = np.arange(most)[None, :]
    missed = np.clip((n - p - drawn) / np.maximum(n - drawn, 1), 0, 1)
    curve: Values = (1 - missed.cumprod(1)).mean(0)
    return curve


def draw_cmc(curves: Mapping[str, Values], chance: Values | None = None) -> Figure:
    """Draw CMC curves.

    Args:
        curves: name -> (K,) shares 0..1 of queries found among the first 1..K.
        chance: (K,) what a random order is expected to give.
    """
    figure, axes = _figure(5.4, 3.5)
    longest = max(map(len, curves.values()))
    for name, colour, dash in zip(curves, cycle(PALETTE), cycle(_DASHES)):
        axes.plot(np.arange(1, len(curves[name]) + 1), 100 * curves[name], color=colour, ls=dash, label=name)
    if chance is not None:
        axes.plot(np.arange(1, len(chance) + 1), 100 * chance, color=GREY, lw=1.2, ls=":", label="chance")
    axes.set_xlim(1, longest)
    axes.set_ylim(0, 102)
    axes.set_xticks([1, *range(5, longest + 1, 5)])
    axes.set_xlabel("rank k")
    axes.set_ylabel("queries found among the first k, %")
    _legend(axes)
    return figure


def draw_lines(
    lines: Mapping[str, Line], x: str, y: str, *, log: bool = False, step: bool = False, legend: bool = True
) -> Figure:
    """Draw lines over a common axis, such as losses over steps.

    Args:
        lines: name -> line; of those with over a thousand points neighbours are averaged.
        x: what the axis across is.
        y: what the axis up is.
        log: values on a logarithmic scale, where all are above 0.
        step: a value holds until the next, as a learning rate does.
        legend: name the lines.
    """
    figure, axes = _figure(5.4, 3.1)
    for name, colour, dash in zip(lines, cycle(PALETTE), cycle(_DASHES)):
        across, up = thinned(lines[name])
        how: dict[str, Any] = {"drawstyle": "steps-post"} if step else {}
        marker = "o" if len(across) == 1 else None
        axes.plot(across, up, color=colour, ls=dash, lw=1.4, label=name, marker=marker, **how)
    if log and all((line.y > 0).all() for line in lines.values()):
        _log_scale(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if legend:
        _legend(axes, outside=len(lines) > 2)
    return figure


def thinned(line: Line, most: int = _MOST_POINTS) -> Line:
    """Return a line of at most so many points, each the mean of as many neighbours."""
    share = -(-len(line.x) // most)
    if share <= 1:
        return line
    starts = np.arange(0, len(line.x), share)
    counts = np.diff(starts, append=len(line.x))
    return Line(*(np.add.reduceat(np.asarray(part, np.float64), starts) / counts for part in line))


def draw_distances(counts: Mapping[str, Values], edges: Values, what: str) -> Figure:
    """Draw how distances of kinds of pairs are spread: each kind's share of pairs, in bins of equal width.

    Args:
        counts: kind of pair -> (bins,) how many pairs.
        edges: (bins + 1,) of the bins.
        what: the distance.
    """
    figure, axes = _figure(5.4, 3.1)
    hatches = ("", "///", "...", "xx")
    for (name, count), colour, hatch, dash in zip(
        counts.items(), cycle(PALETTE), cycle(hatches), cycle(_DASHES)
    ):
        total = float(count.sum())
        if not total:
            continue
        share = 100 * count / total
        axes.stairs(share, edges, color=colour, lw=1.6, ls=dash, label=f"{name} ({total:,.0f} pairs)")
        axes.stairs(
            share, edges, fill=True, facecolor="none", edgecolor=colour, hatch=hatch, lw=0, alpha=0.35
        )
    axes.set_xlabel(what)
    axes.set_ylabel("pairs of the kind, %")
    axes.set_ylim(bottom=0)
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    _legend(axes)
    return figure


def draw_map(points: Values, names: Sequence[str], explained: Sequence[float] | None = None) -> Figure:
    """Draw an embedding map: a picture a point, people told apart by sign, colour and their name beside the middle.

    Args:
        points: (N, 2).
        names: N people.
        explained: shares 0..1 of the variance along the two axes, where these are principal components.
    """
    figure, axes = _figure(5.4, 4.6)
    whose = np.asarray(names)
    for name, colour, marker in zip(dict.fromkeys(names), cycle(PALETTE), cycle(_MARKERS)):
        rows = points[whose == name]
        axes.plot(
            rows[:, 0], rows[:, 1], ls="none", marker=marker, ms=4, color=colour, mec="none", alpha=0.75
        )
        middle = np.median(rows, 0)
        axes.text(
            float(middle[0]),
            float(middle[1]),
            name,
            fontsize=9,
            fontweight="bold",
            color=INK,
            ha="center",
            va="center",
            parse_math=False,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    titles = ["first component", "second component"]
    if explained is not None:
        titles = [f"{title}, {100 * share:.0f} %" for title, share in zip(titles, explained, strict=True)]
    axes.set_xlabel(titles[0])
    axes.set_ylabel(titles[1])
    axes.grid(visible=False)
    return figure


def as_svg(figure: Figure, name: str) -> str:
    """Return a figure as an `<svg>` for a page, whose colours follow the page's: dark on light, or light on dark.

    Args:
        figure: of this module or drawn in its colours.
        name: letters, digits and hyphens, which no other figure of the page has; ids begin with it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Texts stay texts: they can be found and read aloud.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", "font-family: DejaVu Sans, Verdana, sans-serif", text)
    # How wide it is the page decides; below two thirds of what it was drawn at, letters are too small.
    end = text.index(">")
    wide = f"--natural: {72 * figure.get_figwidth():.0f}pt"
    return f'<svg style="{wide}"' + re.sub(r' (width|height)="[^"]*"', "", text[4:end]) + text[end:]


_VARIABLES = {INK: "ink", GREY: "grey", _FAINT: "faint", "#000000": "ink"} | {
    colour: f"line{number}" for number, colour in enumerate(PALETTE)
}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Imported here: only those who draw wait for it. A Figure without pyplot draws with Agg, whatever the screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes: Axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=10, parse_math=False)
    axes.yaxis.label.set(color=INK, fontsize=10, parse_math=False)
    axes.grid(color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _log_scale(axes: Axes) -> None:
    """Put values on a logarithmic scale with plain numbers beside it, of which there are more where it is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axes.yaxis.set_minor_formatter(plain if high < 20 * low else NullFormatter())
    axes.tick_params(which="both", color=GREY, labelcolor=INK, labelsize=9)


def _legend(axes: Axes, *, outside: bool = False) -> None:
    where: dict[str, Any] = (
        {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if outside else {"loc": "best"}
    )
    legend = axes.legend(frameon=False, fontsize=9, handlelength=2.6, **where)
    for text in legend.get_texts():
        text.set_text(short(text.get_text(), _LONGEST))
        text.set_parse_math(False)
        text.set_color(INK)
