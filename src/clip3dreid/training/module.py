"""Train a student: the one place where model, losses and retrieval meet."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from clip3dreid.data.datamodule import batch_paths
from clip3dreid.errors import InputError
from clip3dreid.inference.late import Late, at_once
from clip3dreid.inference.parts import EMBEDDING, Feature
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.io.run_folder import EMA_CHECKPOINT
from clip3dreid.loss.gather import part_of_mean, uneven
from clip3dreid.loss.shares import IDENTITY
from clip3dreid.loss.weighted import Losses, WeightedLosses, not_finite
from clip3dreid.model.card import CARD, check_student
from clip3dreid.model.normalisation import statistics_kept
from clip3dreid.model.student import Student
from clip3dreid.model.weights import HEADS
from clip3dreid.retrieval.evaluation import Reranking
from clip3dreid.retrieval.protocol import Protocols
from clip3dreid.retrieval.settings import Distance
from clip3dreid.training.checkpoints import moved
from clip3dreid.training.deferred import KeptState, LossMeans
from clip3dreid.training.evaluation_module import EvaluationModule
from clip3dreid.training.optimizer import optimise, restore_settings, settings_of
from clip3dreid.training.strategies import share_out, whole
from clip3dreid.types import Batch, Features

log = logging.getLogger(__name__)

RESCUE = "last_good.ckpt"
"""What the state before a loss that is not finite is saved as."""


class _Looked(NamedTuple):
    """A step whose losses are on their way to the host."""

    names: tuple[str, ...]
    """Of the values: `total`, and those of each part."""
    values: Late
    """The values, and where there are several processes whether any has a bad one."""
    row: Tensor
    """(B,) of the batch, to name its files by."""
    epoch: int
    batch_idx: int


class ReidModule(EvaluationModule):
    """A student in training.

    No step waits for the device: losses are added up there and read when the epoch ends. Whether a step's are finite
    is known when the next one begins, or at once on the CPU, and before anything is saved, evaluated or said of it.
    Until then the state before it is kept beside.

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
        feature: see `EvaluationModule`; its parts are made by the heads that the losses ship.
        rerank: see `EvaluationModule`; in tests alone, so that checkpoints are selected by the plain ranking.
        open_set: likewise.
        targets: name in `Batch.targets` -> what makes (B, ...) of a batch, where a loss needs it.
        body_norm: how batch norm treats the stream of bodies: `separate`, each stream is normalised by its own
            statistics and the running ones are the people's alone; or `shared`, both streams are one batch.
        gradient_norms_every: steps of the optimiser between measurements of the gradient that each term sends into
            the backbone, each of which costs a backward pass a term; 0: never. Where a term has a share, steps 1, 2,
            4, 8, … before the second of them are measured too: norms change fastest in the beginning.
        checkpoints: folder of the run's checkpoints, to which the last good state is saved should a loss become NaN
            or infinite; None: nothing is saved.
        trusted: packages of the user's own whose classes the student may be made of.
    """

    student: Student
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
        feature: Feature = EMBEDDING,
        rerank: Reranking | None = None,
        open_set: Sequence[float] | None = None,
        targets: Mapping[str, nn.Module] | None = None,
        body_norm: str = "separate",
        gradient_norms_every: int = 0,
        checkpoints: Path | None = None,
        trusted: Collection[str] = (),
    ) -> None:
        super().__init__(
            student,
            protocols=protocols,
            metric=metric,
            flip=flip,
            feature=feature,
            rerank=rerank,
            open_set=open_set,
        )
        choose("bodies.batch_norm", body_norm, ("separate", "shared"))
        check_number("gradient_norms_every", gradient_norms_every, Range(0), whole=True)
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
        self._means = LossMeans()
        self._looked: _Looked | None = None
        self._before = KeptState()
        self._rescued_step: int | None = None
        self._rows: list[int] | None = None
        self._part = 1.0
        # DistributedDataParallel would send all buffers anew before every step; those outside the state are constants
        # that every process made for itself, and a table of tokens can be large.
        state = set(self.state_dict())
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_buffers() if name not in state
        ]

    @property
    def test_prefix(self) -> str:
        """Return `test/last` for the weights that the training ended with, `test/best` or `test/ema` for a file's."""
        if self.trainer.ckpt_path is None:
            return "test/last"
        return "test/ema" if Path(self.trainer.ckpt_path).name == EMA_CHECKPOINT.name else "test/best"

    def heads(self) -> dict[str, Tensor]:
        """Return what the losses have learnt until now, on the module's device."""
        return {name: whole(tensor) for name, tensor in self.losses.heads().items()}

    def configure_model(self) -> None:
        """Share the weights out among the processes, where the trainer's strategy does so."""
        share_out(self, (self.student, self.losses))

    def on_train_start(self) -> None:
        """Give a resumed run the rate of its own schedule; a checkpoint brings that of the run that wrote it.

        Processes with more of the batch than others count as much more in the mean of gradients.
        """
        rows = self.data.rows(self.trainer.world_size)
        if len(set(rows)) > 1:
            self._rows, self._part = rows, part_of_mean(rows, self.trainer.global_rank)
        schedule = cast(LambdaLR, self.lr_schedulers())
        restore_settings(schedule, self._settings, self.current_epoch)

    def ahead(self, batch: Batch) -> dict[str, Tensor]:
        """Return what is to stand in `Batch.targets` once a training batch is on the device.

        It is read and counted while the labels are on the CPU, since the host would wait for them later.

        Args:
            batch: of the people's pictures, as the loader made it.
        """
        ready = {name: make for name, make in self.targets.items() if getattr(make, "ahead", False)}
        return {name: make(batch) for name, make in ready.items()} | self.losses.ahead(batch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Look at the step before, and seed what is drawn in this one: it is drawn again if a run is resumed here.

        Raises:
            FloatingPointError: as `training_step`, of the step before.
        """
        self._settle()
        drawn = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.trainer.global_rank])
        seed = int(drawn.generate_state(1)[0])
        # Not torch.manual_seed, which keeps a record of each call for every kind of device that there is not.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        if not at_once(self.device):
            constants = set(self._ddp_params_and_buffers_to_ignore)
            altered = (buffer for name, buffer in self.named_buffers() if name not in constants)
            self._before.keep(self, altered, self._optimizer(), self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the losses of a batch; every term is logged raw and weighted.

        Raises:
            FloatingPointError: if a term is NaN or infinite, with its name and the batch's files; on a device other
                than the CPU the next step raises it.
        """
        if missing := self.targets.keys() - batch.targets.keys():
            made = {name: self.targets[name](batch) for name in sorted(missing)}
            batch = batch._replace(targets={**batch.targets, **made})
        features, bodies = self._see(batch)
        measure = self._trained_backbone() if self._measures(batch_idx) else []
        with uneven(self._rows):
            losses = cast(
                Losses,
                self.losses(
                    features,
                    batch,
                    self.current_epoch,
                    bodies=bodies,
                    measure=measure,
                    scale=self._loss_scale() if measure else 1.0,
                    part=self._part,
                ),
            )
        self._note(losses, batch, batch_idx)
        return losses.total if self._rows is None else self._part * losses.total

    def _note(self, losses: Losses, batch: Batch, batch_idx: int) -> None:
        """Take a batch's losses into the epoch's means, and begin to look whether they are finite."""
        named = {"loss/total": losses.total.detach()}
        named |= {f"loss/{name}": value for name, value in losses.raw.items()}
        looked = len(named)
        named |= {f"weighted/{name}": value for name, value in losses.weighted.items()}
        named |= {f"observed/{name}": value for name, value in losses.observed.items()}
        named |= {
            f"weight/{name}": weight for name, weight in losses.weights.items() if isinstance(weight, Tensor)
        }
        names, values = tuple(named), torch.stack(list(named.values()))
        parts = values[:looked]
        if self.trainer.world_size > 1:
            # They must stop together, or the others wait for ever.
            bad = (~parts[:1].isfinite()).to(parts.dtype)
            dist.all_reduce(bad, dist.ReduceOp.MAX)
            parts = torch.cat([parts, bad])
        self._looked = _Looked(
            tuple(name.removeprefix("loss/") for name in names[:looked]),
            Late([parts]),
            batch.row,
            self.current_epoch,
            batch_idx,
        )
        if self._looked.values.there:
            self._settle()
        self._means.add(names, values, len(batch.images))
        if measured := _measured(losses):
            self._means.add(tuple(measured), torch.tensor(list(measured.values())), len(batch.images))

    def _settle(self) -> None:
        """Look at the last step, if nobody has yet.

        Raises:
            FloatingPointError: if its losses are not finite, in this process or another.
        """
        if self._looked is None:
            return
        looked, self._looked = self._looked, None
        total, *others = looked.values.read()[0].tolist()
        elsewhere = self.trainer.world_size > 1 and others.pop() > 0
        failure = not_finite(total, dict(zip(looked.names[1:], others, strict=True)))
        if failure is not None or elsewhere:
            self._stop(failure or "loss not finite in another process", looked)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the epoch's means with its last batch."""
        if self.trainer.fit_loop.epoch_loop._is_training_done:
            self._settle()
            self._log_means()

    def on_train_epoch_end(self) -> None:
        """Log the means of an epoch that ended before its last batch, as by `max_time`."""
        self._settle()
        self._log_means()

    def on_validation_epoch_start(self) -> None:
        """Make room for the features of weights that are finite."""
        self._settle()
        super().on_validation_epoch_start()

    def _log_means(self) -> None:
        """Log the epoch's means; those of several processes count by their pictures."""
        for means, pictures in self._means.read():
            for shown in (True, False):
                self.log_dict(
                    {name: mean for name, mean in means.items() if (name == "loss/total") == shown},
                    prog_bar=shown,
                    on_step=False,
                    on_epoch=True,
                    batch_size=pictures,
                    sync_dist=True,
                )

    def _optimizer(self) -> Optimizer:
        return cast(Optimizer, self.optimizers(use_pl_optimizer=False))

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

    def _trained_backbone(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.student.backbone.parameters() if parameter.requires_grad]

    def _measures(self, batch_idx: int) -> bool:
        """Return whether the gradient of each term is measured in this batch; all of it is known after a resume."""
        every, step = self.gradient_norms_every, self.global_step
        if not every:
            return False
        if self.losses.waiting(self.current_epoch):
            return True
        if batch_idx % self.trainer.accumulate_grad_batches:
            return False  # of the same step of the optimiser as the batch before
        early = self.losses.shares is not None and step < every and step & (step - 1) == 0
        return early or step % every == 0

    def _loss_scale(self) -> float:
        """Return what a loss is multiplied with against underflow: above 1 in float16 alone."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _anywhere(self, here: bool) -> bool:
        """Return whether this is so in any process: they must stop together, or the others wait for ever."""
        if self.trainer.world_size == 1:
            return here
        flag = torch.tensor(float(here), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def _stop(self, failure: str, looked: _Looked) -> NoReturn:
        """Save the state before a step, if it is good, and end the run."""
        files = ", ".join(str(path) for path in batch_paths(self.data, looked.row))
        late = not at_once(self.device)
        if late:
            self._before.restore(self._optimizer())
        state = (*self.parameters(), *self.buffers())
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in state)
        kept = "the weights are not finite either; go on from the last epoch's checkpoint with resume="
        if self._anywhere(not finite):
            finite = False
        if finite and self.checkpoints is not None:
            rescue = self.checkpoints / RESCUE
            self._rescued_step = self._before.step if late else self.global_step
            self.trainer.save_checkpoint(rescue)
            # On the CPU batch norm's running statistics have seen the batch, the weights have not.
            kept = f"the weights before this batch are in {rescue} (init_from= starts from them)"
        raise FloatingPointError(
            f"{failure} in epoch {looked.epoch + 1}, batch {looked.batch_idx + 1}; {kept}; files: {files}"
        )

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and the schedule stepped once an epoch."""
        optimizer, schedule = optimise(
            self.parameters(), self.losses.unscheduled_parameters(), self.optimizer, self.schedule
        )
        self._settings = settings_of(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a run that was moved find the checkpoint that was selected before."""
        if self.checkpoints is not None:
            moved(checkpoint, self.checkpoints)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card, so that evaluation needs no config, and the heads that the model is shipped with.

        Raises:
            FloatingPointError: rather than save a step whose losses are not finite.
        """
        self._settle()
        if self._rescued_step is not None:
            checkpoint["global_step"] = self._rescued_step
        checkpoint[CARD] = dict(self.card)
        checkpoint[HEADS] = {name: tensor.cpu() for name, tensor in self.heads().items()}


def _measured(losses: Losses) -> dict[str, float]:
    """Return what is logged of the gradients, where they were measured."""
    found: dict[str, float] = {}
    norms = {name: one.norm * float(losses.weights[name]) for name, one in losses.sent.items()}
    found |= {f"gradient/{name}": norm for name, norm in norms.items() if math.isfinite(norm)}
    identity = norms.get(IDENTITY, 0.0)
    for name, one in losses.sent.items():
        if name != IDENTITY and 0 < identity < math.inf and math.isfinite(norms[name]):
            found[f"share/{name}"] = norms[name] / identity
            if math.isfinite(one.aligned):
                found[f"aligned/{name}"] = one.aligned
    return found
