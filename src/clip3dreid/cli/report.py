"""`clip3dreid report`: a finished run, or several, as one page."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.bare_folders import with_folders
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.review import moved_roots, run_source
from clip3dreid.config.trust import trusted
from clip3dreid.review.settings import ReportSettings, published_scores

log = logging.getLogger(__name__)


@entry_point("report", partial(with_folders, "run"))
def main(cfg: DictConfig) -> None:
    """Look at the runs, write the page, and say where it is."""
    packages = trusted(cfg)
    settings = objects.settings(ReportSettings, cfg, trusted=packages, **objects.texts(cfg, "baseline"))
    runs, moved = objects.paths(cfg, "run"), moved_roots(cfg)
    published = published_scores(objects.plain(cfg.published_scores))
    from clip3dreid.review.report import write_report

    page = write_report(
        runs,
        Path(str(cfg.out)).expanduser(),
        settings,
        data=partial(run_source, moved=moved, trusted=packages),
        published=published,
        progress=True,
    )
    log.info("report: %s, %.1f MB", page, page.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
