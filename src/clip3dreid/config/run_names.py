"""Name runs, for their folders and for dashboards: after data, method, student and seed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir

_LONGEST = 60
"""Letters of one part of a name: W&B takes tags of 64."""
_ENTRY = re.compile(r"^# @package loss\.(\w+)", re.M)


def method_name(_root_: Any) -> str:
    """Return what a run's method is called: its variant, the option of `method`, or what it is made of.

    The option's name stands for its losses: where these were chosen otherwise, they are named one by one.

    Args:
        _root_: the config that is being composed; OmegaConf fills it in.
    """
    if (variant := OmegaConf.select(_root_, "variant")) is not None:
        return _plain(str(variant))
    hydra = _hydra(_root_)
    losses = [str(name) for name in OmegaConf.select(_root_, "loss") or ()]
    method = str(hydra.runtime.choices.get("method"))
    # A term may be another of the same name, such as `local` and `local_contrastive`.
    # As they were typed: what they refer to is looked up where it is used, and refused there.
    typed = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    chosen = any(str(line).lstrip("+").startswith("loss=") for line in typed or ())
    if chosen or _losses_of(method) not in (None, set(losses)):
        return _plain("+".join(losses) or "none")
    return _plain(method)


def student_name(_root_: Any) -> str:
    """Return what a run's student is called: the option of `model/student`.

    Args:
        _root_: the config that is being composed; OmegaConf fills it in.
    """
    return _plain(str(_hydra(_root_).runtime.choices.get("model/student")))


def run_group(name: str, _root_: Any) -> str:
    """Return what a dashboard groups a run under: its sweep, where the record of one lies above it, or a name.

    Args:
        name: of the runs that differ by their seed alone.
        _root_: the config that is being composed; OmegaConf fills it in.
    """
    folder = OmegaConf.select(_hydra(_root_), "runtime.output_dir")
    if folder is None:  # composed by itself, for no run
        return name
    # By what lies there, so that a run of a sweep that is resumed by itself stays in its group.
    sweep = Path(folder).absolute().parent
    return "/".join(sweep.parts[-2:]) if (sweep / "multirun.yaml").is_file() else name


def _hydra(root: Any) -> Any:
    """Return Hydra's own node: beside the command's while a folder is looked for, apart from it afterwards."""
    return root.hydra if "hydra" in root else HydraConfig.get()


def _losses_of(method: str) -> set[str] | None:
    """Return the entries that an option of `method` makes of `loss`; None: it is not one of ours."""
    path = conf_dir() / "method" / f"{method}.yaml"
    if not path.is_file():
        return None
    defaults = yaml.safe_load(path.read_text(encoding="utf-8"))["defaults"]
    options: list[str] = next((line["override /loss"] for line in defaults if "override /loss" in line), [])
    texts = [(conf_dir() / "loss" / f"{name}.yaml").read_text(encoding="utf-8") for name in options]
    return {entry for text in texts for entry in _ENTRY.findall(text)}


def _plain(name: str) -> str:
    """Return a name as a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", name).strip(".-")[:_LONGEST] or "run"
