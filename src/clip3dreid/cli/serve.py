"""`clip3dreid serve`: a page to try a model on, by picture and by words, on this machine."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.trust import trusted
from clip3dreid.serving.serve import serve
from clip3dreid.serving.settings import ServeSettings
from clip3dreid.serving.source import find_source


@entry_point("serve")
def main(cfg: DictConfig) -> None:
    """Serve until Ctrl-C. Model and gallery are loaded when the page is there."""
    settings = objects.settings(ServeSettings, cfg)
    checkpoint = None if cfg.checkpoint is None else objects.checkpoint(cfg)
    source = find_source(objects.path(cfg, "gallery"), checkpoint, Path(str(cfg.demo)).expanduser())
    serve(
        source,
        settings=settings,
        options={"trusted": trusted(cfg), "network": objects.network(cfg)},
        # Made when a gallery is there: it loads torch, and the page is to be there first.
        engine=lambda gallery, column: objects.engine(cfg)(gallery, column),
        teacher=objects.teacher_factory(cfg),
    )


if __name__ == "__main__":
    main()
