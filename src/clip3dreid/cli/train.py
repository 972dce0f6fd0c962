"""`clip3dreid train`: trains a student and evaluates it under every protocol of its data set."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point, explained
from clip3dreid.config.run_folder import resumed
from clip3dreid.errors import InputError
from clip3dreid.io.lean import import_lightning


def in_order(arguments: list[str]) -> list[str]:
    """The command line as it is; of an experiment and a recipe on it, the later one wins key by key.

    Args:
        arguments: of this command.

    Raises:
        InputError: if a recipe stands before an experiment, which would undo a part of it without a word.
    """
    keys = [argument.partition("=")[0].lstrip("+") for argument in arguments]
    if "recipe" in keys and "experiment" in keys[keys.index("recipe") :]:
        raise InputError(
            "+recipe= stands before +experiment=, which would set sizes and student anew; give the experiment first"
        )
    return arguments


@entry_point("train")
def _train(cfg: DictConfig) -> float | None:
    # Imported here, so that --help and a mistyped key are answered before torch is loaded.
    import_lightning()
    from clip3dreid.training.run import run

    return run(cfg)


def main() -> None:
    """Console script."""
    with explained():
        sys.argv[1:] = in_order(resumed(sys.argv[1:]))
    _train()


if __name__ == "__main__":
    main()
