"""`clip3dreid pretrain_teacher`: a small CLIP from rendered people and sentences about their shape."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.pretraining import teacher_parts
from clip3dreid.config.processes import further_processes
from clip3dreid.io.lean import import_lightning
from clip3dreid.training.teacher_settings import PretrainingSettings


@entry_point("pretrain_teacher")
def main(cfg: DictConfig) -> None:
    """Train, and say where the teacher lies."""
    settings = objects.settings(PretrainingSettings, cfg)
    worlds = [cfg.worlds] if isinstance(cfg.worlds, str) else list(cfg.worlds)
    import_lightning()
    from clip3dreid.training.teacher import pretrain_teacher

    made = pretrain_teacher(
        [Path(str(world)) for world in worlds],
        Path(str(cfg.out)),
        settings,
        processes=further_processes("pretrain_teacher"),
        **teacher_parts(cfg),
    )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        use = f"model/teacher=body_clip model.teacher.path={made.folder}"
        print(f"the teacher is in {made.folder}; use it with {use}")  # noqa: T201


if __name__ == "__main__":
    main()
