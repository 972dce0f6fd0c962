"""Frames of video files, by number: decoded here and nowhere else.

A file is opened by its content and one frame after another is decoded; a frame far from the last one is looked for
from the key frame before it on. Numbers count the frames that a file shows, in order of time, from 0: a rate is
never asked.
"""

from __future__ import annotations

import bisect
import importlib.util
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip3dreid.errors import InputError
from clip3dreid.io.files import reason_of
from clip3dreid.io.pictures import Pixels, UnreadablePicture

if TYPE_CHECKING:
    import av

MOST_OPEN = 4
"""Videos that a process keeps open."""


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
        InputError: if PyAV is missing, or the file is there and is no video, or not there.
    """

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("av") is None:
            raise InputError("videos need av; pip install 'clip3dreid[video]'")
        import av

        self.path = path
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            # Whoever reads many videos has many processes.
            self._stream.codec_context.thread_count = 1
            self._times, self._keys = self._index()
        except (av.error.FFmpegError, IndexError) as error:
            raise InputError(
                f"{path} cannot be read as a video: {reason_of(error)}; give a file such as MP4, complete"
            ) from error
        if not self._times:
            raise InputError(f"{path} holds no frames; give a file such as MP4, complete")
        self.frames = len(self._times)
        self.promised = max(self.frames, self._stream.frames)
        self.width, self.height = self._stream.codec_context.width, self._stream.codec_context.height
        self._next = 0
        self._decoded: Iterator[av.VideoFrame] = iter(())
        self._last: tuple[int, Pixels] | None = None
        self._seek(0)

    def _index(self) -> tuple[list[int], list[int]]:
        """Return the times of all frames, ascending, and the numbers of key frames, without decoding any."""
        import av

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
        return times, [bisect.bisect_left(times, key) for key in sorted(keys)]

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

        if not 0 <= number < self.frames:
            raise self._unreadable(number, f"the video has {self.frames} frames")
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
            raise self._unreadable(number, reason_of(error)) from error
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
    """The videos that are open: the few that were asked for last. Each process opens its own."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, Video] = OrderedDict()

    def __getitem__(self, path: Path) -> Video:
        """Return a video, opened where it is not; raises as `Video`."""
        if path not in self._open:
            self._open[path] = Video(path)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]

    def __reduce__(self) -> tuple[type[Videos], tuple[()]]:
        """Travel to another process without what is open."""
        return Videos, ()
