"""`results.json` is written and read by one module, which knows its earlier versions."""

import json
from pathlib import Path
from typing import Any

import pytest

from clip3dreid.errors import InputError
from clip3dreid.report.results import (
    CheckpointResults,
    OldResultsError,
    RunCost,
    RunResults,
    read_results,
    write_results,
)

SCORES = {"general": {"r1": 0.5}, "clothes_changing": {"r1": 0.25}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    last = CheckpointResults("last", "last epoch", "ltcc", SCORES, {"general": "a.parquet"}, "general")
    results = RunResults(3, "cal", "cosine", True, (last,), RunCost(0.1, 32, 100), {"ltcc": ["a note"]})
    path = write_results(tmp_path, results)
    assert json.loads(path.read_text())["version"] == 3
    assert read_results(path) == results


def facts(**changed: Any) -> dict[str, Any]:
    evaluation = {
        "checkpoint": "last", "selected_by": "last epoch", "data": "ltcc", "results": SCORES, "per_query": {},
    }  # fmt: skip
    return {"version": 2, "seed": 1, "rung": "cal", "evaluations": [evaluation]} | changed


def test_results_of_before_the_renaming_are_read_and_their_last_protocol_is_the_headline(
    tmp_path: Path,
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(facts()))
    results = read_results(tmp_path / "results.json")
    assert (results.variant, results.evaluations[0].headline) == ("cal", "clothes_changing")
    assert results.cost == RunCost()


def test_other_versions_and_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(facts(version=1)))
    with pytest.raises(OldResultsError, match="version 1, not 2 or 3; train again"):
        read_results(path)
    path.write_text(json.dumps(facts(evaluations=[{}])))
    with pytest.raises(
        InputError, match=r"results.json cannot be read as the results of a run .*; start over"
    ):
        read_results(path, "start over")
