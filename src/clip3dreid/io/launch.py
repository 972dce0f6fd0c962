"""Find out how this process was started: alone, or as one of several of a run, and for which time."""

from __future__ import annotations

import functools
import os
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from clip3dreid.errors import InputError

ID = "CLIP3DREID_LAUNCH"
"""Environment variable by which a run's first process names the launch to those that it starts itself."""
_MEETING_S = 600


class Launch(NamedTuple):
    """One start of a run, the same for all of its processes but for the rank."""

    id: str
    """Tells it from any other run; a scheduler's restarts of a run have one id."""
    rank: int = 0
    """This process, 0 the first."""
    processes: int = 1
    """How many were started; those that Lightning is still going to start are not known here."""
    attempt: int = 0
    """How often the scheduler has started the run again."""
    name: str | None = None
    """What the run's folder is to be called in the place of the time, which processes do not share."""

    @property
    def first(self) -> bool:
        """Return whether this process does what is done once for all."""
        return self.rank == 0


class FurtherProcesses(NamedTuple):
    """What starts the further processes of a run on this machine."""

    command: tuple[str, ...]
    """Program and arguments, the same for all; each finds its rank in the environment."""
    folder: Path
    """The working folder."""


@functools.cache
def launch() -> Launch:
    """Find out how this process was started, from what Lightning, torchrun or SLURM leave in the environment.

    Raises:
        InputError: if torchrun's meeting place does not answer, or nodes were started one by one.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        agreed = _agreed()
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        return Launch(agreed, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), restarts, agreed)
    if _by_slurm():
        job, restarts = _job(), int(os.environ.get("SLURM_RESTART_COUNT", 0))
        return Launch(job, int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), restarts, job)
    node = int(os.environ.get("NODE_RANK", 0))
    if node > 0 and ID not in os.environ:
        raise InputError(
            f"this is node {node} of several (NODE_RANK): start the processes of all nodes with torchrun or srun, so "
            "that they find each other's folder"
        )
    return Launch(
        os.environ.get(ID) or uuid.uuid4().hex,
        int(os.environ.get("LOCAL_RANK", 0)),
        int(os.environ.get("WORLD_SIZE", 1)),
    )


def forget() -> None:
    """Make the next run of a sweep, or of a notebook, a launch of its own."""
    launch.cache_clear()


def _by_slurm() -> bool:
    """Return whether `srun` started this process; in an interactive allocation a command is a command."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS"} <= os.environ.keys() and not interactive


def _job() -> str:
    """Return the name of SLURM's job, with the task of an array and the step where these say more."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"job-{array}-{task}" if array and task else f"job-{os.environ['SLURM_JOB_ID']}"
    step = os.environ.get("SLURM_STEP_ID", "0")
    return name if step == "0" or not step.isdecimal() else f"{name}.{step}"


def _agreed() -> str:
    """Return a name that all processes of torchrun's launch agree on, kept by its agent through restarts."""
    # Only here: nobody else needs torch this early.
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise InputError(
            "torchrun keeps no meeting place for this run (TORCHELASTIC_USE_AGENT_STORE is not True); give all "
            "processes one folder with hydra.run.dir=FOLDER and leave TORCHELASTIC_RUN_ID out of the environment"
        )
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(*where, is_master=False, timeout=timedelta(seconds=_MEETING_S))
        # The first to come sets the name, the others find it.
        agreed: bytes = store.compare_set("clip3dreid/launch", "", _stamp())
    except DistError as error:
        raise InputError(
            f"torchrun's meeting place {where[0]}:{where[1]} does not answer: {error}"
        ) from error
    return agreed.decode()


def _stamp() -> str:
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{uuid.uuid4().hex[:4]}"
