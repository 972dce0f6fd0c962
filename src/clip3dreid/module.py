"""The one place where model, losses and retrieval meet: the LightningModules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from clip3dreid.data.datamodule import EvaluationSet, ReidDataModule, batch_paths
from clip3dreid.errors import InputError
from clip3dreid.loss.total import Losses, NonFiniteLoss, Total
from clip3dreid.model.student import Student
from clip3dreid.optimizer import optimise
from clip3dreid.retrieval.distributed import RetrievalScores
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import Protocols
from clip3dreid.retrieval.ranking import Distance
from clip3dreid.types import Batch

# Rows that travel between processes at a time when features are exchanged: 64 MB at 4,096 float32 columns.
EXCHANGE_ROWS = 4096


def share_buffers(module: nn.Module) -> None:
    """Gives every process the first one's buffers, in place.

    In training DistributedDataParallel does so before each step, so after the last step the processes' running
    statistics differ by that step. Pictures embedded by different processes must come from one and the same model,
    and it must be the one that is saved.
    """
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)


class EvaluationModule(LightningModule):
    """A student under its protocols: embeds queries and galleries, ranks, reports.

    Args:
        student: the model.
        protocols: for each split (`val`, `test`) and data set, the protocols to report.
        metric: distance of the ranking.
        flip: embed each picture and its mirror image and add the two.

    After `trainer.validate` or `trainer.test`, `results[split][data set][protocol]` holds the scores; loggers
    get them under `val/…` and `test/…`, or whatever `test_prefix` says.
    Distributed, each process embeds a share of the pictures and ranks a share of the queries.
    """

    def __init__(
        self, student: Student, *, protocols: Mapping[str, Protocols], metric: Distance, flip: bool
    ) -> None:
        super().__init__()
        if metric not in get_args(Distance):
            raise InputError(f"metric={metric} is not known; choose one of {', '.join(get_args(Distance))}")
        self.student = student
        self.protocols = protocols
        self.metric = metric
        self.flip = flip
        self.test_prefix = "test"
        self.results: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        self._features: list[Tensor] = []

    @property
    def data(self) -> ReidDataModule:
        """The datamodule of the trainer that runs this module."""
        return cast(ReidDataModule, self.trainer.datamodule)  # type: ignore[attr-defined]

    def embed(self, images: Tensor) -> Tensor:
        """Retrieval features (B, D), float32, of pictures (B, 3, H, W) in 0..1."""
        embedding: Tensor = self.student(images).embedding
        if self.flip:
            embedding = embedding + self.student(images.flip(-1)).embedding
        return embedding.float()

    def _start(self, split: str) -> None:
        if self.trainer.world_size > 1:
            share_buffers(self.student)
        # Preallocated: a list of batches and its concatenation would need twice the memory.
        sizes = [len(evaluation.files) for evaluation in self.data.evaluations(split)]
        self._features = [torch.zeros(size, self.student.width) for size in sizes]

    def _keep(self, batch: Batch, loader: int) -> None:
        self._features[loader][batch.row.cpu()] = self.embed(batch.images).cpu()

    def _exchange(self, features: Tensor) -> Tensor:
        """Fills in the rows that other processes embedded (theirs are zero here, so the sum is the union)."""
        if self.trainer.world_size > 1:
            for rows in torch.split(features, EXCHANGE_ROWS):
                on_device = rows.to(self.device)
                dist.all_reduce(on_device)
                rows.copy_(on_device)
        return features

    def _finish(self, split: str, stage: str, prefix: str) -> None:
        share = (self.trainer.global_rank, self.trainer.world_size)
        self.results[stage] = {}
        for evaluation, features in zip(self.data.evaluations(split), self._features, strict=True):
            scores = self._score(evaluation, self._exchange(features), self.protocols[split], share)
            self.results[stage][evaluation.name] = scores
            for protocol, values in scores.items():
                shown = {
                    f"{prefix}/{evaluation.name}/{protocol}/{k}": values[k] for k in ("r1", "map", "minp")
                }
                # Equal in all processes, and known to all, since each asks which checkpoint is the best.
                self.log_dict(shown, sync_dist=True)
        self._features = []

    def _score(
        self, evaluation: EvaluationSet, features: Tensor, protocols: Protocols, share: tuple[int, int]
    ) -> dict[str, dict[str, Any]]:
        features = features.to(self.device)
        query, gallery = torch.split(features, [len(evaluation.query), len(evaluation.gallery)])
        found = evaluate(
            query,
            evaluation.query,
            gallery,
            evaluation.gallery,
            protocols[evaluation.name],
            metric=self.metric,
            share=share,
        )
        scores = {}
        for name, result in found.items():
            metric = RetrievalScores()
            if share[1] > 1:  # where the processes' sums meet; float64, which not every device has
                metric = metric.to(self.device)
            metric.update(result.per_query)
            scores[name] = result.result(metric.compute())
        return scores

    def on_validation_epoch_start(self) -> None:
        """Makes room for the features."""
        self._start(self.data.validation_split)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embeds a batch."""
        self._keep(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Ranks, and logs `val/<data set>/<protocol>/r1` and the like."""
        self._finish(self.data.validation_split, "val", "val")

    def on_test_epoch_start(self) -> None:
        """Makes room for the features."""
        self._start("test")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embeds a batch."""
        self._keep(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Ranks, and logs `test/<data set>/<protocol>/r1` and the like."""
        self._finish("test", "test", self.test_prefix)


class ReidModule(EvaluationModule):
    """A student in training.

    Args:
        student: the model.
        losses: weighted terms; those that need one own a head.
        optimizer: makes an optimiser from parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.
        card: plain data that every checkpoint carries, from which the student can be rebuilt.
        protocols: see `EvaluationModule`.
        metric: see `EvaluationModule`.
        flip: see `EvaluationModule`.
    """

    def __init__(
        self,
        student: Student,
        losses: Total,
        *,
        optimizer: Callable[[list[dict[str, list[nn.Parameter]]]], Optimizer],
        schedule: Callable[[int], float],
        card: Mapping[str, Any],
        protocols: Mapping[str, Protocols],
        metric: Distance,
        flip: bool,
    ) -> None:
        super().__init__(student, protocols=protocols, metric=metric, flip=flip)
        self.losses: Total = losses
        self.optimizer = optimizer
        self.schedule = schedule
        self.card = card

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted sum of the losses of a batch; every term is logged raw and weighted.

        Raises:
            FloatingPointError: if a term is NaN or infinite, with its name and the batch's files.
        """
        try:
            losses: Losses = self.losses(self.student(batch.images), batch, self.current_epoch)
        except NonFiniteLoss as error:
            files = ", ".join(str(path) for path in batch_paths(self.data, batch.row))
            raise FloatingPointError(
                f"{error} at epoch {self.current_epoch}, batch {batch_idx}: {files}"
            ) from error
        size = len(batch.images)
        self.log(
            "loss/total",
            losses.total,
            prog_bar=True,
            on_step=False,
            on_epoch=True,
            batch_size=size,
            sync_dist=True,
        )
        terms = {f"loss/{name}": value for name, value in losses.raw.items()}
        terms |= {f"weighted/{name}": value for name, value in losses.weighted.items()}
        self.log_dict(terms, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return losses.total

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule stepped once an epoch."""
        optimizer, schedule = optimise(
            self.parameters(), self.losses.unscheduled_parameters(), self.optimizer, self.schedule
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the card, so that evaluation needs no config."""
        checkpoint["clip3dreid"] = dict(self.card)
