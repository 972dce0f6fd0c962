"""`clip3dreid pretrain_shape_teacher`: a network that tells the shape of dressed people, from rendered ones."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.pretraining import shape_teacher_parts
from clip3dreid.config.processes import further_processes
from clip3dreid.io.lean import import_lightning
from clip3dreid.training.teacher_settings import ShapePretrainingSettings


@entry_point("pretrain_shape_teacher")
def main(cfg: DictConfig) -> None:
    """Train, and say where the shape teacher lies and how well it answers."""
    settings = objects.settings(ShapePretrainingSettings, cfg)
    worlds, out = objects.paths(cfg, "worlds"), objects.path(cfg, "out")
    assert out is not None
    import_lightning()
    from clip3dreid.training.shape_teacher import pretrain_shape_teacher

    made = pretrain_shape_teacher(
        worlds,
        out,
        settings,
        processes=further_processes("pretrain_shape_teacher"),
        **shape_teacher_parts(cfg),
    )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        told = " ".join(f"{one:.2f}" for one in made.correlation)
        if told:
            print(f"correlation with the truth on people not seen, by component: {told}")  # noqa: T201
        print(f"the shape teacher is in {made.folder}; use it with model.shape_teacher.path={made.folder}")  # noqa: T201


if __name__ == "__main__":
    main()
