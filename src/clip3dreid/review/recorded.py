"""Report what a run recorded: scores, curves, words, configuration, environment and cost. No picture is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import yaml

from clip3dreid.errors import InputError
from clip3dreid.io.checks import weighed
from clip3dreid.report.document import Block, Drawing, Folded, Table, Text
from clip3dreid.report.figures import Line, Values, chance_cmc, cmc, draw_cmc, draw_lines
from clip3dreid.report.label_figures import words_figure
from clip3dreid.report.label_units import as_text, title_of, with_unit
from clip3dreid.report.results import ALONE, CheckpointResults
from clip3dreid.report.tables import percent, score_notes
from clip3dreid.review.run import ReviewedRun
from clip3dreid.review.settings import PublishedScore

_RANKS = 50
_LISTED = 500
"""People in the table of words."""
SCORES = (
    "R1, %",
    "R5, %",
    "R10, %",
    "R20, %",
    "mAP, %",
    "mINP, %",
    "chance R1, %",
    "queries",
    "gallery",
)
"""Columns of `score_rows` behind the first."""


def scores(run: ReviewedRun, published: Sequence[PublishedScore]) -> list[Block]:
    """Return the scores of all checkpoints, data sets and features, and what others published beside them."""
    blocks: list[Block] = [
        Table(title_of_evaluation(one), ("protocol", *SCORES), score_rows(one.results))
        for one in run.results.evaluations
    ]
    first = run.evaluation
    notes = [
        line.strip()
        for line in score_notes(first.results, run.results.notes.get(first.data, ()), intervals=False)
    ]
    blocks.append(
        Text(["Brackets are 95 % intervals over query people (cluster bootstrap).", *notes], listed=True)
    )
    blocks += _published(first, published)
    return blocks


def title_of_evaluation(one: CheckpointResults) -> str:
    """Return what scores are of, in a line."""
    by = "" if dict(one.feature) == ALONE else f", by {weighed(one.feature)}"
    return f"{one.data}, {one.checkpoint} checkpoint ({one.selected_by}){by}"


def score_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return a row for each protocol; columns as the report's tables of scores have them."""
    rows = []
    for name, found in results.items():
        bounds = found.get("interval") or {}
        cells = [
            percent(found[key], bounds.get(key)) if key in found else ""
            for key in ("r1", "r5", "r10", "r20", "map", "minp", "chance_r1")
        ]
        asked, valid = found.get("queries"), found.get("valid_queries")
        queries = str(valid) if valid == asked else f"{valid} of {asked}"
        rows.append([name, *cells, queries, str(found.get("gallery", ""))])
    return rows


def _published(one: CheckpointResults, published: Sequence[PublishedScore]) -> Iterator[Block]:
    """Yield a table a protocol of what others published, this run first; a line where there is nothing."""
    of_data = [row for row in published if row.data == one.data]
    if not of_data:
        yield Text([f"Nobody's published scores on {one.data} are known here."])
        return
    for protocol, found in one.results.items():
        rows = [row for row in of_data if row.protocol == protocol]
        if rows:
            bounds = found.get("interval") or {}
            own = [percent(found[key], bounds.get(key)) for key in ("r1", "map")]
            printed = [
                [
                    row.method,
                    *("" if score is None else f"{score:.1f}" for score in (row.r1, row.map)),
                    row.source,
                ]
                for row in rows
            ]
            title = f"Published on {one.data}, {protocol}"
            yield Table(
                title,
                ("method", "R1, %", "mAP, %", "read in"),
                [["this run", *own, "results.json"], *printed],
            )
    yield Text(
        [
            "Published scores are as printed, of other backbones, picture sizes and pretraining, mostly of one "
            "training, some read at second hand; they say where a run stands, not which method is better."
        ]
    )


def curve_of(run: ReviewedRun, protocol: str) -> Values:
    """Return a run's CMC curve under a protocol, (K,) in 0..1."""
    hits = run.queries(protocol)["first_hit"].cast(pl.Float64).to_numpy()
    return cmc(hits, _most_ranks(run, protocol))


def chance_of(run: ReviewedRun, protocol: str) -> Values:
    """Return the curve that a random order is expected to have, (K,) in 0..1."""
    table, found = run.queries(protocol), run.evaluation.results[protocol]
    candidates = int(found["gallery"]) - table["junk"].to_numpy()
    return chance_cmc(table["positives"].to_numpy(), candidates, _most_ranks(run, protocol))


def _most_ranks(run: ReviewedRun, protocol: str) -> int:
    return max(1, min(_RANKS, int(run.evaluation.results[protocol]["gallery"])))


def curves(run: ReviewedRun) -> list[Block]:
    """Return the CMC curves of all protocols, with chance under the headline."""
    headline = run.evaluation.headline
    drawn = {name: curve_of(run, name) for name in run.evaluation.per_query}
    ranks = [k for k in (1, 5, 10, 20, 50) if k <= min(map(len, drawn.values()))]
    chance = chance_of(run, headline)
    shown = {**drawn, f"chance ({headline})": chance}
    rows = [[name, *(f"{100 * curve[k - 1]:.1f}" for k in ranks)] for name, curve in shown.items()]
    caption = (
        "CMC curves: the share of queries with a right picture among the first k; dotted: chance under "
        f"{headline}"
    )
    table = Table("Queries found among the first k, %", ("protocol", *(f"k = {k}" for k in ranks)), rows)
    return [Drawing("cmc", draw_cmc(drawn, chance), caption), table]


def training(run: ReviewedRun) -> list[Block]:
    """Return losses, learning rates and validation scores over steps."""
    if not run.log:
        raise InputError("no metrics.csv in the run's folder: it was trained without logger=csv")
    blocks: list[Block] = []
    for prefix, what, caption in (
        ("weighted/", "loss, weighted", "each term of the loss with its weight, and their total"),
        ("loss/", "loss", "each term of the loss as it is"),
        ("share/", "share", "each guide's gradient in the backbone over identity's"),
    ):
        lines = {name.removeprefix(prefix): line for name, line in run.log.items() if name.startswith(prefix)}
        if prefix == "weighted/" and lines and "loss/total" in run.log:
            lines["total"] = run.log["loss/total"]
        if prefix == "loss/":
            lines.pop("total", None)
        # Where all weights are 1 the two figures are one.
        if prefix == "loss/" and all(
            _equal(line, run.log.get(f"weighted/{name}")) for name, line in lines.items()
        ):
            continue
        if lines:
            figure = draw_lines(lines, "step", what, log=True)
            blocks.append(Drawing(f"training-{prefix[:-1]}", figure, f"Over training steps: {caption}"))
    rates = {name: line for name, line in run.log.items() if name.startswith("lr-")}
    if rates:
        figure = draw_lines(rates, "step", "learning rate", log=True, step=True)
        blocks.append(Drawing("training-lr", figure, "Over training steps: the learning rate"))
    held_out = {
        name.removeprefix("val/"): Line(line.x, 100 * line.y)
        for name, line in run.log.items()
        if name.startswith("val/") and name.endswith(("/r1", "/map"))
    }
    if held_out:
        figure = draw_lines(held_out, "step", "score, %")
        blocks.append(
            Drawing("training-val", figure, "Over training steps: scores on the people of validation")
        )
    if not blocks:
        raise InputError("what the run logged holds no losses and no learning rates")
    return blocks


def _equal(one: Line, other: Line | None) -> bool:
    return other is not None and len(one.y) == len(other.y) and bool(np.array_equal(one.y, other.y))


def words(run: ReviewedRun) -> list[Block]:
    """Return the words of the training people with their scores."""
    table = run.labels()
    known = dict(run.machine.get("guides", {}).get("vocabulary", {}).get("groups", {}))
    found = list(dict.fromkeys(table["group"]))
    groups = {
        name: known.get(name) or sorted(set(table.filter(pl.col("group") == name)["word"])) for name in found
    }
    caption = f"How often each word was chosen, group by group: {', '.join(map(title_of, groups))}"
    named = with_unit(table)
    by_unit: dict[str, dict[str, tuple[str, float | None, float | None]]] = {}
    for unit, group, word, score, margin in named.select(
        "unit", "group", "word", "score", "margin"
    ).iter_rows():
        by_unit.setdefault(unit, {})[group] = (word, score, margin)
    rows = []
    for unit, own in list(by_unit.items())[:_LISTED]:
        margins = [margin for _, _, margin in own.values() if margin is not None]
        mean = f"{sum(margins) / len(margins):.2f}" if margins else ""
        cells = [
            "" if group not in own else f"{own[group][0]} {as_text(own[group][1])}".strip()
            for group in groups
        ]
        rows.append([unit, mean, *cells])
    shown = f"the first {_LISTED} of {len(by_unit)}" if len(by_unit) > _LISTED else f"all {len(by_unit)}"
    return [
        Text(
            [
                "What the teacher chose for each training person, and guided the run by. Behind a word stands its "
                "score (with calibration, in standard deviations over all pictures); the margin is the lead over "
                "the second word of the group, averaged over the groups."
            ]
        ),
        Drawing("words", words_figure(table, groups), caption),
        Table(f"Words of {shown}", ("who", "mean margin", *map(title_of, groups)), rows),
    ]


def configuration(run: ReviewedRun) -> list[Block]:
    """Return what the run was asked for."""
    asked = run.machine.get("command")
    text = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True, width=110)
    lines = [" ".join(map(str, asked[1:]))] if isinstance(asked, list) else []
    return [
        *([Folded("Command line", "\n".join(lines))] if lines else []),
        Folded("All keys, resolved", text),
    ]


def environment(run: ReviewedRun) -> list[Block]:
    """Return versions, machine and counts of the data."""
    facts = run.environment
    git = facts.get("git") or {}
    rows = [
        ["folder", str(run.folder.resolve())],
        ["Python", str(facts.get("python", ""))],
        ["platform", str(facts.get("platform", ""))],
        ["devices", ", ".join(map(str, facts.get("devices") or ())) or "CPU alone"],
        ["CUDA of torch", str(facts.get("cuda") or "none")],
        ["threads", str(facts.get("threads", ""))],
        ["git commit", f"{git.get('commit', 'none')}{', changed' if git.get('changed') else ''}"],
        ["seed", str(facts.get("seed", ""))],
        *([name, str(version)] for name, version in (facts.get("packages") or {}).items()),
    ]
    counts = [
        [data, part, *(str(numbers.get(key, "")) for key in ("pictures", "people"))]
        for data, parts in (facts.get("data") or {}).items()
        for part, numbers in parts.items()
    ]
    return [
        Table("What the numbers depend on", ("what", "value"), rows),
        *([Table("Data", ("data set", "part", "pictures", "people"), counts)] if counts else []),
    ]


def cost(run: ReviewedRun) -> list[Block]:
    """Return what the training cost."""
    spent = run.results.cost
    rows = [["steps", "" if spent.steps is None else str(spent.steps)]]
    if spent.pictures_per_step:
        rows.append(["pictures in a step", str(spent.pictures_per_step)])
    if spent.step_seconds:
        rows.append(["median step, s", f"{spent.step_seconds:.3f}"])
        if spent.steps:
            rows.append(["steps x median, minutes", f"{spent.steps * spent.step_seconds / 60:.1f}"])
        if spent.pictures_per_step:
            rows.append(["pictures a second", f"{spent.pictures_per_step / spent.step_seconds:.1f}"])
    if not any(value for _, value in rows):
        raise InputError("the run did not measure what it cost")
    return [Table("Cost of the training", ("what", "value"), rows)]
