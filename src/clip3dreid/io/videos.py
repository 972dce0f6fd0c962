"""Frames of video files, by number: decoded here and nowhere else.

A file is opened by its content and one frame after another is decoded; a frame far from the last one is looked for
from the key frame before it on. Numbers count the frames that a file shows, in order of time, from 0: a rate is
never asked. `io.pictures.read_rgb` comes here for crops.
"""

from __future__ import annotations

import bisect
import importlib.util
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip3dreid.errors import InputError
from clip3dreid.io.files import reason_of
from clip3dreid.io.pictures import Pixels, UnreadablePicture, check_pixels
from clip3dreid.io.video_places import VideoPlace

if TYPE_CHECKING:
    import av

MOST_OPEN = 4
"""Videos that a thread keeps open."""

_State = tuple[str, int, int]
"""A file as it is: absolute path, bytes, nanoseconds of its last change."""
_MOST_TIMES = 10_000_000
"""Frames whose times are kept, 80 MB: to find them the whole file is read, and a closed video may be opened again."""
_INDICES: dict[_State, tuple[array[int], array[int]]] = {}


class Video:
    """A video that is open.

    Args:
        path: of the file.

    Attributes:
        frames: how many it shows up to where it ends, perhaps early.
        promised: how many it says that it holds; `frames` where it says nothing.
        width: in pixels.
        height: in pixels.

    Raises:
        UnreadablePicture: if the file is not there, is no video, or its frames have too many pixels.
        InputError: if PyAV is missing.
    """

    def __init__(self, path: Path | str) -> None:
        if importlib.util.find_spec("av") is None:
            raise InputError("videos need av; pip install 'clip3dreid[video]'")
        import av

        self.path = path
        try:
            state = _state(path)
            # An absolute path is never taken for an address.
            self._container = av.open(state[0])
            self._stream = self._container.streams.video[0]
            # Whoever reads many videos has many processes.
            self._stream.codec_context.thread_count = 1
            self.width, self.height = self._stream.codec_context.width, self._stream.codec_context.height
            check_pixels(self.width, self.height)
            self._times, self._keys = self._index(state)
        except (av.error.FFmpegError, OSError, IndexError, UnreadablePicture) as error:
            reason = "it has no pictures" if isinstance(error, IndexError) else _why(error)
            raise UnreadablePicture(
                f"{path} cannot be read as a video: {reason}; give a file such as MP4, complete", reason
            ) from error
        if not self._times:
            reason = "it holds no frames"
            raise UnreadablePicture(f"{path}: {reason}; give a file such as MP4, complete", reason)
        self.frames = len(self._times)
        self.promised = max(self.frames, self._stream.frames)
        self._next = 0
        self._decoded: Iterator[av.VideoFrame] = iter(())
        self._last: tuple[int, Pixels] | None = None
        self._seek(0)

    def _index(self, state: _State) -> tuple[array[int], array[int]]:
        """Return the times of all frames, ascending, and the numbers of key frames, without decoding any."""
        import av

        if (known := _INDICES.get(state)) is not None:
            return known
        times, keys = [], []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and packet.pts is not None and not (packet.is_discard or packet.is_corrupt):
                    times.append(packet.pts)
                    if packet.is_keyframe:
                        keys.append(packet.pts)
        except av.error.FFmpegError:  # it ends early
            pass
        times.sort()
        made = array("q", times), array("q", [bisect.bisect_left(times, key) for key in sorted(keys)])
        # Without a lock, which a forked process might inherit locked: twice the work is the worst.
        if len(times) + sum(len(kept) for kept, _ in list(_INDICES.values())) > _MOST_TIMES:
            _INDICES.clear()
        _INDICES[state] = made
        return made

    def require(self, number: int) -> None:
        """Check that there is a frame of a number; it is not decoded.

        Raises:
            UnreadablePicture: if there is none.
        """
        if not 0 <= number < self.frames:
            more = f" and promises {self.promised}" if self.frames < self.promised else ""
            raise self._unreadable(number, f"the video has {self.frames} frames{more}")

    def __getitem__(self, number: int) -> Pixels:
        """Decode a frame.

        Args:
            number: 0 to `frames` - 1.

        Returns:
            (H, W, 3) uint8 RGB, which is not to be changed.

        Raises:
            UnreadablePicture: if there is no such frame, it cannot be decoded, or the file is to be shown turned.
        """
        import av

        self.require(number)
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        try:
            key = self._keys[bisect.bisect_right(self._keys, number) - 1] if self._keys else 0
            if not key <= self._next <= number:
                self._seek(min(key, number))
            for frame in self._decoded:
                found = bisect.bisect_left(self._times, frame.pts)
                self._next = found + 1
                if found >= number:
                    break
            else:
                raise self._unreadable(number, "the video ends before it")
            if found != number:
                raise self._unreadable(number, "it is damaged")
            rgb = self._rgb(number, frame)
        except av.error.FFmpegError as error:
            self._seek(0)
            raise self._unreadable(number, _why(error)) from error
        self._last = number, rgb
        return rgb

    def _seek(self, key: int) -> None:
        self._container.seek(self._times[key], stream=self._stream)
        self._decoded, self._next = self._container.decode(self._stream), key

    def _rgb(self, number: int, frame: Any) -> Pixels:
        if frame.rotation:
            raise self._unreadable(
                number, "the video is to be shown turned; write it upright (ffmpeg -i OLD NEW)"
            )
        rgb: Pixels = np.asarray(frame.to_ndarray(format="rgb24"))
        return rgb

    def _unreadable(self, number: int, reason: str) -> UnreadablePicture:
        return UnreadablePicture(f"cannot read frame {number} of {self.path}: {reason}", reason)

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class Videos:
    """The videos that are open: the few that were asked for last, as they are on disk now. For one thread."""

    def __init__(self) -> None:
        self._open: OrderedDict[_State, Video] = OrderedDict()
        self._process = os.getpid()
        self._inherited: object = None

    def __getitem__(self, path: Path | str) -> Video:
        """Return a video, opened where it is not; raises as `Video`."""
        if self._process != os.getpid():
            # A forked process shares its parent's place in a file, and must open its own; the parent's are left as
            # they are, since to free a decoder may be more than to forget it.
            self._inherited, self._open, self._process = self._open, OrderedDict(), os.getpid()
        try:
            state = _state(path)
        except OSError:
            return Video(path)  # which says what is wrong
        if state not in self._open:
            self._open[state] = Video(path)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(state)
        return self._open[state]

    def __reduce__(self) -> tuple[type[Videos], tuple[()]]:
        """Travel to another process without what is open."""
        return Videos, ()


class _OfThread(threading.local):
    """What a thread has open: a decoder is not for two at once."""

    def __init__(self) -> None:
        self.videos = Videos()


_MINE = _OfThread()


def read_crop(place: VideoPlace) -> Pixels:
    """Decode what a frame shows of a box.

    Crops that follow each other in time are decoded one after the other, and those of one frame once.

    Args:
        place: file, frame and box.

    Returns:
        (h, w, 3) uint8 RGB; less than the box where it reaches beyond the frame.

    Raises:
        UnreadablePicture: as `Video`, and if the box lies outside the frame.
        InputError: if PyAV is missing.
    """
    frame = _MINE.videos[place.video][place.frame]
    height, width, _ = frame.shape
    rows, columns = _inside(place, width, height)
    return frame[rows, columns].copy()


def crop_size(place: VideoPlace) -> tuple[int, int]:
    """Return width and height of what `read_crop` returns, and raise as it does; nothing is decoded."""
    video = _MINE.videos[place.video]
    video.require(place.frame)
    rows, columns = _inside(place, video.width, video.height)
    return columns.stop - columns.start, rows.stop - rows.start


def _inside(place: VideoPlace, width: int, height: int) -> tuple[slice, slice]:
    """Return the rows and columns of a frame that are of a box."""
    _, frame, left, top, wide, high = place
    columns = slice(max(0, left), min(width, left + wide))
    rows = slice(max(0, top), min(height, top + high))
    if columns.start >= columns.stop or rows.start >= rows.stop:
        reason = f"the box {left},{top},{wide},{high} lies outside the frame, {width} x {height} pixels"
        raise UnreadablePicture(f"cannot read frame {frame} of {place.video}: {reason}", reason)
    return rows, columns


def _why(error: Exception) -> str:
    """Return an error in a few words, without the number and the file's name that FFmpeg's have beside."""
    return getattr(error, "strerror", None) or reason_of(error)


def _state(path: Path | str) -> _State:
    status = os.stat(path)  # noqa: PTH116 - asked for every crop
    return os.path.abspath(path), status.st_size, status.st_mtime_ns  # noqa: PTH100
