"""Keep what is not finished in a hidden folder within the one that is being filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.files import close_stages, inside, is_stage, remove


@dataclass(frozen=True)
class WorkFolder:
    """A working folder, of which nobody's files get lost.

    Args:
        name: of the folder, within the one that is being filled.
        is_ours: whether a file of that name is this program's; stages (`files.open_stage`) are, besides.
    """

    name: str
    is_ours: Callable[[str], bool]

    def check(self, out: Path) -> None:
        """Check that the working folder, if there is one, is this program's and holds nothing else.

        Raises:
            InputError: if it is a file or a link, or holds something else.
        """
        work = inside(out, self.name)
        names = [self.name] if work.is_file() else self.names(out)
        if foreign := [name for name in names if not (self.is_ours(name) or is_stage(name))]:
            raise InputError(f"{work} holds something else ({some(foreign, 3)}); move it away")

    def names(self, out: Path) -> list[str]:
        """Return what the working folder holds, sorted."""
        with suppress(OSError):  # not there, or just being removed by whoever is at work
            return sorted(path.name for path in inside(out, self.name).iterdir())
        return []

    def clear(self, out: Path, last: Sequence[str] = ()) -> None:
        """Remove the working folder, of which `check` has found that it is this program's.

        Args:
            out: the folder that is being filled.
            last: names of files that say whose the rest is: they are removed after it.
        """
        work = inside(out, self.name)
        if work.is_dir():
            remove(work, [name for name in self.names(out) if self.is_ours(name) and name not in last])
            remove(work, last)
            close_stages(work)
