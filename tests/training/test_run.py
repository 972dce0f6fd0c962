"""Whole runs on a tiny data set, through the command line, as a user starts them."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clip3dreid.errors import InputError
from clip3dreid.model.normalisation import FrozenBatchNorm1d
from clip3dreid.training.checks import check_norms
from tests.conftest import TINY, Command, trained, write_ltcc
from tests.processes import PATIENCE_S

RUN = "hydra.run.dir=run"
PROTOCOLS = ("general", "same_clothes", "clothes_changing")


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(run) if row.get(name)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return state["state_dict"]


@pytest.fixture(scope="module")
def finished(ltcc_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 epochs with two people held out and the clothes-based adversarial loss from epoch 1."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = [
        "data=ltcc", f"data.root={ltcc_root}", *TINY, "method=cal", "clothes_start_epoch=1", "data.val_people=2",
        "epochs=6", "evaluate_every=2", RUN,
    ]  # fmt: skip
    return trained(folder, *arguments)


def test_last_and_best_are_both_evaluated_and_both_say_how_they_were_chosen(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    found = {(entry["checkpoint"], entry["selected_by"]) for entry in results["evaluations"]}
    assert found == {("last", "last epoch"), ("best", "best val/ltcc/clothes_changing/r1 on held-out people")}
    for entry in results["evaluations"]:
        assert tuple(entry["results"]) == PROTOCOLS
        for scores in entry["results"].values():
            assert 0 <= scores["map"] <= 1
            # 4 test people, 2 outfits, 2 cameras: 16 queries and 16 gallery pictures.
            assert (scores["queries"], scores["gallery"]) == (16, 16)


def test_the_table_names_every_protocol(finished: Path) -> None:
    text = (finished / "stdout.txt").read_text()
    for name in PROTOCOLS:
        assert name in text
    assert "chance" in text


def test_every_loss_term_the_rate_and_every_protocol_are_logged(finished: Path) -> None:
    assert len(column(finished, "loss/identity")) == 6
    assert len(column(finished, "loss/total")) == 6
    adversarial = [name for name in rows(finished)[0] if name.startswith("loss/clothes_adversarial")]
    assert adversarial
    # The term starts at epoch 1, counted from 0.
    assert all(len(column(finished, name)) == 5 for name in adversarial)
    for name in PROTOCOLS[::2]:
        assert len(column(finished, f"val/ltcc/{name}/r1")) == 3
    assert any(name.startswith("lr-") for name in rows(finished)[0])


def test_the_run_records_config_versions_seed_and_split_counts(finished: Path) -> None:
    facts = json.loads((finished / "environment.json").read_text())
    assert facts["packages"]["torch"]
    assert facts["seed"] == 1
    assert facts["data"]["ltcc"]["train/train"] == {"pictures": 32, "people": 4}
    assert facts["data"]["ltcc"]["val/query"]["people"] == 2
    assert "epochs: 6" in (finished / "config.yaml").read_text()


def test_a_checkpoint_is_plain_data_and_carries_its_own_description(finished: Path) -> None:
    state = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["clip3dreid"]["student"]["_target_"] == "clip3dreid.model.student.Student"
    assert (state["clip3dreid"]["height"], state["clip3dreid"]["width"]) == (32, 16)


def test_evaluating_the_checkpoint_alone_gives_the_scores_of_the_run(
    finished: Path, ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke(
        "evaluate", f"checkpoint={finished}/checkpoints/last.ckpt", "data=ltcc", f"data.root={ltcc_root}",
        "datamodule.workers=0", "trainer=cpu", "out=scores.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / "scores.json").read_text())["results"]
    last = json.loads((finished / "results.json").read_text())["evaluations"][0]["results"]
    for name in PROTOCOLS:
        for key in ("r1", "map", "minp"):
            assert alone[name][key] == pytest.approx(last[name][key], abs=1e-9)


def test_cross_data_set_evaluation_needs_no_config_of_the_model(
    finished: Path, invoke: Command, tmp_path: Path
) -> None:
    other = write_ltcc(tmp_path / "other", train=range(1), test=range(40, 43))
    # The headline is not among the latter, and nothing is selected by it here.
    for protocols in (["clothes_changing"], ["general", "same_clothes"]):
        done = invoke(
            "evaluate", f"checkpoint={finished}/checkpoints/best.ckpt", "data=ltcc", f"data.root={other}",
            f"protocol=[{','.join(protocols)}]", "datamodule.workers=0", "trainer=cpu", "out=o.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        facts = json.loads((tmp_path / "o.json").read_text())
        assert list(facts["results"]) == protocols
        assert facts["trained_on"] == ["ltcc"]


def test_fine_tuning_starts_from_a_trained_student_on_other_people(
    finished: Path, invoke: Command, tmp_path: Path
) -> None:
    other = write_ltcc(tmp_path / "other", train=range(50, 54), test=range(40, 43))
    done = invoke(
        "train", "data=ltcc", f"data.root={other}", f"init_from={finished}/checkpoints/last.ckpt", "epochs=1",
        "optimizer.optimizer.lr=0", "optimizer.optimizer.weight_decay=0", RUN, *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = weights(finished), weights(tmp_path / "run")
    parameters = [name for name in before if name.startswith("student.") and name.endswith("conv1.weight")]
    assert parameters
    for name in parameters:
        assert torch.equal(before[name], after[name])


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_resumes_and_ends_where_an_undisturbed_one_does(
    ltcc_root: Path, command: Command, tmp_path: Path
) -> None:
    arguments = ["data=ltcc", f"data.root={ltcc_root}", "epochs=5", *TINY]
    whole = command("train", *arguments, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "clip3dreid.train", *arguments, "hydra.run.dir=killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Lightning writes the checkpoint of an epoch first and its log after that.
    log = tmp_path / "killed" / "csv" / "metrics.csv"
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not (log.exists() and "loss/identity" in log.read_text()):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.json").exists(), "the run ended before it could be killed"
    done = command("train", "resume=killed")
    assert done.returncode == 0, done.stderr
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    # Both parts of the log are there.
    (earlier,) = (tmp_path / "killed" / "csv").glob("metrics.*.csv")
    assert "loss/identity" in earlier.read_text()
    assert "4" in {row["epoch"] for row in rows(tmp_path / "killed")}
    both = [
        json.loads((tmp_path / run / "results.json").read_text())["evaluations"]
        for run in ("whole", "killed")
    ]
    assert both[0] == both[1]


def test_a_sweep_makes_one_run_for_each_seed(ltcc_root: Path, invoke: Command, tmp_path: Path) -> None:
    done = invoke(
        "train",
        "-m",
        "seed=1,2",
        "data=ltcc",
        f"data.root={ltcc_root}",
        "epochs=1",
        "hydra.sweep.dir=sweep",
        *TINY,
    )
    assert done.returncode == 0, done.stderr
    jobs = ["0_ltcc_ce_resnet18_seed1", "1_ltcc_ce_resnet18_seed2"]
    seeds = [json.loads((tmp_path / "sweep" / job / "results.json").read_text())["seed"] for job in jobs]
    assert seeds == [1, 2]


def test_a_sweep_that_meets_the_runs_of_another_leaves_their_records_as_they_are(
    ltcc_root: Path, invoke: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ["-m", "data=ltcc", f"data.root={ltcc_root}", "epochs=1", "hydra.sweep.dir=sweep", *TINY]
    assert invoke("train", *sweep, "seed=1,2").returncode == 0
    job = "0_ltcc_ce_resnet18_seed1"
    record = tmp_path / "sweep" / job / ".hydra"
    before = {path.name: path.read_bytes() for path in record.iterdir()}
    assert sorted(before) == ["config.yaml", "hydra.yaml", "overrides.yaml"]
    done = invoke("train", *sweep, "seed=1,3")
    assert done.returncode == 2
    assert f"{job} holds a run already" in done.stderr
    assert {path.name: path.read_bytes() for path in record.iterdir()} == before
    assert "going on after 1 epoch" in invoke("train", f"resume=sweep/{job}", "epochs=2").stdout
    # Two that are named after the same second.
    monkeypatch.setattr("clip3dreid.config.run_folder._asked", lambda *_: False)
    assert invoke("train", *sweep, "seed=5,6").returncode == 0
    assert (tmp_path / "sweep_2" / "1_ltcc_ce_resnet18_seed6" / "results.json").is_file()


def test_two_data_sets_train_together_with_disjoint_people(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    # The second set reuses the numbers of the first: 6 + 6 people all the same.
    done = invoke(
        "train", "data=ltcc", f"data.root={ltcc_root}", "+data@data.also.second=ltcc",
        f"data.also.second.root={ltcc_root}", "data.also.second.name=second", "epochs=1", "datamodule.people=12", RUN,
        *[override for override in TINY if "people" not in override],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    evaluations = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    assert [entry["data"] for entry in evaluations] == ["ltcc", "second"]
    assert weights(tmp_path / "run")["losses.terms.identity.head.weight"].shape[0] == 12


def test_selecting_on_test_data_is_possible_and_said(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke(
        "train", "data=ltcc", f"data.root={ltcc_root}", "select_on_test=true", "epochs=1", "evaluate_every=1", RUN,
        *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    evaluations = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    assert "on TEST data" in evaluations[1]["selected_by"]
    assert "TEST" in done.stdout


def test_the_trial_run_learns_a_batch_by_heart_and_estimates_the_real_cost(
    ltcc_root: Path, invoke: Command
) -> None:
    done = invoke(
        "train", "trainer=debug", "data=ltcc", f"data.root={ltcc_root}", RUN, *TINY[:-2], "logger=csv"
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "trial: loss" in line)
    first, last = (float(word) for word in line.split("loss ")[1].split(" over")[0].split(" -> "))
    assert last < first
    assert "60 epochs" in line
    # A model that knows one batch by heart has no score worth keeping.
    assert not list(Path("run").glob("results.json"))


@pytest.mark.parametrize("switch", ["+trainer.limit_test_batches=1", "+trainer.fast_dev_run=true"])
def test_a_smoke_test_that_leaves_pictures_out_has_no_score_and_says_so(
    switch: str, ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    # Euclidean distances to features that are zeros would give a table.
    arguments = ["data=ltcc", f"data.root={ltcc_root}", "epochs=1", "retrieval.metric=euclidean", *TINY]
    done = invoke("train", *arguments, RUN, switch)
    assert done.returncode == 0, done.stderr
    assert "16 of 32 pictures of ltcc were never embedded" in done.stdout
    assert "no score exists, and none is written" in done.stdout
    assert "chance" not in done.stdout
    assert not (tmp_path / "run" / "results.json").exists()


def test_two_runs_that_are_started_at_once_have_a_folder_each(ltcc_root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "clip3dreid.train", "data=ltcc", f"data.root={ltcc_root}", "epochs=1", *TINY,
        "run_name=twins", "hydra.run.dir=runs/${run_name}/${launched:now}",
    ]  # fmt: skip
    both = [
        subprocess.Popen(
            [*command, f"variant={name}"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for name in "AB"
    ]
    outputs = [process.communicate()[0] for process in both]
    # A folder that is asked for by name is one run's; the other is told whose.
    assert sorted(process.returncode for process in both) == [0, 2], outputs
    assert b"is in use: process" in b"".join(outputs) or b"holds a run already" in b"".join(outputs)
    facts = json.loads((tmp_path / "runs" / "twins" / "now" / "results.json").read_text())
    overrides = (tmp_path / "runs" / "twins" / "now" / ".hydra" / "overrides.yaml").read_text()
    assert f"variant={facts['variant']}" in overrides


@pytest.mark.slow
def test_runs_that_are_named_after_the_same_second_have_a_folder_each(
    ltcc_root: Path, tmp_path: Path
) -> None:
    """Single ones, and those of two sweeps, which have the same names in each."""
    same = "2026-11-27_09-00-00"
    (tmp_path / "conf" / "clock").mkdir(parents=True)
    (tmp_path / "conf" / "clock" / "second.yaml").write_text(
        "# @package _global_\nhydra:\n  run:\n    dir: runs/${run_name}/"
        f"{same}_${{method_name:}}_${{student_name:}}_seed${{seed}}\n  sweep:\n    dir: runs/sweeps/{same}\n"
    )
    command = [
        sys.executable, "-m", "clip3dreid", "train", "--config-dir", str(tmp_path / "conf"), "+clock=second",
        "data=ltcc", f"data.root={ltcc_root}", "epochs=1", *TINY,
    ]  # fmt: skip
    started = [
        subprocess.Popen([*command, *more], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for more in ([], [], ["-m"], ["-m"])
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, errors
    name = f"{same}_ce_resnet18_seed1"
    assert sorted(path.name for path in (tmp_path / "runs" / "ltcc").iterdir()) == [name, f"{name}_2"]
    assert sorted(path.name for path in (tmp_path / "runs" / "sweeps").iterdir()) == [same, f"{same}_2"]
    assert len(list((tmp_path / "runs").rglob("results.json"))) == 4


def test_a_wrong_argument_costs_nobody_s_files(invoke: Command, tmp_path: Path) -> None:
    (tmp_path / "mylogs").mkdir()
    (tmp_path / "mylogs" / "of_last_year.log").write_text("precious")
    done = invoke("train", "data=ltcc", "data.root=/nowhere/ltcc", *TINY, "hydra.run.dir=mylogs")
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "mylogs").iterdir()] == ["of_last_year.log"]


BAD = {
    "no data": ([], "no data set"),
    "no root": (["data=ltcc"], "data.root is not set"),
    "missing root": (["data=ltcc", "data.root=/nowhere/ltcc"], "/nowhere/ltcc is not there"),
    "fewer people than P": (["data=ltcc", "data.root=ROOT", "datamodule.people=9"], "9"),
    "mistyped key": (["data=ltcc", "data.root=ROOT", "datamodule.poeple=9"], "poeple"),
    "mistyped root key": (["data=ltcc", "data.root=ROOT", "epocs=9"], "epocs"),
    "mistyped group": (["data=ltc", "data.root=ROOT"], "ltc"),
    "missing weights": (["data=ltcc", "data.root=ROOT", "model.pretrained=/no.pth"], "/no.pth"),
    "all people held out": (["data=ltcc", "data.root=ROOT", "data.val_people=6"], "val_people"),
    "a loss that never starts": (
        ["data=ltcc", "data.root=ROOT", "method=cal", "epochs=5"],
        "clothes_start_epoch",
    ),
    "a protocol without its labels": (
        ["data=ltcc", "data.root=ROOT", "protocol=deepchange_tracklet"],
        "tracklet",
    ),
    "protocols without the headline that selects": (
        ["data=ltcc", "data.root=ROOT", "protocol=[general,same_clothes]"],
        "data.headline=clothes_changing is unknown; choose general or same_clothes",
    ),
    "a mistyped metric": (["data=ltcc", "data.root=ROOT", "retrieval.metric=cosin"], "cosin"),
    "selection twice": (
        ["data=ltcc", "data.root=ROOT", "data.val_people=2", "select_on_test=true"],
        "select_on_test",
    ),
    "a batch-norm group of one": (
        [
            "data=ltcc",
            "data.root=ROOT",
            "datamodule.people=3",
            "datamodule.pictures=3",
            "model.student.ghost_group=4",
        ],
        "no variance",
    ),
    "a batch of one picture": (
        ["data=ltcc", "data.root=ROOT", "datamodule.people=1", "datamodule.pictures=1"],
        "datamodule.people=1 and datamodule.pictures=1 in 1 process(es) leave batch norm one picture",
    ),
    "a batch of one picture without ghost groups": (
        [
            "data=ltcc",
            "data.root=ROOT",
            "datamodule.people=1",
            "datamodule.pictures=1",
            "model.student.ghost_group=null",
        ],
        "leave batch norm one picture at a time",
    ),
    "a recipe before its experiment": (
        ["+recipe=clip3dreid_release", "+experiment=ltcc", "data.root=ROOT"],
        "give the experiment first",
    ),
    "a precision that there is not": (
        ["data=ltcc", "data.root=ROOT", "precision=99"],
        "trainer: Lightning refuses its settings: Precision '99' is invalid",
    ),
    "a rate that goes uphill": (
        ["data=ltcc", "data.root=ROOT", "lr=-1"],
        "refuses its settings: Invalid learning rate: -1",
    ),
    "a batch of nothing to evaluate": (
        ["data=ltcc", "data.root=ROOT", "datamodule.evaluation_batch=0"],
        "datamodule.evaluation_batch=0 must be a whole number, 1 or more",
    ),
    "less than no worker": (
        ["data=ltcc", "data.root=ROOT", "datamodule.workers=-1"],
        "datamodule.workers=-1 must be a whole number, 0 or more",
    ),
    "a height of nothing": (
        ["data=ltcc", "data.root=ROOT", "datamodule.height=0"],
        "datamodule.height=0 must be a whole number, 1 or more",
    ),
    "a seed that no generator takes": (
        ["data=ltcc", "data.root=ROOT", "seed=99999999999999999999"],
        "seed=99999999999999999999 must be a whole number from 0 to 4294967295",
    ),
    "not a run": (["resume=/nowhere"], "not a run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_status_two_and_leaves_nothing(
    case: str, ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    arguments, message = BAD[case]
    tiny = (
        ()
        if case == "not a run"
        else [o for o in TINY if o.split("=")[0] not in {a.split("=")[0] for a in arguments}]
    )
    done = invoke("train", *[a.replace("ROOT", str(ltcc_root)) for a in arguments], *tiny)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize(
    ("pictures", "bodies", "shared", "student", "losses", "refused"),
    [
        (2, 0, False, "neck", "none", True),  # one picture for each of the two processes
        (4, 0, False, "neck", "none", False),
        (2, 0, False, "none", "none", False),
        (2, 0, False, "frozen", "none", False),
        (2, 0, False, "none", "neck", True),  # the head of a distillation has a norm of its own
        (2, 4, False, "neck", "none", True),
        (
            2,
            4,
            True,
            "neck",
            "none",
            False,
        ),  # both streams are one batch for the student, and not for the losses
        (2, 4, True, "neck", "neck", True),
    ],
)
def test_one_picture_a_process_is_refused_where_a_norm_of_features_would_see_it_alone(
    group: int | None, pictures: int, bodies: int, shared: bool, student: str, losses: str, refused: bool
) -> None:
    parts = {"neck": torch.nn.BatchNorm1d(3), "none": torch.nn.BatchNorm2d(3), "frozen": FrozenBatchNorm1d(3)}
    parts["frozen"].eval()
    with pytest.raises(InputError, match="one picture at a time") if refused else contextlib.nullcontext():
        check_norms(
            parts[student],
            parts[losses],
            rows=[pictures // 2] * 2,
            pictures=1,
            bodies=bodies,
            body_norm="shared" if shared else "separate",
            # Groups refuse streams that are one batch, whatever their size.
            ghost_group=None if shared else group,
            # Else one person alone is refused for that.
            synchronised=True,
        )


def test_a_rule_for_the_rate_sees_the_global_batch_and_the_batches_that_a_step_adds_up(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke(
        "train", "data=ltcc", f"data.root={ltcc_root}", "epochs=1", "hydra.run.dir=run", *TINY, "lr=1e-3",
        "lr_rule=sqrt", "base_batch=4", "trainer.accumulate_grad_batches=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # 4 people, 2 pictures of each, two batches: 16 pictures, 4 times 4.
    assert "lr_rule=sqrt: 0.001 for batches of 4 is 0.002 for batches of 16" in done.stdout
    assert column(tmp_path / "run", "lr-Adam") == [pytest.approx(2e-3)]


def test_a_student_without_a_neck_trains_on_one_picture_at_a_time(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke(
        "train", "data=ltcc", f"data.root={ltcc_root}", "epochs=1", "hydra.run.dir=run", *TINY,
        "datamodule.people=1", "datamodule.pictures=1", "model.student.neck=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    assert not [name for name in state if name.startswith("student.neck")]


def test_an_unreadable_picture_is_named_or_skipped_and_counted(invoke: Command, tmp_path: Path) -> None:
    root = write_ltcc(tmp_path / "data")
    victim = sorted((root / "train").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:60])
    arguments = ["data=ltcc", f"data.root={root}", "epochs=2", *TINY]
    done = invoke("train", *arguments, "hydra.run.dir=fail")
    assert done.returncode == 2, done.stderr
    assert victim.name in done.stderr
    done = invoke("train", *arguments, "data.on_error=skip", "hydra.run.dir=skip")
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "skip" / "environment.json").read_text())
    assert facts["data"]["ltcc"]["train/train"]["pictures"] == 6 * 8 - 1
    assert any(victim.name in note for note in facts["notes"]["ltcc"])


def test_a_start_from_another_student_is_refused_though_its_shapes_fit(
    finished: Path, ltcc_root: Path, invoke: Command
) -> None:
    done = invoke(
        "train", "data=ltcc", f"data.root={ltcc_root}", f"init_from={finished}", *TINY,
        "model.student.backbone.last_stride=2",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "model.student.backbone.last_stride is 1 there, 2 here" in done.stderr


def test_a_converted_checkpoint_keeps_its_card_and_its_scores(
    finished: Path, ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke("weights", f"convert={finished}", "out=last.safetensors")
    assert done.returncode == 0, done.stderr
    done = invoke(
        "evaluate", "checkpoint=last.safetensors", "data=ltcc", f"data.root={ltcc_root}", "datamodule.workers=0",
        "trainer=cpu", "out=o.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / "o.json").read_text())["results"]["general"]
    last = json.loads((finished / "results.json").read_text())["evaluations"][0]["results"]["general"]
    assert alone["map"] == pytest.approx(last["map"], abs=1e-9)


@pytest.mark.slow
def test_learning_works_at_all(invoke: Command, tmp_path: Path) -> None:
    """Twelve people, striped by number: far above chance (1/8) after a short training on eight others."""
    root = write_ltcc(tmp_path / "data", train=range(16), test=range(16, 24))
    overrides = [o for o in TINY if not o.startswith(("datamodule.height", "datamodule.width"))]
    done = invoke(
        "train",
        "data=ltcc",
        f"data.root={root}",
        "epochs=40",
        "datamodule.height=64",
        "datamodule.width=32",
        RUN,
        *overrides,
    )
    assert done.returncode == 0, done.stderr
    evaluations = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    assert evaluations[0]["results"]["clothes_changing"]["r1"] > 0.4


def test_the_pictures_of_the_tests_can_be_told_apart(ltcc_root: Path) -> None:
    """The bar code survives the noise: a person's two outfits share it, two people do not."""

    def bands(name: str) -> np.ndarray[Any, Any]:
        (path,) = ltcc_root.rglob(name)
        grey = np.asarray(Image.open(path).convert("L"), float).mean(1)
        return grey > grey.mean()

    assert (bands("000_1_c1_000001.png") == bands("000_2_c1_000005.png")).mean() > 0.9
    assert (bands("002_1_c1_000017.png") == bands("004_1_c1_000033.png")).mean() < 0.9
