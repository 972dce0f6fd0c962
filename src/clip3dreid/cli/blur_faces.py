"""`clip3dreid blur_faces`: a copy of a folder of pictures in which faces are blurred."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.data.blur_settings import BlurSettings


@entry_point("blur_faces")
def main(cfg: DictConfig) -> None:
    """Blur, and say how many pictures showed no face."""
    settings = objects.settings(BlurSettings, cfg)
    source, out = (Path(str(folder)).expanduser() for folder in (cfg.source, cfg.out))
    # Here and not above, so that --help and a mistyped key are answered at once.
    from clip3dreid.data.blurred_copy import LISTING, REPORT
    from clip3dreid.data.blurring import blur_folder

    detector = instantiate(cfg.detector)
    report = blur_folder(source, out, detector, settings)
    print(  # noqa: T201
        f"{report.pictures} pictures, {report.boxes} boxes blurred; no face found in {report.without_face} "
        f"pictures ({report.share_without_face:.1%}), copied as they are; {report.copied} other files, "
        f"{report.unreadable} unreadable pictures left out.\n"
        f"Every file is listed in {out / LISTING}; detector {detector!r} and kernel are in {out / REPORT}."
    )


if __name__ == "__main__":
    main()
