"""Start the runs of a sweep by further launchers than Hydra's own, and give each run of a machine a device."""

from __future__ import annotations

import functools
import importlib.util
from contextlib import ExitStack
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from clip3dreid.errors import InputError
from clip3dreid.io.locks import at_work

GROUP = "hydra/launcher"
BASIC = "basic"
"""Hydra's own: one run after another, in the process of the command."""
_PLUGINS = {"joblib": ("hydra_joblib_launcher", "joblib"), "submitit": ("hydra_submitit_launcher", "slurm")}
_HELD = ExitStack()


def check_launcher(name: str) -> None:
    """Refuse a launcher that is not installed.

    Args:
        name: a file of `conf/hydra/launcher`, without suffix.

    Raises:
        InputError: naming the extra that brings it.
    """
    plugin, extra = _PLUGINS.get(name.partition("_")[0], (None, ""))
    if plugin is not None and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        package = plugin.replace("_", "-")
        raise InputError(
            f"{GROUP}={name} needs {package}, which is not installed; pip install 'clip3dreid[{extra}]'"
        )


@functools.cache
def free_device(count: int) -> int:
    """Return a device that no other process of this sweep has, and keep it for as long as this process lives.

    `trainer.devices=[${free_device:4}]` refers to it. A launcher's process makes several runs one after another, all
    on its own device, whatever their number in the sweep.

    Args:
        count: devices of the machine, numbered from 0.

    Returns:
        The number of one; 0 where the run is not of a sweep.

    Raises:
        InputError: if every device is taken.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return 0
    folder = Path(str(hydra.sweep.dir)) / ".devices"
    for device in range(count):
        try:
            _HELD.enter_context(at_work(folder / str(device), "a run of a sweep"))
        except InputError:
            continue
        return device
    raise InputError(
        f"all {count} devices have a run of this sweep; start at most {count} at once: hydra.launcher.n_jobs={count}"
    )
