"""Import large libraries without what nothing here needs of them; for commands, which have a process of their own."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError
from typing import Any


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


def import_gradio() -> None:
    """Import gradio without its stubs, which take half of the time.

    Raises:
        ImportError: if it is not installed.
    """
    if "gradio" not in sys.modules:
        with without_stubs():
            importlib.import_module("gradio")


@contextmanager
def without_stubs() -> Iterator[None]:
    """Keep gradio from writing a stub beside the source of each component whose class is made in the block.

    It reads and parses the source for that, to tell editors of events, and leaves it out where a class has no file:
    while this lasts none has.
    """
    getfile = inspect.getfile

    def without(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("not looked for")
        return getfile(thing)

    inspect.getfile = without  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = getfile
