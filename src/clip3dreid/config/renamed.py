"""Translate keys and options of the configuration that had another name before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

KEYS = {
    "loader": "datamodule",
    "datamodule.rule": "datamodule.sampler",
    "rung": "variant",
    "ladder": "ablation",
}
"""Old key, of a value or a group -> the new one; what stands below a key moves with it."""
OPTIONS = {"sweep": {"ladder": "ablation"}}
"""Group -> old option -> the new one."""

_SIGN = re.compile(r"[+~]*")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def renamed_key(key: str) -> str:
    """Return a key by its new name, as it is where it never had another.

    Args:
        key: dotted, perhaps with a package: `loader`, `loader.rule`, `data@data.also.second`.
    """
    name, at, package = key.partition("@")
    for old, new in KEYS.items():
        if name == old or name.startswith((f"{old}.", f"{old}/")):
            name = new + name[len(old) :]
    return f"{name}{at}{renamed_key(package) if package else ''}"


def renamed_override(line: str) -> str:
    """Return an override of a command line by the names of now, as it is where nothing of it was renamed.

    Args:
        line: such as `loader.people=4`, `~loader.rule`, `+sweep=ladder`, `+loader@x=laptop`.
    """
    key, equals, value = line.partition("=")
    sign = _SIGN.match(key)
    start = 0 if sign is None else sign.end()
    name = renamed_key(key[start:])
    value = OPTIONS.get(name, {}).get(value, value)
    value = _REFERENCE.sub(lambda reference: f"${{{renamed_key(reference[1])}}}", value)
    return f"{key[:start]}{name}{equals}{value}"


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of an earlier run under the keys of now.

    Args:
        config: plain data, as `config.yaml` of a run has it; is not changed.
    """

    def walk(node: Any, place: str) -> Any:
        if not isinstance(node, Mapping):
            return node
        moved: dict[str, Any] = {}
        for key, inner in node.items():
            path = renamed_key(f"{place}{key}")
            moved[path.rpartition(".")[2]] = walk(inner, f"{path}.")
        return moved

    translated: dict[str, Any] = walk(config, "")
    return translated
