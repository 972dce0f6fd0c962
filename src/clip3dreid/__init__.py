"""Clothes-changing person re-identification: CLIP3DReID on PyTorch Lightning and Hydra."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip3dreid.inference.model import ReidModel, load

    __version__: str

__all__ = ["ReidModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Return `load`, `ReidModel` or the version when first asked for: command lines answer without torch."""
    if name in ("ReidModel", "load"):
        from importlib import import_module

        return getattr(import_module("clip3dreid.inference.model"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("clip3dreid")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
