"""Products are less than float32 while a model trains, and at no other time."""

from collections.abc import Iterator

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clip3dreid.training.precision import MatmulPrecision


@pytest.fixture(autouse=True)
def highest() -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


class Listener(LightningModule):
    """Notes the precision of every step."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.fails = fails
        self.seen: list[tuple[str, str]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(("train", torch.get_float32_matmul_precision()))
        if self.fails:
            raise ArithmeticError
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(("val", torch.get_float32_matmul_precision()))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(("test", torch.get_float32_matmul_precision()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[MatmulPrecision("high")],
    )


def batches() -> DataLoader[Tensor]:
    return DataLoader(torch.ones(1, 1))  # type: ignore[arg-type]


def test_steps_are_of_that_precision_and_evaluation_is_not() -> None:
    module, made = Listener(), trainer()
    made.fit(module, batches(), batches())
    made.test(module, batches(), verbose=False)
    assert module.seen == [
        ("train", "high"), ("val", "highest"), ("train", "high"), ("val", "highest"), ("test", "highest"),
    ]  # fmt: skip
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_training_that_fails_leaves_what_was_set_before() -> None:
    with pytest.raises(ArithmeticError):
        trainer().fit(Listener(fails=True), batches())
    assert torch.get_float32_matmul_precision() == "highest"
