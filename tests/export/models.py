"""Small models to export, and pictures to show them."""

from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from clip3dreid.inference.model import ReidModel
from tests import conftest

STUDENT = conftest.STUDENT | {"ghost_group": 4}
OF_CLIPS = STUDENT | {"_target_": "clip3dreid.model.clip_student.ClipStudent"}
HEIGHT, WIDTH, D, JOINT = 64, 32, 128, 6
FRAMES = 3
"""Of a clip."""


def made(student: dict[str, Any] = STUDENT, size: tuple[int, int] = (HEIGHT, WIDTH)) -> ReidModel:
    """A model from scratch whose running statistics are not at their start, nor is what begins by adding nothing."""
    torch.manual_seed(1)
    network = instantiate(student)
    of_clips = getattr(network, "takes_clips", False)
    with torch.no_grad():
        for tensor in network.parameters() if of_clips else ():
            tensor.add_(0.05 * torch.randn_like(tensor))
    network(torch.rand(8, *([FRAMES] if of_clips else []), 3, *size))
    heads = {"joint.weight": torch.randn(JOINT, network.channels), "joint.bias": torch.randn(JOINT)}
    card = {"version": 1, "student": student, "height": size[0], "width": size[1], "data": ["ltcc"]}
    card |= {"clips": {"frames": FRAMES, "stride": 2}} if of_clips else {}
    card |= {"teacher": {"name": "body_clip", "fingerprint": "4567", "width": JOINT}}
    return ReidModel(network, card, heads | {"joint.centre": torch.zeros(JOINT)})


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, HEIGHT, WIDTH), dtype=np.uint8)
