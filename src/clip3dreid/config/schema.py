"""Roots of the configuration, typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class TrainConfig:
    """Root of `conf/train.yaml`: a mistyped key of the root fails here, those of the groups at their target."""

    seed: int = 1
    epochs: int = MISSING
    milestones: list[int] = MISSING
    label_smoothing: float = 0.1
    clothes_start_epoch: int = MISSING
    resume: str | None = None
    init_from: str | None = None
    select_on_test: bool = False
    evaluate_every: int = 5
    weights_dir: str = MISSING
    run_name: str = MISSING
    variant: str | None = None
    output: str = "auto"
    teacher_cache: str = "disk"
    teacher_shuffled: bool = False
    channels_last: bool = False
    compile: bool = False
    matmul_precision: str = "highest"
    fused: bool | None = None
    activation_checkpointing: bool = False
    ema: float | None = None
    gradient_norms_every: int = 200
    guide_share: float | None = None
    lr_rule: str | None = None
    base_batch: int = 64
    trusted: Any = MISSING
    dashboard: Any = MISSING
    labels: Any = MISSING
    bodies: Any = MISSING
    shapes: Any = MISSING
    body: Any = MISSING
    guides: dict[str, Any] = field(default_factory=dict)
    language: Any = MISSING
    data: Any = MISSING
    datamodule: Any = MISSING
    model: Any = MISSING
    loss: dict[str, Any] = field(default_factory=dict)
    optimizer: Any = MISSING
    trainer: Any = MISSING
    retrieval: Any = MISSING
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass
class WeightsConfig(TrainConfig):
    """Root of `conf/weights.yaml`: a training's, of which it says what it needs, and keys of its own."""

    convert: str | None = None
    out: str | None = None
    height: int = MISSING
    width: int = MISSING
