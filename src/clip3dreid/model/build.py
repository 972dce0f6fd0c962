"""Build objects of plain descriptions, `{_target_: module.Class, key: value}`, as cards of models have them.

A description may come from anywhere. It can name classes of `clip3dreid.model`, and those of packages that whoever
runs the program trusts by name; trust is given on the command line or in a call, and never read from a file.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from clip3dreid.errors import InputError

TARGET = "_target_"
"""Key that names the class."""
_OURS = "clip3dreid.model"
# Roots that hold no part of a model of the user's own: nobody is advised to trust them.
_NEVER = sys.stdlib_module_names | {"clip3dreid", "hydra", "lightning", "omegaconf", "torch", "transformers"}


def is_trusted(target: Any, trusted: Collection[str]) -> bool:
    """Return whether a class, by its full name, is of a package among those that are trusted."""
    return isinstance(target, str) and any(target.startswith(f"{package}.") for package in trusted)


def trust_hint(target: Any) -> str:
    """Return what to do where a class of a user's own package is refused; empty where the name is none of those."""
    root, _, rest = target.partition(".") if isinstance(target, str) else ("", "", "")
    if not rest or not root.isidentifier() or len(root) > 100 or root in _NEVER:
        return ""
    return f"; if you trust the package {root}, give trusted=[{root}]"


def build(node: Mapping[str, Any], trusted: Collection[str] = ()) -> Any:
    """Build the object that a node describes, with those that its arguments describe.

    Args:
        node: `_target_` and keyword arguments; mappings with a `_target_` among them are built too, others become
            dicts, sequences lists.
        trusted: names of packages, besides our own, whose classes may be built.

    Raises:
        InputError: if a class is not of these packages or not there, an argument is unknown or missing, or a key asks
            for anything but a class and its arguments.
    """
    target = node.get(TARGET) if isinstance(node, Mapping) else None  # type: ignore[redundant-expr]
    if not isinstance(target, str):
        raise InputError(f"a node without {TARGET} describes nothing that can be built")
    made = _find_class(target, trusted)
    arguments = {}
    for key, value in node.items():
        if key == TARGET:
            continue
        if str(key).startswith("_"):
            raise InputError(f"{target}: {key} is no argument; give {TARGET} and the arguments of that class")
        arguments[str(key)] = _value(value, trusted)
    try:
        inspect.signature(made).bind(**arguments)
    except TypeError as error:
        raise InputError(f"{target}: {error}; correct the keys") from error
    return made(**arguments)


def _value(value: Any, trusted: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        if TARGET in value:
            return build(value, trusted)
        return {key: _value(inner, trusted) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_value(inner, trusted) for inner in value]
    return value


def _find_class(target: str, trusted: Collection[str]) -> type:
    """Return the class of that name; what a module has merely imported from elsewhere is none of its classes."""
    packages = (_OURS, *trusted)
    if not is_trusted(target, packages):
        raise InputError(f"{target} is no class of {_OURS}{trust_hint(target)}")
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise InputError(
            f"{target} cannot be imported ({error}); install its package, or name its folder in PYTHONPATH"
        ) from error
    if not isinstance(kind, type) or not is_trusted(f"{kind.__module__}.", packages):
        raise InputError(f"{target} is no class of {module.partition('.')[0]}; give the full name of one")
    return kind
