"""`clip3dreid extract`: features, words and body shapes of a folder of people, in shards."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.processes import further_processes
from clip3dreid.config.trust import trusted
from clip3dreid.io.lean import import_lightning
from clip3dreid.search.settings import ExtractSettings


@entry_point("extract")
def main(cfg: DictConfig) -> None:
    """Extract, and say what came of it."""
    settings = objects.settings(ExtractSettings, cfg)
    checkpoint = objects.checkpoint(cfg)
    pictures = objects.pictures(cfg)
    # Imported here, so that --help and a mistyped key are answered before torch is loaded.
    import_lightning()
    from clip3dreid.inference.model import load
    from clip3dreid.search.extraction import extract

    model = load(checkpoint, trusted=trusted(cfg), network=objects.network(cfg))
    folder = Path(str(cfg.out)).expanduser()
    others = further_processes("extract")
    result = extract(model, pictures, settings, folder, objects.trainer_factory(cfg), others)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        rate = (
            f"{result.computed / result.seconds:.0f} a second"
            if result.computed
            else "nothing was left to do"
        )
        skipped = f", {result.skipped} unreadable" if result.skipped else ""
        print(f"{result.pictures} pictures in {result.folder}{skipped}, {rate}")  # noqa: T201


if __name__ == "__main__":
    main()
