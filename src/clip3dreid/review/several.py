"""Report several runs side by side: what differs in what they were asked for, and in what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clip3dreid.comparison.compare import compare
from clip3dreid.comparison.settings import CompareSettings
from clip3dreid.errors import InputError
from clip3dreid.io.flatten import flatten
from clip3dreid.report.ablation import draw, header, rows
from clip3dreid.report.document import Block, Drawing, Table, Text
from clip3dreid.report.figures import Line, draw_cmc, draw_lines
from clip3dreid.retrieval.bootstrap import LEVEL
from clip3dreid.review.recorded import SCORES, chance_of, curve_of, score_rows
from clip3dreid.review.run import ReviewedRun
from clip3dreid.review.settings import ReportSettings

_MOST_LINES = 8
"""Runs whose curves are drawn; more cannot be told apart."""


def comparison(runs: Sequence[ReviewedRun], settings: ReportSettings) -> list[Block]:
    """Return what each variant is worth against the baseline, as `clip3dreid compare` has it."""
    found = compare(
        [run.folder for run in runs],
        CompareSettings(baseline=settings.baseline, checkpoint=settings.checkpoint),
    )
    baseline = found.settings.baseline
    caption = f"{found.title}, points, with 95 % intervals over query people and over seeds"
    figure = draw(found.variants, baseline, level=LEVEL, title=found.title)
    notes = [Text(list(found.notes), listed=True)] if found.notes else []
    return [
        Table(found.title, header(found.variants, baseline, LEVEL), rows(found.variants)),
        Drawing("compare", figure, caption),
        Text(["How to read the intervals: docs/compare.md."]),
        *notes,
    ]


def scores(runs: Sequence[ReviewedRun]) -> list[Block]:
    """Return the scores of all runs, a table a protocol."""
    protocols = list(dict.fromkeys(name for run in runs for name in run.evaluation.results))
    names = names_of(runs)
    blocks: list[Block] = []
    for protocol in protocols:
        lines = [
            [name, run.evaluation.data, *score_rows({protocol: run.evaluation.results[protocol]})[0][1:]]
            for run, name in zip(runs, names, strict=True)
            if protocol in run.evaluation.results
        ]
        blocks.append(Table(f"{protocol}, {settings_of(runs[0])}", ("run", "data", *SCORES), lines))
    return blocks


def settings_of(run: ReviewedRun) -> str:
    """Return which checkpoint is reported, in words."""
    return f"{run.evaluation.checkpoint} checkpoint"


def curves(runs: Sequence[ReviewedRun]) -> list[Block]:
    """Return the CMC curves of the runs under the first one's headline."""
    name = runs[0].evaluation.headline
    able = [
        (label, run)
        for label, run in zip(names_of(runs), runs, strict=True)
        if name in run.evaluation.results and run.evaluation.data == runs[0].evaluation.data
    ]
    drawn = {label: curve_of(run, name) for label, run in able[:_MOST_LINES]}
    left = f"; the first {_MOST_LINES} of {len(able)} runs" if len(able) > _MOST_LINES else ""
    caption = f"CMC curves under {name}: the share of queries with a right picture among the first k{left}"
    return [Drawing("cmc", draw_cmc(drawn, chance_of(runs[0], name)), caption)]


def training(runs: Sequence[ReviewedRun]) -> list[Block]:
    """Return the losses of the runs over their steps."""
    lines: dict[str, dict[str, Line]] = {"loss/total": {}, "loss/identity": {}}
    for label, run in list(zip(names_of(runs), runs, strict=True))[:_MOST_LINES]:
        for name, own in lines.items():
            if name in run.log:
                own[label] = run.log[name]
    blocks: list[Block] = [
        Drawing(
            f"training-{name.rpartition('/')[2]}",
            draw_lines(own, "step", name.replace("/", ", "), log=True),
            f"Over training steps: {name.replace('/', ', ')} of each run",
        )
        for name, own in lines.items()
        if own
    ]
    if not blocks:
        raise InputError("no run has a metrics.csv with losses: they were trained without logger=csv")
    return blocks


def configuration(runs: Sequence[ReviewedRun]) -> list[Block]:
    """Return the keys in which the runs differ."""
    flat = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    missing = object()
    rows_ = [
        [key, *("" if key not in one else _short(one[key]) for one in flat)]
        for key in keys
        if any(one.get(key, missing) != flat[0].get(key, missing) for one in flat)
    ]
    if not rows_:
        return [Text(["The runs were asked for the same, key by key."])]
    return [Table("Keys in which the runs differ", ("key", *names_of(runs)), rows_)]


def cost(runs: Sequence[ReviewedRun]) -> list[Block]:
    """Return what each training cost."""
    lines = []
    for label, run in zip(names_of(runs), runs, strict=True):
        spent = run.results.cost
        seconds = spent.step_seconds
        minutes = "" if not (seconds and spent.steps) else f"{seconds * spent.steps / 60:.1f}"
        lines.append(
            [
                label,
                str(spent.steps or ""),
                str(spent.pictures_per_step or ""),
                "" if not seconds else f"{seconds:.3f}",
                minutes,
            ]
        )
    head = ("run", "steps", "pictures in a step", "median step, s", "steps x median, minutes")
    return [Table("Cost of the trainings", head, lines)]


def names_of(runs: Sequence[ReviewedRun]) -> list[str]:
    """Return what runs are called, each by another name."""
    names = [run.name for run in runs]
    twice = {name for name in names if names.count(name) > 1}
    folders = [run.folder.resolve() for run in runs]
    return [
        f"{name} ({folder.parent.name}/{folder.name})" if name in twice else name
        for name, folder in zip(names, folders, strict=True)
    ]


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:60]}…{text[-59:]}"
