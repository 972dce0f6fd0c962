"""Make typed settings and objects out of nodes of a config."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

T = TypeVar("T")


def plain(node: Any) -> Any:
    """Return a resolved config node as dicts and lists, anything else as it is."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def settings(kind: type[T], cfg: DictConfig, **more: Any) -> T:
    """Make a dataclass from the keys of a config that are called like its fields.

    Texts become paths where a path is wanted, and a list, or a single value, a tuple where that is wanted.

    Args:
        kind: a dataclass that checks itself (`io.checks.check`).
        cfg: may hold more keys than the dataclass has fields; fields without a key keep their default.
        more: fields that do not come from the config.

    Returns:
        The settings.

    Raises:
        InputError: as the dataclass does.
    """
    hints = typing.get_type_hints(kind)
    found = {
        field.name: _fitted(plain(cfg[field.name]), hints[field.name])
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name not in more and field.name in cfg and not OmegaConf.is_missing(cfg, field.name)
    }
    return kind(**found, **more)


def _fitted(value: Any, hint: Any) -> Any:
    """Return a plain value in the form that an annotation asks for; what does not fit is left for the check."""
    members = typing.get_args(hint) if typing.get_origin(hint) is not tuple else (hint,)
    kinds = (hint, *members)
    if value is None:
        return None
    sequence = next((kind for kind in kinds if typing.get_origin(kind) is tuple), None)
    if sequence is not None:
        inner = typing.get_args(sequence)[0]
        values = value if isinstance(value, list) else [value]
        return tuple(_fitted(one, inner) for one in values)
    if Path in kinds and isinstance(value, str | int | float):
        return Path(str(value)).expanduser()
    return value
