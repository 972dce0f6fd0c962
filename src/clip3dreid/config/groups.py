"""Know which config groups a command chooses from."""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml

from clip3dreid.config.folder import conf_dir

ADDED = dict.fromkeys(("train", "weights"), ("experiment", "recipe", "ablation", "sweep"))
"""Command -> groups of which it has no option by default; one is added with a plus."""


_OF_HYDRA = {"train": {"hydra/launcher": "basic"}}
"""Command -> groups of Hydra's own that it chooses from, with Hydra's choice."""


@cache
def root(command: str) -> dict[str, Any]:
    """Return the root YAML of a command as it is, not composed."""
    found = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


@cache
def groups_of(command: str) -> dict[str, Any]:
    """Return the groups that a command chooses from, with the option that it chooses by default.

    A group that lies elsewhere than it is called has its place behind an `@`.
    """
    chosen: dict[str, Any] = dict(_OF_HYDRA.get(command, {}))
    for entry in root(command).get("defaults", ()):
        if isinstance(entry, dict):
            ((group, option),) = entry.items()
            # What follows another choice is not chosen itself.
            if not group.startswith(("override ", "optional ")):
                chosen[group] = option
        elif entry != "_self_" and (conf_dir() / f"{entry}.yaml").is_file():
            chosen |= groups_of(entry)
    return chosen
