"""A checkpoint on a data set: from a composed config to scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from clip3dreid.config.trust import trusted
from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.errors import InputError
from clip3dreid.guidance.sources import check_protocols, data_sources, plain, protocols_of, require_data
from clip3dreid.model.places import find_model
from clip3dreid.model.student import Student
from clip3dreid.model.weights import load_pretrained, read_card, student_from_checkpoint
from clip3dreid.report.tables import print_scores, save_tables
from clip3dreid.training.module import EvaluationModule


def _student(cfg: DictConfig) -> tuple[Student, Mapping[str, Any], Path]:
    """The student to evaluate, the card with the picture size it was trained at, and the file of its weights."""
    if cfg.checkpoint is not None:
        if "model" in cfg:
            raise InputError("checkpoint knows its student; leave model/student out")
        path = find_model(str(cfg.checkpoint)).weights
        return student_from_checkpoint(path, trusted(cfg)), read_card(path), path
    if "model" not in cfg:
        raise InputError(
            "nothing to evaluate: give checkpoint=FILE_OR_FOLDER, or model/student=NAME model.pretrained=FILE, or "
            "features=FILE.npz"
        )
    if cfg.model.pretrained is None:
        raise InputError(
            "model.pretrained is null: an untrained student has no score; give its weights' file"
        )
    student: Student = instantiate(cfg.model.student)
    path = Path(cfg.model.pretrained)
    loaded = load_pretrained(student, path, fetch=cfg.model.fetch)
    if "neck.weight" not in loaded:
        raise InputError(
            f"{cfg.model.pretrained} holds a backbone alone: its neck would be untrained and its score "
            "meaningless; train a student from it first"
        )
    return student, {}, path


def _check_size() -> None:
    """Refuses a size under the key of the training, where the checkpoint's own would quietly win."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for side in ("height", "width"):
        if any(override.startswith(f"datamodule.{side}=") for override in typed):
            raise InputError(
                f"datamodule.{side} is training's; evaluation takes {side}=PIXELS, or the checkpoint's own"
            )


def score(cfg: DictConfig) -> dict[str, Any]:
    """Evaluates a student and prints its tables.

    Args:
        cfg: `conf/evaluate.yaml`, composed.

    Returns:
        What the JSON file says of the checkpoint, and `results[protocol]`; further data sets under `also`.

    Raises:
        InputError: if there is no data set, nothing to evaluate, or the two do not fit.
    """
    require_data(cfg)
    _check_size()
    student, card, name = _student(cfg)
    cfg.datamodule.height = cfg.height or card.get("height") or cfg.datamodule.height
    cfg.datamodule.width = cfg.width or card.get("width") or cfg.datamodule.width
    cfg.datamodule.square = card.get("square", False) if card else cfg.datamodule.square
    sources = data_sources(cfg, cfg.seed)
    data: ReidDataModule = instantiate(cfg.datamodule)([source.manifest for source in sources], seed=cfg.seed)
    if cfg.split not in ("test", "val"):
        raise InputError(f"split={cfg.split} is unknown; choose test or val")
    if not data.evaluations(cfg.split):
        raise InputError(
            f"{cfg.data.name} has no queries and gallery in split {cfg.split}; look at it with "
            "clip3dreid inspect_data"
        )
    module = EvaluationModule(
        student,
        protocols=protocols_of(sources),
        metric=cfg.metric,
        flip=cfg.flip,
        rerank=instantiate(cfg.rerank),
        open_set=plain(cfg.open_set),
    )
    check_protocols(data, module.protocols, cfg.split)
    trainer: pl.Trainer = instantiate(
        cfg.trainer, callbacks=[TQDMProgressBar(refresh_rate=5)], logger=False, enable_checkpointing=False
    )
    run = trainer.test if cfg.split == "test" else trainer.validate
    run(module, datamodule=data, verbose=False)
    scores = module.results[cfg.split]
    notes = {source.manifest.name: list(source.manifest.notes) for source in sources}
    for data_set, results in scores.items():
        rank_zero_only(print_scores)(f"{data_set} ({cfg.split}), {name}", results, notes[data_set])
        if cfg.per_query is not None:
            queries = module.queries[cfg.split][data_set].items()
            files = {
                Path(cfg.per_query) / f"{data_set}_{protocol}.parquet": table for protocol, table in queries
            }
            rank_zero_only(save_tables)(files)
    first, *others = scores
    facts: dict[str, Any] = {
        "checkpoint": str(name),
        "trained_on": card.get("data"),
        "metric": str(cfg.metric),
        "flip": bool(cfg.flip),
        "data": first,
        "notes": notes[first],
        "results": scores[first],
    }
    if others:
        facts["also"] = {other: {"notes": notes[other], "results": scores[other]} for other in others}
    return facts
