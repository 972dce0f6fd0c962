"""Show what each method is worth against a baseline: the table and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip3dreid.report.parts import BLUE, GREY, INK, cell, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Range = tuple[float, float]

_ROOM = 0.5
"""How far an interval over seeds may widen the axis, in widths of everything else; with two seeds it is huge."""


@dataclass(frozen=True)
class Score:
    """One measure of one variant; fractions 0..1, differences -1..1."""

    mean: float
    """Over the runs."""
    sd: float | None
    """Over the runs, with n - 1; None of a single run."""
    differences: tuple[float, ...] = ()
    """To the baseline, one of each pair of runs."""
    people: Range | None = None
    """Interval of the mean difference over query people."""
    seeds: Range | None = None
    """Interval of the mean difference over seeds; None of fewer than two pairs."""

    @property
    def difference(self) -> float | None:
        """Mean over the pairs; None where there is none."""
        return sum(self.differences) / len(self.differences) if self.differences else None


@dataclass(frozen=True)
class Variant:
    """A method, over all its runs."""

    name: str
    runs: int
    scores: Mapping[str, Score]
    """Such as R1 and mAP, the same for all variants."""
    step: float | None = None
    """Time of a training step, as a multiple of the baseline's."""
    picture: float | None = None
    """The same of the time for each picture of a step."""


def header(variants: Sequence[Variant], baseline: str, level: float) -> list[str]:
    """Return the names of the columns."""
    names = ["variant", "runs"]
    for score in variants[0].scores:
        names += [f"{score}, %", f"to {baseline}", f"{level:.0%} people", f"{level:.0%} seeds"]
    return [*names, "step, x", "picture, x"]


def rows(variants: Sequence[Variant]) -> list[list[str]]:
    """Return the cells of the table, a row a variant; scores in per cent, what is not known is blank."""
    lines = []
    for variant in variants:
        cells = [variant.name, str(variant.runs)]
        for score in variant.scores.values():
            mean = f"{100 * score.mean:.1f}"
            difference = score.difference
            cells += [
                mean if score.sd is None else f"{mean} ± {100 * score.sd:.1f}",
                "" if difference is None else _signed(difference),
                _range(score.people),
                _range(score.seeds),
            ]
        cells += ["" if ratio is None else f"{ratio:.2f}" for ratio in (variant.step, variant.picture)]
        lines.append(cells)
    return lines


def page(
    variants: Sequence[Variant],
    baseline: str,
    *,
    level: float,
    resamples: int,
    facts: Mapping[str, Any],
    notes: Sequence[str],
    runs: Sequence[Sequence[str]],
    figure: str,
) -> str:
    """Return the comparison as Markdown.

    Args:
        variants: at least one, in the order of the rows.
        baseline: the variant that the others are compared with.
        level: of the intervals, 0..1.
        resamples: of the bootstrap.
        facts: what the numbers belong to, such as data set and protocol.
        notes: what the reader must know, such as pairs that are missing.
        runs: variant, seed, data folder, R1, mAP and folder of each run.
        figure: path of the picture, from the page's folder.

    Returns:
        The whole text.
    """
    percent, name = f"{level:.0%}", cell(baseline)
    lines = [
        f"# What each variant is worth against {name}",
        "",
        ", ".join(f"{key}: {cell(str(value))}" for key, value in facts.items()) + ".",
        "",
        *grid(header(variants, baseline, level), rows(variants)),
        "",
        *(f"- {cell(note)}" for note in notes),
        *([""] if notes else []),
        f"![Differences to {name}]({figure})",
        "",
        "## How to read it",
        "",
        f"- Scores are means ± standard deviations over runs. The column *to {name}* is the mean difference, in",
        "  points, over pairs of runs with the same seed and the same data.",
        f"- **{percent} people**: would other people have shown it? Cluster bootstrap of the query people, the same",
        f"  people for both runs of a pair, {resamples:,} resamples, percentiles. Gallery and trained models stay as",
        "  they are, so it does not know how much a training varies.",
        f"- **{percent} seeds**: would other trainings have shown it? Student's t interval of the paired",
        "  differences. Where each seed has a world of its own, it covers other people as well. Blank with fewer",
        "  than two pairs.",
        "- An interval that includes 0 leaves open whether there is a difference. Each stands for itself: of",
        f"  {round(1 / (1 - level))} variants that are worth nothing, one is expected to miss 0.",
        "- **step, x** and **picture, x**: median time of a training step, and the same for each picture in it, as",
        "  a multiple of the baseline's; the median over pairs. Only times of equal machines with nothing else to do",
        "  compare.",
        "",
        "## Runs",
        "",
        *grid(["variant", "seed", "data", "R1, %", "mAP, %", "folder"], runs),
    ]
    return "\n".join(lines) + "\n"


def draw(variants: Sequence[Variant], baseline: str, *, level: float, title: str) -> Figure:
    """Draw a forest plot: a panel a measure, a row a variant, its difference to the baseline with both intervals.

    Args:
        variants: at least one beside the baseline, in the order of the rows.
        baseline: the variant at 0, which has no row.
        level: of the intervals, 0..1.
        title: of the figure.

    Returns:
        A figure to be saved.
    """
    # Imported here: only those who draw wait for it. A Figure without pyplot draws with Agg, whatever the screen.
    from matplotlib.figure import Figure

    shown = [variant for variant in variants if variant.name != baseline]
    names = list(shown[0].scores)
    figure = Figure(figsize=(4.6 * len(names) + 1.2, 0.5 * len(shown) + 1.9), layout="constrained")
    figure.set_facecolor("white")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, [variant.scores[name] for variant in shown])
        axes.set_xlabel(f"{name}: difference to {baseline}, points", fontsize=9.5, parse_math=False)
    panels[0].set_yticks(
        range(len(shown)), [variant.name for variant in shown], fontsize=10, parse_math=False
    )
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    figure.legend(
        handles=_legend(level), loc="outside lower left", ncols=3, frameon=False, fontsize=9, handlelength=1.8
    )
    return figure


def _panel(axes: Axes, scores: Sequence[Score]) -> None:
    low, high = _limits(scores)
    axes.set_xlim(low, high)
    axes.axvline(0, color=INK, linewidth=1)
    for row, score in enumerate(scores):
        if score.difference is None:
            axes.text(0.5, row, "no pair", transform=axes.get_yaxis_transform(), color=GREY, ha="center")
            continue
        if score.seeds is not None:
            start, end = (100 * edge for edge in score.seeds)
            axes.plot([max(start, low), min(end, high)], [row + 0.2] * 2, color=GREY, linewidth=1.5)
            # An arrow where the interval goes on beyond the axis.
            for edge, outside, sign in ((low, start < low, "<"), (high, end > high, ">")):
                if outside:
                    axes.plot([edge], [row + 0.2], marker=sign, color=GREY, markersize=5, clip_on=False)
        for value in score.differences:
            axes.plot([100 * value], [row + 0.2], marker="|", color=INK, markersize=6, linestyle="none")
        if score.people is not None:
            axes.plot([100 * edge for edge in score.people], [row] * 2, color=BLUE, linewidth=3)
        axes.plot([100 * score.difference], [row], marker="o", color=BLUE, markersize=7, linestyle="none")
        axes.annotate(
            _signed(score.difference),
            (100 * score.difference, row),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INK,
        )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e5e9", linewidth=0.7)
    axes.set_axisbelow(True)


def _limits(scores: Sequence[Score]) -> Range:
    """Return where the axis starts and ends, in points; 0 is on it."""
    values = [0.0]
    for score in scores:
        values += [*score.differences, *(score.people or ())]
    low, high = 100 * min(values), 100 * max(values)
    width = max(high - low, 1.0)
    far = [100 * edge for score in scores for edge in (score.seeds or ())]
    low = max(min([low, *far]), low - _ROOM * width)
    high = min(max([high, *far]), high + _ROOM * width)
    edge = 0.06 * max(high - low, 1.0)
    return low - edge, high + edge


def _legend(level: float) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=BLUE, linewidth=3, marker="o", label=f"mean, {level:.0%} over query people"),
        Line2D([], [], color=GREY, linewidth=1.5, label=f"{level:.0%} over seeds"),
        Line2D([], [], color=INK, marker="|", linestyle="none", label="each pair of runs"),
    ]


def _signed(value: float) -> str:
    """Return a difference in points; what rounds to nothing has no sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _range(ends: Range | None) -> str:
    return "" if ends is None else f"{_signed(ends[0])} to {_signed(ends[1])}"
