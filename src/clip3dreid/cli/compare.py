"""`clip3dreid compare`: what each method is worth against a baseline, from finished runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.comparison.settings import CompareSettings
from clip3dreid.config import objects
from clip3dreid.config.bare_folders import with_folders
from clip3dreid.config.hydra import entry_point, explained

log = logging.getLogger(__name__)


@entry_point("compare")
def _main(cfg: DictConfig) -> None:
    settings = objects.settings(
        CompareSettings,
        cfg,
        protocol=objects.one_name(cfg, "protocol"),
        **objects.texts(cfg, "baseline", "order"),
    )
    runs = objects.paths(cfg, "runs")
    from clip3dreid.comparison.compare import compare
    from clip3dreid.comparison.page import write
    from clip3dreid.report.ablation import header, rows
    from clip3dreid.report.tables import print_table
    from clip3dreid.retrieval.bootstrap import LEVEL

    found = compare(runs, settings)
    page = write(found, Path(str(cfg.out)).expanduser())
    print_table(found.title, header(found.variants, settings.baseline, LEVEL), rows(found.variants))
    for note in found.notes:
        log.warning("%s", note)
    log.info("table, numbers and figure: %s, compare.json and compare.png beside it", page)


def main() -> None:
    """Compare, print the table, and say where everything is."""
    given = sys.argv
    with explained():
        sys.argv = [given[0], *with_folders("runs", given[1:])]
    try:
        _main()
    finally:
        sys.argv = given


if __name__ == "__main__":
    main()
