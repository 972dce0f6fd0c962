"""Find finished runs, read them, and hold apart those whose numbers do not compare."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from clip3dreid.errors import InputError
from clip3dreid.io.checks import hint, weighed
from clip3dreid.io.formats import decoding, read_table, read_yaml
from clip3dreid.io.run_folder import CONFIG, ENVIRONMENT, RESULTS
from clip3dreid.report.results import ALONE, CheckpointResults, OldResultsError, RunResults, read_results

SCORES = {"r1": "R1", "map": "mAP"}
_ROUNDING = 1e-4
"""How far a mean over the file of queries may be from the number in the results."""
_AGAIN = "train again, or leave this run out"

Pair = tuple[int, str]
"""Training seed and data folder, by which runs of two variants belong together."""


class _SkippedError(Exception):
    """A run that is not finished, or not of a kind that can be compared."""


@dataclass(frozen=True)
class Run:
    """One finished run, under one protocol.

    Attributes:
        folder: of the run.
        variant: its label.
        pair: seed and data folder.
        data: name of the data set.
        setting: `metric`, `flip` and the protocol's facts, which must be equal for numbers to be comparable.
        chance_r1: R1 of a random order, 0..1; None where it is not recorded.
        queries: Q rows `query`, `person`, `r1`, `map`, sorted by query.
        step_seconds: median training step; None where it was not measured.
        pictures: of one step, likewise.
        feature: part -> weight, what pictures were compared by.
    """

    folder: Path
    variant: str
    pair: Pair
    data: str
    setting: Mapping[str, Any]
    chance_r1: float | None
    queries: pl.DataFrame
    step_seconds: float | None
    pictures: int | None
    feature: Mapping[str, float] = field(default_factory=lambda: dict(ALONE))

    def mean(self, score: str) -> float:
        """Return the mean over the queries, 0..1."""
        return float(self.values(score).mean())

    def values(self, score: str) -> npt.NDArray[np.float64]:
        """Return the score of each query, (Q,)."""
        return self.queries[score].to_numpy()


@dataclass(frozen=True)
class FinishedRun:
    """A finished run before a protocol is chosen: its files, parsed.

    Attributes:
        folder: of the run.
        variant: its label.
        pair: seed and data folder.
        results: what `results.json` says.
        evaluation: the one of them that is of the checkpoint and feature asked for.
    """

    folder: Path
    variant: str
    pair: Pair
    results: RunResults
    evaluation: CheckpointResults


def find_runs(
    paths: Sequence[Path], checkpoint: str, feature: str = "headline"
) -> tuple[list[FinishedRun], list[str]]:
    """Find all finished runs at and below some folders.

    Args:
        paths: run folders, or folders that hold some anywhere below.
        checkpoint: whose results are read.
        feature: `headline`, what each run compares pictures by, or `embedding`, the embedding alone.

    Returns:
        The runs, and a note on each of those that are skipped.

    Raises:
        InputError: if a path holds no run, or no run is finished.
    """
    if not paths:
        raise InputError("no runs are given; name their folders: clip3dreid compare FOLDER …")
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path} is no folder; give a run's folder, or one that holds runs")
        here = list(run_folders(path))
        if not here:
            raise InputError(f"no runs in {path}: no folder with {CONFIG} and {RESULTS}; check the path")
        # A run that is given twice, by itself and inside another folder, counts once.
        for folder in here:
            folders.setdefault(folder.resolve(), folder)
    runs, notes = [], []
    for folder in folders.values():
        try:
            runs.append(_read_run(folder, checkpoint, feature))
        except _SkippedError as reason:
            notes.append(f"skipped {folder}: {reason}")
    if not runs:
        raise InputError(f"no finished run to compare; {notes[0]}")
    return runs, notes


def order_variants(runs: Sequence[FinishedRun], baseline: str, wanted: Sequence[str]) -> list[str]:
    """Put variants in the order of the table, from the top.

    Args:
        runs: at least one.
        baseline: the variant that the others are compared with.
        wanted: those that come first; empty: the baseline does.

    Raises:
        InputError: if the baseline or a wanted variant has no run, or if there is nothing but the baseline, or two
            runs for the same place.
    """
    variants = list(dict.fromkeys(run.variant for run in runs))
    names = ", ".join(variants)
    if baseline not in variants:
        raise InputError(f"no run of the baseline {baseline}; there are {names}; give baseline=NAME")
    if variants == [baseline]:
        raise InputError(f"all {len(runs)} runs are of {baseline}; give runs of another variant as well")
    if unknown := [name for name in wanted if name not in variants]:
        raise InputError(f"order: no run of {unknown[0]}; there are {names}{hint(unknown[0], variants)}")
    places: dict[tuple[str, Pair], Path] = {}
    for run in runs:
        other = places.setdefault((run.variant, run.pair), run.folder)
        if other != run.folder:
            raise InputError(
                f"{other} and {run.folder} are both runs of {run.variant} with seed {run.pair[0]} on {run.pair[1]}; "
                "leave one out"
            )
    return list(dict.fromkeys([*wanted, *([] if wanted else [baseline]), *variants]))


def headline(run: FinishedRun) -> str:
    """Return the name of the protocol that a run's data set is known by.

    Raises:
        InputError: if the run has no scores.
    """
    if not run.evaluation.results:
        raise InputError(f"{run.folder / RESULTS} has no scores; {_AGAIN}")
    return run.evaluation.headline


def under(run: FinishedRun, protocol: str) -> Run:
    """Read a finished run's results under one protocol.

    Raises:
        InputError: if it was not tested under that protocol, or its files are damaged or do not fit together.
    """
    results, cost = run.evaluation.results, run.results.cost
    path = run.folder / RESULTS
    if protocol not in results:
        raise InputError(f"{path} has no protocol {protocol}; there are {', '.join(results)}")
    with decoding(path, "the results of a run", _AGAIN):
        scores = results[protocol]
        file = run.folder / run.evaluation.per_query[protocol]
        means = {key: float(scores[key]) for key in SCORES}
        chance = scores.get("chance_r1")
        seconds, pictures = cost.step_seconds, cost.pictures_per_step
        setting: dict[str, Any] = {"metric": run.results.metric, "flip": run.results.flip}
        setting |= {key: scores.get(key) for key in ("drop", "shots", "average_precision", "rerank")}
        # Where no query is in the gallery it decides nothing, as before there was such a key.
        setting["same_picture"] = scores.get("same_picture") if scores.get("queries_in_gallery") else None
        return Run(
            folder=run.folder,
            variant=run.variant,
            pair=run.pair,
            data=run.evaluation.data,
            setting={key: value for key, value in setting.items() if value is not None},
            chance_r1=None if chance is None else float(chance),
            queries=_read_queries(file, means),
            step_seconds=float(seconds) if seconds else None,
            pictures=int(pictures) if pictures else None,
            feature=run.evaluation.feature,
        )


def check_comparable(runs: Sequence[Run]) -> None:
    """Check that runs differ in nothing that their variants do not explain.

    Raises:
        InputError: naming two that were tested on other data, queries or settings.
    """
    first = runs[0]
    first_on: dict[str, Run] = {}
    first_of: dict[str, Run] = {}
    for run in runs:
        same = first_of.setdefault(run.variant, run)
        if same.feature != run.feature:
            raise InputError(
                f"{same.folder} was tested by {weighed(same.feature)} and {run.folder} by {weighed(run.feature)}, "
                f"and both are {run.variant}; leave one out, or give feature=embedding"
            )
        if run.data != first.data:
            raise InputError(
                f"{first.folder} was tested on {first.data} and {run.folder} on {run.data}; compare one data set"
                " at a time"
            )
        for key in first.setting.keys() | run.setting.keys():
            here, there = first.setting.get(key), run.setting.get(key)
            if here != there:
                raise InputError(
                    f"{first.folder} was tested with {key}={here} and {run.folder} with {key}={there}; their "
                    "numbers do not compare, leave one out"
                )
        # One folder is one world, whose people are drawn once for all its runs.
        other = first_on.setdefault(run.pair[1], run)
        if not other.queries.select("query", "person").equals(run.queries.select("query", "person")):
            raise InputError(
                f"{other.folder} and {run.folder} were tested on different queries of {run.pair[1]}; the data have "
                "changed between them, train one of them again"
            )


def run_folders(path: Path) -> Iterator[Path]:
    """Yield run folders at and below a path, `2` before `10`; what lies in a run is not searched."""
    for place, below, files in os.walk(path):
        # The config comes with one of the other two as soon as a run starts; worlds and dashboards have one alone.
        if CONFIG in files and (RESULTS in files or ENVIRONMENT in files):
            below.clear()
            yield Path(place)
        below[:] = sorted((name for name in below if not name.startswith(".")), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_run(folder: Path, checkpoint: str, feature: str) -> FinishedRun:
    path = folder / RESULTS
    if not path.is_file():
        raise _SkippedError(f"not finished, it has no {RESULTS}")
    try:
        results = read_results(path, _AGAIN)
    except OldResultsError as error:
        raise _SkippedError(str(error)) from error
    with decoding(folder, "a run", "train again, or leave this folder out"):
        cfg = read_yaml(folder / CONFIG, "the config of a run", "train again, or leave this folder out")
        pair = (int(cfg["seed"]), str(cfg["data"]["root"]))
        # Older runs say rung.
        variant = cfg.get("variant") or cfg.get("rung") or results.variant
    names = [evaluation.checkpoint for evaluation in results.evaluations]
    if variant is None:
        raise _SkippedError("it belongs to no variant; train with variant=NAME")
    if checkpoint not in names:
        there = ", ".join(dict.fromkeys(names)) or "none"
        raise InputError(f"{path} has no checkpoint {checkpoint}; there is {there}; give checkpoint=NAME")
    # The first is that of the data set proper by the run's own feature; others come from data.also, or are of the
    # embedding alone.
    first = results.evaluations[names.index(checkpoint)]
    if feature == "headline":
        return FinishedRun(folder, str(variant), pair, results, first)
    wanted = (checkpoint, first.data, ALONE)
    alone = [one for one in results.evaluations if (one.checkpoint, one.data, one.feature) == wanted]
    if not alone:
        raise InputError(f"{path} has no scores of the embedding alone; {_AGAIN}")
    return FinishedRun(folder, str(variant), pair, results, alone[0])


def _read_queries(path: Path, means: Mapping[str, float]) -> pl.DataFrame:
    """Read the results of each query, sorted by query.

    Args:
        path: their file.
        means: score -> mean that the results of the run say they have.

    Raises:
        InputError: if the file is missing, damaged, or does not belong to the results.
    """
    if not path.is_file():
        raise InputError(f"{path}, with the results of each query, is missing; {_AGAIN}")
    columns = ("query", "person", "first_hit", "ap")
    table, _ = read_table(path, "the results of each query", _AGAIN, columns=columns, sealed=False)
    with decoding(path, "the results of each query", _AGAIN):
        table = table.select(
            pl.col("query", "person").cast(pl.String),
            (pl.col("first_hit").cast(pl.Float64) <= 1).cast(pl.Float64).alias("r1"),
            pl.col("ap").cast(pl.Float64).alias("map"),
        )
    complete = not table.is_empty() and not any(column.null_count() for column in table)
    for key, value in means.items():
        mean = float(table[key].to_numpy().mean()) if complete else float("nan")
        if not abs(mean - value) <= _ROUNDING:
            # Where galleries are drawn, a query's first hit is a mean over the draws, which hides the hits.
            raise InputError(
                f"{path}: {SCORES[key]} of its {len(table)} queries is {mean:.4f}, but {RESULTS} says "
                f"{value:.4f}; choose a protocol that draws no galleries, or {_AGAIN}"
            )
    return table.sort("query", maintain_order=True)
