"""`clip3dreid search`: people in extracted shards, by picture, by several pictures, or by words."""

from __future__ import annotations

from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point


@entry_point("search")
def main(cfg: DictConfig) -> None:
    """Searches, and prints what was found."""
    # Imported here, so that --help and a mistyped key are answered before torch is loaded.
    from clip3dreid.search.query import search

    search(cfg)


if __name__ == "__main__":
    main()
