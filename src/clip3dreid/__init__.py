"""Clothes-changing person re-identification: CLIP3DReID on PyTorch Lightning and Hydra."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip3dreid.inference.model import ReidModel, load

__all__ = ["ReidModel", "__version__", "load"]

__version__ = version("clip3dreid")


def __getattr__(name: str) -> Any:
    """`load` and `ReidModel`, imported when first asked for: command lines answer --help without torch."""
    if name in ("ReidModel", "load"):
        return getattr(import_module("clip3dreid.inference.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
