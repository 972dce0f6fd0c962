"""Turn the configs of `pretrain_teacher` and `pretrain_shape_teacher` into the arguments of their calls."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.trust import trusted


def teacher_parts(cfg: DictConfig) -> dict[str, Any]:
    """Make the objects that `training.teacher.pretrain_teacher` takes by name.

    Args:
        cfg: `conf/pretrain_teacher.yaml`, composed.

    Raises:
        InputError: if words and sentences do not fit each other.
    """
    vocabulary = instantiate(cfg.language, _convert_="all")
    return {
        "clip": objects.plain(cfg.clip),
        "vocabulary": vocabulary,
        "sentences": instantiate(cfg.sentences, vocabulary=vocabulary, _convert_="all"),
        **_training_parts(cfg),
    }


def shape_teacher_parts(cfg: DictConfig) -> dict[str, Any]:
    """Make the objects that `training.shape_teacher.pretrain_shape_teacher` takes by name.

    Args:
        cfg: `conf/pretrain_shape_teacher.yaml`, composed.

    Raises:
        InputError: if there is no such body.
    """
    from clip3dreid.body.smpl import body_facts

    return {
        "student": objects.plain(cfg.model.student),
        "body": body_facts(str(cfg.body.path), int(instantiate(objects.plain(cfg.body)).num_betas)),
        "trusted": trusted(cfg),
        **_training_parts(cfg),
    }


def _training_parts(cfg: DictConfig) -> dict[str, Any]:
    return {
        "record": objects.plain(cfg),
        "train_view": instantiate(cfg.train_view),
        "optimizer": instantiate(cfg.optimizer.optimizer),
        "schedule": instantiate(cfg.optimizer.schedule),
        "trainer": objects.trainer_factory(cfg),
        "callbacks": objects.callbacks(cfg)[0],
        "loggers": objects.loggers(cfg),
    }
