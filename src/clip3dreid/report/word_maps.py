"""Draw where in a picture a word comes from: the crop in grey, and in red what of it answers to the word."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from clip3dreid.io.pictures import Pixels

MOST = 4
"""Times an even plan's mass that are drawn in full red."""
_RED = np.array([196, 30, 38], np.float32)


def draw_word_map(picture: Pixels, mass: npt.NDArray[np.float32], *, height: int = 192) -> Image.Image:
    """Draw one word's part of a transport plan on the picture.

    Args:
        picture: (H, W, 3) RGB, as the model sees it.
        mass: (h, w), 0 or more, of the positions of its map; 1 is what an even plan takes from each.
        height: of what is drawn, pixels.

    Returns:
        RGB: the lighter the less mass, red from none to `MOST` times an even plan's, position by position.
    """
    width = round(height * picture.shape[1] / picture.shape[0])
    shown = Image.fromarray(picture).convert("L").resize((width, height), Image.Resampling.LANCZOS)
    grey = np.asarray(shown, np.float32)[..., None] / 2 + 120
    share = Image.fromarray((mass / MOST).clip(0, 1).astype(np.float32), mode="F")
    red = 0.85 * np.asarray(share.resize((width, height), Image.Resampling.NEAREST))[..., None]
    return Image.fromarray((grey * (1 - red) + _RED * red).round().astype(np.uint8))
