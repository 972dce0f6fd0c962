"""Bring pictures to a size, as published numbers had it."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from clip3dreid.io.pictures import Pixels


def resize(rgb: Pixels, height: int, width: int, out: Pixels | None = None) -> Pixels:
    """Resize (h, w, 3) uint8 as Pillow does, antialiased and bilinear, which published numbers rest on.

    Enlarging, OpenCV gives the same to one grey level and several times faster; shrinking, it skips pixels
    (bilinear) or has another filter (area), and Pillow's own is as fast as the latter. An enlarged picture is put
    into `out` (height, width, 3) where that is given: new memory takes as long as the work.
    """
    if rgb.shape[:2] == (height, width):
        return rgb
    if height >= rgb.shape[0] and width >= rgb.shape[1]:
        enlarged: Pixels = cv2.resize(rgb, (width, height), out, interpolation=cv2.INTER_LINEAR)
        return enlarged
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))


def squared(rgb: Pixels) -> Pixels:
    """Pad (h, w, 3) with black to a square, the picture in its middle; an odd pixel goes right or below."""
    height, width = rgb.shape[:2]
    down, right = max(width - height, 0), max(height - width, 0)
    if not (down or right):
        return rgb
    square = np.zeros((height + down, width + right, 3), np.uint8)
    square[down // 2 : down // 2 + height, right // 2 : right // 2 + width] = rgb
    return square


def fit(rgb: Pixels, height: int, width: int, square: bool) -> Pixels:
    """Resize (h, w, 3) to (height, width, 3), padded to a square before if so asked."""
    return resize(squared(rgb) if square else rgb, height, width)
