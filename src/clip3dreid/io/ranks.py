"""Share out what is done before a training among the processes of a run, once they have met.

What they tell each other here is small and plain, by the store that torch's process group was arranged by; tables go
through a folder that all of them see. A collective of the group itself would give up after some minutes, and would be
in nobody's way to say why: here a process waits for as long as another one works, and hears signals meanwhile.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from clip3dreid.errors import InputError

T = TypeVar("T")

_LOOK_S = 0.05
# A program may train several times with one meeting place: launch -> its trainings.
_MEETINGS: defaultdict[str, count[int]] = defaultdict(count)


class Ranks:
    """The processes of a run that share out work.

    All of them call the same methods in the same order.

    Args:
        rank: this process, 0 the first.
        size: how many there are.
        folder: where the first one puts tables for the others; it need not be there yet.
        store: by which they have met, as `torch.distributed` has it, a connection of this object's own; None: there
            is one process.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, folder: Path | None = None, store: Any | None = None
    ) -> None:
        if size > 1 and (folder is None or store is None):
            raise ValueError(f"{size} processes need a folder and a store")
        self.rank, self.size = rank, size
        self._folder, self._store = folder, store
        self._calls = count()

    @property
    def first(self) -> bool:
        """Return whether this process does what is done once for all."""
        return self.rank == 0

    @property
    def folder(self) -> Path:
        """Return where the first process puts tables for the others, of which there are some."""
        assert self._folder is not None
        return self._folder

    def mine(self, items: Sequence[T]) -> list[T]:
        """Return every `size`-th of some things: this process's share."""
        return list(items[self.rank :: self.size])

    def all_tell(self, what: str, mine: Any) -> list[Any]:
        """Return what each process tells, in rank order; waits until all have.

        Args:
            what: it is about, for whoever looks into the store.
            mine: plain data that JSON has.

        Raises:
            InputError: if the first process is gone.
        """
        if self.size == 1:
            return [mine]
        call = f"{next(self._calls)}/{what}"
        self._tell(f"{call}/{self.rank}", mine)
        return [self._hear(f"{call}/{rank}") for rank in range(self.size)]

    def first_tells(self, what: str, make: Callable[[], T]) -> T:
        """Return what the first process makes, and nobody else; the others wait for it.

        Args:
            what: it is about, for whoever looks into the store.
            make: makes plain data that JSON has; lists come back as lists, mappings with texts for keys.

        Raises:
            InputError: if the first process is gone.
        """
        if self.size == 1:
            return make()
        call = f"{next(self._calls)}/{what}"
        if self.first:
            self._tell(call, make())
        told: T = self._hear(call)
        return told

    def wait(self, what: str) -> None:
        """Wait until all processes are here.

        Raises:
            InputError: if the first process is gone.
        """
        self.all_tell(what, None)

    def _tell(self, key: str, value: Any) -> None:
        self._ask(lambda store: store.set(key, json.dumps(value)))

    def _hear(self, key: str) -> Any:
        while not self._ask(lambda store: store.check([key])):
            time.sleep(_LOOK_S)
        return json.loads(self._ask(lambda store: store.get(key)))

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        from torch.distributed import DistError

        try:
            return question(self._store)
        except DistError as error:
            raise InputError("the first process of this run is gone; see what it said") from error


ALONE = Ranks()
"""One process, which does all."""


def met(folder: Path, launched: str) -> Ranks:
    """Return the processes of the process group that this one is in.

    Args:
        folder: see `Ranks`.
        launched: a name that all of them have for what started them. A process that was started for this run has met
            nobody before, while the first may be at its next run of a sweep: meetings are counted by launch.
    """
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    store: Any = distributed_c10d._get_default_store()
    # A connection of our own: the one that collectives are arranged by may be waiting.
    place = f"clip3dreid/prepare/{launched}/{next(_MEETINGS[launched])}"
    own = distributed_c10d.PrefixStore(place, store.clone())
    return Ranks(dist.get_rank(), dist.get_world_size(), folder=folder, store=own)
