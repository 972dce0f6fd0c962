"""`clip3dreid tune`: searches for the settings with which a training finds held-out people best."""

from __future__ import annotations

import shlex
from functools import partial

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.bare_folders import behind_dashes
from clip3dreid.config.hydra import entry_point
from clip3dreid.errors import InputError
from clip3dreid.training.tuning import TuningSettings, search_space, tune


@entry_point("tune", partial(behind_dashes, "train"))
def main(cfg: DictConfig) -> None:
    """Search, and say what was found and how it is trained again."""
    settings, out = objects.settings(TuningSettings, cfg), objects.path(cfg, "out")
    assert out is not None
    space = search_space(objects.plain(cfg.space))
    words = [str(word) for word in cfg.train]
    if not words:
        raise InputError("nothing to train: give a command line of clip3dreid train behind --")
    found = tune(words, space, settings, out)
    value = f"{settings.objective} mAP {found.value:.1%} on held-out people"
    print(f"best of {found.trials}: {value}, {found.folder}")  # noqa: T201
    print(shlex.join(["clip3dreid", "train", *words, *found.overrides]))  # noqa: T201


if __name__ == "__main__":
    main()
