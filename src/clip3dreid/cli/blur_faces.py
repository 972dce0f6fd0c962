"""Makes a face-blurred copy of a folder: `clip3dreid blur_faces source=DIR out=DIR`."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clip3dreid.config.hydra import entry_point
from clip3dreid.data.faces import LISTING, REPORT, blur_folder


@entry_point("blur_faces")
def main(cfg: DictConfig) -> None:
    """Blurs, then says how many pictures showed no face."""
    console = Console()
    source, out = Path(cfg.source), Path(cfg.out)
    detector = instantiate(cfg.detector)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{source} -> {out}", total=None)
        report = blur_folder(
            source,
            out,
            detector,
            margin=cfg.margin,
            strength=cfg.strength,
            workers=cfg.workers,
            on_error=cfg.on_error,
            overwrite=cfg.overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(
        f"{report.pictures} pictures, {report.boxes} boxes blurred; no face found in {report.without_face} "
        f"pictures ({report.share_without_face:.1%}), copied as they are; {report.copied} other files, "
        f"{report.unreadable} unreadable pictures left out.\n"
        f"Every file is listed in {out / LISTING}; detector {detector!r} and kernel are in {out / REPORT}.",
        soft_wrap=True,
        highlight=False,
    )


if __name__ == "__main__":
    main()
