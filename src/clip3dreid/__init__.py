"""Clothes-changing person re-identification: CLIP3DReID on PyTorch Lightning and Hydra."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip3dreid.config.notebook import evaluate
    from clip3dreid.config.recipe import recipe
    from clip3dreid.config.review import write_report
    from clip3dreid.data.box_settings import Boxes
    from clip3dreid.inference.model import ReidModel, load
    from clip3dreid.retrieval.torchmetric import RetrievalMetric
    from clip3dreid.search.gallery import Gallery
    from clip3dreid.serving.serve import serve

    __version__: str

__all__ = [
    "Boxes",
    "Gallery",
    "ReidModel",
    "RetrievalMetric",
    "__version__",
    "evaluate",
    "load",
    "recipe",
    "serve",
    "write_report",
]

_HOMES = {
    "Boxes": "clip3dreid.data.box_settings",
    "Gallery": "clip3dreid.search.gallery",
    "ReidModel": "clip3dreid.inference.model",
    "RetrievalMetric": "clip3dreid.retrieval.torchmetric",
    "evaluate": "clip3dreid.config.notebook",
    "load": "clip3dreid.inference.model",
    "recipe": "clip3dreid.config.recipe",
    "serve": "clip3dreid.serving.serve",
    "write_report": "clip3dreid.config.review",
}


def __getattr__(name: str) -> Any:
    """Return a name of the package, or its version, when first asked for: command lines answer without torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("clip3dreid")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
