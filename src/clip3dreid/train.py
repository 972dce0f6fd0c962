"""`python -m clip3dreid.train`: trains a student and evaluates it under every protocol of its data set."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from clip3dreid.config import entry_point, explained
from clip3dreid.run_folder import resumed


@entry_point("train")
def _train(cfg: DictConfig) -> float | None:
    # Imported here, so that --help and a mistyped key are answered before torch is loaded.
    from clip3dreid.fit import run

    return run(cfg)


def main() -> None:
    """Console script."""
    with explained():
        sys.argv[1:] = resumed(sys.argv[1:])
    _train()


if __name__ == "__main__":
    main()
