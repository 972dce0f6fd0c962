"""Two processes train on, and report, what one does."""

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from tests.conftest import TINY, Command
from tests.processes import PATIENCE_S
from tests.training.test_run import column, weights

# Groups of 4 pictures in batches of 8: one process normalises as two with 4 pictures each.
GHOST = ("model.student.ghost_group=4", "method=cal", "clothes_start_epoch=1", "epochs=3")


def test_two_processes_give_the_losses_weights_and_metrics_of_one(
    ltcc_root: Path, command: Command, tmp_path: Path
) -> None:
    shared = [
        "data=ltcc", f"data.root={ltcc_root}", "data.val_people=2", "evaluate_every=1", *TINY, *GHOST,
        "optimizer.optimizer.lr=1e-4",
    ]  # fmt: skip
    one = command("train", *shared, "hydra.run.dir=one")
    assert one.returncode == 0, one.stderr
    two = command(
        "train", *shared, "hydra.run.dir=two", "trainer.devices=2",
        "trainer.strategy=ddp_find_unused_parameters_true",
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    # In validation each holds a part of the gallery.
    validated = ("val/ltcc/general/map", "val/ltcc/clothes_changing/minp")
    for term in ("loss/total", "loss/identity", "loss/clothes_adversarial/adversarial", *validated):
        expected, found = column(tmp_path / "one", term), column(tmp_path / "two", term)
        assert len(expected) >= 2
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=1e-3, atol=1e-4)
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
    assert two.stdout.count("device   cpu, 32-true, 2 processes\n") == 1
    assert re.findall(r"^epoch (\d) of 3; loss ", two.stdout, re.M) == ["1", "2", "3"]
    assert "GLOBAL_RANK" not in two.stderr
    assert "epoch" not in (tmp_path / "two" / "train_1.log").read_text()


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
    two = command(
        "train", *shared, "hydra.run.dir=two", "trainer.devices=2",
        "trainer.strategy=ddp_find_unused_parameters_true",
    )  # fmt: skip
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


def test_people_that_cannot_be_divided_among_the_processes_are_refused_in_one_line(
    ltcc_root: Path, command: Command
) -> None:
    done = command(
        "train", "data=ltcc", f"data.root={ltcc_root}", "trainer.devices=2", "trainer.strategy=ddp",
        *[override for override in TINY if "people" not in override], "datamodule.people=3",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "multiple of 2" in done.stderr


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
