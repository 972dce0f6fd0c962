"""What is prepared before a training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.io.launch import Launch
from clip3dreid.io.ranks import ALONE
from clip3dreid.model.clip_student import ClipStudent
from clip3dreid.model.pooling import Maximum
from clip3dreid.model.video import ClipResNet
from clip3dreid.training import prepare
from clip3dreid.training.prepare import meet, tune
from clip3dreid.training.settings import TrainSettings


def meeting(size: int) -> Any:
    trainer: Any = SimpleNamespace(world_size=size, strategy=SimpleNamespace(launcher=None))
    watch: Any = None
    request: Any = SimpleNamespace(folder=Path())
    return meet(request, trainer, watch, None)


@pytest.mark.parametrize(("started", "size"), [(2, 1), (4, 2), (2, 8)])
def test_a_launcher_that_has_started_other_processes_than_the_trainer_is_of_is_told_so(
    started: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "launch", lambda: Launch("job", 0, started))
    with pytest.raises(InputError) as caught:
        meeting(size)
    assert f"has started {started} processes, and the trainer is of {size}: give trainer=ddp" in str(
        caught.value
    )


def test_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "launch", lambda: Launch("alone"))
    assert meeting(1) is ALONE


@pytest.mark.parametrize("time", ["none", "i3d", "ap3d"])
def test_a_student_whose_weights_reach_across_frames_keeps_its_maps_channels_last(time: str) -> None:
    torch.manual_seed(1)
    backbone = ClipResNet(time=time, non_local=time == "none", width=4)
    student = ClipStudent(backbone, Maximum(), (0.5,) * 3, (0.25,) * 3).eval()
    images = torch.rand(2, 3, 3, 64, 32)
    with torch.no_grad():
        before = student(images).embedding
        tune(student, TrainSettings(channels_last=True))
        torch.testing.assert_close(student(images).embedding, before)
        first = student.backbone.conv1
        assert isinstance(first, torch.nn.Conv2d)
        assert first.weight.is_contiguous(memory_format=torch.channels_last)
