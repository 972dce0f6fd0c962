"""Turn the config of `clip3dreid evaluate` into the calls of `training.evaluation`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.processes import further_processes
from clip3dreid.config.training import ranking_settings, run_data
from clip3dreid.config.trust import trusted
from clip3dreid.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clip3dreid.data.datamodule import ReidDataModule
    from clip3dreid.data.manifest import Manifest
    from clip3dreid.retrieval.protocol import ProtocolSet
    from clip3dreid.training.evaluated import Evaluated
    from clip3dreid.training.evaluation import TrainedStudent


def check_request(cfg: DictConfig) -> None:
    """Refuse what contradicts itself, before anything is loaded.

    Raises:
        InputError: naming what to leave out.
    """
    if cfg.features is not None:
        if cfg.checkpoint is not None or "data" in cfg or "model" in cfg:
            raise InputError(
                "features=FILE is evaluated alone; leave checkpoint, data and model out, or features"
            )
        if cfg.feature is not None:
            raise InputError(
                "feature names parts of a checkpoint's, and features=FILE has none; leave feature out"
            )
        return
    if cfg.device is not None:
        raise InputError(
            f"device={cfg.device} is of features=FILE; a checkpoint is evaluated where trainer= says: trainer=cpu, "
            "or trainer=gpu with trainer.devices=[1]"
        )
    objects.require_data(cfg)
    # Under the key of the training the checkpoint's own would quietly win.
    for side in ("height", "width"):
        if any(line.startswith(f"datamodule.{side}=") for line in HydraConfig.get().overrides.task):
            raise InputError(
                f"datamodule.{side} is training's; evaluation takes {side}=PIXELS, or the checkpoint's own"
            )
    if cfg.checkpoint is not None and "model" in cfg:
        raise InputError("checkpoint knows its student; leave model/student out")
    if cfg.checkpoint is None and "model" not in cfg:
        raise InputError(
            "nothing to evaluate: give checkpoint=FILE_OR_FOLDER, or model/student=NAME model.pretrained=FILE, or "
            "features=FILE.npz"
        )
    if cfg.checkpoint is None and cfg.model.pretrained is None:
        raise InputError(
            "model.pretrained is null: an untrained student has no score; give its weights' file"
        )


def evaluated(cfg: DictConfig) -> Evaluated:
    """Evaluate what a config asks for: a model on data sets, or features.

    Args:
        cfg: `conf/evaluate.yaml`, composed and checked.
    """
    from clip3dreid.training.evaluation import evaluate_features, evaluate_model

    ranking = ranking_settings(cfg)
    if cfg.features is not None:
        # Nothing is selected here, so that any of them may stand for all.
        first = next(iter(cfg.protocol), None)
        protocols = objects.protocol_set(cfg.protocol, first, "protocol") if first is not None else None
        device, place = str(cfg.device or "auto"), Path(str(cfg.features)).expanduser()
        if place.is_dir():
            return of_shards(place, protocols, split=cfg.split, ranking=ranking, device=device)
        return evaluate_features(place, protocols, ranking=ranking, device=device)
    return evaluate_model(
        _student(cfg),
        run_data(cfg),
        split=cfg.split,
        ranking=ranking,
        height=cfg.height,
        width=cfg.width,
        clips=None if cfg.datamodule.clips is None else instantiate(cfg.datamodule.clips),
        seed=cfg.seed,
        workers=cfg.datamodule.workers,
        batches=_batches(cfg),
        trainer=objects.trainer_factory(cfg),
        processes=further_processes("evaluate"),
    )


def of_shards(folder: Path, protocols: ProtocolSet | None, **how: Any) -> Evaluated:
    """Evaluate what `extract` has kept of a data set: of pictures, or of tracklets.

    Args:
        folder: of the shards.
        protocols: as of `training.evaluation.evaluate_features`.
        how: likewise.

    Raises:
        InputError: if there are no shards, or they say of no picture which role it has.
    """
    import torch

    from clip3dreid.search.shards import Shards
    from clip3dreid.training.evaluation import evaluate_features

    shards = Shards(folder)
    features = torch.cat(list(shards.blocks("embedding")))
    if "role" not in shards.labels.columns:
        raise InputError(
            f"features={folder} does not say which are queries and which gallery; extract a data set "
            "(data=NAME), or a table with the columns person and role"
        )
    return replace(evaluate_features(features, protocols, data=shards.labels, **how), model=str(folder))


def _student(cfg: DictConfig) -> TrainedStudent:
    from clip3dreid.training.evaluation import published_student, read_student

    if cfg.checkpoint is not None:
        return read_student(str(cfg.checkpoint), trusted(cfg), objects.network(cfg))
    weights, fetch = Path(str(cfg.model.pretrained)), cfg.model.fetch
    return published_student(objects.plain(cfg.model.student), weights, fetch, trusted(cfg))


def _batches(cfg: DictConfig) -> Any:
    """Return what makes the data module of a config, at a size that the model knows."""

    def make(manifests: Sequence[Manifest], *, seed: int, **sizes: Any) -> ReidDataModule:
        clips = sizes.pop("clips", None)
        # Views refer to the sizes, and are made with them.
        made: ReidDataModule = instantiate(cfg.datamodule, **sizes)(manifests, seed=seed, clips=clips)
        return made

    return make
