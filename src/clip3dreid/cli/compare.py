"""`clip3dreid compare`: what each method is worth against a baseline, from finished runs."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.comparison.settings import CompareSettings
from clip3dreid.config import objects
from clip3dreid.config.bare_folders import with_folders
from clip3dreid.config.hydra import entry_point

log = logging.getLogger(__name__)


@entry_point("compare", partial(with_folders, "runs"))
def main(cfg: DictConfig) -> None:
    """Compare, print the table, and say where everything is."""
    settings = objects.settings(
        CompareSettings,
        cfg,
        protocol=objects.one_name(cfg, "protocol"),
        **objects.texts(cfg, "baseline", "order"),
    )
    runs = objects.paths(cfg, "runs")
    from clip3dreid.comparison.compare import compare
    from clip3dreid.comparison.page import write
    from clip3dreid.report.tables import print_table

    found = compare(runs, settings)
    page = write(found, Path(str(cfg.out)).expanduser())
    print_table(found.title, *found.table)
    for note in found.notes:
        log.warning("%s", note)
    log.info("table, numbers and figure: %s, compare.json and compare.png beside it", page)


if __name__ == "__main__":
    main()
