"""Decode plain JPEG files with OpenCV, to Pillow's bits in half the time; all others are left to Pillow."""

from __future__ import annotations

import functools
import io
import re
from itertools import product
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]

START = b"\xff\xd8"
"""What a JPEG file begins with."""
_END = b"\xff\xd9"
_FRAMES = {0xC0: frozenset[bytes](), 0xC2: frozenset((b"\xff\xc4", b"\xff\xda"))}
"""Markers of frames that are decoded here, baseline and progressive -> what may stand between scans."""
_SCAN = 0xDA
# JFIF, colour profiles (which Pillow does not apply either), comments, tables, restarts. EXIF and
# XMP may turn a picture, Adobe's segment may say that it is no YCbCr.
_PASSED = frozenset({0xE0, 0xE2, 0xFE, 0xDB, 0xC4, 0xDD})
_SEVERAL = b"MPF\0"
"""How a segment begins that tells of further pictures in the file."""
# 4:4:4, 4:2:2 and 4:2:0, the components called 1, 2, 3 as in JFIF: other names may stand for RGB.
_SAMPLINGS = frozenset((1, y, 2, 0x11, 3, 0x11) for y in (0x11, 0x21, 0x22))
# Between a scan's bytes: anything but a stuffed 255 and restarts.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


def decode(data: bytes, most_pixels: int) -> Pixels | None:
    """Decode a baseline or progressive JPEG of three components of 8 bits, 4:4:4, 4:2:2 or 4:2:0, that is all there.

    Args:
        data: a file's content.
        most_pixels: of a picture that is decoded here.

    Returns:
        (H, W, 3) uint8 RGB, the same that Pillow decodes; None where the file is anything else, ends early, may have
        to be turned, or where this OpenCV decodes otherwise than this Pillow: they are two builds of one library.
    """
    if not _is_plain(data, most_pixels) or not _decodes_as_pillow():
        return None
    return _opencv(data)


def _opencv(data: bytes) -> Pixels | None:
    how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        decoded: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error:
        return None
    return decoded


def _is_plain(data: bytes, most_pixels: int) -> bool:
    """Return whether a file is one of those that `decode` takes, by its segments up to the first scan."""
    if not (data.startswith(START) and data.endswith(_END)):
        return False
    place, frame = 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker == _SCAN:
            break
        segment = data[place + 4 : place + 2 + length]
        if marker in _FRAMES and not frame:
            if not _is_plain_frame(segment, most_pixels):
                return False
            frame = marker
        elif marker not in _PASSED or segment.startswith(_SEVERAL):
            return False
        place += 2 + length
    else:
        return False
    if not frame:
        return False
    # Any other marker from here on is damage, or another form: Pillow knows what to make of it.
    *between, end = _MARKER.findall(data, place + 2 + length) or [b""]
    return end == _END and _FRAMES[frame].issuperset(between)


def _is_plain_frame(segment: bytes, most_pixels: int) -> bool:
    if len(segment) != 15 or segment[0] != 8 or segment[5] != 3:
        return False
    pixels = int.from_bytes(segment[1:3]) * int.from_bytes(segment[3:5])
    components = segment[6:15]
    return (
        0 < pixels <= most_pixels
        and tuple(value for number in range(3) for value in components[3 * number : 3 * number + 2])
        in _SAMPLINGS
    )


@functools.cache
def _decodes_as_pillow() -> bool:
    """Compare the two on small pictures of noise, once in a process: two milliseconds."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 45, 3), dtype=np.uint8)
    for subsampling, progressive in product(range(3), (False, True)):
        file = io.BytesIO()
        Image.fromarray(noise).save(
            file, "JPEG", quality=90, subsampling=subsampling, progressive=progressive
        )
        decoded = _opencv(file.getvalue())
        if decoded is None or not np.array_equal(decoded, np.asarray(Image.open(file))):
            return False
    return True
