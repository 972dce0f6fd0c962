import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clip3dreid.errors import InputError
from clip3dreid.training import tuning
from clip3dreid.training.tuning import Domain, TuningSettings, search_space, tune
from tests.conftest import TINY, Command

pytest.importorskip("optuna")
SPACE = search_space({"lr": {"low": 1e-4, "high": 1.0, "log": True}, "epochs": {"low": 1, "high": 9}})


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Trainings without a process: the mAP is the learning rate, a tenth of it in the first of three epochs."""
    calls: list[dict[str, str]] = []

    @contextmanager
    def training(words: Sequence[str], run: Path) -> Iterator[Iterator[Mapping[str, Any]]]:
        calls.append(dict(word.split("=", 1) for word in words))
        rate = float(calls[-1]["lr"])
        scores = (0.1 * rate, rate, 0.5 * rate)
        yield iter(
            [{"event": "start"}]
            + [
                {
                    "event": "epoch",
                    "epoch": n,
                    "val": {"w/general": {"map": 1.0}, "w/clothes_changing": {"map": score}},
                }
                for n, score in enumerate(scores, start=1)
            ]
        )

    monkeypatch.setattr(tuning, "_training", training)
    return calls


def test_the_best_trial_is_that_whose_best_epoch_finds_held_out_people_best(
    trained: list[dict[str, str]], tmp_path: Path
) -> None:
    found = tune(["data=w"], SPACE, TuningSettings(trials=8, prune=False), tmp_path)
    rates = [float(call["lr"]) for call in trained]
    assert found.trials == len(rates) == 8
    assert found.value == max(rates)
    assert found.folder == tmp_path / f"trial_{rates.index(max(rates)):04d}"
    assert f"lr={max(rates)}" in found.overrides
    assert all(call["data"] == "w" and 1 <= int(call["epochs"]) <= 9 for call in trained)
    assert [float(row["map"]) for row in table(tmp_path)] == rates


def test_a_trial_below_the_median_of_the_others_is_ended_early(
    trained: list[dict[str, str]], tmp_path: Path
) -> None:
    tune([], SPACE, TuningSettings(trials=12, startup_trials=2), tmp_path)
    rows = table(tmp_path)
    assert {row["state"] for row in rows} == {"complete", "pruned"}
    best = max(float(row["lr"]) for row in rows)
    assert next(row for row in rows if float(row["lr"]) == best)["state"] == "complete"


def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(
    trained: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TuningSettings(trials=6, prune=False, startup_trials=3)
    whole = tune([], SPACE, settings, tmp_path / "whole")
    drawn = [call["lr"] for call in trained]
    trained.clear()
    fake = tuning._training

    @contextmanager
    def killed(words: Sequence[str], run: Path) -> Iterator[Iterator[Mapping[str, Any]]]:
        if len(trained) == 2:
            raise KeyboardInterrupt
        with fake(words, run) as events:
            yield events

    monkeypatch.setattr(tuning, "_training", killed)
    with pytest.raises(KeyboardInterrupt):
        tune([], SPACE, settings, tmp_path / "cut")
    monkeypatch.setattr(tuning, "_training", fake)
    found = tune([], SPACE, settings, tmp_path / "cut")
    assert found.trials == 6
    assert [call["lr"] for call in trained][:3] == drawn[:3]
    states = [row["state"] for row in table(tmp_path / "cut")]
    assert sorted(states) == ["complete"] * 6 + ["fail"]
    assert found.value > 0
    assert whole.trials == 6
    # All there were to be: nothing is trained.
    trained.clear()
    assert tune([], SPACE, settings, tmp_path / "cut") == found
    assert not trained


def test_a_search_without_held_out_people_or_their_protocol_is_refused(
    trained: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match="no protocol for objective=novel on held-out people; there are w/general, w/clo"
    ):
        tune([], SPACE, TuningSettings(objective="novel"), tmp_path / "a")

    @contextmanager
    def none(words: Sequence[str], run: Path) -> Iterator[Iterator[Mapping[str, Any]]]:
        yield iter([{"event": "epoch", "epoch": 1, "val": {}}])

    monkeypatch.setattr(tuning, "_training", none)
    with pytest.raises(InputError, match=r"no held-out people were evaluated.*add data\.val_people=30"):
        tune([], SPACE, TuningSettings(), tmp_path / "b")


def test_a_trial_that_fails_is_one_of_the_trials_unless_it_is_the_first(
    trained: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tuning._training

    @contextmanager
    def failing(words: Sequence[str], run: Path) -> Iterator[Iterator[Mapping[str, Any]]]:
        if run.name == failing_run:
            raise tuning._FailedError("loss is not finite")
        with fake(words, run) as events:
            yield events

    monkeypatch.setattr(tuning, "_training", failing)
    failing_run = "trial_0001"
    found = tune([], SPACE, TuningSettings(trials=3, prune=False), tmp_path / "a")
    assert found.trials == 3
    assert [row["state"] for row in table(tmp_path / "a")] == ["complete", "fail", "complete"]
    failing_run = "trial_0000"
    with pytest.raises(InputError, match="trial_0000 could not be trained: loss is not finite"):
        tune([], SPACE, TuningSettings(trials=3), tmp_path / "b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 1, "high": 1}, "lr needs low below high"),
        ({"low": "few", "high": 1}, "lr needs low below high"),
        ({"low": 0, "high": 1, "log": True}, "low=0 must be above 0"),
        ({"low": 0, "high": 1, "choices": [1]}, "both choices and a range"),
        ({"least": 0, "high": 1}, "needs {low, high, log} or {choices}"),
        (3, "needs {low, high, log} or {choices}"),
    ],
)
def test_a_space_that_is_none_is_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        search_space({"lr": values})


def test_choices_are_kept_as_they_are() -> None:
    assert search_space({"method": {"choices": ["ce", "cal"]}}) == (Domain("method", choices=("ce", "cal")),)
    with pytest.raises(InputError, match="space has no settings"):
        search_space({})


def test_what_is_wrong_with_either_command_line_is_told_before_anything_is_trained(
    invoke: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line, message in (
        (["out=s"], "nothing to train"),
        (["--", "data=ltcc"], "out"),
        (["out=s", "--", "data=ltcc", "epohcs=3"], "epohcs"),
        (["out=s", "train=[a]", "--", "data=ltcc"], "not both ways"),
        (["out=s", "--", "data=ltcc", "-m"], "-m may not stand behind --"),
        (["out=s", "trials=0", "--", "data=ltcc"], "trials=0"),
    ):
        done = invoke("tune", *line)
        assert done.returncode == 2, (line, done.stderr)
        assert message in done.stderr
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = invoke("tune", "out=s", "--", "data=ltcc")
    assert done.returncode == 2
    assert "pip install 'clip3dreid[optuna]'" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_three_trainings_are_trials_and_their_number_may_grow(
    command: Command, ltcc_root: Path, tmp_path: Path
) -> None:
    training = [
        "data=ltcc", f"data.root={ltcc_root}", *TINY, "datamodule.people=2", "data.val_people=2", "evaluate_every=1",
        "epochs=2",
    ]  # fmt: skip
    for trials in (2, 3):
        done = command("tune", "out=study", f"trials={trials}", "--", *training)
        assert done.returncode == 0, done.stderr
        assert f"best of {trials}: clothes_changing mAP" in done.stdout
    rows = table(tmp_path / "study")
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert all((tmp_path / "study" / row["folder"] / "results.json").is_file() for row in rows)
    assert len({row["optimizer.optimizer.lr"] for row in rows}) == 3
