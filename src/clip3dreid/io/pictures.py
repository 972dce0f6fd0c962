"""Find picture files, and make RGB of them. Every picture that a user brings is opened here.

A picture is a file, or a place in a video (`io.video_places`), wherever its path is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from clip3dreid.errors import InputError
from clip3dreid.io import jpeg
from clip3dreid.io.checks import some
from clip3dreid.io.files import reason_of
from clip3dreid.io.video_places import VideoPlace, video_place

Pixels: TypeAlias = npt.NDArray[np.uint8]

# Pillow knows three dozen formats, some of which start other programs or are read by little-used code.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""What is decoded, by content and whatever a name says; of several pages the first."""

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
"""Suffixes of pictures that are decoded, in lower case."""

UNREAD_SUFFIXES = frozenset(
    {".dib", ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".tga", ".exr"}
    | {".psd", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
)
"""Suffixes of pictures that are not: they are never passed over in silence, as a text file is."""

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv"}
)
"""Suffixes of most videos. Where they are read (`io.videos`) they are told by their content."""

# The last keeps thumbnails of every picture beside it, by the picture's name.
_SYSTEM = frozenset({"__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir"})

MOST_PIXELS = 80_000_000
"""Larger pictures are refused before they are decoded: a file of half a megabyte can unpack to gigabytes."""

_ORIENTATION, _TURNED = 0x0112, range(5, 9)
"""The EXIF tag of a picture's orientation, and its values that swap width and height."""

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels, as in most viewers. The colour stored below them is nobody's to see."""

Kind: TypeAlias = Literal["picture", "unread", "other"]


class UnreadablePicture(InputError):  # noqa: N818 - it is one of the InputErrors
    """A picture that cannot be decoded to its last row; the message names it.

    Attributes:
        reason: why, without the file's name and without advice.
    """

    # One argument: torch makes exceptions anew from their message when they cross from a loader's worker.
    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


def kind_of(name: str) -> Kind:
    """Tell by a file's name whether it is a picture, one in a format that is not read, or something else."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - asked of every file, and several times faster
    if suffix in SUFFIXES:
        return "picture"
    return "unread" if suffix in UNREAD_SUFFIXES else "other"


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is no user's: hidden, or what archives, disks and NAS boxes leave behind."""
    return name.startswith(".") or name in _SYSTEM


def require_utf8(names: Sequence[str], where: str) -> None:
    """Check that names can be written down.

    Args:
        names: of files or folders.
        where: where they lie, for the message.

    Raises:
        InputError: if some are no UTF-8, with up to three of them.
    """
    if bad := [name for name in names if not _is_utf8(name)]:
        shown = some([ascii(name) for name in bad], 3)
        raise InputError(f"{where}: {len(bad)} file names are not UTF-8: {shown}; rename them")


def _is_utf8(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Found(NamedTuple):
    """What a folder holds, as paths relative to it with forward slashes, sorted."""

    pictures: list[str]
    unread: list[str]
    """Pictures of formats that are not read."""
    others: list[str]
    """Other files, and hidden files and folders."""

    def left_out(self) -> list[str]:
        """Return what is passed over, counted, in sentences for people; empty where that is nothing."""
        said = []
        if self.unread:
            said.append(f"{len(self.unread)} pictures are in formats that are not read: {tally(self.unread)}")
        if self.others:
            said.append(f"{len(self.others)} other files are passed over: {tally(self.others)}")
        return said


def find_pictures(folder: Path, name: str) -> Found:
    """Look for pictures in a folder, at any depth; links to folders are followed, each folder is visited once.

    Args:
        folder: to look through.
        name: what to call it in messages.

    Raises:
        InputError: if a folder cannot be entered, or a picture's name is not UTF-8.
    """
    found = Found([], [], [])
    by_kind = {"picture": found.pictures, "unread": found.unread, "other": found.others}
    visited: set[tuple[int, int]] = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=cannot_enter):
        status = Path(where).stat()
        if (this := (status.st_dev, status.st_ino)) in visited:
            folders.clear()  # behind a link to a folder that was visited, its own parent perhaps
            continue
        visited.add(this)
        inside = "" if where == str(folder) else Path(where).relative_to(folder).as_posix() + "/"
        found.others.extend(f"{inside}{hidden}/" for hidden in folders if is_hidden(hidden))
        folders[:] = sorted(one for one in folders if not is_hidden(one))
        for file in files:
            by_kind["other" if is_hidden(file) else kind_of(file)].append(inside + file)
    require_utf8([*found.pictures, *found.unread], name)
    return Found(*map(sorted, found))


def cannot_enter(error: OSError) -> None:
    """Refuse a folder that cannot be listed."""
    raise InputError(
        f"{error.filename} cannot be looked into: {error.strerror}; make it readable, or move it away"
    ) from error


def tally(paths: Sequence[str], most: int = 5) -> str:
    """Count files by what they are, most frequent first, as in `3 *.txt such as train/notes.txt`.

    Args:
        paths: with forward slashes; folders end with one.
        most: kinds that are named.
    """
    kinds: dict[str, list[str]] = {}
    for path in paths:
        name = path.rstrip("/").rpartition("/")[2]
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - as in `kind_of`
        kind = "hidden" if is_hidden(name) else f"*{suffix}" if suffix else name
        kinds.setdefault("folders" if path.endswith("/") else kind, []).append(path)
    ordered = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    said = [
        f"{len(own)} {kind}" + (f" such as {_printable(own[0])}" if own[0] != kind else "")
        for kind, own in ordered[:most]
    ]
    return ", ".join(said) + (", …" if len(ordered) > most else "")


def _printable(name: str) -> str:
    return name if _is_utf8(name) else ascii(name)


@contextmanager
def open_picture(path: Path | str | IO[bytes]) -> Iterator[Image.Image]:
    """Open a picture's header; nothing is decoded yet.

    Args:
        path: a file in one of `FORMATS`, or its content as a stream.

    Raises:
        UnreadablePicture: if it is in no such format or has more than `MOST_PIXELS` pixels.
        Exception: what the decoder raises, in the block too: `unreadable` makes one kind of all of them.
    """
    with Image.open(path, formats=FORMATS) as image:
        check_pixels(*image.size)
        yield image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of a picture as it stands when its EXIF orientation is honoured; nothing is decoded."""
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION) in _TURNED else (width, height)


def picture_size(path: Path | str) -> tuple[int, int]:
    """Return width and height of a picture as `read_rgb` returns it; nothing is decoded.

    Raises:
        InputError: if it is a place in a video and PyAV is missing.
        Exception: what the decoder raises: `unreadable` makes one kind of all of them.
    """
    if (place := video_place(path)) is not None:
        from clip3dreid.io import videos

        return videos.crop_size(place)
    with open_picture(path) as image:
        return upright_size(image)


def read_rgb(path: Path | str, advice: str = "replace it") -> Pixels:
    """Decode a picture by its content, whatever its suffix says.

    Args:
        path: file in one of `FORMATS`, in any colour mode; or a place in a video, of which as much is cut out as
            lies inside its frame.
        advice: what to do about it if it cannot be read, for the message: it depends on who asks.

    Returns:
        (H, W, 3) uint8 RGB, see `upright_rgb`.

    Raises:
        UnreadablePicture: if the file is missing, is no picture, is too large or ends early, or its pixels have no
            range that could be told; of a video, if it ends before the frame, or the box lies outside.
        InputError: if it is a place in a video and PyAV is missing.
    """
    if (place := video_place(path)) is not None:
        return _cut_out(place, advice)
    try:
        if (plain := _plain_jpeg(path)) is not None:
            return plain
        with open_picture(path) as image:
            return upright_rgb(image, own=True)
    except Exception as error:  # decoders raise a dozen types on broken data
        raise unreadable(path, error, advice) from error


def _cut_out(place: VideoPlace, advice: str) -> Pixels:
    # Only here: it needs an extra, and makes use of this module.
    from clip3dreid.io import videos

    try:
        return videos.read_crop(place)
    except Exception as error:  # as of pictures
        if isinstance(error, InputError) and not isinstance(error, UnreadablePicture):
            raise  # PyAV is missing, and no other picture would be better
        reason = _reason(error)
        where = f"frame {place.frame} of {place.video}"
        raise UnreadablePicture(f"cannot read {where}: {reason}; {advice}", reason) from error


def _plain_jpeg(path: Path | str) -> Pixels | None:
    """Decode the kind of file that most crops are; None of any other."""
    with open(path, "rb") as file:  # noqa: PTH123 - a path may be a text
        start = file.read(len(jpeg.START))
        return jpeg.decode(start + file.read(), MOST_PIXELS) if start == jpeg.START else None


def unreadable(path: Path | str, error: BaseException, advice: str = "replace it") -> UnreadablePicture:
    """Return what to raise where opening or decoding a picture has failed with `error`."""
    reason = _reason(error)
    return UnreadablePicture(f"cannot read the picture {path}: {reason}; {advice}", reason)


def _reason(error: BaseException) -> str:
    if isinstance(error, UnreadablePicture):
        return error.reason
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture of a format that is read ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        # Pillow's own limit lies above ours and is looked at first; its message knows the number.
        counted = re.search(r"\d+", str(error))
        return _too_large(f"{int(counted[0]):,} pixels" if counted else "too many pixels")
    return reason_of(error)


def check_pixels(width: int, height: int) -> None:
    """Check that a picture may be decoded.

    Raises:
        UnreadablePicture: if it has more than `MOST_PIXELS` pixels; its message is the reason alone.
    """
    if width * height > MOST_PIXELS:
        reason = _too_large(f"{width} x {height} pixels")
        raise UnreadablePicture(reason, reason)


def _too_large(size: str) -> str:
    return f"it has {size}, and more than {MOST_PIXELS:,} are not decoded"


def upright_rgb(image: Image.Image, own: bool = False) -> Pixels:
    """Turn an image of Pillow into RGB. Whatever a decoder raises comes through.

    Args:
        image: in any mode, decoded or not.
        own: it may be changed, which saves a copy.

    Returns:
        (H, W, 3) uint8 RGB, turned upright as its EXIF orientation asks. What is transparent shows `BACKGROUND`. Grey
        of 16 bits keeps its upper 8. The range of 32-bit grey and of floats is told by the largest value: 0..1
        (floats alone), 0..255 or 0..65535.

    Raises:
        UnreadablePicture: if the image has more than `MOST_PIXELS` pixels, or grey values of no such range.
    """
    check_pixels(*image.size)
    image.load()
    upright = image if own else image.copy()
    ImageOps.exif_transpose(upright, in_place=True)
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return np.asarray(upright)
    if upright.mode == "F" or upright.mode.startswith("I"):
        return np.stack([_grey(np.asarray(upright))] * 3, axis=-1)
    if upright.has_transparency_data:
        return np.asarray(_on_background(upright))
    return np.asarray(upright.convert("RGB"))


def _on_background(image: Image.Image) -> Image.Image:
    # Premultiplied modes have no way to RGB but by the plain ones.
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
    layered = image.convert(straight).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, (*BACKGROUND, 255)), layered).convert("RGB")


def _grey(values: npt.NDArray[np.generic]) -> Pixels:
    """Return grey values of more than 8 bits as (H, W) uint8."""
    if values.dtype.itemsize == 2:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    numbers = values.astype(np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    if not (low >= 0 and high <= 65535):  # NaN too
        reason = f"it has values from {low:g} to {high:g}, whose range is not known (0..255 or 0..65535 are)"
        raise UnreadablePicture(reason, reason)
    if values.dtype.kind == "f" and high <= 1:
        numbers = numbers * 255
    elif high > 255:
        numbers = np.floor(numbers / 256)
    return np.rint(numbers).astype(np.uint8)
