"""Train a student and evaluate it: data, losses and settings in, checkpoints, logs and a report out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.sources import DataSpec
from clip3dreid.data.training_set import training_set
from clip3dreid.errors import InputError
from clip3dreid.guidance.guides import Guides, check_same_training
from clip3dreid.inference.parts import EMBEDDING
from clip3dreid.io.claims import refuse_held, remove_prepared
from clip3dreid.io.environment import keep_earlier
from clip3dreid.io.launch import forget, launch
from clip3dreid.io.launcher import own_processes
from clip3dreid.io.locks import at_work
from clip3dreid.io.run_folder import EMA_CHECKPOINT, LAST_CHECKPOINT, resume_argument
from clip3dreid.io.talk import say
from clip3dreid.loss.weighted import LossEntry, WeightedLosses, needs
from clip3dreid.model.student import Student
from clip3dreid.model.weights import read_card
from clip3dreid.report.results import RunResults, results_text
from clip3dreid.training.callbacks import AfterResults, StepTimes, asynchronous
from clip3dreid.training.checkpoints import CheckpointFiles
from clip3dreid.training.checks import check_feature, check_norms, check_shares, run_feature
from clip3dreid.training.data import (
    RunData,
    as_run_data,
    check_protocols,
    headline_of,
    protocols_of,
)
from clip3dreid.training.defaults import (
    BATCHES,
    OPTIMIZER,
    TRAINER,
    best_checkpoint,
    csv_logger,
    described,
    trainer_arguments,
    usual_callbacks,
)
from clip3dreid.training.evaluation_module import limits
from clip3dreid.training.loggers import finish_dashboards, spared
from clip3dreid.training.module import ReidModule
from clip3dreid.training.opening import opening, student_name
from clip3dreid.training.optimizer import constant, optimise
from clip3dreid.training.outcome import evaluate_run, record, selected
from clip3dreid.training.prepare import (
    check_people,
    check_sharding,
    checkpoint_to_go_on_from,
    make_card,
    make_data,
    make_guides,
    make_losses,
    make_optimizer,
    make_student,
    meet,
    read_manifests,
    switched,
    tune,
)
from clip3dreid.training.request import MakeData, MakeGuides, MakeTrainer, TrainRequest
from clip3dreid.training.settings import RANKING, SETTINGS, Invocation, RankingSettings, TrainSettings
from clip3dreid.training.signals import SaveWhenTold, StopWatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What came of a training.

    Attributes:
        folder: of the run.
        headline: R1 of the headline protocol on the first data set, 0..1; None where there is nothing to test on.
        results: of the last checkpoint and, where one was selected, of the best, as `results.json` has them; None
            where there is nothing to test on.
        card: what the checkpoints say of themselves.
        checkpoints: `last`, `ema` where weights were averaged, and `best` where one was selected -> its file.
    """

    folder: Path
    headline: float | None
    results: RunResults | None
    card: Mapping[str, Any]
    checkpoints: Mapping[str, Path]


def train(
    data: RunData | DataSpec | Manifest | Sequence[RunData],
    *,
    student: Mapping[str, Any],
    losses: Mapping[str, LossEntry],
    folder: Path | str,
    epochs: int | None = None,
    settings: TrainSettings = SETTINGS,
    ranking: RankingSettings = RANKING,
    batches: MakeData = BATCHES,
    optimizer: Callable[..., torch.optim.Optimizer] = OPTIMIZER,
    schedule: Callable[[int], float] = constant,
    guides: MakeGuides | None = None,
    trainer: MakeTrainer = TRAINER,
    loggers: Sequence[Logger] | None = None,
    callbacks: Sequence[Callback] | None = None,
    best: Callable[..., ModelCheckpoint] | None = None,
    config: Mapping[str, Any] | None = None,
    invocation: Invocation | None = None,
) -> TrainResult:
    """Train a student and evaluate it under every protocol of its data.

    `train(manifest, student=node, losses={...}, folder="runs/first", epochs=2)` trains on one device with the base
    recipe's sizes.

    Args:
        data: what to train on; of several data sets the first is the data set proper.
        student: the student as plain data, as a checkpoint's card has it: `_target_` and arguments.
        losses: name -> entry.
        folder: of the run, which holds no other.
        epochs: short for that of `settings`.
        settings: how the student is trained.
        ranking: how queries and galleries are compared.
        batches: makes the data module: `ReidDataModule` with sizes and augmentation filled in.
        optimizer: makes an optimiser of parameter groups.
        schedule: multiplier of the learning rate for a 0-based epoch.
        guides: makes what guides the losses beside pictures and labels; None: nothing does.
        trainer: Lightning's Trainer with what is not to be as usual filled in.
        loggers: None: a CSV file.
        callbacks: None: the last checkpoint is saved after each epoch, and the best where there is something to
            select by; a line says what came of each, and on a terminal a bar shows the progress.
        best: beside `callbacks`, makes what saves the best checkpoint, given `monitor`; None: nothing does.
        config: all that the run was asked for, as plain data: it is kept in the folder, and a run that is resumed is
            compared with it; None: what the other arguments say.
        invocation: how a command started this run; None: none did.

    Returns:
        Where the run lies, and its scores.

    Raises:
        InputError: if what is asked for cannot be had of data, weights or losses.
        Stopped: with 128 and the signal's number if the run was stopped by Ctrl-C or a scheduler.
    """
    needs(losses)  # refuses entries that are wrong, before anything reads them
    feature = run_feature(ranking.feature, losses)
    check_feature(feature, losses)
    ranking = replace(ranking, feature=feature)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    folder = (Path(folder) if settings.resume is None else settings.resume).absolute()
    sources = as_run_data(data)
    request = TrainRequest(
        data=sources,
        student=student,
        losses=losses,
        folder=folder,
        settings=settings,
        ranking=ranking,
        batches=batches,
        optimizer=optimizer,
        schedule=schedule,
        guides=guides or (lambda pictures, labels, shared: ()),
        trainer=partial(trainer, **(trainer_arguments(settings, folder) | trainer.keywords)),
        loggers=[csv_logger(folder)] if loggers is None else loggers,
        callbacks=usual_callbacks(folder) if callbacks is None else callbacks,
        best=partial(best_checkpoint, folder) if callbacks is None else best,
        config=described(sources, student, losses, settings, ranking) if config is None else config,
        invocation=invocation,
    )
    with _own_run(request) as watch:
        return _train(request, watch)


def _train(request: TrainRequest, watch: StopWatch) -> TrainResult:
    check_sharding(request)
    pl.seed_everything(request.settings.seed, workers=True, verbose=False)
    trainer = _trainer(request, watch)
    start = checkpoint_to_go_on_from(request)
    ranks = meet(request, trainer, watch, start)
    manifests = read_manifests(request, ranks)
    pictures = training_set(manifests)
    student = make_student(request, start)
    check_people(request, pictures, student)
    guides = make_guides(request, pictures, start is not None, ranks)
    data = make_data(request, manifests, guides, ranks)
    card = make_card(request, data, guides)
    if ranks.first and start is not None:
        check_same_training(read_card(start), card, guides.same)
    losses = make_losses(request, student, data, guides)
    request = replace(request, optimizer=make_optimizer(request, data))
    tune(student, request.settings)
    module = _module(request, student, losses, guides, card)
    monitor = _monitor(request, data)
    if monitor is not None and request.best is not None:
        # As Lightning orders them, what saves comes last.
        trainer.callbacks.append(request.best(monitor=monitor))  # type: ignore[attr-defined]
    _check_before_anything_is_written(request, trainer, data, module)
    _record(request, trainer, data, guides, resumed=start is not None)
    if trainer.is_global_zero:
        _say_opening(request, manifests, trainer, module, data, guides, start)
        for line in data.looped(request.selecting, "test"):
            log.info("%s", line)
    # Checkpoints hold plain data only, so nothing in them is ever unpickled.
    trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    if data.overfit_batches:
        log.info("a trial on %d batch(es): nothing worth evaluating", data.overfit_batches)
        return _result(request, card, trainer, None)
    results = evaluate_run(
        request.folder, trainer, module, data, request.data, request.settings, request.ranking, monitor
    )
    result = _result(request, card, trainer, results)
    if trainer.is_global_zero and results is not None:
        say(log, results_text(results), {"event": "results", **asdict(results)}, printed=True)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, AfterResults):
                callback.on_results(trainer, module, result)
    return result


@contextmanager
def _own_run(request: TrainRequest) -> Iterator[StopWatch]:
    """Keep folder, signals and processes to this run while it lasts."""
    invocation = request.invocation
    keeping: AbstractContextManager[object] = nullcontext()
    if invocation is None:
        if request.settings.resume is None:
            refuse_held(request.folder)
        command, keeping = (
            f"settings.{resume_argument(request.folder)}",
            at_work(request.folder, "a run", tidy=True),
        )
        watch = StopWatch(request.folder, command, again=False)
    else:
        watch = StopWatch(request.folder, invocation.resume, invocation.alone, invocation.foreseen)
    with own_processes(ends=invocation is not None and invocation.alone), keeping:
        try:
            with watch.reporting():
                yield watch
            if launch().first:
                remove_prepared(request.folder)
        finally:
            finish_dashboards(request.loggers)
            forget()


def _module(
    request: TrainRequest, student: Student, losses: WeightedLosses, guides: Guides, card: Mapping[str, Any]
) -> ReidModule:
    settings, ranking = request.settings, request.ranking
    return ReidModule(
        student,
        losses,
        optimizer=request.optimizer,
        schedule=request.schedule,
        card=card,
        seed=settings.seed,
        protocols=protocols_of(request.data),
        metric=ranking.metric,
        flip=ranking.mirrors,
        feature=ranking.feature or EMBEDDING,
        rerank=ranking.rerank,
        open_set=ranking.open_set,
        targets=guides.targets,
        body_norm=settings.body_norm,
        gradient_norms_every=settings.gradient_norms_every,
        checkpoints=request.folder / LAST_CHECKPOINT.parent,
        trusted=settings.trusted,
    )


def _monitor(request: TrainRequest, data: ReidDataModule) -> str | None:
    """Return the name of the score that selects checkpoints; None where there is none."""
    evaluations = data.evaluations(request.selecting)
    # In a trial that leaves pictures out there is no score to select by.
    if not evaluations or limits(SimpleNamespace(**request.trainer.keywords)):
        return None
    name = evaluations[0].name
    return f"val/{name}/{headline_of(request.data, name, request.selecting)}/r1"


def _trainer(request: TrainRequest, watch: StopWatch) -> pl.Trainer:
    plugins = request.trainer.keywords.get("plugins") or ()
    try:
        trainer = request.trainer(
            callbacks=[
                StepTimes(),
                *switched(request.settings),
                SaveWhenTold(watch),
                *request.callbacks,
            ],
            logger=spared(request.loggers),
            plugins=[*plugins, CheckpointFiles(asynchronous=asynchronous(request.callbacks))],
        )
    except (TypeError, ValueError, ModuleNotFoundError, MisconfigurationException) as error:
        # Lightning alone knows which precisions, devices and strategies go together.
        raise InputError(f"trainer: Lightning refuses its settings: {error}") from error
    watch.take_over(trainer, None if request.invocation is None else request.invocation.processes)
    return trainer


def _check_before_anything_is_written(
    request: TrainRequest, trainer: pl.Trainer, data: ReidDataModule, module: ReidModule
) -> None:
    """Refuse what loader, evaluator, optimiser and norms would refuse later."""
    # On a parameter of its own: no state of the run's, no draw of its chance.
    optimise([torch.nn.Parameter(torch.zeros(1, 1))], [], request.optimizer, request.schedule)
    data.sampler(0, trainer.world_size)
    if data.bodies is not None:
        data.body_sampler(0, trainer.world_size)
    check_protocols(data, module.protocols, request.selecting, "test")
    check_feature(module.feature, request.losses, module.heads())
    check_shares(module.losses, module.student.backbone, request.settings.gradient_norms_every)
    check_norms(
        module.student,
        module.losses,
        rows=data.rows(trainer.world_size),
        pictures=data.pictures_per_person,
        bodies=0 if data.bodies is None else data.bodies.batch,
        body_norm=request.settings.body_norm,
        ghost_group=request.student.get("ghost_group"),
        synchronised=bool(request.trainer.keywords.get("sync_batchnorm")),
    )


def _record(
    request: TrainRequest, trainer: pl.Trainer, data: ReidDataModule, guides: Guides, resumed: bool
) -> None:
    """Save beside the run what its numbers depend on."""
    if trainer.is_global_zero:
        if resumed:
            keep_earlier(request.folder)
        if resumed and request.invocation is not None:
            request.invocation.accepted()
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(request.config))
    rank_zero_only(record)(request.folder, request.config, data, guides, request.settings.seed)


def _say_opening(
    request: TrainRequest,
    manifests: Sequence[Manifest],
    trainer: pl.Trainer,
    module: ReidModule,
    data: ReidDataModule,
    guides: Guides,
    start: Path | None,
) -> None:
    settings, invocation = request.settings, request.invocation
    said = opening(
        manifests,
        trainer,
        module.student,
        data,
        name=student_name(request.student) if invocation is None else invocation.student,
        start=settings.init_from or settings.pretrained,
        guides=guides.lines,
        folder=request.folder,
        goes_on_from=start,
    )
    *first, last = said.lines()
    for line in first:
        say(log, line)
    say(log, last, said.event())


def _result(
    request: TrainRequest,
    card: Mapping[str, Any],
    trainer: pl.Trainer,
    results: RunResults | None,
) -> TrainResult:
    files = {"last": request.folder / LAST_CHECKPOINT}
    if request.settings.ema is not None:
        files["ema"] = request.folder / EMA_CHECKPOINT
    for path in selected(trainer):
        files["best"] = Path(path)
    first = None if results is None else results.evaluations[0]
    return TrainResult(
        folder=request.folder,
        headline=None if first is None else float(first.results[first.headline]["r1"]),
        results=results,
        card=card,
        checkpoints={name: path for name, path in files.items() if path.is_file()},
    )
