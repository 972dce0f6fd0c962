"""What is prepared before a training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io.launch import Launch
from clip3dreid.io.ranks import ALONE
from clip3dreid.training import prepare
from clip3dreid.training.prepare import meet


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
