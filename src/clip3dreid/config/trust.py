"""Hold a config to the packages that the user trusts by name: `trusted=[mypkg]`.

Whatever a config builds, it names by `_target_`. Our own package and those it stands on may be named; a package of
the user's own is named once more in `trusted`, on every command line: neither a checkpoint nor the folder of a run,
which may come from anywhere, can say it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from clip3dreid.errors import InputError
from clip3dreid.model.build import TARGET, is_trusted, trust_hint

KEY = "trusted"
_KNOWN = (
    "albumentations",
    "clip3dreid",
    "geomloss",
    "lightning",
    "pytorch_metric_learning",
    "torch",
    "torchmetrics",
    "torchvision",
    "transformers",
)
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
# Of Hydra: what they make is named by their argument.
_BY_PATH = tuple(f"hydra.utils.get_{kind}" for kind in ("class", "method", "object", "static_method"))


def trusted(cfg: DictConfig) -> tuple[str, ...]:
    """Return the names of the packages that a command line trusts.

    Raises:
        InputError: if a value is no name, or there is no such package.
    """
    value = cfg.get(KEY)
    names = [value] if isinstance(value, str) else list(value or ())
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{KEY}: {name} is no name of a package; give {KEY}=[mypkg]")
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            raise InputError(
                f"{KEY}=[{name}]: no package of that name can be imported; install it, or name its folder in "
                "PYTHONPATH"
            )
    return tuple(names)


def check_targets(cfg: DictConfig) -> None:
    """Check that everything that a config could build is of a package that is known or trusted.

    Raises:
        InputError: naming the first that is not, with the key that would let it through.
    """
    packages = trusted(cfg)
    for key, target in _targets(cfg, ""):
        # What reads a data set is a function, and nothing but ours reads one.
        known = ("clip3dreid",) if key.endswith(".path") else _KNOWN
        if not is_trusted(target, (*known, *packages)):
            raise InputError(f"{key}={target} is of a package that is not trusted{trust_hint(target)}")


def _targets(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield key and value of every name of something to build; what is referred to is met where it stands."""
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        if OmegaConf.is_missing(node, key):
            continue
        place = f"{prefix}{key}"
        if key == TARGET:
            by_path = node[key] in _BY_PATH and "path" in node
            yield (f"{prefix}path", node["path"]) if by_path else (place, node[key])
        elif not OmegaConf.is_interpolation(node, key) and OmegaConf.is_config(node[key]):
            yield from _targets(node[key], f"{place}.")
