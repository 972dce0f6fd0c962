"""Import large libraries without what nothing here needs of them; for commands, which have a process of their own."""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError
from typing import Any

_UNUSED = ("transformers", "scipy", "matplotlib")
"""What torchmetrics imports wherever it is installed: for scores of texts and of sound, and for plots of scores."""


def import_lightning() -> None:
    """Import Lightning without the rest of what torchmetrics asks for, in half of the processor time.

    For that time these packages are not installed for who asks; they can be imported as ever before and after.
    Plots of torchmetrics' own (`Metric.plot`) are none in such a process.
    """
    if "torchmetrics" not in sys.modules:
        with _absent(*(name for name in _UNUSED if name not in sys.modules)), _uncollected():
            importlib.import_module("lightning.pytorch")


def end_at_once() -> None:
    """Have the interpreter end without a last search for cycles in all that it has: half a second with torch."""
    atexit.register(gc.freeze)


@contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Have packages that nobody has imported yet be neither importable nor installed in the block."""
    from_name = Distribution.from_name

    def without(name: str) -> Distribution:
        if name in names:
            raise PackageNotFoundError(name)
        return from_name(name)

    Distribution.from_name = staticmethod(without)  # type: ignore[method-assign]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        Distribution.from_name = from_name  # type: ignore[method-assign]
        for name in names:
            del sys.modules[name]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import without searching for cycles again and again: what modules hold is there to stay."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collected:
            gc.enable()


def import_gradio() -> None:
    """Import gradio without its stubs, which take half of the time, and its pandas without the arrays of pyarrow.

    Raises:
        ImportError: if it is not installed.
    """
    if "gradio" not in sys.modules:
        unused = () if {"pandas", "pyarrow"} & sys.modules.keys() else ("pyarrow",)
        with without_stubs(), _absent(*unused), _uncollected():
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
