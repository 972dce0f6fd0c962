"""A face-blurred copy of a folder of pictures, as Celeb-reID-blur is of Celeb-reID.

A detector is any picklable callable from an RGB picture to boxes; its `repr` goes into the report and tells
whether an interrupted copy may be continued. Three come with the project, and none of them finds every face:
read the report, and look at the pictures in which no face was found.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import polars as pl
from PIL import Image, JpegImagePlugin

from clip3dreid.errors import InputError
from clip3dreid.io.files import (
    at_work,
    close_stages,
    inside,
    is_stage,
    open_stage,
    remove,
    staged,
    why_not_written,
    write_json,
)
from clip3dreid.io.formats import damaged, decoding, peek_json
from clip3dreid.io.pictures import (
    Pixels,
    UnreadablePicture,
    is_hidden,
    kind_of,
    open_picture,
    read_rgb,
    require_utf8,
)
from clip3dreid.io.processes import spread

REPORT_VERSION = 1
REPORT = "blur_faces.json"
LISTING = "blur_faces.csv"
WORK = ".blur_faces"
"""Folder in an unfinished copy: its settings, its list of files, those that are done, and files being written."""
SETTINGS, FILES, JOURNAL = "settings.json", "files.json", "done.jsonl"

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


Detector = Callable[[Pixels], list[Box]]


@dataclass(frozen=True)
class HaarCascade:
    """The boosted cascades that ship with OpenCV 4: nothing to download, and weak on small or turned faces.

    Attributes:
        cascades: file names in OpenCV's data folder; each sees the picture and its mirror image, since the
            profile cascade knows one side only.
        height: pictures lower than this many pixels are enlarged to it, since the cascades' window is 20 to
            24 pixels wide.
        step: factor between two scales of the search.
        neighbours: detections that must agree.
        reach: only this fraction of the height is searched, from the top: a crop's face is there, most false
            finds and most of the time are below.

    Source: Viola and Jones, "Rapid Object Detection using a Boosted Cascade of Simple Features" (CVPR 2001).
    """

    cascades: Sequence[str]
    height: int
    step: float
    neighbours: int
    reach: float

    def __call__(self, rgb: Pixels) -> list[Box]:
        """Boxes of the faces found in `rgb`, (H, W, 3) uint8.

        Raises:
            InputError: if the OpenCV that is installed has no cascades (from version 5 on).
        """
        scale = max(self.height / len(rgb), 1.0)
        grey = cv2.cvtColor(rgb[: max(round(self.reach * len(rgb)), 1)], cv2.COLOR_RGB2GRAY)
        grey = cv2.equalizeHist(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR))
        boxes = []
        for name in self.cascades:
            classifier = _classifier(name)
            for mirrored in (False, True):
                seen = cv2.flip(grey, 1) if mirrored else grey
                found = classifier.detectMultiScale(seen, scaleFactor=self.step, minNeighbors=self.neighbours)
                for left, top, wide, high in found:
                    left = grey.shape[1] - left - wide if mirrored else left
                    corners = (left, top, left + wide, top + high)
                    boxes.append(Box(*(round(corner / scale) for corner in corners)))
        return boxes


@functools.lru_cache
def _classifier(name: str) -> Any:
    file = Path(cv2.__file__).parent / "data" / name
    if not hasattr(cv2, "CascadeClassifier"):
        raise InputError(
            f"OpenCV {cv2.__version__} has no cascade detector any more; install 'opencv-python-headless<5', "
            "or choose detector=head_region or detector=yunet"
        )
    if not file.is_file():
        raise InputError(f"OpenCV {cv2.__version__} has no cascade {name} in {file.parent}; choose another")
    return cv2.CascadeClassifier(str(file))


@dataclass(frozen=True)
class YuNet:
    """OpenCV's small face network, whose weights the user supplies: better than the cascades on small faces.

    Attributes:
        model: ONNX file of YuNet, from the OpenCV model zoo.
        score: least confidence, 0..1.
        height: pictures lower than this many pixels are enlarged to it.

    Source: Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector" (Machine Intelligence
    Research 2023).
    """

    model: str
    score: float
    height: int

    def __call__(self, rgb: Pixels) -> list[Box]:
        """Boxes of the faces found in `rgb`, (H, W, 3) uint8.

        Raises:
            InputError: if the model file is missing or is no such network.
        """
        height, width = rgb.shape[:2]
        scale = max(self.height / height, 1.0)
        size = round(width * scale), round(height * scale)
        network = _network(self.model, self.score)
        network.setInputSize(size)
        _, found = network.detect(cv2.cvtColor(cv2.resize(rgb, size), cv2.COLOR_RGB2BGR))
        return [
            Box(*(round(float(corner) / scale) for corner in (left, top, left + wide, top + high)))
            for left, top, wide, high in ([] if found is None else found[:, :4])
        ]


@functools.lru_cache
def _network(model: str, score: float) -> Any:
    if not Path(model).is_file():
        raise InputError(
            f"detector.model={model} is not a file; fetch face_detection_yunet from the OpenCV model zoo"
        )
    try:
        return cv2.FaceDetectorYN.create(model, "", (320, 320), score)
    except cv2.error as error:
        raise InputError(f"detector.model={model} is not a YuNet in ONNX format: {error.err}") from error


@dataclass(frozen=True)
class HeadRegion:
    """No detector: the part of a tight upright crop where the head is, whatever it shows.

    It misses no head in such a crop and needs no model, but blurs hair and background too and says nothing
    about whether a face was visible.

    Attributes:
        left: edge of the region as a fraction of the width.
        right: likewise.
        top: edge as a fraction of the height.
        bottom: likewise; a standing adult's head takes an eighth of the body, and boxes leave room above it.
    """

    left: float
    right: float
    top: float
    bottom: float

    def __call__(self, rgb: Pixels) -> list[Box]:
        """The region's box in `rgb`, (H, W, 3) uint8."""
        height, width = rgb.shape[:2]
        corners = (self.left * width, self.top * height, self.right * width, self.bottom * height)
        return [Box(*(round(corner) for corner in corners))]


def blur_boxes(rgb: Pixels, boxes: Sequence[Box], margin: float, strength: float) -> Pixels:
    """Blurs rectangles of a picture with a Gaussian kernel.

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


class Outcome(NamedTuple):
    """What became of one file."""

    path: str
    """Relative to the source, with forward slashes."""
    outcome: str
    """`blurred`, `no_face` (picture copied as it is), `copied` (no picture) or `unreadable` (left out)."""
    boxes: int
    """Boxes that the detector gave; several may lie on one face."""


class Report(NamedTuple):
    """Counts over a finished copy."""

    pictures: int
    boxes: int
    without_face: int
    copied: int
    unreadable: int

    @property
    def share_without_face(self) -> float:
        """Fraction of the pictures, 0..1, in which no face was found."""
        return self.without_face / max(self.pictures, 1)


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know to make one file of the copy."""

    source: Path
    out: Path
    stage: Path
    detector: Detector
    margin: float
    strength: float
    skip: bool

    def __call__(self, path: str) -> Outcome:
        source = self.source / path
        if not _shows_people(source):
            with staged(self.stage, self.out, path) as temporary:
                shutil.copyfile(source, temporary)
            return Outcome(path, "copied", 0)
        try:
            rgb = read_rgb(source, "replace it, or leave it out with on_error=skip")
        except UnreadablePicture:
            if self.skip:
                return Outcome(path, "unreadable", 0)
            raise
        boxes = self.detector(rgb)
        if not boxes:
            with staged(self.stage, self.out, path) as temporary:
                shutil.copyfile(source, temporary)
            return Outcome(path, "no_face", 0)
        blurred = blur_boxes(rgb, boxes, self.margin, self.strength)
        with staged(self.stage, self.out, path) as temporary:
            _save_like(source, blurred, temporary)
        return Outcome(path, "blurred", len(boxes))


def _shows_people(source: Path) -> bool:
    """Whether a file is a picture, whatever its suffix: one that is taken for something else keeps its faces."""
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
    """Writes `rgb` in the format of the picture `source`, without losing more than that format must."""
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
    *,
    margin: float,
    strength: float,
    workers: int,
    on_error: str = "fail",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Makes a face-blurred copy of a folder tree: same folders, same names, same formats.

    Pictures in which no face was found, and files that are not pictures by suffix and content, are copied byte for
    byte; hidden files are left out. `blur_faces.csv` in the copy says what became of each file and how many boxes
    were blurred, `blur_faces.json` holds counts, detector and kernel. A run that was interrupted is continued by
    running it again; until the copy is finished it holds a folder `.blur_faces`.

    Args:
        source: folder to copy.
        out: folder of the copy; made if it is not there.
        detector: from (H, W, 3) uint8 to boxes.
        margin: see `blur_boxes`.
        strength: see `blur_boxes`.
        workers: processes; 0 works in this one. The result does not depend on it.
        on_error: `fail` at a picture that cannot be read, or `skip` it: leave it out of the copy and count.
        overwrite: begin anew where the folder holds another copy. Only the files that this copy lists are removed,
            and where another file would be written over it is refused all the same: nobody's files get lost.
        progress: called with the number of files done and of all files.

    Returns:
        Counts over the whole copy, whatever part of it this run made.

    Raises:
        InputError: if the source is no folder, one folder lies in the other, `out` holds something else or a
            copy made with other settings, another process is at work there, a picture cannot be read, or a file
            cannot be written.
    """
    if on_error not in ("fail", "skip"):
        raise InputError(f"on_error={on_error} is not one of fail, skip")
    if not source.is_dir():
        raise InputError(f"source={source} is not a folder; give the folder of pictures to copy")
    inner, outer = sorted((source.resolve(), out.resolve()), key=lambda path: -len(path.parts))
    if inner.is_relative_to(outer):
        raise InputError(f"source={source} and out={out} lie in one another; choose another out")
    # A detector that cannot work says so here, before anything is written.
    detector(np.zeros((128, 64, 3), np.uint8))
    settings = {
        "version": REPORT_VERSION,
        "source": str(source.resolve()),
        "detector": repr(detector),
        "kernel": {"kind": "Gaussian", "sigma_of_longer_side": strength, "margin": margin},
    }
    folders, files = _walk(source)
    # Before the lock, which is a file: a folder that is refused is not touched.
    _look(out, settings, folders, files, overwrite)
    with at_work(out, "blurs faces", tidy=True), _explained(out):
        _look(out, settings, folders, files, overwrite)
        if overwrite:
            _clear(out)
        done = _done(out)
        stage = open_stage(out / WORK)
        # What the run is going to make is its own from here on, whenever it is killed.
        write_json(out / WORK / FILES, sorted({*files, *_own(out)}))
        write_json(out / WORK / SETTINGS, settings)
        for folder in folders:
            inside(out, folder).mkdir(parents=True, exist_ok=True)
        job = _Job(source, out, stage, detector, margin, strength, on_error == "skip")
        outcomes = [done[path] for path in files if path in done]
        with (out / WORK / JOURNAL).open("a", encoding="utf-8") as journal:
            # A killed run may have left half a line.
            journal.write("\n")
            for outcome in spread(job, [path for path in files if path not in done], workers, at_once=8):
                outcomes.append(outcome)
                journal.write(json.dumps(outcome) + "\n")
                journal.flush()
                if progress is not None:
                    progress(len(outcomes), len(files))
        return _finish(out, stage, settings, outcomes)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Makes a line of what the system says of a folder or a journal that cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or out}: {why_not_written(error)}; make room for it and start again: what "
            "is finished is kept"
        ) from error


def _look(
    out: Path, settings: dict[str, Any], folders: Sequence[str], files: Sequence[str], overwrite: bool
) -> None:
    """Raises InputError unless the copy may be made, or gone on with, in the folder; nothing is changed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; choose a folder")
    _check_work(out)
    earlier = _settings(out / WORK / SETTINGS) or _settings(out / REPORT)
    if earlier is not None and not overwrite:
        for key, value in settings.items():
            if earlier.get(key) != value:
                raise InputError(
                    f"out={out} was made with {key} {earlier.get(key)}, not {value}; choose another folder, "
                    "or set overwrite=true"
                )
    held = [name for name in _names(out) if not name.startswith(".")]
    if earlier is None and held and not overwrite:
        raise InputError(
            f"out={out} holds something else ({', '.join(held[:3])}); choose another folder, or set overwrite=true, "
            "which replaces none of its files"
        )
    for folder in folders:
        inside(out, folder)
    own = _own(out) | ({REPORT, LISTING} if earlier is not None else set())
    foreign = [path for path in (*files, REPORT, LISTING) if path not in own and os.path.lexists(out / path)]
    if foreign:
        raise InputError(
            f"out={out} holds {len(foreign)} files that are not of a blurred copy and would be written over "
            f"({', '.join(foreign[:3])}); move them away, or choose another folder"
        )


def _check_work(out: Path) -> None:
    """Raises InputError unless the working folder, if there is one, is this program's and holds nothing else."""
    work = inside(out, WORK)
    for name in (SETTINGS, FILES, JOURNAL):
        inside(work, name)
    names = [WORK] if work.is_file() else _names(work)
    foreign = [name for name in names if name not in (SETTINGS, FILES, JOURNAL) and not _temporary(name)]
    if foreign:
        raise InputError(f"{work} holds something else ({', '.join(foreign[:3])}); move it away")


def _temporary(name: str) -> bool:
    """Whether a killed run may have left it in the working folder."""
    return is_stage(name) or (name.startswith((".settings-", ".files-")) and name.endswith(".json"))


def _names(folder: Path) -> list[str]:
    """What a folder holds, sorted; nothing if it is not there."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _own(out: Path) -> set[str]:
    """Files that an earlier run has made in the folder, or was going to make."""
    path, planned = out / WORK / FILES, []
    if path.is_file():
        advice = "restore it, or choose another folder"
        with decoding(path, "the list of a blurred copy", advice):
            planned = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(planned, list):
            raise damaged(path, "it holds no list", advice)
    listed = (*_listing(out / LISTING), *_journal(out / WORK / JOURNAL))
    return {str(path) for path in planned} | {outcome.path for outcome in listed}


def _done(out: Path) -> dict[str, Outcome]:
    """What an earlier run has done, by path."""
    return {
        outcome.path: outcome
        for outcome in (*_listing(out / LISTING), *_journal(out / WORK / JOURNAL))
        if outcome.outcome != "unreadable" and (out / outcome.path).is_file()
    }


def _clear(out: Path) -> None:
    """Removes an earlier copy, its lists last, so that what is left is known for its own if the program is killed."""
    remove(out, [path for path in sorted(_own(out)) if path not in (REPORT, LISTING)])
    _clear_work(out)
    remove(out, [LISTING, REPORT])


def _clear_work(out: Path) -> None:
    work = inside(out, WORK)
    if work.is_dir():
        remove(work, [name for name in _names(work) if _temporary(name) and not is_stage(name)])
        remove(work, [JOURNAL, FILES, SETTINGS])
        close_stages(work)


def _settings(path: Path) -> dict[str, Any] | None:
    settings = peek_json(path)
    ours = settings is not None and {"version", "source", "detector", "kernel"} <= settings.keys()
    return settings if ours else None


def _journal(path: Path) -> Iterator[Outcome]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield Outcome(*json.loads(line))
            except (ValueError, TypeError, RecursionError):  # what was being written when the run was killed
                continue


def _listing(path: Path) -> Iterator[Outcome]:
    if path.is_file():
        advice = "restore it, or choose another folder"
        with decoding(path, "the list of a blurred copy", advice):
            outcomes = [Outcome._make(row) for row in pl.read_csv(path, glob=False).iter_rows()]
        yield from outcomes


def _walk(source: Path) -> tuple[list[str], list[str]]:
    """Folders and files under `source`, sorted, relative to it, links to folders followed."""
    folders, files = [], []
    for here, below, names in os.walk(source, followlinks=True):
        place = Path(here)
        if place.is_symlink() and place.resolve() in (parent.resolve() for parent in place.parents):
            raise InputError(f"{place} links to a folder that holds it; remove the link")
        below[:] = sorted(name for name in below if not is_hidden(name))
        relative = place.relative_to(source)
        folders.append(relative.as_posix())
        files += [(relative / name).as_posix() for name in names if not is_hidden(name)]
    require_utf8([*folders, *files], f"source={source}")
    return folders, sorted(path for path in files if path not in (REPORT, LISTING))


def _finish(out: Path, stage: Path, settings: dict[str, Any], outcomes: Sequence[Outcome]) -> Report:
    """Writes listing and report and removes the working folder."""
    table = pl.DataFrame(
        sorted(outcomes), schema={"path": pl.String, "outcome": pl.String, "boxes": pl.Int64}, orient="row"
    )
    count = dict(table.group_by("outcome").len().iter_rows())
    report = Report(
        pictures=count.get("blurred", 0) + count.get("no_face", 0),
        boxes=int(table["boxes"].sum()),
        without_face=count.get("no_face", 0),
        copied=count.get("copied", 0),
        unreadable=count.get("unreadable", 0),
    )
    with staged(stage, out, LISTING) as temporary:
        table.write_csv(temporary)
    share = {"share_without_face": report.share_without_face}
    with staged(stage, out, REPORT) as temporary:
        write_json(temporary, {**settings, **report._asdict(), **share})
    _clear_work(out)
    return report
