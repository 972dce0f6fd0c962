"""One training run: from a composed config to checkpoints, logs and a report."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import polars
import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, read_write
from torch import nn

from clip3dreid.config import objects
from clip3dreid.config.run_folder import (
    command,
    job_folder,
    prepared,
    record_overrides,
    remove_prepared,
    say_prepared,
    wait_prepared,
)
from clip3dreid.config.trust import trusted
from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.sampling import IdentityBatches
from clip3dreid.data.training_set import TrainingSet, training_set
from clip3dreid.errors import InputError
from clip3dreid.guidance.guides import Guides, check_same_training, guide
from clip3dreid.guidance.sources import (
    DataSource,
    check_protocols,
    counts,
    data_sources,
    plain,
    protocols_of,
    share_sources,
)
from clip3dreid.io.environment import environment, keep_earlier
from clip3dreid.io.files import write_json, write_text
from clip3dreid.io.launch import announce, forget, launch
from clip3dreid.language import labels as language_labels
from clip3dreid.loss.weighted import LossEntry, WeightedLosses, needs
from clip3dreid.model.card import CARD_VERSION
from clip3dreid.model.student import Student
from clip3dreid.model.weights import check_same_student, load_pretrained, read_card
from clip3dreid.report.tables import print_scores, save_tables
from clip3dreid.training.callbacks import StepTimes
from clip3dreid.training.checklist import check_files
from clip3dreid.training.checkpoints import CheckpointFiles, newest_whole
from clip3dreid.training.module import ReidModule, limits
from clip3dreid.training.resume import changes, read_config
from clip3dreid.training.signals import SaveWhenTold, StopWatch
from clip3dreid.types import Dimensions

log = logging.getLogger(__name__)

RESULTS_VERSION = 3
LABELS = "labels.parquet"
CONFIG = "config.yaml"
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


def make_card(cfg: DictConfig, data: ReidDataModule, guides: Guides) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to rebuild the student, feed it, and read what it says."""
    rows = polars.concat([manifest.part("train") for manifest in data.manifests])
    labels = rows.select("data_set", "path", "person", "clothes", "camera").write_csv()
    return {
        "version": CARD_VERSION,
        "student": plain(cfg.model.student),
        "height": int(cfg.datamodule.height),
        "width": int(cfg.datamodule.width),
        "square": bool(cfg.datamodule.square),
        "data": [str(cfg.data.name), *(str(also.name) for also in cfg.data.also.values())],
        "training": {
            "pictures": len(rows),
            "sha256": hashlib.sha256(labels.encode(errors="surrogateescape")).hexdigest(),
        },
        **guides.facts,
    }


def headline(source: DataSource, validation: bool) -> str:
    """Name of the protocol that selects checkpoints: the last of the data set's list."""
    return list(source.val_protocols if validation else source.protocols)[-1]


def _callbacks(cfg: DictConfig, monitor: str | None, watch: StopWatch) -> list[Callback]:
    """All of `cfg.callbacks`, the clock and the watch; `best` only where there is something to select by."""
    callbacks: list[Callback] = [StepTimes(), SaveWhenTold(watch)]
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


def _known_labels(folder: Path, resumed: bool) -> Path | None:
    """The labels that guide this run already: of a resumed run its own, in a further process those of the first."""
    if not resumed and launch().first:
        return None
    labels = folder / LABELS if resumed else prepared(folder) / LABELS
    return labels if labels.is_file() else None


def _several(cfg: DictConfig) -> bool:
    """Whether this run may have more processes than this one; asked before there is a trainer that knows."""
    devices, nodes = plain(cfg.trainer.get("devices", 1)), int(cfg.trainer.get("num_nodes", 1))
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    return launch().processes > 1 or nodes > 1 or not one


def _check_people(cfg: DictConfig, pictures: TrainingSet) -> None:
    """Refuse people that no batch can be made of, before a teacher looks at all of their pictures."""
    pictures.check()
    node = cfg.datamodule
    IdentityBatches(
        pictures.labels.person,
        people=node.people,
        pictures=node.pictures,
        seed=int(cfg.seed),
        sampler=node.sampler,
    )


def _check_starts(terms: Mapping[str, LossEntry], epochs: int) -> None:
    """Refuses a loss that would never take part."""
    needs(terms)  # whose entries are whole
    for name, entry in terms.items():
        if entry["weight"] > 0 and entry["start_epoch"] >= epochs:
            raise InputError(
                f"loss.{name} would start at epoch {entry['start_epoch']} of a training of {epochs} epochs, so "
                f"never; lower loss.{name}.start_epoch (of clothes losses: clothes_start_epoch) or raise epochs"
            )


def _check_ghost(cfg: DictConfig, module: ReidModule, processes: int, bodies: int) -> None:
    """Says so where batch norm sees one picture, or other groups of them than one process would show it."""
    group = cfg.model.student.get("ghost_group")
    batch = int(cfg.datamodule.people) * int(cfg.datamodule.pictures) // processes
    mine = bodies // processes
    shared = mine if cfg.bodies.batch_norm == "shared" else 0
    for part, pictures in ((module.student, batch + shared), (module.losses, batch)):
        # Norms of maps have a picture's positions to go by.
        if pictures == 1 and any(
            isinstance(norm, nn.BatchNorm1d) and norm.training for norm in part.modules()
        ):
            raise InputError(
                f"datamodule.people={cfg.datamodule.people} and datamodule.pictures={cfg.datamodule.pictures} in "
                f"{processes} process(es) leave batch norm one picture at a time, which has no variance; raise one "
                "of the two"
            )
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
            f"{group}), which has no variance; change datamodule.people, datamodule.pictures or the group"
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
    write_text(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
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
        SystemExit: with 128 and the signal's number if the run was stopped by Ctrl-C or a scheduler.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    alone = HydraConfig.get().mode != RunMode.MULTIRUN
    watch = StopWatch(folder, f"clip3dreid train {command(folder)}", again=alone)
    with _own_launch(), job_folder(folder):
        try:
            with watch.reporting():
                found = _run(cfg, folder, watch)
            if launch().first:
                remove_prepared(folder)
            return found
        finally:
            _finish_wandb()
            forget()


def _run(cfg: DictConfig, folder: Path, watch: StopWatch) -> float | None:
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    if launch().first and not cfg.resume:
        check_files(cfg, list(HydraConfig.get().overrides.task))
    start = None
    if cfg.resume:
        start = _check_resumed(cfg, folder) if launch().first else newest_whole(folder).path
    announce()
    several = _several(cfg)
    if not launch().first:
        wait_prepared(folder)
    sources = data_sources(cfg, cfg.seed, None if launch().first else prepared(folder))
    if cfg.select_on_test and any(node.val_people for node in (cfg.data, *cfg.data.also.values())):
        raise InputError(
            "select_on_test=true leaves the held-out people nothing to do; set data.val_people=0 or "
            "select_on_test=false"
        )
    manifests = [source.manifest for source in sources]
    pictures = training_set(manifests)
    # A resumed one starts from its checkpoint, and need not find the weights again that it began with.
    student = make_student(cfg) if start is None else instantiate(cfg.model.student)
    # Asked before anything else is built: a data set without training people has no outfits either.
    _check_people(cfg, pictures)
    if missing := pictures.labels.without_clothes:
        log.info(
            "%d of %d training pictures have no clothes label: clothes are left alone",
            missing,
            len(pictures.table),
        )
    terms = instantiate(cfg.loss)
    _check_starts(terms, int(cfg.epochs))
    known = _known_labels(folder, resumed=start is not None)
    shared = prepared(folder) if several else None
    guides = guide(needs(terms), objects.guides(cfg, pictures, labels=known, shared=shared))
    if several and launch().first:
        share_sources(sources, prepared(folder))
        if guides.labels is not None:
            language_labels.save(guides.labels, prepared(folder) / LABELS)
        say_prepared(folder)
    view = {"keep_view": guides.keep_view}
    make: Any = instantiate(cfg.datamodule, train_view=view)
    data: ReidDataModule = make(manifests, seed=cfg.seed, bodies=guides.bodies)
    data.validation_split = "test" if cfg.select_on_test else "val"
    losses = WeightedLosses(
        terms,
        Dimensions(
            channels=student.channels,
            width=student.width,
            people=len(data.labels.people),
            person_of_clothes=data.person_of_clothes,
            guides=guides.says,
        ),
    )
    if cfg.channels_last:
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.compile:
        if cfg.gradient_norms_every:
            # A compiled backward pass may else reuse what a second one of the same step needs.
            torch._functorch.config.donated_buffer = False
        student.compile()  # in place: names of weights stay as they are
    card = make_card(cfg, data, guides)
    module = ReidModule(
        student,
        losses,
        optimizer=instantiate(cfg.optimizer.optimizer),
        schedule=instantiate(cfg.optimizer.schedule),
        card=card,
        seed=int(cfg.seed),
        protocols=protocols_of(sources),
        metric=cfg.retrieval.metric,
        flip=cfg.retrieval.flip,
        rerank=instantiate(cfg.retrieval.rerank),
        open_set=plain(cfg.retrieval.open_set),
        targets=guides.targets,
        body_norm=str(cfg.bodies.batch_norm),
        gradient_norms_every=int(cfg.gradient_norms_every),
        checkpoints=folder / "checkpoints",
        trusted=trusted(cfg),
    )
    selecting = [evaluation.name for evaluation in data.evaluations(data.validation_split)]
    monitor = None
    # In a trial that leaves pictures out there is no score to select by.
    if selecting and not limits(cfg.trainer):
        chosen = next(source for source in sources if source.manifest.name == selecting[0])
        monitor = f"val/{selecting[0]}/{headline(chosen, not cfg.select_on_test)}/r1"
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        callbacks=_callbacks(cfg, monitor, watch),
        logger=_loggers(cfg),
        plugins=[*(instantiate(cfg.trainer.get("plugins")) or ()), CheckpointFiles()],
    )
    watch.take_over(trainer)
    # Asked now, what loader and evaluator would refuse later is refused before anything is written or launched.
    data.sampler(0, trainer.world_size)
    if data.bodies is not None:
        data.body_sampler(0, trainer.world_size)
    check_protocols(data, module.protocols, data.validation_split, "test")
    _check_ghost(cfg, module, trainer.world_size, 0 if data.bodies is None else data.bodies.batch)
    if start is not None:
        check_same_training(read_card(start), card, guides.same)
        rank_zero_only(keep_earlier)(folder)
        rank_zero_only(record_overrides)(folder)
    for logger in trainer.loggers:
        logger.log_hyperparams(plain(cfg))
    _record(cfg, folder, data, guides)
    try:
        # Checkpoints hold plain data only, so nothing in them is ever unpickled.
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    except BaseException:
        watch.end_children()
        raise
    if data.overfit_batches:
        log.info("a trial on %d batch(es): nothing worth evaluating", data.overfit_batches)
        return None
    return _report(cfg, folder, trainer, module, data, sources, monitor)


def _check_resumed(cfg: DictConfig, folder: Path) -> Path:
    """The checkpoint to go on from; says where that is, and what the run changes.

    Raises:
        InputError: if there is none, or the run would train another model than it began with.
    """
    at = newest_whole(folder)
    changed = changes(read_config(folder / CONFIG), plain(cfg))
    if at.epochs > int(cfg.epochs):
        raise InputError(f"epochs={cfg.epochs}, but {folder} has trained {at.epochs} of them; give more")
    within = f" and {at.batches} batches" if at.batches else ""
    if at.batches and at.epochs == int(cfg.epochs):
        raise InputError(
            f"epochs={cfg.epochs}, but {folder} has trained {at.epochs} of them{within} of the next; give more"
        )
    log.info("going on after %d epochs%s, from %s", at.epochs, within, at.path)
    if changed:
        log.info("changed since the run began: %s", "; ".join(changed))
    return at.path


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
        if limits(trainer) and not module.results["test"]:
            log.warning("a trial with %s: no score exists, and none is written", ", ".join(limits(trainer)))
            return None
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
        "variant": cfg.variant or "+".join(module.losses.entries),
        "cost": {
            "step_seconds": clock.median,
            "pictures_per_step": int(cfg.datamodule.people) * int(cfg.datamodule.pictures) + bodies,
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
