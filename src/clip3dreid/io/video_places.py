"""Places in video files: how a path names a crop of a frame, so that it stands wherever the path of a picture does.

Such a path is a file, the number of a frame from 0, and a box, written as media fragments of the web are:
`hall.mp4#frame=0000012&xywh=40,10,64,180`. Nothing is opened here; `io.videos` reads them.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

FORM = "{}#frame={}&xywh={},{},{},{}"
"""A place, of its file, frame, left, top, width and height."""
DIGITS = 7
"""Of a frame's number as it is written, so that paths in the order of their letters are in the order of time."""

_MARK = "#frame="
_PLACE = re.compile(r"(.+)#frame=(-?\d+)&xywh=(-?\d+),(-?\d+),(-?\d+),(-?\d+)", re.DOTALL)


class VideoPlace(NamedTuple):
    """A box in a frame; whether the file is there, and has them, is not known yet."""

    video: str
    """Path of the file."""
    frame: int
    """In order of time, from 0."""
    left: int
    """In pixels, like all that follow."""
    top: int
    width: int
    height: int


def video_place(path: Path | str) -> VideoPlace | None:
    """Return the place in a video that a path names; None of a picture's own file, also where that is called so."""
    text = os.fspath(path)
    # Asked of every picture that is read: most are told by this alone.
    if _MARK not in text or (found := _PLACE.fullmatch(text)) is None or os.path.lexists(text):
        return None
    frame, left, top, width, height = map(int, found.groups()[1:])
    return VideoPlace(found[1], frame, left, top, width, height)


def picture_status(path: Path | str) -> os.stat_result:
    """Return the system's word on the file that holds a picture, which may be a video.

    Raises:
        OSError: if it is not there.
    """
    try:
        # Not by `Path`, which takes three times as long to make as the file to look at.
        return os.stat(path)  # noqa: PTH116
    except OSError:
        if (place := video_place(path)) is None:
            raise
    return os.stat(place.video)  # noqa: PTH116


def is_picture_file(path: Path | str) -> bool:
    """Return whether the file that holds a picture is there; whether it can be read is not known yet."""
    try:
        return stat.S_ISREG(picture_status(path).st_mode)
    except OSError:
        return False
