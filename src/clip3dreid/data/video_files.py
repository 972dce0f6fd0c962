"""Tables of people in video files: their rows become pictures, whose paths name file, frame and box."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from clip3dreid.data.sources import OnError
from clip3dreid.data.tree import SHOWN
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.pictures import UnreadablePicture
from clip3dreid.io.table_files import BOX, forward_slashes, take_boxes, understood, whole_numbers
from clip3dreid.io.video_places import DIGITS, FORM

_COLUMNS = {"video": ("videopath", "videofile", "clip", "sequence")}
_FACTS: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(("held", "promised", "wide", "high"), pl.Int64),
    "why_not": pl.String,
}
"""What is known of a video: frames that are there, frames that it promises, their size; or why it cannot be read."""


def with_places(table: pl.DataFrame, folder: Path, name: str) -> pl.DataFrame:
    """Put a path, which `io.pictures` reads, in the place of each row's video and box; no video is looked at.

    Args:
        table: with columns by their names here (`table_files.understood`): `video` (relative to the folder), `frame`
            (from 0) and a box as `table_files.take_boxes` understands it. One with `path`, or without `video`, is
            returned as it is.
        folder: that videos are relative to.
        name: what to call the table in messages.

    Returns:
        The table with `path`, without `video` and box.

    Raises:
        InputError: if a column is missing, or a value is or is no number.
    """
    if (known := _of_videos(table, name)) is None:
        return table
    return _with_paths(_located(known, folder, name, ("video", "frame"))).drop("video", *BOX)


def crops_of_videos(
    table: pl.DataFrame, folder: Path, name: str, *, tracked: bool, on_error: OnError
) -> tuple[pl.DataFrame, list[str]]:
    """Do as `with_places`, and look at the videos: boxes are clipped to their frames.

    Videos are gone through once for where their frames are; none is decoded.

    Args:
        table: as of `with_places`.
        folder: likewise.
        name: likewise.
        tracked: rows are to have a tracklet.
        on_error: what is done about videos that cannot be read, and boxes beyond a video's end or outside its frames:
            `fail` refuses, `skip` leaves them out and counts them.

    Returns:
        The table, and notes on what was left out.

    Raises:
        InputError: as `with_places`; if a video is not there, PyAV is missing, or a row is refused.
    """
    if (known := _of_videos(table, name)) is None:
        return table, []
    needs = ("video", "frame", *(["tracklet"] if tracked else []))
    table = _located(known, folder, name, needs)
    facts = _facts(folder, table["video"].unique().sort().to_list(), name, on_error)
    table = table.join(facts, on="video", how="left", maintain_order="left")
    table, notes = _within(table, name, on_error)
    return _with_paths(table).drop("video", *BOX, *_FACTS), notes


def _of_videos(table: pl.DataFrame, name: str) -> pl.DataFrame | None:
    """Return a table with its column `video` called so; None where pictures have paths, or no video is named."""
    if "path" in table.columns:
        return None
    known = understood(table, name, _COLUMNS)
    return known if "video" in known.columns else None


def _located(table: pl.DataFrame, folder: Path, name: str, needs: tuple[str, ...]) -> pl.DataFrame:
    """Return rows with `video`, `frame` and box by these names."""
    boxes, table = take_boxes(table, name)
    if absent := [*(one for one in needs if one not in table.columns), *([] if boxes is not None else BOX)]:
        raise InputError(f"{name} has no column {', '.join(absent)}; it has {some(table.columns, 8)}")
    assert boxes is not None
    files = forward_slashes(table["video"].cast(pl.String), folder)
    table = table.with_columns(boxes, video=files, frame=whole_numbers(table["frame"], name))
    if nulls := table.select(pl.any_horizontal(pl.col(needs).is_null())).to_series().sum():
        raise InputError(f"{name}: {nulls} rows lack one of {', '.join(needs)}; fill it in, or take them out")
    return table


def _with_paths(table: pl.DataFrame) -> pl.DataFrame:
    left, top, right, bottom = map(pl.col, BOX)
    frame = pl.col("frame").cast(pl.String).str.zfill(DIGITS)
    return table.with_columns(path=pl.format(FORM, "video", frame, left, top, right - left, bottom - top))


def _facts(folder: Path, videos: list[str], name: str, on_error: OnError) -> pl.DataFrame:
    """Return a row for each video, with what is known of it."""
    # Only here, where there is a video: most tables have none.
    from clip3dreid.io.videos import Video

    if lost := [video for video in videos if not (folder / video).is_file()]:
        raise InputError(
            f"{name}: {len(lost)} videos are not in {folder}: {some(lost, SHOWN)}; paths are relative to the table's "
            "folder"
        )
    rows: list[tuple[str | int | None, ...]] = []
    for path in videos:
        try:
            video = Video(folder / path)
        except UnreadablePicture as error:
            if on_error == "fail":
                raise
            rows.append((path, 0, 0, 0, 0, error.reason))
        else:
            rows.append((path, video.frames, video.promised, video.width, video.height, None))
            video.close()
    return pl.DataFrame(rows, schema={"video": pl.String, **_FACTS}, orient="row")


def _within(table: pl.DataFrame, what: str, on_error: OnError) -> tuple[pl.DataFrame, list[str]]:
    """Clip boxes to their frames; refuse those of which nothing is left, or leave them out with a note."""
    clipped = [
        pl.col(side).clip(0, pl.col(most)) for side, most in zip(BOX, ("wide", "high") * 2, strict=True)
    ]
    table = table.with_columns(clipped)
    unread = pl.col("why_not").is_not_null()
    beyond = ~unread & ~pl.col("frame").is_between(0, pl.col("held") - 1)
    outside = (pl.col("left") >= pl.col("right")) | (pl.col("top") >= pl.col("bottom"))
    notes = []
    for wrong, problem in (
        (unread, "lie in videos that cannot be read"),
        (beyond, "lie beyond the end of their videos"),
        (outside, "have their box outside the frame"),
    ):
        rows = table.filter(wrong)
        if rows.is_empty():
            continue
        shown = [_example(row) for row in rows.unique("video", maintain_order=True).iter_rows(named=True)]
        said = f"{len(rows)} of {len(table)} rows {problem}: {some(shown, 3)}"
        if on_error == "fail":
            raise InputError(
                f"{what}: {said}; get the videos again, or leave the rows out with data.on_error=skip"
            )
        notes.append(f"{said}; they are left out")
        table = table.filter(~wrong)
    if table.is_empty():
        raise InputError(f"{what}: no row is left: {'; '.join(notes)}; get the videos again")
    return table, notes


def _example(row: Mapping[str, Any]) -> str:
    """Return a row that is left out in a few words, with what its video has."""
    if row["why_not"] is not None:
        return f"{row['video']} ({row['why_not']})"
    held, promised = row["held"], row["promised"]
    has = f"{held} of {promised} frames are there" if held < promised else f"{held} frames"
    return f"frame {row['frame']} of {row['video']} ({has})"
