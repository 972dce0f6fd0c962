"""One composition of a command's config, where Hydra makes two: much of the time of a command that is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import DictConfig

_ADDED = "hydra.mode=RUN"
"""What Hydra adds to a command line that asks for no sweep, where the config sets no mode either."""


@contextmanager
def composed_once() -> Iterator[None]:
    """Spare a command that Hydra runs inside the block its second composition; all else is as it would be.

    Hydra composes a config to see whether it sets `hydra.mode`, throws it away, and composes it for the run. Here it
    is composed for a run at once, and kept for that run if no mode is set. If it cannot be (several values of a key,
    or an error), Hydra asks in its own way, and a run gets the error that there was.
    """
    ask = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        loader: Any = self.config_loader
        load = loader.load_configuration
        found: DictConfig | Exception
        try:
            cfg: DictConfig = load(config_name, list(overrides), RunMode.RUN)
        except Exception as error:
            found, mode = error, ask(self, config_name, overrides)
        else:
            found, mode = cfg, cfg.hydra.mode
            if mode is None:
                cfg.hydra.mode = RunMode.RUN
                cfg.hydra.overrides.hydra.append(_ADDED)
        wanted = (config_name, [*overrides, _ADDED], RunMode.RUN)

        def next_load(config_name: str | None, overrides: list[str], run_mode: RunMode, **how: bool) -> Any:
            # Of this instance alone, and of its next composition alone: those of a sweep's jobs are made.
            del loader.load_configuration
            if (config_name, overrides, run_mode) != wanted:
                return load(config_name, overrides, run_mode, **how)
            if isinstance(found, Exception):
                raise found
            return found

        loader.load_configuration = next_load
        return mode

    Hydra.get_mode = get_mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = ask  # type: ignore[method-assign]
