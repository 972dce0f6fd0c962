"""`clip3dreid pack`: pictures decoded and resized once, in a folder that trainings map into memory."""

from __future__ import annotations

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.data.pack_settings import PackSettings


@entry_point("pack")
def main(cfg: DictConfig) -> None:
    """Pack, or verify a pack, and say what came of it."""
    objects.require_data(cfg)
    settings = objects.settings(PackSettings, cfg)
    data = objects.data_specs(cfg)
    # What loads polars comes after the keys are checked.
    from clip3dreid.data.packing import pack

    report = pack(data, settings)
    held = f"{settings.out}: {report.pictures:,} pictures, {report.megabytes:,.0f} MB"
    if settings.verify:
        print(f"{held}, every byte as it was written, of the files as they are now")  # noqa: T201
    else:
        print(f"{held}, {report.found:,} of them there before; datamodule.pack={settings.out} trains on it")  # noqa: T201


if __name__ == "__main__":
    main()
