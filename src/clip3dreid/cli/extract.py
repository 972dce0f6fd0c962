"""`clip3dreid extract`: features, words and body shapes of a folder of people, in shards."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.processes import further_processes
from clip3dreid.config.trust import trusted
from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose
from clip3dreid.io.lean import import_lightning
from clip3dreid.search.settings import ExtractSettings


@entry_point("extract")
def main(cfg: DictConfig) -> None:
    """Extract, and say what came of it."""
    settings = objects.settings(ExtractSettings, cfg)
    checkpoint = objects.checkpoint(cfg)
    pictures = objects.pictures(cfg)
    choose("backend", cfg.backend, ("local", "ray"))
    if cfg.backend == "ray" and not isinstance(pictures, Path):
        raise InputError(
            "backend=ray looks at pictures=FOLDER of Parquet files; a data set or boxes are backend=local"
        )
    # Imported here, so that --help and a mistyped key are answered before torch is loaded.
    import_lightning()
    from clip3dreid.inference.model import load

    folder = Path(str(cfg.out)).expanduser()
    make = partial(load, checkpoint, trusted=trusted(cfg), network=objects.network(cfg))
    if cfg.backend == "ray" and isinstance(pictures, Path):
        from clip3dreid.search.ray_extraction import RaySettings, extract_parts

        ray = objects.settings(RaySettings, cfg.ray)
        result = extract_parts(make, pictures, settings, folder, ray)
    else:
        from clip3dreid.search.extraction import extract

        others = further_processes("extract")
        result = extract(make(), pictures, settings, folder, objects.trainer_factory(cfg), others)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(result)  # noqa: T201


if __name__ == "__main__":
    main()
