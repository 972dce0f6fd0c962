"""Read the files of a finished run, also of one that was made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from clip3dreid.errors import InputError
from clip3dreid.io.formats import damaged, decoding, read_json, read_table, read_yaml
from clip3dreid.io.run_folder import CONFIG, ENVIRONMENT, LABELS, RESULTS
from clip3dreid.report.figures import Line
from clip3dreid.report.results import CheckpointResults, RunResults, read_results
from clip3dreid.report.training_log import read_log

_ADVICE = "train again, or copy the run anew"
_NEEDS = ("query", "person", "first_hit", "ap", "positives", "junk")


@dataclass(frozen=True)
class ReviewedRun:
    """A finished run.

    Attributes:
        folder: of the run.
        results: all scores.
        evaluation: those of the checkpoint that is reported, on the data set proper, by the run's own feature.
    """

    folder: Path
    results: RunResults
    evaluation: CheckpointResults
    _tables: dict[str, pl.DataFrame] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Return what the run is called: its variant and seed, or its folder."""
        variant = self.results.variant
        return self.folder.resolve().name if variant is None else f"{variant}, seed {self.results.seed}"

    @property
    def scores(self) -> Mapping[str, Any]:
        """Return the scores of the headline."""
        return self.evaluation.results[self.evaluation.headline]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Return what the run was asked for.

        Raises:
            InputError: if it is missing or damaged.
        """
        found = read_yaml(self.folder / CONFIG, "the config of a run", _ADVICE)
        if not isinstance(found, dict):
            raise InputError(f"{self.folder / CONFIG} holds no keys; {_ADVICE}")
        return found

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """Return what its numbers depend on besides.

        Raises:
            InputError: if it is missing or damaged.
        """
        path = self.folder / ENVIRONMENT
        found = read_json(path, "the environment of a run", _ADVICE)
        for key in ("git", "packages", "data", "guides"):
            if not isinstance(found.get(key) or {}, dict):
                raise damaged(path, f"its {key} holds no keys", _ADVICE)
        return found

    @property
    def machine(self) -> Mapping[str, Any]:
        """Return the environment where it can be read, for what does without it; else nothing."""
        try:
            return self.environment
        except InputError:
            return {}

    @cached_property
    def log(self) -> Mapping[str, Line]:
        """Return what it logged; errors as of `training_log.read_log`."""
        return read_log(self.folder)

    def queries(self, protocol: str) -> pl.DataFrame:
        """Return what became of each query under a protocol, as `retrieval.evaluation.query_table` has it.

        Raises:
            InputError: if the file is missing or damaged.
        """
        if protocol not in self._tables:
            if protocol not in self.evaluation.per_query:
                raise InputError(f"{self.folder / RESULTS} names no file of the queries under {protocol}")
            place = self.evaluation.per_query[protocol]
            path = self.folder / place
            if Path(place).is_absolute() or ".." in Path(place).parts:
                raise InputError(f"{self.folder / RESULTS} names {place}, which is outside the run's folder")
            table, _ = read_table(path, "the results of each query", _ADVICE, columns=_NEEDS, sealed=False)
            self._tables[protocol] = table
        return self._tables[protocol]

    def labels(self) -> pl.DataFrame:
        """Return the words of the training people: `data_set`, `person`, `group`, `word`, `score`, `margin`.

        Raises:
            InputError: if there are none, or they are damaged.
        """
        path = self.folder / LABELS
        if not path.is_file():
            raise InputError(f"the run has no {LABELS}: no words guided it")
        needs = ("data_set", "person", "group", "word", "score", "margin")
        return read_table(path, "labels", _ADVICE, needs=needs)[0]


def read_run(folder: Path, checkpoint: str) -> ReviewedRun:
    """Read the results of a run; what else it left is read when it is asked for.

    Args:
        folder: of the run.
        checkpoint: whose scores are reported.

    Raises:
        InputError: if it is no folder of a finished run, or its results are damaged, or not of that checkpoint.
    """
    if not folder.is_dir():
        raise InputError(f"run={folder} is no folder; give the folder of a finished run")
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(
            f"{folder} has no {RESULTS}: the run is not finished, or this is none; give the folder of a finished run"
        )
    results = read_results(path, _ADVICE)
    names = list(dict.fromkeys(one.checkpoint for one in results.evaluations))
    chosen = [one for one in results.evaluations if one.checkpoint == checkpoint]
    if not chosen:
        there = ", ".join(names) or "none"
        raise InputError(f"{path} has no checkpoint {checkpoint}; there is {there}; give checkpoint=NAME")
    with decoding(path, "the results of a run", _ADVICE):
        scores = chosen[0].results[chosen[0].headline]
        _ = {key: float(scores[key]) for key in ("r1", "r5", "r10", "map", "chance_r1")}
        _ = {key: int(scores[key]) for key in ("queries", "valid_queries", "gallery")}
    return ReviewedRun(folder, results, chosen[0])
