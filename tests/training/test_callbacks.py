"""When a run is saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from clip3dreid.errors import InputError
from clip3dreid.training import callbacks, checkpoints
from clip3dreid.training.callbacks import LastCheckpoint
from clip3dreid.training.checkpoints import CheckpointFiles


class Line(pl.LightningModule):
    """Two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


Saves = Callable[..., list[int]]


@pytest.fixture
def saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saves:
    """Trains 5 epochs of 4 batches, a minute each; returns the steps that were saved."""

    def train(step: Callable[[pl.Trainer], None] = lambda trainer: None, **last: Any) -> list[int]:
        written: list[int] = []
        minutes = 0.0

        class Clock(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
                nonlocal minutes
                minutes += 1
                step(trainer)

        monkeypatch.setattr(
            checkpoints, "_write", lambda content, path: written.append(content["global_step"])
        )
        monkeypatch.setattr(callbacks.time, "monotonic", lambda: 60 * minutes)
        trainer = pl.Trainer(
            max_epochs=5, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, plugins=[CheckpointFiles(asynchronous=True)],
            callbacks=[Clock(), LastCheckpoint(tmp_path / "checkpoints", **last)],
        )  # fmt: skip
        trainer.fit(Line(), DataLoader(TensorDataset(torch.ones(4, 1))))
        return written

    return train


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({}, [4, 8, 12, 16, 20]),
        ({"every_epochs": 2}, [8, 16, 20]),
        ({"every_epochs": 100}, [20]),
        # After the fourth batch of an epoch comes its end.
        ({"every_epochs": None, "every_minutes": 3}, [3, 6, 9, 12, 15, 18, 20]),
        ({"every_epochs": None, "every_minutes": 4.5}, [5, 10, 15, 20]),
        ({"every_epochs": None, "every_minutes": 1000}, [20]),
        ({"every_epochs": 2, "every_minutes": 3}, [3, 6, 8, 11, 14, 16, 19, 20]),
    ],
)
def test_a_run_is_saved_each_so_many_epochs_or_minutes_and_at_its_end(
    last: dict[str, Any], expected: list[int], saves: Saves
) -> None:
    assert saves(**last) == expected


def test_a_run_that_ends_early_is_saved_where_it_ends(saves: Saves) -> None:
    def stop(trainer: pl.Trainer) -> None:
        trainer.should_stop = trainer.global_step >= 6

    assert saves(stop, every_epochs=4) == [6]


def test_who_asks_for_a_checkpoint_after_this_epoch_gets_one(saves: Saves) -> None:
    def ask(trainer: pl.Trainer) -> None:
        checkpoints.files_of(trainer).wanted = trainer.global_step == 8

    assert saves(ask, every_epochs=4) == [8, 16, 20]


@pytest.mark.parametrize("last", [{"every_epochs": 0}, {"every_epochs": 1.5}, {"every_minutes": 0}])
def test_an_interval_that_is_none_is_refused_by_its_key(last: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"callbacks\.last\.{next(iter(last))}="):
        LastCheckpoint(tmp_path, **last)


def test_its_state_is_found_by_the_name_that_older_runs_saved_it_by(tmp_path: Path) -> None:
    theirs = ModelCheckpoint(tmp_path, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    assert LastCheckpoint(tmp_path).state_key == theirs.state_key
