"""Say what starts a further process of a run, for the launcher of processes on one machine."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from clip3dreid.config.resumed import quoted
from clip3dreid.io.launch import FurtherProcesses

# What is said of the folder below, and what belongs to the process that starts others alone.
_OWN = (
    "hydra.run.dir",
    "hydra.output_subdir",
    "hydra.mode",
    "hydra.sweep",
    "hydra.sweeper",
    "hydra.launcher",
    "hydra/sweeper",
    "hydra/launcher",
)


def further_processes(door: str) -> FurtherProcesses:
    """Return what starts a further process of the run that Hydra is at: of a sweep its present job.

    Args:
        door: name of the command.
    """
    hydra = HydraConfig.get()
    sources = [source for source in hydra.runtime.config_sources if source.provider == "command-line"]
    folders = [argument for source in sources for argument in ("--config-dir", str(source.path))]
    hydras = [str(line) for line in hydra.overrides.hydra]
    kept = [line for line in hydras if not line.lstrip("+~").startswith(_OWN)]
    # All processes of a run share its folder, and the first one has written its record.
    place = [f"hydra.run.dir={quoted(Path(hydra.runtime.output_dir))}", "hydra.output_subdir=null"]
    overrides = [str(line) for line in hydra.overrides.task]
    command = (sys.executable, "-m", "clip3dreid", door, *folders, *overrides, *kept, *place)
    return FurtherProcesses(command, Path(hydra.runtime.cwd))
