"""What tests of whole trainings share."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import Callback

from clip3dreid.training.signals import SaveWhenTold


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process a signal at a certain moment of its next training, and at that one alone."""

    def arrange(hook: str, step: int, signum: int = signal.SIGTERM) -> None:
        real = getattr(SaveWhenTold, hook, None) or getattr(Callback, hook)
        sent = threading.Event()

        def watched(self: SaveWhenTold, trainer: Any, *arguments: Any) -> None:
            if trainer.global_step >= step and not sent.is_set():
                sent.set()
                os.kill(os.getpid(), signum)
            real(self, trainer, *arguments)

        monkeypatch.setattr(SaveWhenTold, hook, watched, raising=False)

    return arrange
