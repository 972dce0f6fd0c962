"""Show how far a long piece of work is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clip3dreid.io.talk import bars_wanted

Update = Callable[..., None]
"""`update(done)` or `update(done, total)`: how many are done, and of how many."""


@contextmanager
def progress(task: str, total: int | None = None, *, keep: bool = False) -> Iterator[Update]:
    """Show a bar on stderr while the block lasts.

    Args:
        task: what is being done.
        total: of how many; None: not known yet.
        keep: whether the bar stays when the block has ended.

    Yields:
        What is to be called as the work goes on.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # A notebook's own bar takes ipywidgets, and warns where they are not installed.
    console = Console(stderr=True, force_jupyter=False)
    with Progress(
        *columns,
        console=console,
        transient=not keep,
        # What is printed meanwhile belongs to stdout, wherever that goes.
        redirect_stdout=sys.stdout.isatty(),
        disable=not bars_wanted() or not (keep or console.is_terminal),
    ) as bar:
        line = bar.add_task(task, total=total)

        def update(done: int, total: int | None = total) -> None:
            bar.update(line, completed=done, total=total)

        yield update
