"""A training says what it is about to do, a line an epoch, and on a terminal how long all of it will take."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clip3dreid.training.progress import Epoch, span
from tests.conftest import TINY, Command
from tests.processes import PATIENCE_S
from tests.training.test_run import column

OPENING = ["data", "student", "guides", "device", "steps", "folder"]
EPOCH = re.compile(
    r"epoch (\d+) of 2; loss ([\d.]+) \(identity ([\d.]+)\); lr (\S+); [\d.]+ s, 0:\d\d:\d\d left(.*)"
)
HELD_OUT = (
    "data.val_people=2",
    "epochs=2",
    "evaluate_every=2",
    "optimizer.optimizer.lr=1e-4",
    "milestones=[1]",
)


def epoch_line(**changes: Any) -> str:
    facts: dict[str, Any] = {
        "epoch": 3, "epochs": 60, "loss": {"total": 2.5, "identity": 2.0, "global": 0.25}, "learning_rate": 3.5e-4,
        "seconds": 12.34, "seconds_left": 3725.0, "val": {},
    }  # fmt: skip
    return Epoch(**facts | changes).text()


def test_an_epoch_s_line_has_loss_and_terms_rate_time_and_scores() -> None:
    start = "epoch 3 of 60; loss 2.500 (identity 2.000, global 0.250); lr 3.50e-04; 12.3 s, 1:02:05 left"
    assert epoch_line() == start
    scores = {"ltcc/general": {"r1": 0.5, "map": 0.25, "minp": 0.1}}
    assert epoch_line(val=scores) == f"{start}; val general R1 50.0, mAP 25.0"
    both = scores | {"prcc/general": {"r1": 1.0, "map": 1.0}}
    assert epoch_line(val=both).endswith(
        "; val ltcc/general R1 50.0, mAP 25.0; val prcc/general R1 100.0, mAP 100.0"
    )
    assert epoch_line(seconds_left=None).endswith("; 12.3 s")
    assert epoch_line(loss={"naming": 1.0}).startswith("epoch 3 of 60; naming 1.000; lr")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (90_061, "25:01:01")])
def test_a_span_is_read_as_hours_minutes_seconds(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.fixture(scope="module")
def talking(ltcc_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A run whose output is redirected: its folder, lines of stdout, stderr."""
    place = tmp_path_factory.mktemp("talking")
    done = subprocess.run(
        [sys.executable, "-m", "clip3dreid", "train", "data=ltcc", f"data.root={ltcc_root}", *TINY, *HELD_OUT],
        cwd=place, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (place / "runs" / "ltcc").iterdir()
    return run, done.stdout.splitlines(), done.stderr


def test_six_lines_say_what_is_about_to_be_done(talking: tuple[Path, list[str], str]) -> None:
    run, lines, _ = talking
    start = next(place for place, line in enumerate(lines) if line.startswith("data "))
    opening = dict(line.split(maxsplit=1) for line in lines[start : start + 6])
    assert list(opening) == OPENING
    assert opening["data"] == "ltcc: 4 people, 32 pictures, 8 outfits, 2 cameras, tested on 4 people"
    assert re.fullmatch(r"resnet18: 0\.2 M parameters, pictures 32x16, from nothing", opening["student"])
    assert opening["guides"] == "none: labels alone"
    assert opening["device"] == "cpu, 32-true, 1 process"
    assert opening["steps"] == "4 an epoch, 2 epochs: 8"
    assert opening["folder"] == str(run)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_ce_resnet18_seed1", run.name)


def test_an_epoch_s_line_says_what_is_logged(talking: tuple[Path, list[str], str]) -> None:
    run, lines, _ = talking
    epochs = [found for line in lines if (found := EPOCH.fullmatch(line))]
    assert [int(one[1]) for one in epochs] == [1, 2]
    assert [float(one[2]) for one in epochs] == pytest.approx(column(run, "loss/total"), abs=5e-4)
    assert [float(one[3]) for one in epochs] == pytest.approx(column(run, "loss/identity"), abs=5e-4)
    # The rate of the epoch itself, not of the next one.
    assert [float(one[4]) for one in epochs] == pytest.approx(column(run, "lr-Adam"), rel=1e-2)
    assert epochs[0][4] != epochs[1][4]
    # Evaluated in the second one alone.
    score = 100 * column(run, "val/ltcc/clothes_changing/r1")[0]
    assert [one[5] == "" for one in epochs] == [True, False]
    assert f"; val clothes_changing R1 {score:.1f}, mAP" in epochs[1][5]


def test_both_logs_have_the_lines_and_the_table_and_no_bar(talking: tuple[Path, list[str], str]) -> None:
    run, lines, errors = talking
    log = (run / "train.log").read_text()
    start = next(place for place, line in enumerate(lines) if line.startswith("data "))
    for line in lines[start:]:
        assert line in log
    assert log.count("chance R1") == sum("chance R1" in line for line in lines) == 2  # last and best
    assert log.count("] - epoch ") == 2
    assert errors == ""
    assert "\x1b" not in "".join(lines)
    assert "\r" not in "".join(lines)


def test_quiet_leaves_the_table(ltcc_root: Path, invoke: Command, tmp_path: Path) -> None:
    arguments = ["data=ltcc", f"data.root={ltcc_root}", *TINY, "epochs=1", "output=quiet"]
    done = invoke("train", *arguments, "hydra.run.dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ltcc, last checkpoint (last epoch)\n┏")
    assert "epoch 1 of 1" not in done.stdout
    assert "epoch 1 of 1" in (tmp_path / "run" / "train.log").read_text()
    wrong = invoke("train", *arguments, "datamodule.people=50")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert wrong.stdout == ""


def test_a_program_reads_start_epochs_and_results(ltcc_root: Path, invoke: Command, tmp_path: Path) -> None:
    """In a sweep of two runs too, of which Hydra has something to say."""
    arguments = [
        "data=ltcc",
        f"data.root={ltcc_root}",
        *TINY,
        *HELD_OUT,
        "output=json",
        "hydra.sweep.dir=sweep",
    ]
    done = invoke("train", "-m", *arguments, "seed=1,2")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "epoch", "epoch", "results"] * 2
    start, first, second, results = events[4:]
    run = tmp_path / "sweep" / "1_ltcc_ce_resnet18_seed2"
    assert Path(start["folder"]) == run
    assert start["data"][0] == {
        "name": "ltcc", "people": 4, "tracklets": 0, "pictures": 32, "outfits": 8, "cameras": 2, "test_people": 4,
    }  # fmt: skip
    assert (start["steps"], start["processes"], start["goes_on_from"]) == (8, 1, None)
    assert [first["loss"]["total"], second["loss"]["total"]] == pytest.approx(
        column(run, "loss/total"), rel=1e-5
    )
    assert first["val"] == {}
    assert second["val"]["ltcc/general"]["r1"] == pytest.approx(column(run, "val/ltcc/general/r1")[0])
    assert second["seconds_left"] == 0
    written = json.loads((run / "results.json").read_text())
    assert results["evaluations"] == written["evaluations"]


def in_terminal(place: Path, *arguments: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "clip3dreid", *arguments],
        cwd=place, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # as Linux says that nobody writes there any more
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait(PATIENCE_S) == 0, written.decode()
    return written.decode()


def test_a_terminal_has_a_bar_with_the_time_left_of_all_of_it_and_whole_lines(
    ltcc_root: Path, tmp_path: Path
) -> None:
    written = in_terminal(tmp_path, "train", "data=ltcc", f"data.root={ltcc_root}", *TINY, "epochs=3")
    # Half of the way is the second of three epochs: the bar is the whole training's.
    assert re.search(r"epoch 3 of 3 .*\b100 % 0:00:00 left", written)
    assert "test " in written
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split("\r")[-1] for line in written.split("\r\n")]
    assert [line[:12] for line in lines if line.startswith("epoch ") and "; loss " in line] == [
        "epoch 1 of 3", "epoch 2 of 3", "epoch 3 of 3",
    ]  # fmt: skip
    # A killed process must leave the terminal its cursor: shown again as soon as the bar stands.
    for hidden in re.finditer(r"\x1b\[\?25l", written):
        assert "\x1b[?25h" in written[hidden.end() : hidden.end() + 600]


def test_a_resumed_run_says_where_it_goes_on_and_counts_from_there(ltcc_root: Path, invoke: Command) -> None:
    arguments = ["data=ltcc", f"data.root={ltcc_root}", *TINY, "hydra.run.dir=run"]
    assert invoke("train", *arguments, "epochs=1").returncode == 0
    done = invoke("train", "resume=run", "epochs=2", "output=auto")
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on after 1 epochs, from .*last\.ckpt", done.stdout)
    assert "output" not in done.stdout  # how a run talks is nothing that changed of it
    assert re.findall(r"^epoch (\d) of 2", done.stdout, re.M) == ["2"]
    machine = invoke("train", "resume=run", "epochs=3", "output=json")
    start, epoch, _ = map(json.loads, machine.stdout.splitlines())
    assert start["goes_on_from"].endswith("run/checkpoints/last.ckpt")
    assert epoch["epoch"] == 3


def test_guides_are_named_with_what_was_embedded_before(
    ltcc_root: Path, guided: tuple[str, ...], invoke: Command
) -> None:
    arguments = ["data=ltcc", f"data.root={ltcc_root}", *TINY, *guided, "epochs=1"]
    arguments += [
        "loss=[identity,local,global,body]",
        "model.teacher.cache=disk",
        "model.teacher.cache_dir=cache",
    ]
    for found, seed in ((0, 1), (48, 2)):
        done = invoke("train", *arguments, f"seed={seed}")
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("guides ")]
        words, bodies, view = (
            "16 words a person by body_clip",
            "8 bodies from ",
            "body_clip's view of each picture",
        )
        assert f"body_clip: 48 pictures embedded, {found} of them before, in cache" in line
        assert line.count("pictures embedded") == 1
        assert all(part in line for part in (words, bodies, view))
