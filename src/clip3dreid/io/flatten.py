"""Flatten nested settings, to compare them key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys; an empty one stays.

    Example:
        >>> from clip3dreid.io.flatten import flatten
        >>> flatten({"a": {"b": 1, "c": {}}, "d": [2]})
        {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    if not isinstance(node, Mapping) or not node:
        return {prefix.removesuffix("."): node}
    return {k: v for key, value in node.items() for k, v in flatten(value, f"{prefix}{key}.").items()}
