"""Training and evaluation are calls with typed arguments: a notebook needs no configuration."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.datasets import ltcc
from clip3dreid.data.sources import DataSpec
from clip3dreid.errors import InputError
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.report.results import read_results
from clip3dreid.retrieval.standard import CLOTHES
from clip3dreid.training.data import RunData
from clip3dreid.training.evaluation import evaluate_features, evaluate_model
from clip3dreid.training.run import train
from clip3dreid.training.settings import RankingSettings, TrainSettings
from tests.cli.test_evaluate import features
from tests.conftest import STUDENT

LOSSES: Any = {
    "identity": {
        "weight": 1.0,
        "start_epoch": 0,
        "warmup_epochs": 0,
        "term": partial(CrossEntropy, smoothing=0.1),
    }
}
SMALL = partial(ReidDataModule, people=4, pictures=2, height=32, width=16, evaluation_batch=16)
CPU = partial(pl.Trainer, accelerator="cpu")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(data: Any, folder: str, **more: Any) -> Any:
    return train(
        data,
        **{"student": STUDENT, "losses": LOSSES, "folder": folder, "batches": SMALL, "trainer": CPU} | more,
    )


def test_a_notebook_trains_goes_on_and_evaluates_without_a_configuration(ltcc_root: Path) -> None:
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    manifest = ltcc.read(ltcc_root)
    first = run(manifest, "run", epochs=1)
    assert first.results is not None
    assert list(first.results.evaluations[0].results) == ["general"]
    assert first.headline == first.results.evaluations[0].results["general"]["r1"]
    assert read_results(first.folder / "results.json") == first.results
    assert first.checkpoints == {"last": first.folder / "checkpoints" / "last.ckpt"}
    # The same data: what a run goes on with is compared.
    on = run(manifest, "run", settings=TrainSettings(epochs=2, resume=Path("run")))
    assert on.folder == first.folder == Path("run").absolute()
    epochs = torch.load(on.checkpoints["last"], weights_only=True)["epoch"]
    assert epochs == 1
    alone = evaluate_model("run", RunData(manifest, CLOTHES), trainer=CPU, batches=SMALL)
    assert alone.trained_on == ["ltcc"]
    assert set(alone.results["ltcc"]) == {"general", "same_clothes", "clothes_changing"}
    assert on.results is not None
    expected = on.results.evaluations[0].results["general"]["map"]
    assert alone.results["ltcc"]["general"]["map"] == pytest.approx(expected, abs=1e-9)
    # The host program finds everything as it was.
    assert {signum: signal.getsignal(signum) for signum in handlers} == handlers
    after = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    assert after == environment


def test_the_best_checkpoint_on_held_out_people_is_kept_by_the_headline(ltcc_root: Path) -> None:
    data = RunData(DataSpec("ltcc", ltcc_root, ltcc.read, val_people=2), CLOTHES)
    result = run(data, "run", settings=TrainSettings(epochs=2, evaluate_every=1))
    assert result.results is not None
    best = result.results.evaluations[1]
    assert best.selected_by == "best val/ltcc/clothes_changing/r1 on held-out people"
    assert result.checkpoints["best"].name == "best.ckpt"


def test_bad_requests_are_told_as_on_the_command_line_and_leave_nothing(ltcc_root: Path) -> None:
    manifest = ltcc.read(ltcc_root)
    with pytest.raises(InputError, match="epochs=0 must be a whole number, 1 or more"):
        run(manifest, "run", epochs=0)
    with pytest.raises(InputError, match="metric=cosin is unknown; choose cosine or euclidean; did you mean"):
        RankingSettings(metric="cosin")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="show 6 people, but a batch takes 40"):
        run(manifest, "run", batches=partial(SMALL, people=40))
    with pytest.raises(InputError, match="no data set: data is empty"):
        run([], "run")
    with pytest.raises(InputError, match=r"loss\.identity"):
        run(manifest, "run", losses={"identity": {"weight": 1.0}})
    with pytest.raises(InputError, match="split=tst is unknown"):
        evaluate_model("run", manifest, split="tst")  # type: ignore[arg-type]
    assert not Path("run").exists()


def test_a_folder_that_holds_a_run_is_not_begun_again(ltcc_root: Path) -> None:
    manifest = ltcc.read(ltcc_root)
    quiet = [TQDMProgressBar(refresh_rate=0)]
    run(manifest, "run", epochs=1, callbacks=quiet, loggers=())
    with pytest.raises(InputError, match="holds a run already"):
        run(manifest, "run", epochs=1)


def test_features_are_evaluated_under_the_protocols_that_their_labels_allow(tmp_path: Path) -> None:
    labelled = evaluate_features(features(tmp_path / "a.npz"), ranking=RankingSettings(metric="euclidean"))
    assert list(labelled.results[""]) == list(CLOTHES.protocols)
    bare = features(tmp_path / "b.npz", query_clothes=None, gallery_clothes=None)
    assert list(evaluate_features(bare).results[""]) == ["general"]
