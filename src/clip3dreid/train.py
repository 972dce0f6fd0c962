"""`python -m clip3dreid.train`: trains a student and evaluates it under every protocol of its data set."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clip3dreid.config import LAST_CHECKPOINT, entry_point, explained
from clip3dreid.errors import InputError


def resumed(arguments: list[str]) -> list[str]:
    """The command line of a resumed run: the killed run's own overrides, then what was added now.

    Args:
        arguments: of this command; only `resume=FOLDER` is looked for.

    Raises:
        InputError: if the folder is not a run, or holds no checkpoint yet.
    """
    found = [argument for argument in arguments if argument.startswith("resume=")]
    if not found:
        return arguments
    # Quoted where this is a process that another one started with its own, already rewritten, command line.
    folder = Path(found[-1].removeprefix("resume=").strip("'")).expanduser().absolute()
    overrides = folder / ".hydra" / "overrides.yaml"
    if not overrides.is_file():
        raise InputError(f"resume={folder} is not a run: {overrides} is missing; give the folder of a run")
    if not (folder / LAST_CHECKPOINT).is_file():
        raise InputError(
            f"{folder} holds no {LAST_CHECKPOINT}: the run ended before its first epoch; start it anew"
        )
    saved = [str(line) for line in OmegaConf.load(overrides) if not str(line).startswith("resume=")]
    added = [argument for argument in arguments if argument not in found and argument not in saved]
    return [*saved, *added, f"resume='{folder}'", f"hydra.run.dir='{folder}'"]


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
    from clip3dreid.fit import run

    return run(cfg)


def main() -> None:
    """Console script."""
    with explained():
        sys.argv[1:] = in_order(resumed(sys.argv[1:]))
    _train()


if __name__ == "__main__":
    main()
