"""Find out what is installed, which devices there are and how much room is left, for whoever asks for help."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

EXTRAS = {
    "tensorboard": "logger=tensorboard",
    "smpl": "official SMPL and SMPL-X files (non-commercial research)",
    "body": "tools/build_body.py",
    "onnx": "networks in ONNX files: checkpoint=FILE.onnx, model/teacher=onnx, clip3dreid export format=onnx",
    "openvino": "model/teacher=openvino",
    "lance": "clip3dreid search engine=lance",
    "ray": "clip3dreid extract backend=ray",
    "video": "tracklets in video files",
    "serve": "clip3dreid serve",
    "joblib": "hydra/launcher=joblib: runs of a sweep beside each other",
    "slurm": "hydra/launcher=submitit_slurm: runs of a sweep as jobs",
    "optuna": "clip3dreid tune",
}
"""Extra -> what it is for; those that developers need are left out."""
_LOADED = ("torch", "polars", "numpy", "cv2", "PIL")
"""Modules of compiled code that commands stand on; what is made of Python alone loads where these do."""
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(\[[\w,]+\])?\s*(?P<bounds>[^;]*)(;.*extra == ['\"](?P<extra>\w+)['\"])?"
)


class Package(NamedTuple):
    """One package that this project may use."""

    name: str
    wanted: str
    """Versions that will do, as `>=2.8,<3`."""
    installed: str | None
    extra: str | None
    """Of which extra it is a part; None where everybody needs it."""

    @property
    def state(self) -> str:
        """Return `there`, `missing`, or which version is wanted."""
        if self.installed is None:
            return "missing"
        return "there" if _fits(self.installed, self.wanted) else f"wanted {self.wanted}"


class Device(NamedTuple):
    """A place where tensors can be."""

    name: str
    what: str
    gigabytes: float | None
    """10^9 bytes of memory, None where nobody says."""


def packages() -> list[Package]:
    """Return the packages that this project's own metadata name, those for developers left out."""
    found = []
    for line in requires("clip3dreid") or ():
        match = _REQUIREMENT.match(line)
        if match is not None and (match["extra"] is None or match["extra"] in EXTRAS):
            bounds = match["bounds"].strip(" ()")
            found.append(Package(match["name"], bounds, installed(match["name"]), match["extra"]))
    return found


def installed(package: str) -> str | None:
    """Return the version of a package, None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def broken() -> list[str]:
    """Return what does not load though it is installed, with the reason, a line each."""
    lines = []
    for name in _LOADED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                lines.append(f"{name} does not load: {error}")
        except Exception as error:  # whatever a library's own code raises
            lines.append(f"{name} does not load: {' '.join(str(error).split())[:200]}")
    torch, vision = installed("torch"), installed("torchvision")
    if torch and vision and "+" in torch and "+" in vision and torch.split("+")[1] != vision.split("+")[1]:
        # This project does not use it, but Lightning's metrics load it where it is.
        lines.append(
            f"torchvision {vision} was built for another torch than {torch}; install both alike, or remove it"
        )
    return lines


def devices() -> list[Device]:
    """Return the processor, GPUs and Apple's, as torch sees them; without torch the processor alone."""
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else None
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import torch
    except Exception:  # said by `broken`
        return [Device("cpu", f"{cores} cores", memory)]
    found = [Device("cpu", f"{cores} cores, {torch.get_num_threads()} threads of torch", memory)]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(
            Device(f"cuda:{index}", f"{facts.name}, CUDA {torch.version.cuda}", facts.total_memory / 1e9)
        )
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple's, with the processor's memory", None))
    return found


def free_gigabytes(folder: Path) -> float:
    """Return the room on the disk of a folder, which may not be there yet; 10^9 bytes."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / 1e9


def system() -> dict[str, Any]:
    """Return Python's version and the machine's."""
    return {"python": platform.python_version(), "platform": platform.platform()}


def _fits(found: str, wanted: str) -> bool:
    """Return whether a version lies within bounds; compared number by number, which is all that ours need."""
    numbers = _numbers(found)
    for sign, limit in re.findall(r"([<>=!~]+)\s*([\w.]+)", wanted):
        other = _numbers(limit)
        length = max(len(numbers), len(other))
        one, two = (number + [0] * (length - len(number)) for number in (numbers, other))
        good = {
            ">=": one >= two,
            "<": one < two,
            "<=": one <= two,
            ">": one > two,
            "==": one == two,
            "!=": one != two,
        }
        if not good.get(sign, True):
            return False
    return True


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text.partition("+")[0])]
