"""Choose boxes of people, and cut them to their frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from clip3dreid.data.box_files import BoxTable, read_box_file
from clip3dreid.data.box_settings import Boxes
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.pictures import picture_size
from clip3dreid.io.spelling import labels
from clip3dreid.io.table_files import BOX, in_pixels

log = logging.getLogger(__name__)

PEOPLE = frozenset({"person", "pedestrian", "people"})
"""Names of the class that is taken where none is asked for."""
_LABELS = ("person", "tracklet", "frame", "confidence")


def read_boxes(boxes: Boxes) -> tuple[Path, pl.DataFrame]:
    """Read the boxes of people in frames.

    Boxes are rounded to whole pixels and clipped to their frame, whose header alone is read. How many are left out,
    and why, is in the log.

    Args:
        boxes: which.

    Returns:
        The folder of the frames, and one row a box, those of a frame together: `left`, `top`, `right`, `bottom` in
        pixels of the upright frame, right and bottom outside; `path`; and what is known of any of them of `person`,
        `tracklet`, `frame`, `confidence`. Boxes in frames that cannot be read are among them, for whoever opens those
        says so.

    Raises:
        InputError: as `box_files.read_box_file`; if frames are not there, boxes are in other units, or none is left.
    """
    name = f"pictures={boxes.path}"
    read = read_box_file(boxes, name)
    left_out = {"marked as not to count": read.ignored}
    table = _of_confidence(_of_class(read, boxes, name, left_out), boxes, name, left_out)
    # One after the other, so that a frame is decoded once for all of its boxes.
    table = table.with_row_index("row").sort(pl.col("row").min().over("path"), "row")
    sizes = _sizes(read.frames, table["path"].unique(maintain_order=True).to_list(), name)
    table = _in_frames(read, table, sizes, boxes, name, left_out)
    total = len(read.table) + read.ignored
    said = ", ".join(f"{count} {why}" for why, count in left_out.items() if count)
    if table.is_empty():
        raise InputError(f"{name}: of {total} boxes none is left: {said}; ask for others with boxes.…")
    frames = table["path"].n_unique()
    log.info(
        "%s: %d of %d boxes, in %d frames%s", name, len(table), total, frames, said and f"; left out: {said}"
    )
    known = [column for column in _LABELS if table[column].null_count() < len(table)]
    return read.frames, table.select(*BOX, "path", *known)


def clipped(box: npt.NDArray[np.int32], sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Clip boxes to their frames.

    Args:
        box: (N, 4) left, top, right, bottom; right and bottom outside.
        sizes: (N, 2) width and height of the frames.

    Returns:
        (N, 4) within the frames; where nothing is left, right is not beyond left or bottom not beyond top.
    """
    return np.minimum(np.maximum(box, 0), np.tile(sizes, 2))


def _of_class(read: BoxTable, boxes: Boxes, name: str, left_out: dict[str, int]) -> pl.DataFrame:
    table = read.table
    named, numbered = (table[column].null_count() < len(table) for column in ("class_name", "class"))
    if not named and not numbered:
        if boxes.classes is not None:
            raise InputError(f"{name} says of no box what it shows; leave boxes.classes out")
        return table
    if boxes.classes is not None:
        wanted = {str(one).casefold() for one in boxes.classes}
    else:
        wanted = set(PEOPLE) if named else {read.person}
    names = pl.col("class_name").str.strip_chars().str.to_lowercase(), pl.col("class")
    taken = pl.any_horizontal(one.is_in(wanted).fill_null(False) for one in names)
    others = table.filter(~taken).select(kind=pl.coalesce("class_name", "class").fill_null("unknown"))
    counts = others["kind"].value_counts(sort=True).rows()
    left_out[f"of other classes ({some([f'{kind}: {count}' for kind, count in counts])})"] = len(others)
    return table.filter(taken)


def _of_confidence(table: pl.DataFrame, boxes: Boxes, name: str, left_out: dict[str, int]) -> pl.DataFrame:
    least = boxes.least_confidence
    if least is None or table.is_empty():
        return table
    if table["confidence"].null_count() == len(table):
        raise InputError(f"{name} says no confidence; leave boxes.least_confidence out")
    kept = table.filter(pl.col("confidence").fill_null(-np.inf) >= least)
    left_out[f"below confidence {least:g}"] = len(table) - len(kept)
    return kept


def _sizes(folder: Path, paths: Sequence[str], name: str) -> dict[str, tuple[int, int]]:
    """Return width and height of frames; 0 where a frame cannot be read."""
    sizes, missing = {}, []
    for path in paths:
        try:
            sizes[path] = picture_size(folder / path)
        except FileNotFoundError:
            missing.append(path)
        # Decoders raise whatever they like, and those who look at the frame say it.
        except Exception:
            sizes[path] = (0, 0)
    if missing:
        raise InputError(
            f"{name}: {len(missing)} of {len(paths)} frames are not in {folder}, first {missing[0]}; bring them, or "
            "give their folder as boxes.frames=FOLDER"
        )
    return sizes


def _in_frames(
    read: BoxTable,
    table: pl.DataFrame,
    sizes: dict[str, tuple[int, int]],
    boxes: Boxes,
    name: str,
    left_out: dict[str, int],
) -> pl.DataFrame:
    """Return boxes in pixels, as far as they lie in their frames."""
    size = np.array([sizes[path] for path in table["path"]], np.int32).reshape(-1, 2)
    sides = [table[side] for side in BOX]
    if read.fractions:
        # Rounded here, so that a tiny box is not taken for a fraction.
        sides = [(side * pl.Series(size[:, axis % 2])).round() for axis, side in enumerate(sides)]
    box = clipped(in_pixels(sides, name).to_numpy(), size)
    across, down = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    readable = size.all(1)
    outside = readable & ((across <= 0) | (down <= 0))
    small = readable & ~outside & (np.minimum(across, down) < boxes.least_size)
    left_out["outside of their frame or empty"] = int(outside.sum())
    left_out[f"smaller than {boxes.least_size:g} pixels"] = int(small.sum())
    spelled = [labels(table[column]).replace("-1", None) for column in ("person", "tracklet")]
    columns = pl.DataFrame(box, schema=dict.fromkeys(BOX, pl.Int32)).get_columns()
    made = table.with_columns(*columns, *spelled)
    return made.filter(pl.Series(~outside & ~small))
