"""Turn the config of `clip3dreid train` into the call of `training.run.train`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config import objects
from clip3dreid.config.hydra import foreseen
from clip3dreid.config.processes import further_processes
from clip3dreid.config.renamed import renamed_config
from clip3dreid.config.resumed import record_overrides
from clip3dreid.config.run_names import student_name
from clip3dreid.config.trust import trusted
from clip3dreid.io.ranks import ALONE, Ranks
from clip3dreid.io.run_folder import resume_argument
from clip3dreid.review.dashboard_settings import DashboardSettings
from clip3dreid.training.settings import Invocation, RankingSettings, TrainSettings

if TYPE_CHECKING:
    import torch

    from clip3dreid.data.training_set import TrainingSet
    from clip3dreid.guidance.guides import Guide
    from clip3dreid.training.data import RunData


def train_settings(cfg: DictConfig) -> TrainSettings:
    """Make the settings of `conf/train.yaml`.

    Raises:
        InputError: if a value is none of those that there are.
    """
    pretrained = cfg.model.get("pretrained")
    return objects.settings(
        TrainSettings,
        cfg,
        pretrained=None if pretrained is None else Path(str(pretrained)).expanduser(),
        fetch=cfg.model.get("fetch"),
        body_norm=cfg.bodies.batch_norm,
        trusted=trusted(cfg),
    )


def ranking_settings(node: DictConfig, prefix: str = "") -> RankingSettings:
    """Make of a node how queries and galleries are compared.

    Args:
        node: with `metric`, `flip`, `rerank` and `open_set`.
        prefix: what stands before these in messages.

    Raises:
        InputError: if a value is none of those that there are.
    """
    rates = objects.plain(node.open_set)
    return objects.settings(
        RankingSettings,
        node,
        rerank=instantiate(node.rerank),
        # A single number is no list, here: rates are compared with each other.
        open_set=tuple(rates) if isinstance(rates, list) else rates,
        prefix=prefix,
    )


def run_data(cfg: DictConfig, *, selecting: bool = False) -> list[RunData]:
    """Make the data sets of a config with the protocols that they are evaluated under.

    Args:
        cfg: a root config with `data` and `protocol`.
        selecting: whether headlines select checkpoints, and must be among the protocols.

    Raises:
        InputError: if there is none, or something of it is not set.
    """
    from clip3dreid.training.data import RunData

    protocols = objects.protocol_sets(cfg, selecting=selecting)
    return [
        RunData(spec, protocols["test"][spec.name], protocols["val"][spec.name])
        for spec in objects.data_specs(cfg)
    ]


def dashboard_settings(cfg: DictConfig) -> DashboardSettings | None:
    """Make of `dashboard` what dashboards show of a run; None: nothing but curves.

    Raises:
        InputError: if a value is none of those that there are.
    """
    if cfg.dashboard is None:
        return None
    return objects.settings(DashboardSettings, cfg.dashboard, trusted=trusted(cfg))


def training_device(cfg: DictConfig) -> torch.device:
    """Return where this process is going to train, before there is a trainer to ask."""
    import torch

    if OmegaConf.select(cfg, "trainer.accelerator") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Lightning's own launcher and torchrun set the first, SLURM the second.
    rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    devices = objects.plain(OmegaConf.select(cfg, "trainer.devices"))
    return torch.device("cuda", devices[rank] if isinstance(devices, list) else rank)


def guides(
    cfg: DictConfig, pictures: TrainingSet, *, labels: Path | None = None, ranks: Ranks = ALONE
) -> list[Guide]:
    """Make all kinds of guides of a training; what none of its losses needs is never read.

    Args:
        cfg: `conf/train.yaml`, composed: `model.teacher`, `model.shape_teacher`, `language`, `labels`,
            `bodies`, `body`, `shapes`, `guides`.
        pictures: to train on.
        labels: those that the run has had before; None: there are none.
        ranks: the processes of the run, which share out the teacher's pass.

    Raises:
        InputError: if a setting is unknown.
    """
    from clip3dreid.guidance.bodies import BodyGuide
    from clip3dreid.guidance.embeddings import TrainingEmbeddings
    from clip3dreid.guidance.settings import BodySettings, LabelSettings, ShapeSettings, TeacherUse
    from clip3dreid.guidance.shapes import ShapeGuide
    from clip3dreid.guidance.teacher import TeacherGuide
    from clip3dreid.guidance.words import WordGuide

    seed, datamodule = int(cfg.seed), cfg.datamodule

    def asked(kind: str, load: Callable[[], Any]) -> TrainingEmbeddings:
        return TrainingEmbeddings(
            load,
            pictures,
            objects.settings(TeacherUse, cfg.model.get(kind) or OmegaConf.create()),
            device=training_device(cfg),
            batch=int(datamodule.evaluation_batch),
            workers=int(datamodule.workers),
            ranks=ranks,
            kind=kind,
        )

    embeddings = asked("teacher", objects.teacher(cfg))
    bodies = BodyGuide(
        objects.settings(BodySettings, cfg.bodies),
        lambda: instantiate(objects.plain(cfg.body)),
        lambda: instantiate(cfg.bodies.view),
        body_file=str(cfg.body.path),
        height=int(datamodule.height),
        width=int(datamodule.width),
        square=datamodule.square,
        seed=seed,
    )
    words = WordGuide(
        objects.settings(LabelSettings, cfg.labels),
        objects.vocabulary(cfg),
        embeddings,
        known=labels,
        seed=seed,
    )
    shapes = ShapeGuide(
        objects.settings(ShapeSettings, cfg.shapes),
        asked("shape_teacher", objects.shape_teacher(cfg)),
        seed=seed,
    )
    return [
        bodies,
        words,
        TeacherGuide(embeddings, shuffled=bool(cfg.teacher_shuffled), seed=seed),
        shapes,
        *(instantiate(node) for node in cfg.guides.values()),
    ]


def invocation(cfg: DictConfig, folder: Path) -> Invocation:
    """Say how the run that Hydra is at was started.

    Args:
        cfg: `conf/train.yaml`, composed.
        folder: of the run.
    """
    return Invocation(
        resume=f"clip3dreid train {resume_argument(folder)}",
        processes=further_processes("train"),
        alone=HydraConfig.get().mode != RunMode.MULTIRUN,
        foreseen=foreseen,
        renamed=renamed_config,
        accepted=lambda: record_overrides(folder),
        student=student_name(cfg),
    )


def train_arguments(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Make the arguments of `training.run.train`.

    Args:
        cfg: `conf/train.yaml`, composed.
        folder: of the run.

    Raises:
        InputError: if something is not set, or a value is none of those that there are.
    """
    steps, best = objects.callbacks(cfg)
    dashboard = dashboard_settings(cfg)
    if dashboard is not None and set(cfg.get("logger") or {}) - {"csv"}:
        from clip3dreid.review.dashboard import Dashboard

        steps.append(Dashboard(dashboard))
    return {
        "data": run_data(cfg, selecting=True),
        "student": objects.plain(cfg.model.student),
        "losses": instantiate(cfg.loss),
        "folder": folder,
        "settings": train_settings(cfg),
        "ranking": ranking_settings(cfg.retrieval, "retrieval."),
        "batches": instantiate(cfg.datamodule),
        "optimizer": instantiate(cfg.optimizer.optimizer),
        "schedule": instantiate(cfg.optimizer.schedule),
        "guides": lambda pictures, labels, ranks: guides(cfg, pictures, labels=labels, ranks=ranks),
        "trainer": objects.trainer_factory(cfg),
        "loggers": objects.loggers(cfg),
        "callbacks": steps,
        "best": best,
        "config": objects.plain(cfg),
        "invocation": invocation(cfg, folder),
    }
