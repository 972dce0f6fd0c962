"""Let questions wait for their turn, but not too many of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from clip3dreid.errors import InputError

T = TypeVar("T")


class WaitingLine:
    """A line of questions, of which one at a time is answered, in a thread of its own.

    One thread, since torch makes a team of helpers for each that computes.

    Args:
        most: that wait beside the one that is answered.
    """

    def __init__(self, most: int) -> None:
        self._most, self._inside = most, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answering")

    async def turn(self, work: Callable[[], T]) -> T:
        """Return what comes of some work, when it is its turn.

        Raises:
            InputError: if the line is full.
            Exception: what the work raises.
        """
        if self._inside > self._most:
            raise InputError(f"{self._most} questions are waiting already; ask again in a moment")
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._inside -= 1
