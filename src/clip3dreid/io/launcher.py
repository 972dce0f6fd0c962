"""Start the further processes of a run by a command that is given, not one that is guessed.

Lightning repeats what it finds in `sys.argv` and `__main__`. For a command with a word before its options, and for a
job of a sweep, that would be another one, so whoever starts a run says what starts the others.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from clip3dreid.io.launch import ID, FurtherProcesses, launch

# Untyped, for what is Lightning's own there.
_SCRIPTS: Any = subprocess_script
# What Lightning leaves in the environment, from which a next run would conclude that it was launched.
_LEFT = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", ID)


class CommandLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher of processes on one machine, told what to start.

    Args:
        other: Lightning's own, in whose place it comes.
        processes: what starts a process; None: what Lightning takes this program to be.
        observed: whether a thread of Lightning's kills this process when one that it started has failed.
    """

    def __init__(
        self, other: _SubprocessScriptLauncher, processes: FurtherProcesses | None, *, observed: bool
    ) -> None:
        super().__init__(other.cluster_environment, other.num_processes, other.num_nodes)
        self.processes = processes
        self.observed = observed

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any
    ) -> Any:
        """Start the processes, unless they have been before or a scheduler does so, and call a function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not (self.cluster_environment.creates_processes_externally or self.procs):
            self._call_children_scripts()
            if self.observed:
                _SCRIPTS._launch_process_observer(self.procs)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _call_children_scripts(self) -> None:
        if self.processes is None:
            os.environ[ID] = launch().id
            super()._call_children_scripts()
            return
        shared = os.environ | {
            ID: launch().id,
            "MASTER_ADDR": self.cluster_environment.main_address,
            "MASTER_PORT": str(self.cluster_environment.main_port),
            "NODE_RANK": str(self.cluster_environment.node_rank()),
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
        }
        self.procs = [
            subprocess.Popen(
                self.processes.command, env=shared | {"LOCAL_RANK": str(rank)}, cwd=self.processes.folder
            )
            for rank in range(1, self.num_processes)
        ]


def start_by(trainer: pl.Trainer, processes: FurtherProcesses | None, *, observed: bool = True) -> None:
    """Have a trainer start its further processes by a command; a trainer without such processes stays as it is.

    Args:
        trainer: not yet at work.
        processes: see `CommandLauncher`.
        observed: see `CommandLauncher`.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        trainer.strategy._launcher = CommandLauncher(launcher, processes, observed=observed)


@contextmanager
def own_processes(*, ends: bool) -> Iterator[None]:
    """Leave processes' meeting and environment as they were, so that a next run in this process is as a first one.

    Args:
        ends: whether this process ends with the run, and all of it is left as it is: to take leave of processes that
            do not answer can take for ever.
    """
    before = {name: os.environ.get(name) for name in _LEFT}
    try:
        yield
    finally:
        if not ends:
            if dist.is_initialized():
                dist.destroy_process_group()
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
