"""`clip3dreid export`: a trained model as files that run without this package."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.trust import trusted
from clip3dreid.export.settings import ExportSettings


@entry_point("export")
def main(cfg: DictConfig) -> None:
    """Export, and print what the files are and how close to the model they come."""
    settings = objects.settings(ExportSettings, cfg)
    formats = objects.export_formats(cfg)
    from clip3dreid.export.run import export
    from clip3dreid.inference.model import load
    from clip3dreid.io.environment import environment
    from clip3dreid.report.export_table import print_export

    checkpoint = str(cfg.checkpoint)
    exported = export(
        load(checkpoint, trusted=trusted(cfg)),
        settings,
        formats,
        Path(str(cfg.out)).expanduser(),
        facts={"checkpoint": checkpoint, "environment": environment()},
    )
    print_export(checkpoint, exported.report())


if __name__ == "__main__":
    main()
