"""Walking a data set's folders: what is there, what its names say, and what to say where they differ."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from clip3dreid.errors import InputError
from clip3dreid.formats import read_text

T = TypeVar("T")

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Suffixes of pictures in lower case; any other file (Thumbs.db, .DS_Store, lists) is passed over."""

SHOWN = 10
"""How many offending names a message lists before it says how many more there are."""

NEIGHBOURS = 500
"""Folders looked at around a wrong root: enough for any tree of data sets, quick on a network disk."""


class Names(NamedTuple):
    """How a data set spells the names of its pictures."""

    pattern: re.Pattern[str]
    """Matched against the whole basename, so that the folders above it never matter."""
    example: str
    """A name that parses, for messages."""
    parts: int = 1
    """2 where a picture's folder belongs to its name, as PRCC's people do: matched against `folder/name`."""

    def match(self, path: str) -> re.Match[str] | None:
        """Matches the last `parts` parts of a path with forward slashes."""
        return self.pattern.fullmatch("/".join(path.split("/")[-self.parts :]))


class Tree(NamedTuple):
    """A data set's folder.

    Attributes:
        name: the data set's name, for messages.
        root: the folder that all paths are relative to.
    """

    name: str
    root: Path

    def require(self, *expected: str) -> None:
        """Checks that the root holds everything in `expected`: folders end with a slash, files do not.

        Raises:
            InputError: if something is missing; it says what was expected and the nearest match around.
        """
        self.choose({"": expected})

    def choose(self, layouts: Mapping[str, Sequence[str]]) -> str:
        """Finds out which of several layouts the root has; the first that fits wins.

        Args:
            layouts: what each layout must hold, written as for `require`.

        Returns:
            The key of the layout.

        Raises:
            InputError: if none fits; it says what was expected and the nearest match around.
        """
        for layout, expected in layouts.items():
            if not _missing(self.root, expected):
                return layout
        raise InputError(f"{self.name}: {_misfit(self.root, layouts)}")

    def option(self, option: str, value: str, table: Mapping[str, T]) -> T:
        """Looks the value of an option up in the table of those it may have.

        Raises:
            InputError: if it is none of them.
        """
        if value not in table:
            raise InputError(f"{self.name}: {option}={value} is not one of {', '.join(table)}")
        return table[value]

    def pictures(self, folder: str = "", depth: int = 0, names: Names | None = None) -> list[str]:
        """Lists the pictures of a folder.

        Args:
            folder: relative to the root.
            depth: how many levels of folders lie between it and its pictures.
            names: how they are spelled, for the message where there is none.

        Returns:
            Paths relative to the root with forward slashes, sorted. Hidden files and everything that has not
            the suffix of a picture are left out.

        Raises:
            InputError: if there is none; it says where the nearest pictures are.
        """
        where = self.root / folder
        if found := sorted((f"{folder}/" if folder else "") + path for path in _walk(where, depth)):
            return found
        wanted = f"pictures such as {names.example}" if names else "pictures"
        problem = f"no {wanted} in {where}{'/*' * depth}" + ("" if where.is_dir() else ", which is not there")
        around = _folders(where) if folder else _neighbours(where)
        nearest = next((near for near in around if _holds(near, depth, names)), None)
        hint = f"the nearest pictures are in {nearest}" if nearest else "put the data set's pictures there"
        if nearest and not folder:
            hint += f": set data.root={nearest}"
        raise InputError(f"{self.name}: {problem}; {hint}")

    def parse(self, paths: Iterable[str], names: Names) -> list[tuple[str, re.Match[str]]]:
        """Reads the names of pictures.

        Args:
            paths: of pictures, relative to the root.
            names: how they are spelled.

        Returns:
            Each path with the match of its name.

        Raises:
            InputError: if some do not parse; it lists up to ten and says how many there are.
        """
        matches = [(path, names.match(path)) for path in paths]
        if bad := [path for path, match in matches if match is None]:
            raise InputError(
                f"{self.name}: {len(bad)} file names in {self.root} do not parse (expected such as "
                f"{names.example}): {shorten(bad)}; rename them or move them away"
            )
        return [(path, match) for path, match in matches if match is not None]

    def read(self, folder: str, names: Names, depth: int = 0) -> list[tuple[str, re.Match[str]]]:
        """Lists the pictures of a folder and reads their names: `pictures`, then `parse`."""
        return self.parse(self.pictures(folder, depth, names), names)

    def listed(
        self, file: str, folder: str, separator: str | None = None, depth: int = 0
    ) -> list[tuple[str, str]]:
        """Reads a list of pictures with a number each.

        Args:
            file: text file relative to the root; each line is a path, the separator and the number.
            folder: where the listed paths begin, relative to the root.
            separator: between path and number; white space if None.
            depth: how many folders a listed path holds.

        Returns:
            Paths relative to the root, with their numbers as `number` spells them, in the order of the list.

        Raises:
            InputError: if the list is empty, a line has no number, or a listed picture is not there.
        """
        pairs = []
        path = self.root / file
        lines = read_text(path, f"{self.name}: {path}", "fetch the list again").splitlines()
        for place, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            listed, *label = line.strip().rsplit(separator, 1)
            if not label or not label[0].strip().isdecimal():
                raise InputError(
                    f"{self.name}: line {place} of {path} is {line!r}, not a path and a number; "
                    "fetch the list again"
                )
            pairs.append((f"{folder}/{listed.strip()}", number(label[0])))
        if not pairs:
            raise InputError(f"{self.name}: {path} lists no pictures; fetch the list again")
        there = set(self.pictures(folder, depth))
        if absent := [picture for picture, _ in pairs if picture not in there]:
            raise InputError(
                f"{self.name}: {len(absent)} of the {len(pairs)} pictures listed in {path} are "
                f"not there: {shorten(absent)}; unpack the data set again"
            )
        return pairs


def number(digits: str) -> str:
    """The number of a label without leading zeros: `"012"` is `"12"`, so that spellings never differ."""
    return str(int(digits))


def shorten(names: Sequence[str]) -> str:
    """Up to ten names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder shows, sorted; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        return []


def _walk(folder: Path, depth: int) -> Iterator[str]:
    for entry in _entries(folder):
        if depth and entry.is_dir():
            for path in _walk(Path(entry.path), depth - 1):
                yield f"{entry.name}/{path}"
        elif not depth and Path(entry.name).suffix.lower() in PICTURES and entry.is_file():
            yield entry.name


def _holds(folder: Path, depth: int, names: Names | None) -> bool:
    """Whether the first picture at a depth of a folder is of the data set looked for."""
    first = next(_walk(folder, depth), None)
    return first is not None and (names is None or names.match(first) is not None)


def _missing(root: Path, expected: Sequence[str]) -> list[str]:
    def there(path: str) -> bool:
        try:
            return (root / path).is_dir() if path.endswith("/") else (root / path).is_file()
        except OSError:  # a folder that may not be entered
            return False

    return [path for path in expected if not there(path)]


def _misfit(root: Path, layouts: Mapping[str, Sequence[str]]) -> str:
    """Why a root fits no layout, what was expected, and the nearest match, in one line."""
    expected = " or ".join(", ".join(paths) for paths in layouts.values())
    closest = min(layouts.values(), key=lambda paths: len(_missing(root, paths)) / len(paths))
    missing = _missing(root, closest)
    if root.is_dir():
        some = len(missing) < len(closest)
        problem = f"the data root {root} {'lacks ' + ', '.join(missing) if some else 'is another folder'}"
    else:
        problem = f"the data root {root} is {'a file' if root.exists() else 'not there'}"
    for folder in _neighbours(root):
        if any(not _missing(folder, paths) for paths in layouts.values()):
            return f"{problem}; expected {expected}; the nearest match is {folder}: set data.root={folder}"
    return f"{problem}; expected {expected}; {_look_alike(root, missing)}"


def _neighbours(root: Path) -> Iterator[Path]:
    """Folders up to two levels around a root, nearest first; of its siblings the one spelled most like it."""

    def unlike(folder: Path) -> float:
        return -difflib.SequenceMatcher(None, folder.name.lower(), root.name.lower()).ratio()

    root = root.absolute()
    parents = list(islice((p for p in root.parents if p.is_dir()), 2))
    children = _folders(root)
    siblings = sorted((folder for parent in parents[:1] for folder in _folders(parent)), key=unlike)
    grandchildren = (folder for child in children for folder in _folders(child))
    around = [*parents[:1], *children, *parents[1:], *grandchildren, *siblings]
    return islice((folder for folder in around if folder != root), NEIGHBOURS)


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in islice(_entries(folder), NEIGHBOURS) if entry.is_dir()]


def _look_alike(root: Path, missing: Sequence[str]) -> str:
    """The entry that is spelled most like the first thing missing, or what is there instead."""
    wanted = root if not root.is_dir() else root / missing[0]
    while not wanted.parent.is_dir():
        wanted = wanted.parent
    there = {entry.name.lower(): entry.name for entry in _entries(wanted.parent)}
    if alike := difflib.get_close_matches(wanted.name.lower(), there, n=1, cutoff=0.5):
        return f"the nearest match to {wanted.name} is {wanted.parent / there[alike[0]]}"
    held = ", ".join(islice(there.values(), SHOWN)) or "nothing"
    return f"nothing like {wanted.name} in {wanted.parent}, which holds {held}"
