"""Damaged files of every kind: refused in a line or read as they were; see `tests.damage`.

Exceptions are stated where the kinds are: formats without a checksum (CSV, which is made to be edited; SMPL's
pickles, which others write; pictures, whose readers compare none) can give another result, and never anything worse.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.damage import KINDS

ROOT = Path(__file__).parents[1]
Reports = dict[str, dict[str, Any]]


def reports(folder: Path, count: int) -> Reports:
    """What became of `count` mutations of each kind."""
    command = [sys.executable, "-m", "tests.damage", str(folder), str(count)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {found["kind"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return reports(tmp_path_factory.mktemp("damage"), 25)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    found = reports(tmp_path_factory.mktemp("damage"), 500)
    for name, report in found.items():
        print(f"{name:30}", ", ".join(f"{how} {count}" for how, count in sorted(report["counts"].items())))  # noqa: T201
    return found


def check(report: dict[str, Any], count: int) -> None:
    counts = report["counts"]
    allowed = {"equal", "refused"} | (set() if KINDS[report["kind"]].tells else {"other"})
    assert sum(counts.values()) == count
    assert not counts.keys() - allowed, {how: report["examples"][how] for how in counts.keys() - allowed}
    # Most damage is noticed, or the mutations are none.
    assert counts["refused"] > 0


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_in_a_line_or_read_as_it_was(name: str, few: Reports) -> None:
    check(few[name], 25)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_of_many_damaged_files_each_is_refused_in_a_line_or_read_as_it_was(name: str, many: Reports) -> None:
    check(many[name], 500)
