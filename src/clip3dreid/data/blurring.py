"""Make a face-blurred copy of a folder of pictures, as Celeb-reID-blur is of Celeb-reID."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, JpegImagePlugin

from clip3dreid.data.blur_settings import BlurSettings
from clip3dreid.data.blurred_copy import (
    FILES,
    JOURNAL,
    REPORT_VERSION,
    SETTINGS,
    WORK,
    BlurReport,
    Outcome,
    check_folder,
    clear_copy,
    finish,
    finished,
    own_files,
    walk,
)
from clip3dreid.data.face_detectors import Box, Detector
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.files import inside, why_not_written, write_json
from clip3dreid.io.locks import at_work
from clip3dreid.io.pictures import (
    VIDEO_SUFFIXES,
    Pixels,
    UnreadablePicture,
    kind_of,
    open_picture,
    read_rgb,
)
from clip3dreid.io.processes import spread
from clip3dreid.io.progress import Update, progress
from clip3dreid.io.staging import open_stage, staged

log = logging.getLogger(__name__)

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def blur_boxes(rgb: Pixels, boxes: Sequence[Box], margin: float, strength: float) -> Pixels:
    """Blur rectangles of a picture with a Gaussian kernel.

    Args:
        rgb: (H, W, 3) uint8; left as it is.
        boxes: what to blur; parts outside the picture are ignored.
        margin: how far the blur reaches beyond a box on each side, as a fraction of its width and height.
        strength: the kernel's standard deviation as a fraction of the longer side of what is blurred.

    Returns:
        (H, W, 3) uint8, changed in the rectangles only.
    """
    blurred = rgb.copy()
    for box in boxes:
        wide, high = margin * (box.right - box.left), margin * (box.bottom - box.top)
        rows = slice(max(round(box.top - high), 0), max(round(box.bottom + high), 0))
        columns = slice(max(round(box.left - wide), 0), max(round(box.right + wide), 0))
        patch = blurred[rows, columns]
        if patch.size:
            # Nothing from outside the rectangle is mixed in, so a patch depends on its own pixels alone.
            blurred[rows, columns] = cv2.GaussianBlur(
                patch, (0, 0), strength * max(patch.shape[:2]), borderType=cv2.BORDER_REPLICATE
            )
    return blurred


@dataclass(frozen=True)
class _BlurJob:
    """Make one file of the copy; every process has a copy of the job."""

    source: Path
    out: Path
    stage: Path
    detector: Detector
    settings: BlurSettings

    def __call__(self, path: str) -> Outcome:
        source = self.source / path
        if not _shows_people(source):
            with staged(self.stage, self.out, path) as temporary:
                shutil.copyfile(source, temporary)
            return Outcome(path, "copied", 0)
        try:
            rgb = read_rgb(source, "replace it, or leave it out with on_error=skip")
        except UnreadablePicture:
            if self.settings.on_error == "skip":
                return Outcome(path, "unreadable", 0)
            raise
        boxes = self.detector(rgb)
        if not boxes:
            with staged(self.stage, self.out, path) as temporary:
                shutil.copyfile(source, temporary)
            return Outcome(path, "no_face", 0)
        blurred = blur_boxes(rgb, boxes, self.settings.margin, self.settings.strength)
        with staged(self.stage, self.out, path) as temporary:
            _save_like(source, blurred, temporary)
        return Outcome(path, "blurred", len(boxes))


def _shows_people(source: Path) -> bool:
    """Return whether a file is a picture, whatever its suffix: one taken for something else keeps its faces."""
    if kind_of(source.name) != "other":
        return True
    try:
        with open_picture(source):
            return True
    except UnreadablePicture:  # a picture, and too large
        return True
    except Exception:  # decoders raise a dozen types on what is none
        return False


def _save_like(source: Path, rgb: Pixels, path: Path) -> None:
    """Write `rgb` in the format of the picture `source`, without losing more than that format must."""
    with open_picture(source) as original:
        picture = Image.fromarray(rgb)
        if isinstance(original, JpegImagePlugin.JpegImageFile):
            # The same tables and subsampling, so that what was not blurred changes as little as JPEG lets it;
            # -1 stands for a picture that was not stored as three channels: then colour is kept whole.
            sampling = max(JpegImagePlugin.get_sampling(original), 0)
            picture.save(path, "JPEG", qtables=original.quantization, subsampling=sampling)
        else:
            known = original.format if original.format in LOSSLESS else "PNG"
            picture.save(path, known, **LOSSLESS[known])


def blur_folder(
    source: Path,
    out: Path,
    detector: Detector,
    settings: BlurSettings | None = None,
    update: Update | None = None,
) -> BlurReport:
    """Make a face-blurred copy of a folder tree: same folders, same names, same formats.

    Pictures in which no face was found, and files that are not pictures by suffix and content, are copied byte for
    byte, videos too, of which the log warns; hidden files are left out. `blur_faces.csv` in the copy says what
    became of each file and how many boxes were blurred, `blur_faces.json` holds counts, detector and kernel. A run
    that was interrupted is continued by running it again; until the copy is finished it holds a folder
    `.blur_faces`.

    Args:
        source: folder to copy.
        out: folder of the copy; made if it is not there.
        detector: from (H, W, 3) uint8 to boxes.
        settings: of blur and copy; None: the defaults.
        update: called with the number of files done and of all files; None: a bar on stderr shows them.

    Returns:
        Counts over the whole copy, whatever part of it this run made.

    Raises:
        InputError: if the source is no folder, one folder lies in the other, `out` holds something else or a
            copy made with other settings, another process is at work there, a picture cannot be read, or a file
            cannot be written.
    """
    settings = settings or BlurSettings()
    if not source.is_dir():
        raise InputError(f"source={source} is not a folder; give the folder of pictures to copy")
    inner, outer = sorted((source.resolve(), out.resolve()), key=lambda path: -len(path.parts))
    if inner.is_relative_to(outer):
        raise InputError(f"source={source} and out={out} lie in one another; choose another out")
    # A detector that cannot work says so here, before anything is written.
    detector(np.zeros((128, 64, 3), np.uint8))
    facts = {
        "version": REPORT_VERSION,
        "source": str(source.resolve()),
        "detector": repr(detector),
        "kernel": {
            "kind": "Gaussian",
            "sigma_of_longer_side": settings.strength,
            "margin": settings.margin,
        },
    }
    folders, files = walk(source)
    if videos := [path for path in files if Path(path).suffix.lower() in VIDEO_SUFFIXES]:
        log.warning(
            "%s: %d videos are copied with the faces in them: %s; write their frames out to have these blurred",
            source,
            len(videos),
            some(videos, 3),
        )
    # Before the lock, which is a file: a folder that is refused is not touched.
    check_folder(out, facts, folders, files, settings.overwrite)
    with at_work(out, "blurs faces", tidy=True), _explained(out):
        check_folder(out, facts, folders, files, settings.overwrite)
        if settings.overwrite:
            clear_copy(out)
        done = finished(out)
        stage = open_stage(out / WORK)
        # What the run is going to make is its own from here on, whenever it is killed.
        write_json(out / WORK / FILES, sorted({*files, *own_files(out)}))
        write_json(out / WORK / SETTINGS, facts)
        for folder in folders:
            inside(out, folder).mkdir(parents=True, exist_ok=True)
        job = _BlurJob(source, out, stage, detector, settings)
        outcomes = [done[path] for path in files if path in done]
        left = [path for path in files if path not in done]
        with (
            (out / WORK / JOURNAL).open("a", encoding="utf-8") as journal,
            _shown(update, f"{source} -> {out}", len(files)) as show,
        ):
            # A killed run may have left half a line.
            journal.write("\n")
            for outcome in spread(job, left, settings.workers, at_once=8):
                outcomes.append(outcome)
                journal.write(json.dumps(outcome) + "\n")
                journal.flush()
                show(len(outcomes), len(files))
        return finish(out, stage, facts, outcomes)


def _shown(update: Update | None, task: str, total: int) -> AbstractContextManager[Update]:
    return progress(task, total, keep=True) if update is None else nullcontext(update)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Make a line of what the system says of a folder or a journal that cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or out}: {why_not_written(error)}; make room for it and start again: what "
            "is finished is kept"
        ) from error
