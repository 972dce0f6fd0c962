"""Keep long work in a folder of parts, so that a killed run goes on where it stopped.

The work is on a list of rows, cut into parts of consecutive ones. The folder holds `index.json`, which says what made
the parts and of how many rows they are, and the parts, numbered from 0, each of one file or several. Shards of an
extraction and a teacher's embeddings are such folders. What they have in common:

- A part is made of nothing but its own rows and is written whole or not at all, so a folder that was filled in many
  goes is the same as one that was filled in one.
- Opening a folder looks at every part (`Parts`): what is there and good is kept, all else is missing.
- A folder is of one plan. One of another (another model, other settings) is refused by name, and so is one that has
  files of the parts' names and no index that says whose they are: nobody's work is written over.
- Looking changes nothing. Whoever fills it has locked it (`locks.at_work`), and writes nothing through a link.
- Of several processes that fill it together each makes its own parts.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from clip3dreid.errors import InputError
from clip3dreid.io.checks import allows, some
from clip3dreid.io.files import atomic, inside, reason_of, remove, sweep, write_json
from clip3dreid.io.formats import damaged, read_json, seal, unseal

INDEX = "index.json"


@dataclass(frozen=True)
class PartKind:
    """What folders of one kind hold.

    Attributes:
        what: they hold, for messages, such as `shards`.
        stem: of the parts' files; `shard` makes `shard-000000.parquet`.
        digits: of their numbers.
        suffixes: of the files that a part may have.
        version: of the index.
        needs: key -> what the index must say beside, as `io.checks.allows` has it: an annotation of settings, or a
            class.
        elsewhere: what to do about a folder that holds something else, such as `give another out`.
        others: names of the program's other files there.
        sealed: the index has a checksum.
    """

    what: str
    stem: str
    digits: int
    suffixes: tuple[str, ...]
    version: int
    needs: Mapping[str, Any]
    elsewhere: str
    others: tuple[str, ...] = ()
    sealed: bool = True

    def name(self, number: int, suffix: str) -> str:
        """Return the name of a part's file."""
        return f"{self.stem}-{number:0{self.digits}d}{suffix}"

    def number(self, name: str) -> int | None:
        """Return the number of the part that a file of this name is of; None: of none."""
        suffixes = "|".join(map(re.escape, self.suffixes))
        match = re.fullmatch(rf"{self.stem}-(\d{{{self.digits},}})({suffixes})", name)
        return int(match[1]) if match else None


def cut(rows: int, rows_per_part: int) -> list[range]:
    """Return the rows of each part: N rows in pieces of equal size, the last one of what is left."""
    count = math.ceil(rows / rows_per_part)
    return [range(n * rows_per_part, min((n + 1) * rows_per_part, rows)) for n in range(count)]


def read_index(folder: Path, kind: PartKind) -> dict[str, Any]:
    """Read what a folder says that it holds.

    Raises:
        InputError: if there is no index, it is damaged, or of another version.
    """
    path, again = folder / INDEX, f"restore it, or {kind.elsewhere}"
    index = read_json(path, f"the index of {kind.what}", again)
    if index.get("version") != kind.version:
        raise InputError(
            f"{path} has version {index.get('version')}, this program reads {kind.version}; {kind.elsewhere}"
        )
    if wrong := [key for key, wanted in kind.needs.items() if not allows(wanted, index.get(key))]:
        raise damaged(path, f"its {wrong[0]} is missing or cannot be", again)
    return unseal(index, path, again) if kind.sealed else index


def look_into(folder: Path, kind: PartKind) -> dict[str, Any] | None:
    """Read what a folder that is to be filled says that it holds; nothing is changed.

    Args:
        folder: which need not be there.
        kind: of its parts.

    Returns:
        What its index says; None if it has none.

    Raises:
        InputError: as `read_index`, and if the folder is a file, or holds files of the parts' names that are nobody
            knows whose, or its index is a link.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder; {kind.elsewhere}")
    # Before the index is looked for, which others who fill the folder with us write before their first part.
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if os.path.lexists(inside(folder, INDEX)):
        return read_index(folder, kind)
    if foreign := [name for name in names if kind.number(name) is not None or name in kind.others]:
        raise InputError(
            f"{folder} holds files of the names that {kind.what} have ({some(foreign, 3)}) and no {INDEX} that says "
            f"whose they are; {kind.elsewhere}, or move them away"
        )
    return None


@dataclass
class Parts:
    """A folder of parts that is being filled.

    Args:
        folder: locked, or only looked at.
        kind: of its parts.
        cuts: rows of each part (`cut`).
        usable: whether the part of a number, of which there is a file, is good and of the files as they are now.
        share: (process, processes): every `processes`-th part is this process's.

    Attributes:
        done: numbers of this process's parts that are there.
        stale: how many of its parts are there and cannot be used.
    """

    folder: Path
    kind: PartKind
    cuts: list[range]
    # Asked once and not kept: a method of the owner's would keep it alive in a circle, with all that it maps.
    usable: InitVar[Callable[[int], bool]]
    share: tuple[int, int] = (0, 1)
    done: set[int] = field(init=False)
    stale: int = field(init=False)

    def __post_init__(self, usable: Callable[[int], bool]) -> None:
        there = [number for number in self.mine if any(path.exists() for path in self._files(number))]
        self.done = {number for number in there if usable(number)}
        self.stale = len(there) - len(self.done)

    @property
    def mine(self) -> range:
        """Return the numbers of this process's parts."""
        process, processes = self.share
        return range(process, len(self.cuts), processes)

    def missing(self) -> list[int]:
        """Return the numbers of this process's parts that are still to be made."""
        return [number for number in self.mine if number not in self.done]

    def look_again(self, usable: Callable[[int], bool]) -> None:
        """Take in what others have made since.

        Args:
            usable: as it was when the folder was opened; False for a part of which there is no file.
        """
        self.done.update(number for number in self.missing() if usable(number))

    def sweep(self) -> None:
        """Remove what killed processes were just writing, of this process's parts; the first one's, also the rest."""
        process, processes = self.share

        def is_mine(name: str) -> bool:
            number = self.kind.number(name)
            return number is not None and number % processes == process

        # Another's may just be being written.
        sweep(self.folder, is_mine)
        if process == 0:
            sweep(self.folder, (INDEX, *self.kind.others).__contains__)

    def remove_beyond(self, before: int) -> None:
        """Remove parts of an earlier, longer list, of which an index has told that there were `before`."""
        numbers = range(len(self.cuts), before)
        remove(self.folder, (self.kind.name(n, suffix) for n in numbers for suffix in self.kind.suffixes))

    def write_index(self, facts: Mapping[str, Any]) -> None:
        """Write what the folder holds; before the first part, so that whatever lies there is known for what it is."""
        write_json(inside(self.folder, INDEX), seal(facts) if self.kind.sealed else dict(facts))

    @contextmanager
    def write(self, number: int, suffix: str) -> Iterator[Path]:
        """Yield a temporary path, which becomes a file of a part when the block succeeds.

        Raises:
            InputError: if a link is in the way, or the file cannot be written, a full disk included.
        """
        name = self.kind.name(number, suffix)
        path = inside(self.folder, name)
        try:
            with atomic(path) as temporary:
                yield temporary
        except InputError as error:
            if error.__cause__ is None:
                raise
            raise InputError(
                f"cannot write {name} to {self.folder}: {reason_of(error.__cause__)}; make room and run again: the "
                "rest is kept"
            ) from error

    def _files(self, number: int) -> Iterable[Path]:
        return (self.folder / self.kind.name(number, suffix) for suffix in self.kind.suffixes)
