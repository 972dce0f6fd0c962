"""The estimates, through the command line."""

import json
from pathlib import Path

import pytest

from tests.conftest import Command


def test_pictures_and_people_are_those_of_the_data(invoke: Command, ltcc_root: Path, tmp_path: Path) -> None:
    done = invoke(
        *("size", "data=ltcc", f"data.root={ltcc_root}", "gpus=2", "gallery=3000000", "epochs=10"),
        *("own.train=4", "columns=512", "out=o.json"),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "o.json").read_text())
    assert (said["asked"]["pictures"], said["asked"]["people"]) == (48, 6)
    hours = {line["what"]: line["value"] for line in said["estimates"]}["training"]
    assert hours == 48 * 10 / 8 / 3600
    assert said["figures"]["train"]["source"] == "yours: own.train"
    assert "yours: own.train" in done.stdout
    assert "RESULTS" in done.stdout
    assert "engine=lance" in done.stdout


def test_what_is_said_stands_in_the_place_of_the_data(
    invoke: Command, ltcc_root: Path, tmp_path: Path
) -> None:
    done = invoke("size", "data=ltcc", f"data.root={ltcc_root}", "people=1000000", "out=o.json")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "o.json").read_text())
    assert (said["asked"]["pictures"], said["asked"]["people"]) == (48, 1_000_000)
    assert "one identity head" in done.stdout
    alone = invoke("size")
    assert alone.returncode == 0, alone.stderr
    assert "│ training " not in alone.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gallery=1000000000"], "gallery=1000000000"),
        (["gpus=0"], "gpus=0"),
        (["own.train=-1"], "own.train=-1"),
        (["own.train=fast"], "own.train=fast"),
        (["own.speed=1"], "own.speed"),
        (["measured=nothing"], "measured"),
        (["data=ltcc"], "data.root is not set"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_two(
    invoke: Command, arguments: list[str], message: str
) -> None:
    done = invoke("size", *arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr.splitlines()[-1]
