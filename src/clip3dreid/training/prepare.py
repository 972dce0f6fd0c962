"""Prepare a training: what it goes on from, its data, student, guides and losses."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.sources import DataSpec
from clip3dreid.data.training_set import TrainingSet
from clip3dreid.errors import InputError
from clip3dreid.guidance.guides import Guides, guide
from clip3dreid.inference.parts import EMBEDDING
from clip3dreid.io.claims import prepared, say_prepared, wait_prepared
from clip3dreid.io.launch import launch
from clip3dreid.io.ranks import ALONE, Ranks, met
from clip3dreid.io.run_folder import CONFIG, LABELS
from clip3dreid.loss.weighted import WeightedLosses, needs
from clip3dreid.model.blocks import recompute
from clip3dreid.model.build import build
from clip3dreid.model.card import CARD_VERSION
from clip3dreid.model.student import Student
from clip3dreid.model.weights import check_same_student, load_pretrained
from clip3dreid.training.averaging import WeightAverage
from clip3dreid.training.checkpoints import newest_whole
from clip3dreid.training.checks import check_clips, check_starts
from clip3dreid.training.data import read_data
from clip3dreid.training.optimizer import by_rule, clipped_by_scaler
from clip3dreid.training.precision import MatmulPrecision
from clip3dreid.training.request import TrainRequest
from clip3dreid.training.resume import changes, read_config
from clip3dreid.training.settings import TrainSettings
from clip3dreid.training.signals import StopWatch
from clip3dreid.training.strategies import ShardedStudent
from clip3dreid.types import Dimensions

log = logging.getLogger(__name__)


def meet(request: TrainRequest, trainer: pl.Trainer, watch: StopWatch, start: Path | None) -> Ranks:
    """Start the further processes of a run, if a scheduler has not, and have all of them meet.

    Args:
        request: of the training.
        trainer: not yet at work.
        watch: entered; it hears of the other processes from here on.
        start: the checkpoint that the run goes on from, which the others are told.

    Raises:
        InputError: if a launcher has started more processes than the trainer is of, or the first process has ended.
    """
    started, size = launch().processes, trainer.world_size
    if started > 1 and started != size:
        raise InputError(
            f"torchrun or srun has started {started} processes, and the trainer is of {size}: give trainer=ddp, with "
            f"trainer.devices (those of a machine) times trainer.num_nodes = {started}"
        )
    launcher = trainer.strategy.launcher
    if size == 1 or isinstance(launcher, _MultiProcessingLauncher):
        return ALONE  # or copies of this process, made when all is prepared
    if launch().first:
        say_prepared(
            request.folder, {"start": None if start is None else str(start.relative_to(request.folder))}
        )
    try:
        if launcher is not None:
            launcher.launch(lambda: None, trainer=trainer)
        # What Lightning does first of all in `fit`, too; there it finds it done.
        trainer.strategy.setup_environment()
    except BaseException:
        watch.end_children()
        raise
    watch.connect()
    return met(prepared(request.folder), launch().id)


def checkpoint_to_go_on_from(request: TrainRequest) -> Path | None:
    """Return the checkpoint of a resumed run; the first process looks for it and tells the others.

    Raises:
        InputError: if there is none, or the run would train another model than it began with.
    """
    if not launch().first:
        told = wait_prepared(request.folder)
        return request.folder / told["start"] if told.get("start") else None
    if request.settings.resume is None:
        return None
    folder, epochs = request.folder, request.settings.epochs
    newest = newest_whole(folder)
    earlier: Mapping[str, Any] = read_config(folder / CONFIG)
    if request.invocation is not None:
        earlier = request.invocation.renamed(earlier)
    changed = changes(earlier, request.config)
    within = f" and {newest.batches} batches" if newest.batches else ""
    if newest.epochs > epochs or (newest.batches and newest.epochs == epochs):
        more = f"{within} of the next" if newest.batches and newest.epochs == epochs else ""
        raise InputError(
            f"epochs={epochs}, but {folder} has trained {newest.epochs} of them{more}; give more"
        )
    log.info("going on after %d epochs%s, from %s", newest.epochs, within, newest.path)
    if changed:
        log.info("changed since the run began: %s", "; ".join(changed))
    return newest.path


def read_manifests(request: TrainRequest, ranks: Ranks) -> list[Manifest]:
    """Read the data sets; the first process lists them.

    Raises:
        InputError: if one cannot be read, or held-out people would have nothing to do.
    """
    specs = [one.source for one in request.data if isinstance(one.source, DataSpec)]
    if request.settings.select_on_test and any(spec.val_people for spec in specs):
        raise InputError(
            "select_on_test=true leaves the held-out people nothing to do; set data.val_people=0 or "
            "select_on_test=false"
        )
    workers = int(request.batches.keywords.get("workers", 1))
    return read_data(request.data, request.settings.seed, workers, ranks)


def make_student(request: TrainRequest, start: Path | None) -> Student:
    """Return the student with the weights it starts from; a resumed one has those of its checkpoint.

    Raises:
        InputError: if weights are asked for and missing, or do not fit.
    """
    settings = request.settings
    student: Student = build(request.student, settings.trusted)
    if start is not None:
        return student
    if settings.init_from is not None:
        check_same_student(settings.init_from, request.student)
        load_pretrained(student, settings.init_from)
    elif settings.pretrained is not None:
        load_pretrained(student, settings.pretrained, fetch=settings.fetch)
    return student


def check_people(request: TrainRequest, pictures: TrainingSet, student: Student) -> None:
    """Refuse impossible batches and clips, and losses that never take part, before a teacher's long look."""
    pictures.check()
    data = request.batches(pictures.manifests, seed=request.settings.seed)
    check_clips(student, data.clips, request.settings.body_norm)
    data.sampler()
    if launch().first:
        data.check_pack()
    if missing := pictures.labels.without_clothes:
        log.info(
            "%d of %d training pictures have no clothes label: clothes are left alone",
            missing,
            len(pictures.table),
        )
    check_starts(request.losses, request.settings.epochs)


def make_guides(request: TrainRequest, pictures: TrainingSet, resumed: bool, ranks: Ranks) -> Guides:
    """Read, embed and label whatever the losses need."""
    labels = request.folder / LABELS
    known = labels if resumed and labels.is_file() else None
    return guide(needs(request.losses), request.guides(pictures, known, ranks))


def make_data(
    request: TrainRequest, manifests: Sequence[Manifest], guides: Guides, ranks: Ranks
) -> ReidDataModule:
    """Make the data module, with what the guides add to it; the first process looks at the files to be tested on."""
    data = request.batches(
        manifests,
        seed=request.settings.seed,
        bodies=guides.bodies,
        keep_view=guides.keep_view,
        validation_split=request.selecting,
        norm_group=request.student.get("ghost_group"),
        guided=request.student.get("guided", "middle"),
        shared=None if ranks.first else ranks.folder,
    )
    if ranks.size > 1:
        if ranks.first:
            data.share_evaluations(ranks.folder)
            data.share_pack(ranks.folder)
        ranks.wait("pictures to be tested on, and places in a pack")
    return data


def make_card(request: TrainRequest, data: ReidDataModule, guides: Guides) -> dict[str, Any]:
    """Return what a checkpoint says of itself: enough to rebuild the student, feed it, and read what it says."""
    rows = data.training.parts
    labels = rows.select("data_set", "path", "person", "clothes", "camera").write_csv()
    return {
        "version": CARD_VERSION,
        "student": dict(request.student),
        "height": data.height,
        "width": data.width,
        "square": data.square,
        "feature": (request.ranking.feature or EMBEDDING).weights,
        **({} if data.clips is None else {"clips": data.clips.size}),
        **({} if request.ranking.mirrors else {"flip": False}),
        "data": [manifest.name for manifest in data.manifests],
        "training": {
            "pictures": len(rows),
            "sha256": hashlib.sha256(labels.encode(errors="surrogateescape")).hexdigest(),
        },
        **guides.facts,
    }


def make_losses(
    request: TrainRequest, student: Student, data: ReidDataModule, guides: Guides
) -> WeightedLosses:
    """Build the losses, with heads for these people and guides."""
    return WeightedLosses(
        request.losses,
        Dimensions(
            channels=student.channels,
            width=student.width,
            people=len(data.labels.people),
            person_of_clothes=data.person_of_clothes,
            guides=guides.says,
        ),
    )


def make_optimizer(request: TrainRequest, data: ReidDataModule) -> Callable[..., torch.optim.Optimizer]:
    """Return what makes the optimiser, at the rate that the batch asks for.

    Its step is not fused where the trainer leaves no place for that.

    Raises:
        InputError: as `optimizer.by_rule`.
    """
    pictures = data.people_per_batch * data.pictures_per_person
    steps = int(request.trainer.keywords.get("accumulate_grad_batches") or 1)
    rule, base = request.settings.lr_rule, request.settings.base_batch
    made = by_rule(request.optimizer, rule, batch=pictures * steps, base_batch=base)
    if getattr(made, "keywords", {}).get("fused") and clipped_by_scaler(request.trainer.keywords):
        log.info("the optimiser's step is not fused: gradients of scaled losses are clipped before it")
        return partial(made, fused=False)
    return made


def tune(student: Student, settings: TrainSettings) -> None:
    """Make a student faster or smaller to train, in place; names of weights stay as they are."""
    if settings.channels_last:
        # Module.to would stop at weights across frames, which have one dimension more.
        for weight in (one for one in student.parameters() if one.ndim == 4):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    if settings.activation_checkpointing and not recompute(student.backbone):
        log.warning(
            "activation_checkpointing=true: the backbone has no repeated blocks, nothing is computed twice"
        )
    if settings.compile:
        if settings.gradient_norms_every:
            # A compiled backward pass may else reuse what a second one of the same step needs.
            torch._functorch.config.donated_buffer = False
        student.compile()


def switched(settings: TrainSettings) -> list[Callback]:
    """Make the callbacks that settings ask for; they come before what saves a step, which holds what they keep."""
    found: list[Callback] = []
    if settings.matmul_precision != "highest":
        found.append(MatmulPrecision(settings.matmul_precision))
    if settings.ema is not None:
        found.append(WeightAverage(settings.ema))
    return found


def check_sharding(request: TrainRequest) -> None:
    """Refuse what a model whose weights are shared out cannot do.

    Raises:
        InputError: naming the key.
    """
    settings, arguments = request.settings, request.trainer.keywords
    if not isinstance(arguments.get("strategy"), ShardedStudent):
        return
    for wrong, what, advice in (
        (settings.gradient_norms_every, "gradient_norms_every", "=0: no process has a whole gradient"),
        (settings.ema is not None, "ema", "=null: no process has all weights to average"),
        (settings.channels_last, "channels_last", "=false: weights in that order cannot be"),
        (settings.compile, "compile", "=false, or trainer=ddp"),
        (
            arguments.get("gradient_clip_val") is not None,
            "trainer.gradient_clip_val",
            "=null, or trainer=ddp",
        ),
    ):
        if wrong:
            raise InputError(f"trainer=fsdp shares the weights out and needs {what}{advice}")
