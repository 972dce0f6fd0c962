"""The one place where model, losses and retrieval meet: the LightningModules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast, get_args

import numpy as np
import polars as pl
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from clip3dreid.data.datamodule import EvaluationSet, ReidDataModule, batch_paths
from clip3dreid.errors import InputError
from clip3dreid.inference.features import retrieval_features
from clip3dreid.loss.weighted import Losses, NonFiniteLoss, WeightedLosses
from clip3dreid.model.card import CARD, check_student
from clip3dreid.model.normalisation import statistics_kept
from clip3dreid.model.student import Student
from clip3dreid.model.weights import HEADS, add_checksum
from clip3dreid.retrieval.distributed import gather_evaluation
from clip3dreid.retrieval.evaluation import Reranking, evaluate, query_table
from clip3dreid.retrieval.protocol import Protocol, Protocols
from clip3dreid.retrieval.settings import Distance, open_set_rates
from clip3dreid.training.checkpoints import moved
from clip3dreid.training.optimizer import optimise, restore_settings, settings_of
from clip3dreid.types import Batch, Features

log = logging.getLogger(__name__)

RESCUE = "last_good.ckpt"
"""What the state before a loss that is not finite is saved as."""

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


def limits(trainer: Any) -> list[str]:
    """Lightning's own switches for smoke tests that are set, with which not everything is embedded.

    Args:
        trainer: a Trainer, or the config of one.
    """
    if getattr(trainer, "fast_dev_run", None):
        return ["trainer.fast_dev_run"]
    values = {
        f"limit_{part}_batches": getattr(trainer, f"limit_{part}_batches", None) for part in ("val", "test")
    }
    # The number 1 is one batch, the fraction 1.0 all of them.
    return [
        f"trainer.{key}={value}" for key, value in values.items() if value is not None and str(value) != "1.0"
    ]


class EvaluationModule(LightningModule):
    """A student under its protocols: embeds queries and galleries, ranks, reports.

    Args:
        student: the model.
        protocols: for each split (`val`, `test`) and data set, the protocols to report.
        metric: distance of the ranking.
        flip: embed each picture and its mirror image and add the two.
        rerank: re-ranking; None: there is none.
        open_set: false positive rates at which to report the true positive rate; None: none.

    After `trainer.validate` or `trainer.test`, `results[split][data set][protocol]` holds the scores and
    `queries[split][data set][protocol]` those of every valid query (see `query_table`); loggers get the scores under
    `val/…` and `test/…`, or whatever `test_prefix` says.
    Distributed, each process embeds a share of the pictures and ranks a share of the queries.
    """

    refined: tuple[str, ...] = ("val", "test")
    """Stages with re-ranking and open-set scores, where these are asked for."""
    trials = False
    """Whether a smoke test that leaves pictures out may go on without a score."""

    def __init__(
        self,
        student: Student,
        *,
        protocols: Mapping[str, Protocols],
        metric: Distance,
        flip: bool,
        rerank: Reranking | None = None,
        open_set: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if metric not in get_args(Distance):
            raise InputError(f"metric={metric} is not known; choose one of {', '.join(get_args(Distance))}")
        self.student = student
        self.protocols = protocols
        self.metric = metric
        self.flip = flip
        # Asked now, what evaluation would refuse is refused before anything is trained or embedded.
        self.open_set = open_set_rates(open_set, reranked=rerank is not None)
        self.rerank = rerank
        self.test_prefix = "test"
        self.results: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        self.queries: dict[str, dict[str, dict[str, pl.DataFrame]]] = {}
        self._features: list[Tensor] = []
        self._embedded: list[Tensor] = []

    @property
    def data(self) -> ReidDataModule:
        """The datamodule of the trainer that runs this module."""
        return cast(ReidDataModule, self.trainer.datamodule)  # type: ignore[attr-defined]

    def embed(self, images: Tensor) -> Tensor:
        """Retrieval features (B, D), float32, of pictures (B, 3, H, W) in 0..1."""
        return retrieval_features(self.student, images, flip=self.flip).embedding

    def _start(self, split: str) -> None:
        if self.trainer.world_size > 1:
            share_buffers(self.student)
        # Preallocated: a list of batches and its concatenation would need twice the memory.
        sizes = [len(evaluation.files) for evaluation in self.data.evaluations(split)]
        self._features = [torch.zeros(size, self.student.width) for size in sizes]
        self._embedded = [torch.zeros(size, dtype=torch.int32) for size in sizes]

    def _keep(self, batch: Batch, loader: int) -> None:
        rows = batch.row.cpu()
        self._features[loader][rows] = self.embed(batch.images).cpu()
        self._embedded[loader][rows] += 1

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
        self.results[stage], self.queries[stage] = {}, {}
        for evaluation, features, embedded in zip(
            self.data.evaluations(split), self._features, self._embedded, strict=True
        ):
            if not self._complete(evaluation, self._exchange(embedded)):
                continue
            protocols = self.protocols[split][evaluation.name]
            scores, queries = self._score(evaluation, self._exchange(features), protocols, share, stage)
            self.results[stage][evaluation.name] = scores
            self.queries[stage][evaluation.name] = queries
            for protocol, values in scores.items():
                shown = {
                    f"{prefix}/{evaluation.name}/{protocol}/{k}": values[k] for k in ("r1", "map", "minp")
                }
                # Equal in all processes, and known to all, since each asks which checkpoint is the best.
                self.log_dict(shown, sync_dist=True)
        self._features, self._embedded = [], []

    def _complete(self, evaluation: EvaluationSet, embedded: Tensor) -> bool:
        """Whether every picture has a feature; those that were never computed are zeros, and are not scored.

        Args:
            evaluation: whose pictures.
            embedded: (N,) how often each was embedded.

        Raises:
            InputError: naming the first picture that was not, unless this is a trial that leaves some out on purpose.
        """
        missing = (embedded == 0).nonzero().flatten()
        if not len(missing) or self.trainer.sanity_checking:
            return not len(missing)
        what = f"{len(missing)} of {len(embedded)} pictures of {evaluation.name} were never embedded"
        switches = limits(self.trainer)
        if switches and self.trials:
            log.warning("%s (%s): no score exists", what, ", ".join(switches))
            return False
        advice = f"leave {', '.join(switches)} out" if switches else "run it again"
        first = evaluation.files[int(missing[0])]
        raise InputError(f"{what}, first {first}: there is no score; {advice}")

    def _score(
        self,
        evaluation: EvaluationSet,
        features: Tensor,
        protocols: Mapping[str, Protocol],
        share: tuple[int, int],
        stage: str,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, pl.DataFrame]]:
        features = features.to(self.device)
        query, gallery = torch.split(features, [len(evaluation.query), len(evaluation.gallery)])
        refined = stage in self.refined
        found = evaluate(
            query,
            evaluation.query,
            gallery,
            evaluation.gallery,
            protocols,
            metric=self.metric,
            share=share,
            rerank=self.rerank if refined else None,
            open_set=self.open_set if refined else None,
        )
        scores, queries = {}, {}
        for name, part in found.items():
            everything = gather_evaluation(part, self.device)
            scores[name] = part.result(everything)
            queries[name] = query_table(everything.numbers, evaluation.query)
        return scores, queries

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
        seed: of what is drawn in training steps.
        protocols: see `EvaluationModule`.
        metric: see `EvaluationModule`.
        flip: see `EvaluationModule`.
        rerank: see `EvaluationModule`; in tests alone, so that checkpoints are selected by the plain ranking.
        open_set: likewise.
        targets: name in `Batch.targets` -> what makes (B, ...) of a batch, where a loss needs it.
        body_norm: how batch norm treats the stream of bodies: `separate`, each stream is normalised by its own
            statistics and the running ones are the people's alone; or `shared`, both streams are one batch.
        gradient_norms_every: steps between measurements of the gradient that each term sends into the backbone, each
            of which costs a backward pass a term; 0: never.
        checkpoints: folder of the run's checkpoints, to which the last good state is saved should a loss become NaN
            or infinite; None: nothing is saved.
        trusted: packages of the user's own whose classes the student may be made of.
    """

    refined = ("test",)
    trials = True

    def __init__(
        self,
        student: Student,
        losses: WeightedLosses,
        *,
        optimizer: Callable[[list[dict[str, list[nn.Parameter]]]], Optimizer],
        schedule: Callable[[int], float],
        card: Mapping[str, Any],
        seed: int,
        protocols: Mapping[str, Protocols],
        metric: Distance,
        flip: bool,
        rerank: Reranking | None = None,
        open_set: Sequence[float] | None = None,
        targets: Mapping[str, nn.Module] | None = None,
        body_norm: str = "separate",
        gradient_norms_every: int = 0,
        checkpoints: Path | None = None,
        trusted: Collection[str] = (),
    ) -> None:
        super().__init__(
            student, protocols=protocols, metric=metric, flip=flip, rerank=rerank, open_set=open_set
        )
        if body_norm not in ("separate", "shared"):
            raise InputError(f"bodies.batch_norm={body_norm} is not known; choose separate or shared")
        if gradient_norms_every < 0:
            raise InputError(f"gradient_norms_every={gradient_norms_every} must be 0 or more")
        self.losses: WeightedLosses = losses
        self.optimizer = optimizer
        self.schedule = schedule
        self.card = card
        self.seed = seed
        try:
            check_student(card.get("student"), "a checkpoint of this run", trusted)
        except InputError as error:
            log.warning(
                "%s: training can use the checkpoints, and evaluation by itself and load cannot", error
            )
        self.targets = nn.ModuleDict(targets)
        self.body_norm = body_norm
        self.gradient_norms_every = gradient_norms_every
        self.checkpoints = checkpoints
        self._settings: list[dict[str, Any]] = []
        # DistributedDataParallel would send all buffers anew before every step; those outside the state are constants
        # that every process made for itself, and a table of tokens can be large.
        state = set(self.state_dict())
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_buffers() if name not in state
        ]

    def on_train_start(self) -> None:
        """Gives a resumed run the rate of its own schedule; a checkpoint brings that of the run that wrote it."""
        schedule = cast(LambdaLR, self.lr_schedulers())
        restore_settings(schedule, self._settings, self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds what is drawn in this step, dropout for one, so that it is drawn again if a run is resumed here."""
        rank = self.trainer.global_rank
        torch.manual_seed(
            int(np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, rank]).generate_state(1)[0])
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Weighted sum of the losses of a batch; every term is logged raw and weighted.

        Raises:
            FloatingPointError: if a term is NaN or infinite, with its name and the batch's files.
        """
        if self.targets:
            batch = batch._replace(targets={name: make(batch) for name, make in self.targets.items()})
        features, bodies = self._see(batch)
        losses, failure = None, None
        try:
            losses = cast(Losses, self.losses(features, batch, self.current_epoch, bodies=bodies))
        except NonFiniteLoss as error:
            failure = error
        if self._anywhere(failure is not None) or losses is None:
            self._stop(failure, batch, batch_idx)
        assert losses is not None
        if self.gradient_norms_every and self.global_step % self.gradient_norms_every == 0:
            self._log_mean(self._gradient_norms(losses), batch)
        self._log_mean({"loss/total": losses.total.detach()}, batch, prog_bar=True)
        terms = {f"loss/{name}": value for name, value in losses.raw.items()}
        terms |= {f"weighted/{name}": value for name, value in losses.weighted.items()}
        terms |= {f"observed/{name}": value for name, value in losses.observed.items()}
        self._log_mean(terms, batch)
        return losses.total

    def _see(self, batch: Batch) -> tuple[Features, Features | None]:
        """Return the features of both streams: the people's, and the bodies', if the batch has any."""
        if batch.bodies is None:
            return self.student(batch.images), None
        if self.body_norm == "shared":
            both: Features = self.student(torch.cat([batch.images, batch.bodies.images]))
            people = len(batch.images)
            features = Features(*(part[:people] for part in both))
            return features, Features(*(part[people:] for part in both))
        features = self.student(batch.images)
        with statistics_kept(self.student):
            return features, self.student(batch.bodies.images)

    def _log_mean(self, values: Mapping[str, Tensor], batch: Batch, prog_bar: bool = False) -> None:
        self.log_dict(
            dict(values),
            prog_bar=prog_bar,
            on_step=False,
            on_epoch=True,
            batch_size=len(batch.images),
            sync_dist=True,
        )

    def _gradient_norms(self, losses: Losses) -> dict[str, Tensor]:
        """Euclidean norm, over the backbone's parameters, of the gradient of each term's weighted value."""
        backbone = [parameter for parameter in self.student.backbone.parameters() if parameter.requires_grad]
        norms = {}
        for name, value in losses.terms.items():
            if value.requires_grad and backbone:
                gradients: Sequence[Tensor | None] = torch.autograd.grad(
                    value, backbone, retain_graph=True, allow_unused=True
                )
                squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
                norms[f"gradient/{name}"] = torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
        return norms

    def _anywhere(self, here: bool) -> bool:
        """Whether this is so in any process: they must stop together, or the others wait for ever."""
        if self.trainer.world_size == 1:
            return here
        flag = torch.tensor(float(here), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def _stop(self, failure: NonFiniteLoss | None, batch: Batch, batch_idx: int) -> NoReturn:
        """Saves the state before this step, if it is good, and ends the run."""
        files = ", ".join(str(path) for path in batch_paths(self.data, batch.row))
        what = failure or "loss not finite in another process"
        state = (*self.parameters(), *self.buffers())
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in state)
        kept = "the weights are not finite either; go on from the last epoch's checkpoint with resume="
        if self._anywhere(not finite):
            finite = False
        if finite and self.checkpoints is not None:
            rescue = self.checkpoints / RESCUE
            self.trainer.save_checkpoint(rescue)
            # Batch norm's running statistics have seen the batch, the weights have not.
            kept = f"the weights before this batch are in {rescue} (init_from= starts from them)"
        raise FloatingPointError(
            f"{what} at epoch {self.current_epoch}, batch {batch_idx}; {kept}; files: {files}"
        ) from failure

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule stepped once an epoch."""
        optimizer, schedule = optimise(
            self.parameters(), self.losses.unscheduled_parameters(), self.optimizer, self.schedule
        )
        self._settings = settings_of(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets a run that was moved find the checkpoint that was selected before."""
        if self.checkpoints is not None:
            moved(checkpoint, self.checkpoints)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the card, so that evaluation needs no config, and the heads that the model is shipped with."""
        checkpoint[CARD] = dict(self.card)
        checkpoint[HEADS] = {name: tensor.cpu() for name, tensor in self.losses.heads().items()}
        add_checksum(checkpoint)
