"""Give work to processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from clip3dreid.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_TASK: Callable[[Any], Any] | None = None
_POLL_S = 0.2


def spread(
    task: Callable[[Item], Result], items: Sequence[Item], processes: int, *, at_once: int = 1
) -> Iterator[Result]:
    """Yield the results of a task, in the order of its items; the first error ends it.

    Args:
        task: every process gets a copy of it, once, so it must be picklable, and may keep what it makes.
        items: what it is called with.
        processes: that work; 0: this one does.
        at_once: items that a process is handed at a time.

    Raises:
        InputError: if a process was killed.
    """
    if not processes or not items:
        yield from map(task, items)
        return
    # Spawned and not forked: a progress bar has a thread by now, and a fork would copy its locks.
    context = multiprocessing.get_context("spawn")
    count = min(processes, len(items))
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(task,))
    try:
        yield from executor.map(_call, items, chunksize=at_once)
    except BrokenProcessPool as error:
        raise InputError(
            f"a process at work was killed, perhaps for its memory (workers={processes}); start again with fewer: "
            "what is finished is kept"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start(task: Callable[[Any], Any]) -> None:
    """Leave Ctrl-C to the parent, and ends with it should it be killed: idle workers would wait for ever."""
    global _TASK
    _TASK = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    _end_after(parent.join)


def _call(item: Any) -> Any:
    assert _TASK is not None
    return _TASK(item)


def end_with_parent() -> None:
    """End this process, at once and with status 1, when the one that started it is gone, however that ended."""
    parent = os.getppid()

    def wait() -> None:
        # Whoever takes an orphan in has another number.
        while os.getppid() == parent:
            time.sleep(_POLL_S)

    _end_after(wait)


def _end_after(wait: Callable[[], Any]) -> None:
    def follow() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
