"""Import large libraries without what nothing here needs of them; for commands, which have a process of their own."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import Distribution, PackageNotFoundError


def import_lightning() -> None:
    """Import Lightning without `transformers`, which takes a second of processor time.

    torchmetrics, which Lightning imports, imports it wherever it is installed, for scores of texts that nothing here
    computes. While this lasts it is not installed for who asks; it can be imported as ever before and after.
    """
    if "torchmetrics" in sys.modules or "transformers" in sys.modules:
        return
    from_name = Distribution.from_name

    def without(name: str) -> Distribution:
        if name == "transformers":
            raise PackageNotFoundError(name)
        return from_name(name)

    Distribution.from_name = staticmethod(without)  # type: ignore[method-assign]
    try:
        importlib.import_module("lightning.pytorch")
    finally:
        Distribution.from_name = from_name  # type: ignore[method-assign]
