"""`clip3dreid extract`: features, words and body shapes of a folder of people, in shards."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point


@entry_point("extract")
def main(cfg: DictConfig) -> None:
    """Extracts, and says what came of it."""
    # Imported here, so that --help and a mistyped key are answered before torch is loaded.
    from clip3dreid.search.extraction import extract

    found = extract(cfg)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        rate = (
            f", {found.computed / found.seconds:.0f} a second"
            if found.computed
            else ", nothing was left to do"
        )
        skipped = f", {found.skipped} unreadable" if found.skipped else ""
        print(f"{found.pictures} pictures in {found.folder}{skipped}{rate}")  # noqa: T201


if __name__ == "__main__":
    main()
