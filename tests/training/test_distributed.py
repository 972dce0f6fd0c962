"""Two processes train on, and report, what one does."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import clip3dreid
from tests.conftest import TINY, Command
from tests.processes import PATIENCE_S
from tests.training.test_run import column, weights

# Groups of 4 pictures in batches of 8: one process normalises as two with 4 pictures each. In double precision, since
# Adam makes a whole step of whatever sign noise gives a gradient that is next to nothing.
GHOST = (
    "model.student.ghost_group=4", "method=cal", "clothes_start_epoch=1", "epochs=6", "trainer.precision=64-true",
)  # fmt: skip
PAIR = ("trainer.devices=2", "trainer.strategy=ddp_find_unused_parameters_true")


def assert_same_training(one: Path, two: Path, terms: Sequence[str], epochs: int) -> None:
    """Two runs had the same losses, and ended with the same weights, after twenty steps at least."""
    for term in terms:
        expected, found = column(one, term), column(two, term)
        assert len(expected) >= epochs - 1
        # Weights are compared in double precision; what is logged has been in single.
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6), term
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, two)]
    assert states[0]["global_step"] == states[1]["global_step"] >= 20
    for name, tensor in states[0]["state_dict"].items():
        torch.testing.assert_close(states[1]["state_dict"][name], tensor, rtol=1e-8, atol=1e-9, msg=name)


# Groups of 4 pictures in batches of 8: one process normalises as two with 4 pictures each. 5 epochs of 4 steps, at a
# rate at which the last bits of a gradient, which groups so small multiply, are not the run's fate.
GHOST_SINGLE = (
    "model.student.ghost_group=4", "method=cal", "clothes_start_epoch=1", "epochs=5", "optimizer.optimizer.lr=1e-5",
)  # fmt: skip
TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")


def distributed(shared: Sequence[str], trainer: str) -> list[str]:
    """A training by two processes on the CPU, by what GPUs are trained with."""
    return [*(one for one in shared if one != "trainer=cpu"), f"trainer={trainer}", *TWO]


def evaluations(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())["evaluations"]


def assert_trained_alike(one: Path, two: Path, terms: Sequence[str], epochs: int) -> None:
    """Two runs have the same losses, weights and scores."""
    for term in terms:
        expected, found = column(one, term), column(two, term)
        assert len(expected) >= epochs - 1
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), term
    there = weights(two)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(there[name], tensor, rtol=1e-5, atol=1e-5)
    for single, double in zip(evaluations(one), evaluations(two), strict=True):
        for protocol, scores in single["results"].items():
            for key in ("r1", "r5", "map", "minp", "valid_queries"):
                assert double["results"][protocol][key] == pytest.approx(scores[key], abs=1e-6)


TERMS = ("loss/total", "loss/identity", "loss/clothes_adversarial/adversarial")


def test_two_processes_give_the_losses_weights_and_metrics_of_one(
    ltcc_root: Path, command: Command, invoke: Command, tmp_path: Path
) -> None:
    shared = [
        "data=ltcc", f"data.root={ltcc_root}", "data.val_people=2", "evaluate_every=1", *TINY, *GHOST,
    ]  # fmt: skip
    one = invoke("train", *shared, "hydra.run.dir=one")
    assert one.returncode == 0, one.stderr
    two = command("train", *shared, "hydra.run.dir=two", *PAIR)
    assert two.returncode == 0, two.stderr
    # In validation each holds a part of the gallery.
    validated = ("val/ltcc/general/map", "val/ltcc/clothes_changing/minp")
    assert_same_training(tmp_path / "one", tmp_path / "two", (*TERMS, *validated), epochs=6)
    both = [
        json.loads((tmp_path / run / "results.json").read_text())["evaluations"] for run in ("one", "two")
    ]
    assert len(both[0]) == len(both[1]) == 2
    for single, double in zip(*both, strict=True):
        for protocol, scores in single["results"].items():
            for key in ("r1", "r5", "map", "minp", "valid_queries"):
                assert double["results"][protocol][key] == pytest.approx(scores[key], abs=1e-6)
    # Tables and files are written once, by the first process, which alone talks.
    assert two.stdout.count("last checkpoint") == 1
    assert two.stdout.count("device   cpu, 64-true, 2 processes\n") == 1
    assert re.findall(r"^epoch (\d) of 6; loss ", two.stdout, re.M) == list("123456")
    assert "GLOBAL_RANK" not in two.stderr
    assert "epoch" not in (tmp_path / "two" / "train_1.log").read_text()


def test_replicas_and_shared_out_weights_train_as_one_process_does(
    ltcc_root: Path, command: Command, invoke: Command, tmp_path: Path
) -> None:
    shared = [
        "data=ltcc",
        f"data.root={ltcc_root}",
        "data.val_people=2",
        "evaluate_every=5",
        *TINY,
        *GHOST_SINGLE,
    ]
    one = invoke("train", *shared, "ema=0.9", "hydra.run.dir=one")
    assert one.returncode == 0, one.stderr
    two = command("train", *distributed(shared, "ddp"), "ema=0.9", "hydra.run.dir=two")
    assert two.returncode == 0, two.stderr
    assert_trained_alike(tmp_path / "one", tmp_path / "two", TERMS, 5)
    assert [line["checkpoint"] for line in evaluations(tmp_path / "two")] == ["last", "ema", "best"]


@pytest.mark.slow
def test_two_processes_that_share_the_weights_out_train_what_one_does_and_write_a_model_as_it_does(
    ltcc_root: Path, command: Command, tmp_path: Path
) -> None:
    shared = [
        "data=ltcc",
        f"data.root={ltcc_root}",
        "data.val_people=2",
        "evaluate_every=5",
        *TINY,
        *GHOST_SINGLE,
    ]
    one = command("train", *shared, "hydra.run.dir=one")
    assert one.returncode == 0, one.stderr
    three = command("train", *distributed(shared, "fsdp"), "hydra.run.dir=three")
    assert three.returncode == 0, three.stderr
    assert_trained_alike(tmp_path / "one", tmp_path / "three", TERMS, 5)
    alone = clip3dreid.load(tmp_path / "one" / "checkpoints" / "last.ckpt")
    whole = clip3dreid.load(tmp_path / "three" / "checkpoints" / "last.ckpt")
    pictures = sorted((ltcc_root / "query").glob("*.png"))[:4]
    np.testing.assert_allclose(whole.embed(pictures), alone.embed(pictures), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_whose_weights_are_shared_out_goes_on_with_the_bits_that_it_would_have_had(
    ltcc_root: Path, command: Command, tmp_path: Path
) -> None:
    shared = distributed(["data=ltcc", f"data.root={ltcc_root}", *TINY, *GHOST_SINGLE], "fsdp")
    more = ["model/student=swin_t", "model.student.backbone.config.embed_dim=12", "datamodule.height=64",
            "model.student.backbone.config.depths=[1,1]", "model.student.backbone.config.num_heads=[2,2]",
            "model.student.ghost_group=4", "activation_checkpointing=true"]  # fmt: skip
    shared = [one for one in shared if "resnet18" not in one and "width=8" not in one] + more
    whole = command("train", *shared, "hydra.run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    assert command("train", *shared, "epochs=2", "hydra.run.dir=run").returncode == 0
    done = command("train", "resume=run", "epochs=5")
    assert done.returncode == 0, done.stderr
    assert "going on after 2 epochs" in done.stdout
    expected = weights(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
def test_two_processes_are_guided_as_one_is(
    ltcc_root: Path, bodies_root: Path, command: Command, tmp_path: Path
) -> None:
    shared = [
        "data=ltcc", f"data.root={ltcc_root}", *TINY, "loss=[identity,local,global,body,shape]",
        "epochs=2", "milestones=[1]",
        "model.student.ghost_group=4", "model/teacher=body_clip", "model.teacher.cache=memory",
        f"bodies.root={bodies_root}", "bodies.batch=8", "optimizer.optimizer.lr=1e-4", "gradient_norms_every=2",
        "loss.local.share=0.5",
    ]  # fmt: skip
    one = command("train", *shared, "hydra.run.dir=one")
    assert one.returncode == 0, one.stderr
    # No term starts late: nobody looks for parameters without a gradient, and there are none.
    two = command("train", *distributed(shared, "ddp"), "hydra.run.dir=two")
    assert two.returncode == 0, two.stderr
    for term in ("total", "identity", "local", "global", "body/beta", "shape"):
        expected, found = column(tmp_path / "one", f"loss/{term}"), column(tmp_path / "two", f"loss/{term}")
        assert len(expected) == 2
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), term
    for measured in ("weight/local", "share/local", "share/global", "aligned/body", "gradient/identity"):
        expected, found = column(tmp_path / "one", measured), column(tmp_path / "two", measured)
        assert len(expected) == 2
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), measured
    # Every valid query is there once, whichever process ranked it.
    queries = [
        pl.read_parquet(tmp_path / run / "per_query" / "last_ltcc_general.parquet") for run in ("one", "two")
    ]
    assert queries[0]["query"].to_list() == queries[1]["query"].to_list()


@pytest.mark.slow
def test_two_processes_share_five_people_and_train_as_one_does(
    ltcc_root: Path, command: Command, tmp_path: Path
) -> None:
    """Two groups of batch norm in one process, three in the other; terms that gather, and measured gradients."""
    shared = [
        "data=ltcc", f"data.root={ltcc_root}", *[one for one in TINY if "method" not in one], *GHOST[:1],
        "loss=[identity,triplet,clothes_orthogonal]", "clothes_start_epoch=1", "epochs=12", "milestones=[3]",
        "datamodule.people=5", "datamodule.pictures=4", "gradient_norms_every=5", "trainer.precision=64-true",
    ]  # fmt: skip
    for name, more in (("one", ()), ("two", PAIR)):
        done = command("train", *shared, f"hydra.run.dir={name}", *more)
        assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "one", tmp_path / "two", ("loss/total", "loss/triplet"), epochs=12)
    # Of some steps alone.
    for measured in ("share/triplet", "gradient/clothes_orthogonal"):
        expected, found = column(tmp_path / "one", measured), column(tmp_path / "two", measured)
        assert len(expected) >= 4
        assert found == pytest.approx(expected, rel=1e-6), measured


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["datamodule.people=3"], "datamodule.people=3 on 2 processes leaves one of them a single person"),
        pytest.param(
            ["datamodule.people=1"],
            "datamodule.people=1 cannot be shared out among 2 processes",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["datamodule.people=5", "loss=[identity,body]", "method=null"],
            "datamodule.people=5 cannot be divided among 2 processes, which a run with a stream of bodies has to",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_processes_that_cannot_hold_the_batch_are_refused_in_one_line(
    more: list[str], said: str, ltcc_root: Path, bodies_root: Path, command: Command
) -> None:
    tiny = [one for one in TINY if "people" not in one and "method" not in one]
    method = [] if "method=null" in more else ["method=ce"]
    done = command(
        "train", "data=ltcc", f"data.root={ltcc_root}", "trainer.devices=2", "trainer.strategy=ddp", *tiny, *method,
        f"bodies.root={bodies_root}", "bodies.batch=8", *[one for one in more if one != "method=null"],
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line


WAYS = {
    # As the console script does.
    "clip3dreid train": ("-c", "from clip3dreid.__main__ import main; main()", "train"),
    "python -m clip3dreid train": ("-m", "clip3dreid", "train"),
    "python -m clip3dreid.train": ("-m", "clip3dreid.train"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_whichever_way_a_training_is_started_its_second_process_is_of_the_same_run(
    way: str, ltcc_root: Path, tmp_path: Path
) -> None:
    arguments = [
        "data=ltcc", f"data.root={ltcc_root}", "epochs=1", *TINY, "model.student.ghost_group=4",
        "trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir='a run=1'",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *WAYS[way], *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("last checkpoint") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a run=1"]
    facts = json.loads((tmp_path / "a run=1" / "results.json").read_text())
    assert facts["evaluations"][0]["results"]["general"]["valid_queries"] == 16
    # A log of each process.
    assert len(list((tmp_path / "a run=1").glob("*.log"))) == 2


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_by_two_processes_as_by_one(
    ltcc_root: Path, command: Command, tmp_path: Path
) -> None:
    shared = ["data=ltcc", f"data.root={ltcc_root}"]
    assert command("train", *shared, "epochs=1", *TINY, "hydra.run.dir=run").returncode == 0
    asked = ["evaluate", "checkpoint=run", *shared, "datamodule.workers=0", "trainer=cpu"]
    for out, more in (("one.json", []), ("two.json", ["trainer.devices=2", "trainer.strategy=ddp"])):
        done = command(*asked, f"out={out}", *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("clothes_changing (") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("one", "two"))
    assert two["general"]["map"] == pytest.approx(one["general"]["map"], abs=1e-9)


@pytest.mark.slow
def test_a_sweep_over_two_processes_a_run_launches_each_run_anew(
    ltcc_root: Path, command: Command, tmp_path: Path
) -> None:
    done = command(
        "train", "-m", "seed=1,2", "data=ltcc", f"data.root={ltcc_root}", "epochs=1", *TINY,
        "model.student.ghost_group=4", "trainer.devices=2", "trainer.strategy=ddp", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for seed, job in enumerate(sorted((tmp_path / "sweep").glob("?_*")), start=1):
        assert json.loads((job / "results.json").read_text())["seed"] == seed
    assert not (tmp_path / "runs").exists()
