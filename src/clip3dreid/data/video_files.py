"""Tracklets in video files: a table of boxes, which are cut out of their frames when they are asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from clip3dreid.data.datasets import custom
from clip3dreid.data.images import pack_paths
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.sources import OnError
from clip3dreid.data.tree import SHOWN
from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose, some
from clip3dreid.io.pictures import Pixels
from clip3dreid.io.table_files import (
    BOX,
    COLUMNS,
    forward_slashes,
    read_table,
    take_boxes,
    understood,
    whole_numbers,
)
from clip3dreid.io.videos import Video, Videos

_COLUMNS = {
    **COLUMNS,
    "video": ("videopath", "videofile", "clip", "sequence"),
    "frame": (*COLUMNS["frame"], "frameindex"),
}
_PLACE = re.compile(r"(?P<video>.*)#frame=(?P<frame>\d+)&xywh=(?P<box>\d+,\d+,\d+,\d+)")
"""How a manifest names a crop: the file, the number of the frame, and the box as media fragments of the web do."""


def read(root: Path, name: str = "videos", on_error: OnError = "fail") -> Manifest:
    """Read a table of tracks in videos.

    A row is a person in a frame: `video` (relative to the table's folder), `frame` (from 0), the box as
    `io.table_files.take_boxes` understands it, `tracklet`, `person`, `split` and `role`; `camera`, `clothes`,
    `query_set`, `location` and `scale` may be there. Boxes are clipped to their frame. Videos are gone through once
    for their frames, which are not decoded for that.

    Args:
        root: the table, CSV, TSV or Parquet.
        name: what to call the data set.
        on_error: what is done about boxes beyond a video's end or outside its frames: `fail` refuses, `skip` leaves
            them out and counts them in a note.

    Returns:
        A manifest whose paths name file, frame and box; `VideoCrops` reads them.

    Raises:
        InputError: if a column is missing or another, a video is not there or none, or a row is refused.
    """
    choose("on_error", on_error, ("fail", "skip"))
    what = f"{name}: {root}"
    table = understood(read_table(root, what), what, _COLUMNS)
    boxes, table = take_boxes(table, what)
    needed = ("video", "frame", "tracklet")
    if absent := [*(one for one in needed if one not in table.columns), *([] if boxes is not None else BOX)]:
        raise InputError(f"{what} has no column {', '.join(absent)}; it has {some(table.columns, 8)}")
    assert boxes is not None
    folder = root.parent
    files = forward_slashes(table["video"].cast(pl.String), folder)
    table = table.with_columns(boxes, video=files, frame=whole_numbers(table["frame"], what))
    if nulls := table.select(pl.any_horizontal(pl.col(needed).is_null())).to_series().sum():
        raise InputError(
            f"{what}: {nulls} rows lack one of {', '.join(needed)}; fill it in, or take them out"
        )
    facts = _facts(folder, table["video"].unique().sort().to_list(), name, root)
    table = table.join(facts, on="video", how="left", maintain_order="left")
    table, notes = _within(table, what, on_error)
    width, height = pl.col("right") - pl.col("left"), pl.col("bottom") - pl.col("top")
    box = pl.concat_str("left", "top", width, height, separator=",")
    place = pl.concat_str("video", pl.lit("#frame="), "frame", pl.lit("&xywh="), box)
    rows = table.with_columns(path=place).drop("video", *BOX, *_FACTS)
    manifest = custom.from_table(rows, folder, name, files=False)
    return manifest.replace(notes=(*manifest.notes, *notes))


_FACTS = ("held", "promised", "wide", "high")


def _facts(folder: Path, videos: list[str], name: str, root: Path) -> pl.DataFrame:
    """Return a row for each video: how many frames there are, and their size."""
    if lost := [video for video in videos if not (folder / video).is_file()]:
        raise InputError(
            f"{name}: {len(lost)} videos of {root} are not in {folder}: {some(lost, SHOWN)}; paths are relative to "
            "the table's folder"
        )
    rows = []
    for path in videos:
        video = Video(folder / path)
        rows.append((path, video.frames, video.promised, video.width, video.height))
        video.close()
    return pl.DataFrame(rows, schema=("video", *_FACTS), orient="row")


def _within(table: pl.DataFrame, what: str, on_error: OnError) -> tuple[pl.DataFrame, list[str]]:
    """Clip boxes to their frames; refuse those of which nothing is left, or leave them out with a note."""
    clipped = [
        pl.col(side).clip(0, pl.col(most)) for side, most in zip(BOX, ("wide", "high") * 2, strict=True)
    ]
    table = table.with_columns(clipped)
    beyond = ~pl.col("frame").is_between(0, pl.col("held") - 1)
    empty = ~beyond & ((pl.col("left") >= pl.col("right")) | (pl.col("top") >= pl.col("bottom")))
    notes = []
    problems = (beyond, "lie beyond the end of their videos"), (empty, "have their box outside the frame")
    for wrong, problem in problems:
        rows = table.filter(wrong)
        if rows.is_empty():
            continue
        shown = [
            f"frame {frame} of {video} ({held} of {promised} frames are there)"
            if held < promised
            else f"frame {frame} of {video} ({held} frames)"
            for video, frame, held, promised in rows.unique("video", maintain_order=True)
            .select("video", "frame", "held", "promised")
            .rows()
        ]
        said = f"{len(rows)} of {len(table)} rows {problem}: {some(shown, 3)}"
        if on_error == "fail":
            raise InputError(
                f"{what}: {said}; get the videos again, or leave the rows out with on_error=skip"
            )
        notes.append(f"{said}; they are left out")
        table = table.filter(~wrong)
    if table.is_empty():
        raise InputError(f"{what}: no row is left: {'; '.join(notes)}; get the videos again")
    return table, notes


class VideoCrops:
    """The pictures of a manifest that `read` made, by row.

    Rows that follow each other in time are decoded one after the other; those of one frame are decoded once.

    Args:
        root: of the manifest.
        paths: N paths of the manifest, in its order.
    """

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self._root = root
        self._paths = pack_paths([Path(path) for path in paths])
        self._videos = Videos()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> Pixels:
        """Return (h, w, 3) uint8 RGB.

        Raises:
            InputError: if the path is no such place.
            UnreadablePicture: if the frame cannot be decoded.
        """
        path = os.fsdecode(self._paths[row])
        place = _PLACE.fullmatch(path)
        if place is None:
            raise InputError(f"{path} names no frame of a video; make the manifest anew")
        left, top, width, height = map(int, place["box"].split(","))
        frame = self._videos[self._root / place["video"]][int(place["frame"])]
        return np.ascontiguousarray(frame[top : top + height, left : left + width])
