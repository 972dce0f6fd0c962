"""Claim the folder of a run, or of a sweep, before Hydra writes to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from clip3dreid.config.hydra import afterwards, begin, explained
from clip3dreid.config.resumed import OVERRIDES, quoted, record_overrides
from clip3dreid.errors import InputError
from clip3dreid.io.claims import hold, outcome, refuse_held, wait_for_claim
from clip3dreid.io.files import write_text
from clip3dreid.io.launch import launch
from clip3dreid.io.locks import at_work, is_locked


class RunFolder(Callback):
    """Hydra's callback that claims the folder of a run, or of a sweep.

    Two runs never share a folder: one that is named after the time takes the next free name, one that was asked for
    by name is refused if it holds a run. All processes of a run use the folder of its first one, and a run that a
    scheduler starts again goes on in its own.

    Args:
        again: a run may be started again in the folder of its own, without `resume=`; the command sees to it.
    """

    def __init__(self, again: bool = False) -> None:
        self.again = again

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin anew in the process of a launcher, which gets this object before it composes a run's config."""
        self.__dict__.update(state)
        begin()

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the run's folder, and put it where Hydra looks for it."""
        # Hydra turns an exception of a callback into a warning.
        with explained():
            wanted = Path(str(config.hydra.run.dir))
            going_on = self.again or config.get("resume") is not None
            with read_write(config), open_dict(config):
                if launch().first:
                    folder, goes_on = _hold(
                        wanted, "a run", next_free=not _asked(config, "hydra.run.dir") and not going_on
                    )
                    if not (going_on or goes_on):
                        refuse_held(folder)
                else:
                    folder, goes_on = wait_for_claim(wanted, sys.argv[1:])
                    config.hydra.output_subdir = None
                    config.hydra.job.name = f"{config.hydra.job.name}_{launch().rank}"
                config.hydra.run.dir = str(folder)
                if config.get("resume") is not None or goes_on:
                    # Hydra writes its record before anything is checked; a refused run's must not be the next one's.
                    config.hydra.output_subdir = None
                if goes_on and not self.again:
                    config.resume = str(folder.absolute())

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the sweep's folder, below which each job has its own."""
        with explained():
            if launch().name is not None and launch().processes > 1:
                raise InputError(
                    "a sweep is one process, whose runs start further ones themselves (trainer.devices=2, say); with "
                    "torchrun or srun start its runs one by one, without -m"
                )
            wanted = Path(str(config.hydra.sweep.dir))
            with read_write(config):
                folder = _hold(wanted, "a sweep", next_free=not _asked(config, "hydra.sweep.dir"))[0]
                config.hydra.sweep.dir = str(folder)
                # Each job composes its config anew. Hydra would write a job's record before anything is checked.
                config.hydra.overrides.hydra.append("hydra.output_subdir=null")
                if folder != wanted:
                    config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Write the record of a job of a sweep, unless it is going to be refused (`job_folder`)."""
        folder = Path(config.hydra.runtime.output_dir)
        if config.hydra.mode != RunMode.MULTIRUN or outcome(folder) is not None or is_locked(folder):
            return
        with explained():
            rest = [str(key) for key in config if key != "hydra"]
            for name, keys in (("config", rest), ("hydra", ["hydra"])):
                content = OmegaConf.to_yaml(OmegaConf.masked_copy(config, keys))
                write_text(folder / OVERRIDES.with_name(f"{name}.yaml"), content)
            record_overrides(folder)


@contextmanager
def job_folder(folder: Path) -> Iterator[None]:
    """Keep the folder of one job of a sweep to this process, as a run's own is kept since Hydra made it.

    Raises:
        InputError: if it holds another run, or another process is at work there.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN or not launch().first:
        yield
        return
    refuse_held(folder)
    with at_work(folder, "a run of a sweep"):
        yield


def _asked(config: DictConfig, key: str) -> bool:
    """Return whether the command line names the folder."""
    return any(str(override).lstrip("+").startswith(f"{key}=") for override in config.hydra.overrides.hydra)


def _hold(wanted: Path, what: str, *, next_free: bool) -> tuple[Path, bool]:
    """Claim a folder until the command ends; returns it, and whether the run in it goes on."""
    held = hold(wanted, what, sys.argv[1:], next_free=next_free)
    afterwards(held.release)
    return held.folder, held.goes_on
