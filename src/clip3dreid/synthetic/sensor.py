"""Turn light into a camera's picture: blur, sampling, noise, colours, compression."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from clip3dreid.io.pictures import Pixels
from clip3dreid.synthetic.cameras import Shot, SurveillanceCamera

Picture = npt.NDArray[np.float32]

HEIGHT = 256
"""Pixels: blur and motion are given for pictures of this height, and grow with the picture."""


def expose(picture: Picture, camera: SurveillanceCamera, shot: Shot, rng: np.random.Generator) -> Pixels:
    """Return a picture as the camera delivers it, before compression.

    In this order: the lens and the motion blur, the sensor samples coarsely and adds noise, the camera sets
    saturation, cast and gamma, and the crop is enlarged to its size. Noise comes before enlarging, so that it is
    as coarse as the sensor.

    Args:
        picture: (H, W, 3) RGB, 0..1.
        camera: its `blur`, `resolution`, `noise`, `saturation`, `cast` and `gamma` are used.
        shot: its `motion` is used.
        rng: of the noise.

    Returns:
        (H, W, 3) RGB.
    """
    height, width = picture.shape[:2]
    picture = _smear(_defocus(picture, camera.blur * height / HEIGHT), shot.motion, height / HEIGHT)
    rows, columns = max(1, round(height * camera.resolution)), max(1, round(width * camera.resolution))
    if (rows, columns) != (height, width):
        picture = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA)
    if camera.noise:
        picture = picture + _noise(picture, camera.noise, rng)
    picture = _develop(picture, camera)
    if (rows, columns) != (height, width):
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.rint(picture * 255).astype(np.uint8)


def _defocus(picture: Picture, sigma: float) -> Picture:
    # A blur of a fifth of a pixel changes nothing that eight bits would keep.
    return cv2.GaussianBlur(picture, (0, 0), sigma) if sigma > 0.2 else picture


def _smear(picture: Picture, motion: tuple[float, float], scale: float) -> Picture:
    """Blur along a line, evenly."""
    across, down = motion[0] * scale, motion[1] * scale
    if math.hypot(across, down) < 0.5:
        return picture
    half = math.ceil(max(abs(across), abs(down)) / 2) + 1
    size = 2 * half + 1
    kernel = np.zeros((size, size), np.float32)
    # Many points along the line, each shared among the four cells about it.
    along = np.linspace(-0.5, 0.5, 8 * size)
    x, y = along * across + half, along * down + half
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    right, low = x - column, y - row
    for step_x, step_y, share in (
        (0, 0, (1 - right) * (1 - low)),
        (1, 0, right * (1 - low)),
        (0, 1, (1 - right) * low),
        (1, 1, right * low),
    ):
        np.add.at(kernel, (row + step_y, column + step_x), share)
    smeared: Picture = cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    return smeared


def _noise(picture: Picture, sigma: float, rng: np.random.Generator) -> Picture:
    """Draw noise: half of its variance is common to the channels; it grows with the light, as photons' does."""
    height, width, _ = picture.shape
    draws = rng.standard_normal((height, width, 4), dtype=np.float32)
    grain = (draws[..., :3] + draws[..., 3:]) * np.float32(sigma / math.sqrt(2))
    scaled: Picture = grain * np.sqrt(0.5 + np.clip(picture, 0, 1))
    return scaled


def _develop(picture: Picture, camera: SurveillanceCamera) -> Picture:
    """Apply saturation and cast in one matrix, then gamma; clip to 0..1."""
    grey = np.array([0.299, 0.587, 0.114])
    mix = camera.saturation * np.eye(3) + (1 - camera.saturation) * grey
    matrix = (np.array(camera.cast)[:, None] * mix).astype(np.float32)
    picture = np.clip(cv2.transform(picture, matrix), 0, 1)
    if camera.gamma != 1:
        picture = cv2.pow(picture, 1 / camera.gamma)
    return picture


def encode(image: Pixels, quality: int | None) -> bytes:
    """Encode a picture as a file.

    Args:
        image: (H, W, 3) RGB.
        quality: of a JPEG, 1..100; None for a PNG, which loses nothing.

    Returns:
        The same bytes for the same pixels, on the same versions of Pillow and its libraries.
    """
    buffer = io.BytesIO()
    if quality is None:
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=2)
    return buffer.getvalue()
