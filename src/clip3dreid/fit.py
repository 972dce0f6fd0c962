"""One training run: from a composed config to checkpoints, logs and a report."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf, read_write

from clip3dreid.build import DataSource, check_protocols, counts, data_sources, plain, protocols_of
from clip3dreid.callbacks import StepTimes
from clip3dreid.checklist import check_files
from clip3dreid.config import LAST_CHECKPOINT
from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.errors import InputError
from clip3dreid.files import write_json, write_text
from clip3dreid.guidance import Guides, check_same_guides, guide
from clip3dreid.language import labels as language_labels
from clip3dreid.loss.total import Total, Weighted, needs
from clip3dreid.model.student import Student
from clip3dreid.model.weights import CARD_VERSION, check_same_student, load_pretrained, read_card
from clip3dreid.module import ReidModule
from clip3dreid.record import environment, keep_metrics
from clip3dreid.tables import print_scores, save_tables
from clip3dreid.types import Dimensions

log = logging.getLogger(__name__)

RESULTS_VERSION = 2
RESCUE = "last_good.ckpt"
LABELS = "labels.parquet"
QUERIES = "per_query"


def make_student(cfg: DictConfig) -> Student:
    """The student of the config with the weights it starts from.

    Raises:
        InputError: if weights are asked for and missing, or do not fit.
    """
    student: Student = instantiate(cfg.model.student)
    start = cfg.init_from or cfg.model.pretrained
    if cfg.init_from:
        check_same_student(Path(cfg.init_from), plain(cfg.model.student))
    if start is not None:
        load_pretrained(student, Path(start), fetch=None if cfg.init_from else cfg.model.fetch)
    return student


def make_card(cfg: DictConfig, guides: Guides) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to rebuild the student, feed it, and read what it says."""
    return {
        "version": CARD_VERSION,
        "student": plain(cfg.model.student),
        "height": int(cfg.loader.height),
        "width": int(cfg.loader.width),
        "data": [str(cfg.data.name), *(str(also.name) for also in cfg.data.also.values())],
        **guides.facts,
    }


def headline(source: DataSource, validation: bool) -> str:
    """Name of the protocol that selects checkpoints: the last of the data set's list."""
    return list(source.val_protocols if validation else source.protocols)[-1]


def _callbacks(cfg: DictConfig, monitor: str | None) -> list[Callback]:
    """All of `cfg.callbacks`, and the clock; `best` only where there is something to select by."""
    callbacks: list[Callback] = [StepTimes()]
    for name, node in cfg.callbacks.items():
        if name == "best":
            if monitor is not None:
                callbacks.append(instantiate(node)(monitor=monitor))
        elif name != "learning_rate" or cfg.logger:
            callbacks.append(instantiate(node))
    return callbacks


def _loggers(cfg: DictConfig) -> list[Logger]:
    """All of `cfg.logger`, but for W&B where the environment says that it is disabled."""
    disabled = os.environ.get("WANDB_MODE") == "disabled"
    return [instantiate(node) for name, node in cfg.logger.items() if not (disabled and name == "wandb")]


def _check_starts(terms: Mapping[str, Weighted], epochs: int) -> None:
    """Refuses a loss that would never take part."""
    needs(terms)  # whose entries are whole
    for name, entry in terms.items():
        if entry["weight"] > 0 and entry["start_epoch"] >= epochs:
            raise InputError(
                f"loss.{name} would start at epoch {entry['start_epoch']} of a training of {epochs} epochs, so "
                f"never; lower loss.{name}.start_epoch (of clothes losses: clothes_start_epoch) or raise epochs"
            )


def _check_ghost(cfg: DictConfig, processes: int, bodies: int) -> None:
    """Says so where batch norm sees other groups of pictures than one process would show it."""
    group = cfg.model.student.get("ghost_group")
    batch = int(cfg.loader.people) * int(cfg.loader.pictures) // processes
    mine = bodies // processes
    if bodies and (mine == 1 or (group is not None and mine > group and mine % group == 1)):
        raise InputError(
            f"{mine} bodies a process leave a batch-norm group of one picture, which has no variance; "
            "change bodies.batch"
        )
    if group is None:
        return
    if bodies and cfg.bodies.batch_norm == "shared":
        raise InputError(
            f"bodies.batch_norm=shared needs model.student.ghost_group=null: groups of {group} pictures would hold "
            "people or bodies, never both"
        )
    if batch > group and batch % group == 1:
        raise InputError(
            f"{batch} pictures a process leave a batch-norm group of one picture (model.student.ghost_group="
            f"{group}), which has no variance; change loader.people, loader.pictures or the group"
        )
    if processes > 1 and batch % group:
        log.warning(
            "batch norm sees %d pictures a process, no multiple of model.student.ghost_group=%d: another number "
            "of processes would not train the same model",
            batch,
            group,
        )


@rank_zero_only
def _record(cfg: DictConfig, folder: Path, data: ReidDataModule, guides: Guides) -> None:
    """Saves beside the run what its numbers depend on."""
    if guides.labels is not None:
        language_labels.save(guides.labels, folder / LABELS)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    facts = environment() | {
        "seed": int(cfg.seed),
        "guides": guides.facts,
        "data": {manifest.name: counts(manifest) for manifest in data.manifests},
        "notes": {manifest.name: list(manifest.notes) for manifest in data.manifests},
    }
    write_json(folder / "environment.json", facts)


def _finish_wandb() -> None:
    """Ends the dashboard's run, which the next run of a sweep would otherwise go on writing to."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


# What Lightning's launcher leaves in the environment, from which a next run would conclude that it was launched.
_LAUNCH = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def _own_launch() -> Iterator[None]:
    """Makes one run of a sweep launch its further processes as a run of its own would.

    Lightning starts a process for each further device by repeating this process's command line and Hydra's run
    folder. In a sweep the command line would be the whole sweep's, and the folder nobody's.
    """
    hydra = cast(DictConfig, HydraConfig.get())
    if hydra.mode != RunMode.MULTIRUN:
        yield
        return
    arguments, environment = sys.argv, {name: os.environ.get(name) for name in _LAUNCH}
    sys.argv = [sys.argv[0], *hydra.overrides.task]
    with read_write(hydra):
        hydra.run.dir = hydra.runtime.output_dir
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        sys.argv = arguments
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def run(cfg: DictConfig) -> float | None:
    """Trains and evaluates.

    Args:
        cfg: `conf/train.yaml`, composed.

    Returns:
        The headline protocol's R1 on the first data set, 0..1, for Hydra's optimising sweepers; None where there
        is nothing to test on.

    Raises:
        InputError: if the config asks for something that the data, the weights or the losses cannot give.
        SystemExit: with 130 or 143 if the run was stopped by Ctrl-C or a scheduler.
    """
    with _own_launch():
        try:
            return _run(cfg)
        finally:
            _finish_wandb()


def _run(cfg: DictConfig) -> float | None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    check_files(cfg, list(HydraConfig.get().overrides.task))
    sources = data_sources(cfg, cfg.seed)
    if cfg.select_on_test and any(node.val_people for node in (cfg.data, *cfg.data.also.values())):
        raise InputError(
            "select_on_test=true leaves the held-out people nothing to do; set data.val_people=0 or "
            "select_on_test=false"
        )
    data: ReidDataModule = instantiate(cfg.loader)([source.manifest for source in sources], seed=cfg.seed)
    data.validation_split = "test" if cfg.select_on_test else "val"
    student = make_student(cfg)
    # Asked before anything else is built: a data set without training people has no outfits either.
    data.sampler()
    if missing := data.labels.without_clothes:
        log.info(
            "%d of %d training pictures have no clothes label: clothes are left alone",
            missing,
            len(data.train_table),
        )
    terms = instantiate(cfg.loss)
    _check_starts(terms, int(cfg.epochs))
    guides = guide(cfg, data, needs(terms))
    data.bodies = guides.bodies
    losses = Total(
        terms,
        Dimensions(
            channels=student.channels,
            width=student.width,
            people=len(data.labels.people),
            person_of_clothes=data.person_of_clothes,
            words=guides.words,
            teacher=guides.teacher,
            shape=guides.shape,
        ),
    )
    if cfg.channels_last:
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.compile:
        if cfg.gradient_norms_every:
            # A compiled backward pass may else reuse what a second one of the same step needs.
            torch._functorch.config.donated_buffer = False
        student.compile()  # in place: names of weights stay as they are
    module = ReidModule(
        student,
        losses,
        optimizer=instantiate(cfg.optimizer.optimizer),
        schedule=instantiate(cfg.optimizer.schedule),
        card=make_card(cfg, guides),
        protocols=protocols_of(sources),
        metric=cfg.retrieval.metric,
        flip=cfg.retrieval.flip,
        rerank=instantiate(cfg.retrieval.rerank),
        open_set=plain(cfg.retrieval.open_set),
        teacher=guides.embeddings,
        body_norm=str(cfg.bodies.batch_norm),
        gradient_norms_every=int(cfg.gradient_norms_every),
        rescue=folder / "checkpoints" / RESCUE,
    )
    selecting = [evaluation.name for evaluation in data.evaluations(data.validation_split)]
    monitor = None
    if selecting:
        chosen = next(source for source in sources if source.manifest.name == selecting[0])
        monitor = f"val/{selecting[0]}/{headline(chosen, not cfg.select_on_test)}/r1"
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        callbacks=_callbacks(cfg, monitor),
        logger=_loggers(cfg),
    )
    # Asked now, what loader and evaluator would refuse later is refused before anything is written or launched.
    data.sampler(0, trainer.world_size)
    if data.bodies is not None:
        data.body_sampler(0, trainer.world_size)
    check_protocols(data, module.protocols, data.validation_split, "test")
    _check_ghost(cfg, trainer.world_size, 0 if data.bodies is None else data.bodies.batch)
    if cfg.resume:
        check_same_guides(read_card(folder / LAST_CHECKPOINT), guides)
        rank_zero_only(keep_metrics)(folder)
    for logger in trainer.loggers:
        logger.log_hyperparams(plain(cfg))
    _record(cfg, folder, data, guides)
    resume = folder / LAST_CHECKPOINT if cfg.resume else None
    # Checkpoints hold plain data only, so nothing in them is ever unpickled.
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit as stop:
        # Lightning leaves with status 0 when a scheduler sends SIGTERM, as if the run were done.
        log.error("stopped in epoch %d; go on with resume=%s", trainer.current_epoch, folder)
        raise SystemExit(143 if isinstance(stop, SIGTERMException) else 130) from stop
    if data.overfit_batches:
        log.info("a trial on %d batch(es): nothing worth evaluating", data.overfit_batches)
        return None
    return _report(cfg, folder, trainer, module, data, sources, monitor)


def _report(
    cfg: DictConfig,
    folder: Path,
    trainer: pl.Trainer,
    module: ReidModule,
    data: ReidDataModule,
    sources: list[DataSource],
    monitor: str | None,
) -> float | None:
    """Evaluates the last checkpoint and the selected one, prints the tables, writes `results.json`."""
    if not data.evaluations("test"):
        log.info("no test people in this data: nothing to evaluate")
        return None
    candidates: list[tuple[str, str, str | None]] = [("last", "last epoch", None)]
    by = "on TEST data" if cfg.select_on_test else "on held-out people"
    # Without a path where the run was too short for a single evaluation.
    candidates += [
        ("best", f"best {monitor} {by}", callback.best_model_path)
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path
    ]
    evaluations: list[dict[str, Any]] = []
    for name, selected_by, path in candidates:
        module.test_prefix = f"test/{name}"
        trainer.test(module, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
        for data_set, results in module.results["test"].items():
            queries = module.queries["test"][data_set]
            files = {protocol: f"{QUERIES}/{name}_{data_set}_{protocol}.parquet" for protocol in queries}
            tables = {folder / files[protocol]: table for protocol, table in queries.items()}
            rank_zero_only(save_tables)(tables)
            evaluations.append(
                {
                    "checkpoint": name,
                    "selected_by": selected_by,
                    "data": data_set,
                    "results": results,
                    "per_query": files,
                }
            )
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    clock = next(callback for callback in callbacks if isinstance(callback, StepTimes))
    bodies = 0 if data.bodies is None else data.bodies.batch
    facts = {
        "version": RESULTS_VERSION,
        "seed": int(cfg.seed),
        "rung": cfg.rung or "+".join(module.losses.entries),
        "cost": {
            "step_seconds": clock.median,
            "pictures_per_step": int(cfg.loader.people) * int(cfg.loader.pictures) + bodies,
            "steps": trainer.global_step,
        },
        "metric": str(cfg.retrieval.metric),
        "flip": bool(cfg.retrieval.flip),
        "notes": {source.manifest.name: list(source.manifest.notes) for source in sources},
        "evaluations": evaluations,
    }
    _publish(folder, facts)
    first = evaluations[0]
    source = next(source for source in sources if source.manifest.name == first["data"])
    return float(first["results"][headline(source, validation=False)]["r1"])


@rank_zero_only
def _publish(folder: Path, facts: dict[str, Any]) -> None:
    write_json(folder / "results.json", facts)
    for evaluation in facts["evaluations"]:
        title = f"{evaluation['data']}, {evaluation['checkpoint']} checkpoint ({evaluation['selected_by']})"
        print_scores(title, evaluation["results"], facts["notes"][evaluation["data"]])
    log.info("results, checkpoints and logs are in %s", folder)
