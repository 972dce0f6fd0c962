"""Pictures of nothing: what is done to pixels is told by numbers."""

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def noise(height, width):
    """(height, width, 3) uint8, each pixel for itself; no two calls give the same."""
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    """(height, width, 3) uint8 of large patches, which JPEG and resizing leave almost as they are."""
    return np.asarray(Image.fromarray(noise(height // 8 + 2, width // 8 + 2)).resize((width, height), 3))
