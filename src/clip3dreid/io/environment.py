"""Record what a number depends on besides the config: versions, machine, source state."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import torch

from clip3dreid.io.files import atomic

PACKAGES = (
    "clip3dreid",
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "transformers",
    "torchmetrics",
    "pytorch-metric-learning",
    "albumentations",
    "opencv-python-headless",
    "pillow",
    "polars",
    "numpy",
)


_KEPT = ("environment.json", "results.json")
_CONFIG = "config.yaml"


def _git(*arguments: str) -> str | None:
    """Return what git prints in the folder of this package, None where it is no checkout or git is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Return versions of Python and packages, the device, and the git commit with whether it was changed."""
    # An installed package may lie inside somebody else's repository, whose commit says nothing of ours.
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git("rev-parse", "HEAD") if tracked else None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": {"commit": commit, "changed": bool(status)} if commit else None,
    }


def keep_earlier(folder: Path) -> None:
    """Keep what the earlier part of a resumed run wrote: `metrics.csv` as `metrics.1.csv`, and so on.

    So too `config.yaml` and `environment.json`, which say how that part was run, and `results.json`. Lightning would
    delete the first, and this program write over the others. The config keeps its name as well until then: a run that
    is killed here could not be resumed without it.
    """
    for path in (*folder.rglob("metrics.csv"), *(folder / name for name in _KEPT)):
        if path.is_file():
            path.rename(_numbered(path))
    config = folder / _CONFIG
    if config.is_file():
        with atomic(_numbered(config)) as copy:
            shutil.copyfile(config, copy)


def _numbered(path: Path) -> Path:
    """Return the first free name of `metrics.1.csv`, `metrics.2.csv` and so on."""
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not name.exists())
