"""Read the files in which detectors and trackers leave their boxes.

Sources: MOTChallenge's instructions and Milan et al., "MOT16: A Benchmark for Multi-Object Tracking"
(arXiv:1603.00831), for its columns, classes and coordinates that count from 1; COCO's data format; the header of
supervision's `CSVSink`; YOLO's labels as Darknet and Ultralytics write them.
"""

from __future__ import annotations

import configparser
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from clip3dreid.data.box_settings import Boxes, BoxFormat
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.formats import decoding, read_text, read_yaml
from clip3dreid.io.pictures import is_hidden, kind_of
from clip3dreid.io.table_files import BOX, COLUMNS, forward_slashes, read_table, understood

_SCHEMA = {
    "path": pl.String,
    **dict.fromkeys(BOX, pl.Float64),
    "frame": pl.Int64,
    "class": pl.String,
    "class_name": pl.String,
    "confidence": pl.Float64,
    "tracklet": pl.String,
    "person": pl.String,
}
_CSV_SINK = ("x_min", "y_min", "x_max", "y_max", "class_id", "confidence", "tracker_id")
_SINK_COLUMNS = {
    **COLUMNS,
    "frame": (*COLUMNS["frame"], "frameindex", "frameidx"),
    "tracklet": (*COLUMNS["tracklet"], "trackerid"),
    "class": ("classid",),
    "class_name": ("classname",),
}
_ADVICE = "correct it, or say what it is with boxes.format=mot, coco, supervision or yolo"
_LARGEST = 2**53
_FROM_HERE = ".", "images", "..", "../images"
"""Where COCO's files have their pictures, seen from the file's folder."""


class BoxTable(NamedTuple):
    """What a file says."""

    frames: Path
    """Folder that paths are relative to."""
    table: pl.DataFrame
    """N boxes, in the order of their frames: `path`, `left`, `top`, `right`, `bottom`, and, null where they are
    unknown, `frame`, `class` (a number, as text), `class_name`, `confidence`, `tracklet`, `person`. Sides are
    pixels of the upright frame, counted from 0, right and bottom outside; or fractions of it."""
    person: str
    """The class of people, where classes have no names."""
    ignored: int = 0
    """Boxes that the file itself says not to count, and that are not in the table."""
    fractions: bool = False
    """Whether sides are fractions of the frame."""


def format_of(place: Path) -> BoxFormat | None:
    """Return which format of boxes a file or folder is, by its content and name; None: it is none of them."""
    if place.is_dir():
        if (place / "seqinfo.ini").is_file():
            return "mot"
        return "yolo" if _holds_labels(place) else None
    suffix = place.suffix.lower()
    if suffix == ".json":
        return "coco"
    if suffix not in (".txt", ".csv"):
        return None
    line = _first_line(place)
    if set(_CSV_SINK) <= {cell.strip().strip('"') for cell in line.split(",")}:
        return "supervision"
    numbers = _all_numbers(line)
    if "," not in line and _may_be_yolo(numbers):
        return "yolo"
    return "mot" if len(numbers) >= 6 and ("," in line or len(numbers) >= 7) else None


def read_box_file(boxes: Boxes, name: str) -> BoxTable:
    """Read boxes, of whatever class and confidence.

    Args:
        boxes: says which file, in which format, and where its frames are.
        name: what to call it in messages, such as `pictures=gt.txt`.

    Raises:
        InputError: if its format is unknown, it cannot be read as that (with line, row or annotation), it holds no
            box, or its frames are nowhere.
    """
    if not boxes.place.exists():
        raise InputError(f"{name} is not there; give a file of boxes")
    form = boxes.format or format_of(boxes.place)
    if form is None:
        raise InputError(
            f"{name} is in no known format of boxes; give boxes.format=mot, coco, supervision or yolo"
        )
    found = _READERS[form](boxes, name)
    if found.table.is_empty() and not found.ignored:
        raise InputError(f"{name} holds no boxes; give a file that does")
    return found


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return next((line.strip() for line in file if line.strip()), "")
    except OSError:  # is said by whoever reads all of it
        return ""


def _all_numbers(line: str) -> list[float]:
    """Return the numbers of a line; none where something else is in it."""
    try:
        return [float(cell) for cell in _cells(line)]
    except ValueError:
        return []


def _cells(line: str) -> list[str]:
    return line.rstrip(", ").split(",") if "," in line else line.split()


def _may_be_yolo(numbers: Sequence[float]) -> bool:
    return 5 <= len(numbers) <= 7 and numbers[0].is_integer() and all(0 <= one <= 1 for one in numbers[1:5])


def _holds_labels(folder: Path) -> bool:
    """Return whether a folder has texts of YOLO and no picture."""
    labelled = False
    try:
        # Not of pathlib, which lists a whole folder, perhaps of a million crops: the first picture ends it.
        with os.scandir(folder) as entries:
            for entry in entries:
                if kind_of(entry.name) != "other":
                    return False
                path = Path(entry)
                labelled = labelled or (
                    path.suffix == ".txt" and _may_be_yolo(_all_numbers(_first_line(path)))
                )
    except OSError:  # is said by whoever lists it
        return False
    return labelled


def _number(text: Any, what: str, where: str, *, whole: bool = False) -> float:
    """Return a number that a file states, or say where it states none."""
    try:
        value = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or (whole and (not value.is_integer() or abs(value) > _LARGEST)):
        raise InputError(
            f"{where}: {what} {str(text)[:40]!r} is no {'whole ' if whole else ''}number; correct it"
        )
    return value


def _lines(path: Path, name: str, fewest: int, most: int, wanted: str) -> Iterator[tuple[str, list[str]]]:
    """Yield where each line of numbers stands, and its cells."""
    for number, line in enumerate(read_text(path, name, _ADVICE).splitlines(), 1):
        if not line.strip():
            continue
        cells = _cells(line.strip())
        if not fewest <= len(cells) <= most:
            raise InputError(f"{name}: line {number} has {len(cells)} values; {wanted}")
        yield f"{name}: line {number}", cells


def _table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=_SCHEMA)


# MOTChallenge.

_MOT_COLUMNS = ("frame", "id", "left", "top", "width", "height", "confidence", "class", "visibility")


def _read_mot(boxes: Boxes, name: str) -> BoxTable:
    """Read a `gt.txt` or `det.txt` of MOTChallenge, or what a tracker hands in there.

    The seventh value is a confidence, or, where nine columns or the name say that this is ground truth, a mark of
    what is to be counted. Only nine columns have a class; the last ones of ten are places in the world.
    """
    place = boxes.place
    if place.is_dir():
        inside = [place / "gt" / "gt.txt", place / "det" / "det.txt"]
        there = [path for path in inside if path.is_file()]
        if not there:
            raise InputError(f"{name} has neither gt/gt.txt nor det/det.txt; give the file of boxes")
        place, name = there[0], f"{name}/{there[0].relative_to(place).as_posix()}"
    wanted = f"a box of MOT has 6 to 10: {', '.join(_MOT_COLUMNS)}"
    rows: list[tuple[float, ...]] = []
    for where, cells in _lines(place, name, 6, 10, wanted):
        names = zip(_MOT_COLUMNS if len(cells) == 9 else _MOT_COLUMNS[:7], cells, strict=False)
        rows.append(
            tuple(_number(cell, what, where, whole=what in ("frame", "id", "class")) for what, cell in names)
        )
    marks = [row[6] for row in rows if len(row) > 6]
    truth = place.name == "gt.txt" or all(len(row) == 9 and row[6] in (0, 1) for row in rows)
    scored = not truth and set(marks) != {-1.0}
    counted = [row for row in rows if not truth or len(row) < 7 or row[6]]
    root, suffix = _sequence(boxes, place, name)
    files = _numbered(root, name)
    table = _table(
        [
            {
                "path": files.get(int(row[0])) or f"{int(row[0]):06}{suffix}",
                # The first pixel is 1.
                "left": row[2] - 1,
                "top": row[3] - 1,
                "right": row[2] - 1 + row[4],
                "bottom": row[3] - 1 + row[5],
                "frame": int(row[0]),
                "class": str(int(row[7])) if len(row) == 9 else None,
                "confidence": row[6] if scored and len(row) > 6 else None,
                "tracklet": str(int(row[1])),
            }
            for row in sorted(counted, key=lambda row: row[0])
        ]
    )
    return BoxTable(root, table, "1", len(rows) - len(counted))


def _sequence(boxes: Boxes, place: Path, name: str) -> tuple[Path, str]:
    """Return the folder of a sequence's frames, and their suffix."""
    looked = []
    for base in (place.parent, place.parent.parent):
        facts = _seqinfo(base / "seqinfo.ini")
        folder = boxes.folder or base / facts.get("imdir", "img1")
        if folder.is_dir():
            return folder, facts.get("imext", ".jpg")
        looked.append(folder)
    raise _no_frames(name, looked)


def _seqinfo(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        return {}
    parser = configparser.ConfigParser(interpolation=None)
    with decoding(path, "an INI file", "correct it, or give boxes.frames=FOLDER"):
        parser.read_string(path.read_text(encoding="utf-8-sig"))
        return dict(parser["Sequence"])


def _no_frames(name: str, looked: Sequence[Path]) -> InputError:
    places = some([path.as_posix() for path in dict.fromkeys(looked)], 4)
    return InputError(f"{name} has no frames beside it ({places}); give their folder as boxes.frames=FOLDER")


def _pictures(folder: Path, name: str) -> list[str]:
    if not folder.is_dir():
        raise _no_frames(name, [folder])
    names = [path.name for path in folder.iterdir() if kind_of(path.name) == "picture"]
    return sorted(one for one in names if not is_hidden(one))


def _numbered(folder: Path, name: str) -> dict[int, str]:
    """Return the pictures of a folder by the number that their names end in."""
    found: dict[int, str] = {}
    for file in _pictures(folder, name):
        number = re.search(r"(\d+)\.\w+$", file)
        if number and (before := found.setdefault(int(number[1]), file)) != file:
            raise InputError(
                f"{folder} has two frames {int(number[1])}, {before} and {file}; take one of them away"
            )
    return found


# COCO.


def _read_coco(boxes: Boxes, name: str) -> BoxTable:
    """Read COCO's JSON; ids of tracks and people may stand in an annotation or in its `attributes`."""
    with decoding(name, "JSON", _ADVICE):
        said = json.loads(boxes.place.read_text(encoding="utf-8-sig"))
    if not isinstance(said, dict) or not all(
        isinstance(said.get(key), list) for key in ("images", "annotations")
    ):
        raise InputError(
            f"{name} has no images and annotations, as COCO's files have; results alone name no pictures; {_ADVICE}"
        )
    images = {}
    for order, image in enumerate(said["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            raise InputError(f"{name}: image {order} has no file_name; correct it")
        images[str(image.get("id"))] = (order, image)
    kinds = {
        str(one.get("id")): str(one.get("name"))
        for one in said.get("categories") or []
        if isinstance(one, dict)
    }
    rows, ignored = [], 0
    for number, one in enumerate(said["annotations"]):
        where = f"{name}: annotation {number}"
        if not isinstance(one, dict) or str(one.get("image_id")) not in images:
            raise InputError(f"{where} is of no image that the file names; correct it")
        if one.get("iscrowd") in (1, True):
            ignored += 1
            continue
        box = one.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            raise InputError(f"{where} has no bbox of four numbers; correct it")
        left, top, width, height = (_number(side, "bbox", where) for side in box)
        order, image = images[str(one["image_id"])]
        facts = {**_attributes(one), **one}
        score = next((facts[key] for key in ("score", "confidence") if facts.get(key) is not None), None)
        kind = str(one.get("category_id"))
        rows.append(
            (
                order,
                {
                    "path": image["file_name"],
                    "left": left,
                    "top": top,
                    "right": left + width,
                    "bottom": top + height,
                    "frame": _whole(image, "frame_id", "frame_index", "frame"),
                    "class": kind,
                    "class_name": kinds.get(kind),
                    "confidence": None if score is None else _number(score, "score", where),
                    "tracklet": _text(facts, "track_id", "tracklet_id", "instance_id", "tracker_id"),
                    "person": _text(facts, "person_id", "person", "pid"),
                },
            )
        )
    table = _table([row for _, row in sorted(rows, key=lambda pair: pair[0])])
    return BoxTable(
        _home(boxes, table["path"].unique(maintain_order=True).to_list(), name), table, "1", ignored
    )


def _attributes(annotation: Mapping[str, Any]) -> Mapping[str, Any]:
    said = annotation.get("attributes")
    return said if isinstance(said, dict) else {}


def _text(facts: Mapping[str, Any], *keys: str) -> str | None:
    values = (facts.get(key) for key in keys)
    found = next(
        (one for one in values if isinstance(one, int | float | str) and not isinstance(one, bool)), None
    )
    return None if found is None else str(found)


def _whole(facts: Mapping[str, Any], *keys: str) -> int | None:
    values = (facts.get(key) for key in keys)
    return next((one for one in values if type(one) is int and abs(one) < _LARGEST), None)


def _home(boxes: Boxes, files: Sequence[str], name: str) -> Path:
    """Return the folder that file names are relative to."""
    if boxes.folder is not None:
        return boxes.folder
    looked = [Path(boxes.place.parent, place) for place in _FROM_HERE]
    there = (folder for folder in looked for file in files if (folder / file).is_file())
    home = next(there, None)
    if home is None and files:
        raise _no_frames(name, looked)
    return home or boxes.place.parent


# supervision.


def _read_supervision(boxes: Boxes, name: str) -> BoxTable:
    """Read a table of `CSVSink`: of frames by path, or by number in the order of their names."""
    table = understood(read_table(boxes.place, name, _CSV_SINK[:4]), name, _SINK_COLUMNS)

    def numbers(column: str, *, whole: bool = False, needed: bool = False) -> list[float | None]:
        values = table[column].to_list() if column in table.columns else [None] * len(table)
        return [
            None
            if value is None and not needed
            else _number(value, column, f"{name}: row {row}", whole=whole)
            for row, value in enumerate(values, 1)
        ]

    def texts(column: str) -> list[str | None]:
        return table[column].cast(pl.String).to_list() if column in table.columns else [None] * len(table)

    frames = [None if one is None else int(one) for one in numbers("frame", whole=True)]
    if "path" in table.columns:
        root = boxes.folder or boxes.place.parent
        paths = forward_slashes(table["path"].cast(pl.String), root).to_list()
        if None in paths:
            raise InputError(f"{name}: row {paths.index(None) + 1} has no path; correct it")
    else:
        root, paths = _frames_by_number(boxes, frames, name)
    made = {
        "path": paths,
        **{side: numbers(column, needed=True) for side, column in zip(BOX, _CSV_SINK, strict=False)},
        "frame": frames,
        "class": [None if one is None else str(int(one)) for one in numbers("class", whole=True)],
        "class_name": texts("class_name"),
        "confidence": numbers("confidence"),
        "tracklet": texts("tracklet"),
        "person": texts("person"),
    }
    sinks = pl.DataFrame(made, schema=_SCHEMA)
    return BoxTable(root, sinks if "path" in table.columns else sinks.sort("frame", maintain_order=True), "0")


def _frames_by_number(boxes: Boxes, frames: Sequence[int | None], name: str) -> tuple[Path, list[str]]:
    """Return the folder of frames, and the file of each row: the n-th one is of frame n."""
    if None in frames:
        raise InputError(
            f"{name} says of row {frames.index(None) + 1} neither a path nor a frame; give CSVSink "
            "custom_data={'frame_index': …}, or {'path': …}"
        )
    if boxes.folder is None:
        raise InputError(f"{name} counts frames and names no files; give their folder as boxes.frames=FOLDER")
    files = _pictures(boxes.folder, name)
    numbered = _numbered(boxes.folder, name)
    if len(numbered) == len(files) and files:
        files = [numbered[number] for number in sorted(numbered)]
        if max(numbered) - min(numbered) + 1 != len(files):
            raise InputError(
                f"{boxes.folder}: the numbers of the {len(files)} frames have gaps ({min(numbered)} to "
                f"{max(numbered)}), so which is frame n? Give the missing ones, or a column path"
            )
    found = []
    for row, frame in enumerate(frames, 1):
        assert frame is not None
        place = frame - boxes.first_frame
        if not 0 <= place < len(files):
            raise InputError(
                f"{name}: row {row} is of frame {frame}, and {boxes.folder} has frames {boxes.first_frame} to "
                f"{boxes.first_frame + len(files) - 1}; give all of them, or say what the first is called with "
                "boxes.first_frame"
            )
        found.append(files[place])
    return boxes.folder, found


# YOLO.


def _read_yolo(boxes: Boxes, name: str) -> BoxTable:
    """Read a text for each frame: class, centre, width and height in fractions, then confidence and track perhaps."""
    place = boxes.place
    folder = place if place.is_dir() else place.parent
    files = sorted(folder.glob("*.txt")) if place.is_dir() else [place]
    files = [path for path in files if path.name != "classes.txt" and not is_hidden(path.name)]
    root = boxes.folder or _images(folder)
    pictures: dict[str, str] = {}
    for picture in _pictures(root, name):
        if (before := pictures.setdefault(Path(picture).stem, picture)) != picture:
            raise InputError(f"{root} has {before} and {picture} for one text; take one of them away")
    kinds = _class_names(folder)
    wanted = "a box of YOLO has 5 to 7: class, centre, width and height, perhaps confidence and track"
    lines = []
    for path in files:
        called = name if path == place else f"{name}/{path.name}"
        for where, cells in _lines(path, called, 5, 7, wanted):
            columns = ("class", "x", "y", "width", "height", "confidence", "track")
            values = [_number(cell, what, where) for what, cell in zip(columns, cells, strict=False)]
            if max(values[1:5]) > 2:
                raise InputError(
                    f"{where}: {max(values[1:5]):g} is no fraction of a frame, as YOLO has them; give those"
                )
            _number(cells[0], "class", where, whole=True)
            lines.append((path.stem, values))
    # With six values Ultralytics means one or the other, whichever it was asked for.
    sixth = [values[5] for _, values in lines if len(values) == 6]
    tracked = any(value > 1 for value in sixth) and all(value.is_integer() for value in sixth)
    rows = []
    for stem, (kind, x, y, width, height, *more) in lines:
        track = more[1] if len(more) == 2 else more[0] if more and tracked else None
        score = more[0] if len(more) == 2 or (more and not tracked) else None
        rows.append(
            {
                "path": pictures.get(stem, f"{stem}.jpg"),
                "left": x - width / 2,
                "top": y - height / 2,
                "right": x + width / 2,
                "bottom": y + height / 2,
                "class": str(int(kind)),
                "class_name": kinds.get(int(kind)),
                "confidence": score,
                "tracklet": None if track is None else f"{track:g}",
            }
        )
    return BoxTable(root, _table(rows), "0", fractions=True)


def _images(folder: Path) -> Path:
    """Return where a folder of labels has its pictures: `images` for `labels` in its path, or beside them."""
    parts = list(folder.absolute().parts)
    if "labels" not in parts:
        return folder
    last = len(parts) - 1 - parts[::-1].index("labels")
    return Path(*parts[:last], "images", *parts[last + 1 :])


def _class_names(folder: Path) -> dict[int, str]:
    """Return the names of classes that stand in a `classes.txt` or `data.yaml` of the labels or above them."""
    for base in (folder, *folder.absolute().parents[:2]):
        if (listed := base / "classes.txt").is_file():
            lines = read_text(listed, listed, "correct it").splitlines()
            return {number: line.strip() for number, line in enumerate(lines)}
        if (described := base / "data.yaml").is_file():
            said = read_yaml(described, "YOLO's data.yaml", "correct it")
            names = said.get("names") if isinstance(said, dict) else None
            if isinstance(names, list):
                return {number: str(one) for number, one in enumerate(names)}
            if isinstance(names, dict):
                return {number: str(one) for number, one in names.items() if isinstance(number, int)}
    return {}


_READERS: Mapping[BoxFormat, Callable[[Boxes, str], BoxTable]] = {
    "mot": _read_mot,
    "coco": _read_coco,
    "supervision": _read_supervision,
    "yolo": _read_yolo,
}
