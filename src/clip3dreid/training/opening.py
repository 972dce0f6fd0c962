"""Say what a training is about to do: on what, of what, guided by what, where and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.tracklets import KEYS
from clip3dreid.model.student import Student

_WIDTH = 9


@dataclass(frozen=True)
class DataCounts:
    """What a data set has to train and to test on; 0 outfits or cameras where it does not tell them.

    `tracklets` is 0 where single pictures are trained on.
    """

    name: str
    people: int
    pictures: int
    outfits: int
    cameras: int
    test_people: int
    tracklets: int = 0

    @staticmethod
    def of(manifest: Manifest, *, clips: bool = False) -> DataCounts:
        """Count the training pictures of a data set, tracklets where clips are cut of them, and its test people."""
        table, test = manifest.part("train"), manifest.part("test")
        outfits = table.select("person", "clothes").drop_nulls().unique()
        return DataCounts(
            name=manifest.name,
            people=table["person"].n_unique(),
            pictures=len(table),
            outfits=len(outfits),
            cameras=table["camera"].drop_nulls().n_unique(),
            test_people=test["person"].n_unique(),
            tracklets=table.select(KEYS).n_unique() if clips else 0,
        )

    def line(self) -> str:
        """Return the counts as people read them."""
        parts = [f"{self.people:,} people"]
        parts += [f"{self.tracklets:,} tracklets"] if self.tracklets else []
        parts += [f"{self.pictures:,} pictures"]
        parts += [f"{self.outfits:,} outfits"] if self.outfits else ["outfits not labelled"]
        parts += [f"{self.cameras:,} cameras"] if self.cameras else ["cameras not labelled"]
        parts += [f"tested on {self.test_people:,} people"] if self.test_people else ["nobody to test on"]
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True)
class Opening:
    """What a training says first.

    Attributes:
        data: of each data set.
        student: what it is called.
        parameters: numbers of the student that are learnt; heads of losses are no part of it.
        picture: (H, W) of what it sees, in pixels.
        start: where its weights come from; None: from nothing.
        guides: what guides it, each in a few words.
        device: of this process, with its name.
        precision: as Lightning has it.
        processes: how many there are.
        batches: of an epoch, in each process.
        epochs: how many in all.
        steps: of the optimiser, in all.
        folder: of the run.
        goes_on_from: the checkpoint of a run that goes on; None: it begins.
    """

    data: tuple[DataCounts, ...]
    student: str
    parameters: int
    picture: tuple[int, int]
    start: str | None
    guides: tuple[str, ...]
    device: str
    precision: str
    processes: int
    batches: int
    epochs: int
    steps: int
    folder: str
    goes_on_from: str | None

    def lines(self) -> list[str]:
        """Return six lines for people."""
        height, width = self.picture
        learnt = f"{self.parameters / 1e6:.1f} M parameters"
        start = "from nothing" if self.start is None else f"from {self.start}"
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        lines = {
            "data": "; ".join(one.line() for one in self.data),
            "student": f"{self.student}: {learnt}, pictures {height}x{width}, {start}",
            "guides": "; ".join(self.guides) or "none: labels alone",
            "device": f"{self.device}, {self.precision}, {processes}",
            "steps": f"{self.batches:,} an epoch, {self.epochs:,} epochs: {self.steps:,}",
            "folder": self.folder,
        }
        return [f"{name:<{_WIDTH}}{line}" for name, line in lines.items()]

    def event(self) -> dict[str, Any]:
        """Return the same for programs."""
        return {"event": "start", **asdict(self)}


def opening(
    manifests: Sequence[Manifest],
    trainer: pl.Trainer,
    student: Student,
    data: ReidDataModule,
    *,
    name: str,
    start: Path | None,
    guides: Sequence[str],
    folder: Path,
    goes_on_from: Path | None,
) -> Opening:
    """Gather what a training says first.

    Args:
        manifests: the data sets.
        trainer: not yet at work.
        student: what is trained.
        data: what it is trained on.
        name: of the student.
        start: file or folder of the weights that it starts from; None: none.
        guides: of `Guides.lines`.
        folder: of the run.
        goes_on_from: the checkpoint of a run that goes on; None: it begins.
    """
    batches = _batches(trainer, data)
    epochs = trainer.max_epochs or 0
    device = trainer.strategy.root_device
    called = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Opening(
        data=tuple(DataCounts.of(one, clips=data.clips is not None) for one in manifests),
        student=name,
        parameters=sum(one.numel() for one in student.parameters() if one.requires_grad),
        picture=(data.height, data.width),
        start=None if start is None else str(start),
        guides=tuple(guides),
        device=f"{device} ({called})" if called else str(device),
        precision=str(trainer.precision),
        processes=trainer.world_size,
        batches=batches,
        epochs=epochs,
        steps=-(-batches // trainer.accumulate_grad_batches) * epochs,
        folder=str(folder),
        goes_on_from=None if goes_on_from is None else str(goes_on_from),
    )


def student_name(config: Mapping[str, Any]) -> str:
    """Return what to call a student that has no name: its backbone's class, with its depth where it has one."""
    backbone = config.get("backbone") or config
    name = str(backbone.get("_target_", "student")).rpartition(".")[2]
    return f"{name}-{backbone['depth']}" if "depth" in backbone else name


def _batches(trainer: pl.Trainer, data: ReidDataModule) -> int:
    """Return the batches of an epoch in each process, as Lightning's switches for trials leave them."""
    whole = data.overfit_batches or len(data.sampler(0, trainer.world_size))
    limit = trainer.limit_train_batches
    return min(whole, limit) if isinstance(limit, int) else int(whole * limit)
