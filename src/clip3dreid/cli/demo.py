"""`clip3dreid demo`: the whole project on people of its own making, with nothing to download."""

from __future__ import annotations

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.training.demo import DemoSettings, run_demo


@entry_point("demo")
def main(cfg: DictConfig) -> None:
    """Render, train two methods, compare, and find people; what exists is used again."""
    run_demo(objects.settings(DemoSettings, cfg))


if __name__ == "__main__":
    main()
