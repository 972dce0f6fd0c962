"""A tiny model of clips, and walks for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clip3dreid.data.clips import all_clips
from clip3dreid.data.images import TestView
from clip3dreid.inference.model import Outputs, ReidModel
from clip3dreid.io.pictures import read_rgb
from clip3dreid.model.clip_student import ClipStudent
from clip3dreid.model.pooling import MaximumAverage
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.student import Student
from tests.conftest import STUDENT
from tests.inference.models import CARD, HEADS, noise

HEIGHT, WIDTH = 32, 16
CLIPS = {"frames": 4, "stride": 2}
MEAN, STD = STUDENT["mean"], STUDENT["std"]


def clip_model(**more: Any) -> ReidModel:
    """Frames of a clip become one by their maximum, so that it tells which ones were in a clip together."""
    torch.manual_seed(3)
    student = ClipStudent(ResNet(18, width=8), MaximumAverage(), MEAN, STD, time="maximum")
    student(torch.rand(6, 4, 3, HEIGHT, WIDTH))
    kind = f"{ClipStudent.__module__}.{ClipStudent.__qualname__}"
    config = {**STUDENT, "_target_": kind, "time": "maximum"}
    return _model(student, student=config, clips=CLIPS, **more)


def picture_model(**more: Any) -> ReidModel:
    torch.manual_seed(3)
    student = Student(ResNet(18, width=8), MaximumAverage(), MEAN, STD)
    student(torch.rand(6, 3, HEIGHT, WIDTH))
    return _model(student, **more)


def _model(network: Student, **card: Any) -> ReidModel:
    return ReidModel(network, {**CARD, "height": HEIGHT, "width": WIDTH, **card}, HEADS)


def write_walk(folder: Path, length: int, seed: int) -> list[Path]:
    """Frames whose names are not in the order of time, as texts are ordered."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.png" for number in range(length)]
    for number, path in enumerate(paths):
        Image.fromarray(noise(1000 * seed + number, 24, 12)).save(path)
    return paths


def by_hand(model: ReidModel, paths: Sequence[Path], flip: bool = True) -> Outputs:
    """One clip after another, and the mean of what is said of them."""
    view, clips = TestView(HEIGHT, WIDTH), []
    frames = torch.from_numpy(np.stack([view(read_rgb(path)) for path in paths])).float() / 255
    for rows in all_clips(len(paths), *model.clips):
        clip = frames[rows][None] if model.clips.frames > 1 else frames[rows]
        with torch.no_grad():
            clips.append(model(clip, flip=flip))
    embedding, joint, betas = (
        torch.cat([clip[part] for clip in clips]).double().mean(0) for part in range(3)
    )
    return Outputs(embedding.float(), (joint / joint.norm()).float(), betas.float())
