"""Own the files of scores: `results.json` of a run, with its reader and its writer, and what `evaluate` writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip3dreid.errors import InputError
from clip3dreid.io.checks import alternatives, weighed
from clip3dreid.io.environment import environment
from clip3dreid.io.files import write_json
from clip3dreid.io.formats import decoding, read_json
from clip3dreid.io.run_folder import RESULTS
from clip3dreid.report.tables import print_scores, text_scores

RESULTS_VERSION = 3
READS = (2, 3)
"""Versions that are understood: 2 is the first with costs and results of each query, and calls a variant `rung`."""
SCORES_VERSION = 1
"""Of what `evaluate` writes."""
ALONE: Mapping[str, float] = {"embedding": 1.0}
"""What pictures are compared by where nothing else is said: the embedding alone."""
_WHAT = "the results of a run"


class OldResultsError(InputError):
    """The results are of a version that is not read."""


@dataclass(frozen=True)
class RunCost:
    """What a training cost."""

    step_seconds: float | None = None
    """Median of a step, loading included; None where it was not measured."""
    pictures_per_step: int | None = None
    """Frames, where clips are trained on."""
    steps: int | None = None


@dataclass(frozen=True)
class CheckpointResults:
    """The scores of one checkpoint on one data set."""

    checkpoint: str
    """`last`, `ema` (the average of the weights) or `best`."""
    selected_by: str
    """How it was chosen, for people to read."""
    data: str
    """Name of the data set."""
    results: Mapping[str, Mapping[str, Any]]
    """Protocol -> scores, 0..1, and what they were measured on; see `retrieval.evaluation`."""
    per_query: Mapping[str, str]
    """Protocol -> file of what became of each query, relative to the run's folder."""
    headline: str
    """The protocol that stands for the run; empty where there are no scores."""
    feature: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(ALONE))
    """What pictures were compared by: part -> weight."""


@dataclass(frozen=True)
class RunResults:
    """The scores of a run."""

    seed: int
    variant: str | None
    """Name of the method in comparisons; None: it has none."""
    metric: str | None
    """Distance of the ranking; None: it is not recorded."""
    flip: bool | None
    """Whether pictures and their mirror images were embedded; None: it is not recorded."""
    evaluations: tuple[CheckpointResults, ...]
    """That of the data set proper first, others of the same checkpoint after it. Where pictures are compared by more
    than the embedding, that of the embedding alone comes behind it."""
    cost: RunCost = RunCost()
    notes: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    """Data set -> what must be known of it."""


def write_results(folder: Path, results: RunResults) -> Path:
    """Write the scores of a run into its folder, whole or not at all, and return the file."""
    path = folder / RESULTS
    write_json(path, {"version": RESULTS_VERSION, **dataclasses.asdict(results)})
    return path


def read_results(path: Path, advice: str = "train again, or leave this run out") -> RunResults:
    """Read the scores of a run, also those that an earlier version of this program wrote.

    Args:
        path: `results.json` of a run's folder.
        advice: what to do about a file that is damaged.

    Raises:
        OldResultsError: if it is of a version that is not read.
        InputError: if it is not there or damaged.
    """
    facts = read_json(path, _WHAT, advice)
    if (version := facts.get("version")) not in READS:
        raise OldResultsError(
            f"{RESULTS} has version {version}, not {alternatives(READS)}; train again with this program"
        )
    with decoding(path, _WHAT, advice):
        cost = facts.get("cost") or {}
        return RunResults(
            seed=int(facts.get("seed", 0)),
            variant=facts.get("variant") or facts.get("rung"),
            metric=facts.get("metric"),
            flip=facts.get("flip"),
            evaluations=tuple(map(_checkpoint, facts["evaluations"])),
            cost=RunCost(*(cost.get(field.name) for field in dataclasses.fields(RunCost))),
            notes=dict(facts.get("notes") or {}),
        )


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Write the scores of an evaluation, and what they depend on besides, as JSON.

    Args:
        path: the file.
        scores: plain data: what was evaluated on what, and what came of it.

    Raises:
        InputError: if it cannot be written.
    """
    write_json(path, {"version": SCORES_VERSION, **scores, "environment": environment()})


def print_results(results: RunResults) -> None:
    """Print the scores of a run, a table for each checkpoint, data set and feature."""
    for title, one in _titled(results):
        print_scores(title, one.results, results.notes.get(one.data, ()))


def results_text(results: RunResults) -> str:
    """Return the scores of a run as `print_results` prints them to a file."""
    return "\n".join(
        text_scores(title, one.results, results.notes.get(one.data, ())) for title, one in _titled(results)
    )


def _titled(results: RunResults) -> Iterator[tuple[str, CheckpointResults]]:
    several = any(dict(one.feature) != ALONE for one in results.evaluations)
    for one in results.evaluations:
        title = f"{one.data}, {one.checkpoint} checkpoint ({one.selected_by})"
        yield (f"{title}, by {weighed(one.feature)}" if several else title), one


def _checkpoint(facts: Mapping[str, Any]) -> CheckpointResults:
    results = dict(facts["results"] or {})
    return CheckpointResults(
        checkpoint=str(facts["checkpoint"]),
        selected_by=str(facts.get("selected_by", "")),
        data=str(facts["data"]),
        results=results,
        per_query=dict(facts["per_query"]),
        # Before data sets named it, it was the last one.
        headline=str(facts.get("headline") or next(reversed(results), "")),
        feature={str(part): float(weight) for part, weight in (facts.get("feature") or ALONE).items()},
    )
