"""`clip3dreid inspect_data`: what a data set on disk holds, and what each protocol makes of it."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.data.inspection_settings import InspectionSettings

log = logging.getLogger(__name__)


@entry_point("inspect_data")
def main(cfg: DictConfig) -> None:
    """Print the report; differences to published counts are shown, and are no error."""
    objects.require_data(cfg)
    settings = objects.settings(InspectionSettings, cfg)
    spec = objects.data_spec(cfg.data)
    # Here and not above, so that --help and a mistyped key are answered before torch is loaded.
    from clip3dreid.data.manifest import save
    from clip3dreid.io.files import write_json
    from clip3dreid.report.search_sheet import check_sheet
    from clip3dreid.report.tables import print_table
    from clip3dreid.training.inspection import inspect

    if settings.sheet is not None:
        check_sheet(settings.sheet)
    protocols = {split: sets[spec.name] for split, sets in objects.protocol_sets(cfg).items()}
    report = inspect(spec, protocols, decode=settings.decode, workers=settings.workers, seed=settings.seed)
    for title, header, rows in report.tables():
        print_table(title, header, rows)
    for remark in report.remarks():
        log.warning(remark)
    if settings.manifest is not None:
        save(report.manifest, settings.manifest)
        log.info("manifest written to %s", settings.manifest)
    if settings.sheet is not None:
        report.draw(settings.sheet)
        log.info("sheet written to %s", settings.sheet)
    if settings.out is not None:
        write_json(settings.out, report.to_dict())


if __name__ == "__main__":
    main()
