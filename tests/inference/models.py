"""What the tests of a trained model share: its card and heads, and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from clip3dreid.body.smpl import body_digest
from clip3dreid.data.images import TestView, read_rgb, to_unit
from tests.conftest import STUDENT

GROUPS = {"stature": ["tall", "average height", "short"], "build": ["slim", "heavy"]}


HEIGHT, WIDTH, CHANNELS, D, JOINT, BETAS = 64, 32, 64, 128, 6, 4


CARD: dict[str, Any] = {
    "version": 1,
    "student": STUDENT,
    "height": HEIGHT,
    "width": WIDTH,
    "data": ["ltcc"],
    "vocabulary": {"digest": "0123", "groups": GROUPS},
    "teacher": {"name": "body_clip", "fingerprint": "4567", "width": JOINT},
    "body": {"name": "anny_light", "sha256": body_digest("anny_light"), "num_betas": BETAS},
}


PLAIN = {key: CARD[key] for key in ("version", "student", "height", "width", "data")}


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HEADS = {
    "joint.weight": drawn(1, JOINT, CHANNELS),
    "joint.bias": drawn(2, JOINT),
    "joint.centre": drawn(3, JOINT),
    "joint.words": F.normalize(drawn(4, 5, JOINT), dim=1),
    "shape.weight": drawn(5, BETAS, D) / 10,
    "shape.bias": drawn(6, BETAS),
}


Checkpoint = Callable[..., Path]


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = ((HEIGHT, WIDTH), (90, 41), (32, 20))


def seen(paths: list[Path]) -> torch.Tensor:
    view = TestView(HEIGHT, WIDTH)
    return to_unit(torch.from_numpy(np.stack([view(read_rgb(path)) for path in paths])))
