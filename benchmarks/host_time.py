"""What the framework adds to a training step: processor time beside a plain loop, with a network too small to matter.

    python benchmarks/host_time.py [--steps 60] [--rounds 5] [--methods ce cal clip3dreid]

The same student, losses, optimiser and pictures twice: trained by Lightning with the project's module, callbacks and
CSV file, and by a loop of a dozen lines. Rounds are interleaved, and the first ten steps of each are left out; what
counts is the difference of the medians of one run.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.images import to_unit
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.model.embedding_cache import MemoryCache, TeacherEmbeddings
from clip3dreid.training.callbacks import StepTimes
from clip3dreid.training.module import ReidModule
from clip3dreid.training.progress import TrainingProgress
from clip3dreid.types import Batch, Dimensions, Features, ShapeTargets, TeacherSpace, TextTargets

PEOPLE, PICTURES, JOINT, WORDS, GROUPS, BETAS, WARM = 77, 16, 128, 49, 16, 10, 10


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


class Smallest(nn.Module):
    """A student of two layers, so that its own time hides nothing."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.backbone = nn.Conv2d(3, channels, 16, 16)
        self.neck = nn.Linear(channels, width)

    def forward(self, images: torch.Tensor) -> Features:
        """Embed pictures."""
        map_ = self.backbone(images)
        embedding = self.neck(map_.mean((2, 3)))
        return Features(map_, embedding, embedding)


class Parts:
    """What both trainings are made of."""

    def __init__(self, method: str) -> None:
        torch.manual_seed(0)
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            self.config = compose(
                "train",
                [
                    "+experiment=demo",
                    "data.root=x",
                    f"method={method}",
                    "clothes_start_epoch=0",
                ],
            )
        self.student: Any = Smallest(64, 128)
        ones = torch.ones(PEOPLE, BETAS)
        guides = (
            TextTargets(
                unit(WORDS, JOINT),
                torch.randint(WORDS, (PEOPLE, GROUPS)),
                torch.ones(PEOPLE, GROUPS),
                "person",
                unit(WORDS, JOINT),
            ),
            TeacherSpace(JOINT, torch.zeros(JOINT)),
            ShapeTargets(
                torch.randn(PEOPLE, BETAS), ones, "person", tuple(range(BETAS)), torch.zeros(BETAS), ones[0]
            ),
        )
        dimensions = Dimensions(
            self.student.channels, self.student.width, PEOPLE, torch.arange(PEOPLE), guides=guides
        )
        self.losses = WeightedLosses(instantiate(self.config.loss), dimensions)
        self.targets = {"teacher": TeacherEmbeddings(cache=MemoryCache(unit(PICTURES, JOINT)))}
        row = torch.arange(PICTURES)
        images = torch.randint(0, 255, (PICTURES, 3, 32, 16), dtype=torch.uint8)
        self.batch = Batch(images, row // 4 % PEOPLE, row // 4 % PEOPLE, row, row)


class Repeated:
    """A loader of one batch."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batches = [batch] * steps

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Data(pl.LightningDataModule):
    """That loader, and the transfers of the project's own."""

    on_before_batch_transfer = ReidDataModule.on_before_batch_transfer  # type: ignore[assignment]
    on_after_batch_transfer = ReidDataModule.on_after_batch_transfer  # type: ignore[assignment]

    def __init__(self, batch: Batch, steps: int) -> None:
        super().__init__()
        self.batch, self.steps = batch, steps

    def train_dataloader(self) -> Any:
        """Return the loader."""
        return Repeated(self.batch, self.steps)


class Clock(pl.Callback):
    """Reads the processor's clock when the warm-up is over, and at the last step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.marks = steps, list[float]()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Read it."""
        if batch_idx in (WARM, self.steps - 1):
            self.marks.append(time.process_time())


def framework(method: str, steps: int, folder: Path) -> Callable[[], float]:
    """Return a training by the project that says what a step of it took."""
    parts = Parts(method)
    module = ReidModule(
        parts.student,
        parts.losses,
        optimizer=instantiate(parts.config.optimizer.optimizer),
        schedule=instantiate(parts.config.optimizer.schedule),
        card={},
        seed=1,
        protocols={},
        metric="cosine",
        flip=True,
        targets=parts.targets if "global" in parts.losses.terms else None,
    )

    def run() -> float:
        clock = Clock(steps)
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            logger=CSVLogger(folder, name="", version="csv", flush_logs_every_n_steps=1),
            callbacks=[StepTimes(), TrainingProgress(bar=False), clock],
        )
        trainer.fit(module, datamodule=Data(parts.batch, steps))
        return (clock.marks[1] - clock.marks[0]) / (steps - 1 - WARM)

    return run


def plain(method: str, steps: int) -> Callable[[], float]:
    """Return a loop that trains the same and says what a step of it took."""
    parts = Parts(method)
    guided = "global" in parts.losses.terms
    parameters = [*parts.student.parameters(), *parts.losses.parameters()]
    optimizer = instantiate(parts.config.optimizer.optimizer)([{"params": parameters}])

    def run() -> float:
        start = end = 0.0
        for number in range(steps):
            if number == WARM:
                start = time.process_time()
            if number == steps - 1:
                end = time.process_time()
            batch = parts.batch._replace(images=to_unit(parts.batch.images))
            if guided:
                batch = batch._replace(targets={name: make(batch) for name, make in parts.targets.items()})
            features = parts.student(batch.images)
            total: Any = 0.0
            for name, term in parts.losses.terms.items():
                found = term(features, batch)
                total = total + parts.losses.entries[name]["weight"] * (
                    sum(found.values()) if isinstance(found, dict) else found
                )
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
        return (end - start) / (steps - 1 - WARM)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["ce", "cal", "clip3dreid", "clip3dreid_cal"])
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    register()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            method: (framework(method, asked.steps, Path(folder)), plain(method, asked.steps))
            for method in asked.methods
        }
        times: dict[str, list[tuple[float, float]]] = {method: [] for method in runs}
        for _ in range(asked.rounds):
            for method, (ours, loop) in runs.items():
                times[method].append((ours(), loop()))
    print("| method | framework, ms of processor time a step | plain loop | added |")
    print("|---|---|---|---|")
    for method, pairs in times.items():
        framework_time, loop = (1e3 * statistics.median(one) for one in zip(*pairs, strict=True))
        added = 1e3 * statistics.median(a - b for a, b in pairs)
        print(f"| {method} | {framework_time:.2f} | {loop:.2f} | {added:.2f} |")


if __name__ == "__main__":
    main()
