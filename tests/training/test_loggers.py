import errno
import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger

from clip3dreid.errors import InputError
from clip3dreid.training.loggers import SparedLogger, spared


class Failing(Logger):
    """A logger whose disk is full from the second call on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    name = "failing"
    version = "1"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls.append("metrics")
        if len(self.calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("api_key not configured")

    def finalize(self, status: str) -> None:
        self.calls.append("finalize")

    def watch(self) -> str:
        return "watched"


def test_a_logger_that_fails_says_so_once_and_is_left_alone_then(caplog: pytest.LogCaptureFixture) -> None:
    inner = Failing()
    logger = SparedLogger(inner)
    with caplog.at_level(logging.WARNING):
        for step in range(4):
            logger.log_metrics({"loss": 1.0}, step=step)
        logger.save()
        logger.finalize("success")
    assert [record.message for record in caplog.records] == [
        "Failing writes no more (No space left on device); training goes on without it"
    ]
    assert inner.calls == ["metrics", "metrics"]
    assert logger.failed


def test_a_dashboard_that_does_not_begin_ends_the_run_before_it_is_trained() -> None:
    with pytest.raises(InputError, match="Failing does not begin: api_key not configured; logger=csv leaves"):
        SparedLogger(Failing()).log_hyperparams({"seed": 1})


def test_what_a_logger_has_besides_is_there(tmp_path: Path) -> None:
    csv = CSVLogger(tmp_path)
    first, second = spared([csv, Failing()])
    assert first is csv  # the run's own record, without which there is nothing to go by
    assert isinstance(second, SparedLogger)
    assert (second.name, second.version, second.watch(), second.save_dir) == ("failing", "1", "watched", None)
