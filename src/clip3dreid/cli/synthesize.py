"""`clip3dreid synthesize`: a data set of rendered people, in the layout of a real one."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point


@entry_point("synthesize")
def main(cfg: DictConfig) -> None:
    """Write the world, and say what it holds."""
    settings = objects.synthesis_settings(cfg)
    folder = Path(str(cfg.out)).expanduser()
    # Here and not above, so that --help and a mistyped key are answered before torch is loaded.
    from clip3dreid.synthetic.synthesis import synthesize

    report = synthesize(settings, folder)
    if not report.rendered:
        print(f"{folder} is complete already, {report.pictures} pictures; nothing was done")  # noqa: T201
        return
    earlier = report.pictures - report.rendered
    resumed = f" ({earlier} of them were there from an interrupted run)" if earlier else ""
    print(f"{report.pictures} pictures in {folder}{resumed}; truth.parquet says what is in them")  # noqa: T201


if __name__ == "__main__":
    main()
