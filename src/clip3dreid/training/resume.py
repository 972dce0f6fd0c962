"""Say what a resumed run may change: its schedule, its place and its machine, but not the model that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.flatten import flatten
from clip3dreid.io.formats import damaged, decoding

FREE = (
    # How long, and at which rate.
    "epochs",
    "milestones",
    "clothes_start_epoch",
    "loss.*.start_epoch",
    "loss.*.warmup_epochs",
    "optimizer.*",
    "lr_rule",
    "base_batch",
    # Where things lie; what lies there is compared by its checksum.
    "weights_dir",
    "data.root",
    "data.also.*.root",
    "bodies.root",
    "body.path",
    "model.pretrained",
    "model.fetch",
    # Commands that are told and never run.
    "data.fetch",
    "data.also.*.fetch",
    "model.teacher.*",
    "model.shape_teacher.*",
    "init_from",
    # On what machine, and how fast.
    "trainer.*",
    "channels_last",
    "compile",
    "matmul_precision",
    "fused",
    "activation_checkpointing",
    "datamodule.workers",
    "datamodule.evaluation_batch",
    "datamodule.keep_pictures",
    "datamodule.pack",
    "datamodule.augment_on",
    "model.student.ghost_group",
    # Said anew on every command line, and by no file.
    "trusted",
    # What is reported, and where.
    "callbacks.*",
    "logger.*",
    "dashboard.*",
    "retrieval.*",
    "protocol.*",
    "data.headline",
    "data.val_headline",
    "data.also.*.headline",
    "data.also.*.val_headline",
    "data.protocols.*",
    "data.val_protocols.*",
    "data.also.*.protocols.*",
    "data.also.*.val_protocols.*",
    "evaluate_every",
    "gradient_norms_every",
    "run_name",
    "variant",
    "output",
    "resume",
)
"""Keys that a resumed run may set anew; a star stands for any part of a key."""
# Free, and nothing of the run.
_UNSAID = ("resume", "output")
# What a free group holds and is not: another state, another batch, or another picture that the teacher is shown.
_FIXED = ("optimizer.optimizer._target_", "trainer.accumulate_grad_batches", "model.teacher.cache")


def may_change(key: str) -> bool:
    """Return whether a resumed run may set a key anew."""
    return key not in _FIXED and any(
        fnmatchcase(key, free) or key == free.removesuffix(".*") for free in FREE
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read the config that a run was begun with, as plain data from a file that may come from anywhere.

    Raises:
        InputError: if it cannot be read.
    """
    advice = "without it nobody knows what run this is"
    with decoding(path, "a run's config", advice):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise damaged(path, "it holds no keys", advice)
    return config


def changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare the config of a resumed run with the one that the run was begun with.

    Args:
        earlier: of the run's `config.yaml`.
        now: the composed one, as plain data.

    Returns:
        What differs, a key each: `epochs 60 -> 80`.

    Raises:
        InputError: naming what differs and must not: another model, other people or other batches would come of it.
    """
    there, here = flatten(earlier), flatten(now)
    absent = object()
    differ = [
        key
        for key in sorted({*there, *here})
        if there.get(key, absent) != here.get(key, absent)
        # What this program knows since then and does not use here.
        and not (key not in there and here[key] in ({}, [], None))
    ]
    fixed = [key for key in differ if not may_change(key)]
    if fixed:
        differ_in = [f"{key} was {_short(there, key)}, is {_short(here, key)}" for key in fixed]
        raise InputError(
            f"a resumed run cannot change what it trains: {some(differ_in, 8, between='; ')}; start a new run "
            "(init_from= takes the student's weights along)"
        )
    return [f"{key} {_short(there, key)} -> {_short(here, key)}" for key in differ if key not in _UNSAID]


def _short(values: Mapping[str, Any], key: str) -> str:
    text = str(values[key]) if key in values else "absent"
    return text if len(text) <= 60 else f"{text[:57]}..."
