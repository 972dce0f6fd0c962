"""Walking a data set's folders: what is there, what its names say, and what to say where they differ."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import polars as pl

from clip3dreid.data.manifest import Manifest, Published, build
from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose, some
from clip3dreid.io.formats import read_text
from clip3dreid.io.pictures import cannot_enter, is_hidden, kind_of, require_utf8, tally

T = TypeVar("T")

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
        """Match the last `parts` parts of a path with forward slashes."""
        return self.pattern.fullmatch("/".join(path.split("/")[-self.parts :]))


Sort: TypeAlias = Literal["picture", "unread", "other", "above", "deeper"]
"""What lies in a folder of pictures: `above` and `deeper` are pictures on another level than they are expected on, or
a folder with such."""


@dataclasses.dataclass(frozen=True)
class Tree:
    """A data set's folder, and what was found in it that is not read: nothing is left out without being counted.

    Attributes:
        name: the data set's name, for messages.
        root: the folder that all paths are relative to.
    """

    name: str
    root: Path
    _looked_at: set[str] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)
    """Folders and files that were asked for."""
    _listings: dict[tuple[str, int], list[str]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Pictures by folder and depth."""
    _in_lists: set[str] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)
    """Pictures that lists name."""
    _folders_with_lists: set[tuple[str, int]] = dataclasses.field(
        default_factory=set, init=False, repr=False, compare=False
    )
    _passed_over: list[str] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    def require(self, *expected: str) -> None:
        """Check that the root holds everything in `expected`: folders end with a slash, files do not.

        Raises:
            InputError: if something is missing; it says what was expected and the nearest match around.
        """
        self.choose({"": expected})

    def choose(self, layouts: Mapping[str, Sequence[str]]) -> str:
        """Find out which of several layouts the root has; the first that fits wins.

        Args:
            layouts: what each layout must hold, written as for `require`.

        Returns:
            The key of the layout.

        Raises:
            InputError: if none fits; it says what was expected and the nearest match around.
        """
        for layout, expected in layouts.items():
            if not _missing(self.root, expected):
                self._looked_at.update(path.rstrip("/") for path in expected)
                return layout
        raise InputError(f"{self.name}: {_misfit(self.root, layouts)}")

    def option(self, option: str, value: str, table: Mapping[str, T]) -> T:
        """Look the value of an option up in the table of those it may have.

        Raises:
            InputError: if it is none of them.
        """
        choose(f"{self.name}: {option}", value, table)
        return table[value]

    def pictures(self, folder: str = "", depth: int = 0, names: Names | None = None) -> list[str]:
        """List the pictures of a folder.

        Args:
            folder: relative to the root.
            depth: how many levels of folders lie between it and its pictures.
            names: how they are spelled, for the message where there is none.

        Returns:
            Paths relative to the root with forward slashes, sorted. Hidden files and everything that has not
            the suffix of a picture are left out, and counted for `manifest`.

        Raises:
            InputError: as `held` does; and if there is none: it says where the nearest pictures are.
        """
        where = self.root / folder
        if paths := self.held(folder, depth):
            return paths
        wanted = f"pictures such as {names.example}" if names else "pictures"
        problem = f"no {wanted} in {where}{'/*' * depth}" + ("" if where.is_dir() else ", which is not there")
        around = _folders(where) if folder else _neighbours(where)
        nearest = next((near for near in around if _holds(near, depth, names)), None)
        hint = f"the nearest pictures are in {nearest}" if nearest else "put the data set's pictures there"
        if nearest and not folder:
            hint += f": set data.root={nearest}"
        raise InputError(f"{self.name}: {problem}; {hint}")

    def held(self, folder: str, depth: int = 0) -> list[str]:
        """List the pictures of a folder, as `pictures` does; there may be none.

        Raises:
            InputError: if a folder cannot be entered, a name is not UTF-8, or pictures would be left out: they lie on
                another level, or are in formats that are not read.
        """
        if (folder, depth) in self._listings:
            return self._listings[folder, depth]
        self._looked_at.add(folder)
        where = self.root / folder
        sorted_out: dict[Sort, list[str]] = {
            "picture": [], "unread": [], "other": [], "above": [], "deeper": []
        }  # fmt: skip
        for sort, path in _walk(where, depth):
            sorted_out[sort].append(path)
        inside = f"{self.name}: {where}"
        require_utf8([*sorted_out["picture"], *sorted_out["unread"]], inside)
        pictures = sorted((f"{folder}/" if folder else "") + path for path in sorted_out["picture"])
        expected = "/".join(["FOLDER"] * depth + ["picture"])
        if unread := sorted_out["unread"]:
            raise InputError(
                f"{inside}: {len(unread)} pictures are in formats that are not read: {tally(unread)}; convert them "
                "to JPEG or PNG, or move them away"
            )
        if above := sorted_out["above"]:
            raise InputError(
                f"{inside}: {len(above)} pictures lie in the folder itself: {some(sorted(above), 3)}; expected is "
                f"{expected}: put them into a folder, or move them away"
            )
        # Where there is no picture at all the caller says where the nearest ones are.
        if (deeper := sorted_out["deeper"]) and pictures:
            raise InputError(
                f"{inside}: {len(deeper)} folders hold pictures on a deeper level: {some(sorted(deeper), 3)}; "
                f"expected is {expected}: move the pictures up, or the folders away"
            )
        self._passed_over.extend((f"{folder}/" if folder else "") + path for path in sorted_out["other"])
        self._listings[folder, depth] = pictures
        return pictures

    def without_pictures(self, folder: str, depth: int) -> list[str]:
        """List the folders at a depth of a folder, 1 or more, that hold no pictures.

        Args:
            folder: relative to the root.
            depth: of the folders that `held` finds pictures in.

        Returns:
            Paths relative to the root, sorted; hidden folders are not among them.

        Raises:
            InputError: as `held`.
        """
        held = {path.rpartition("/")[0] for path in self.held(folder, depth)}
        folders = [folder]
        for _ in range(depth):
            folders = [
                f"{above}/{entry.name}" if above else entry.name
                for above in folders
                for entry in _entries(self.root / above, strict=True)
                if entry.is_dir() and not is_hidden(entry.name)
            ]
        return [path for path in folders if path not in held]

    def manifest(
        self,
        rows: Iterable[dict[str, Any]] | pl.DataFrame,
        notes: Sequence[str] = (),
        published: Sequence[Published] = (),
    ) -> Manifest:
        """Make the data set's manifest, whose notes count what lies in the folder and is not read.

        Args:
            rows: as `manifest.build` takes them.
            notes: what else there is to say.
            published: counts to compare with.

        Raises:
            InputError: as `manifest.build`.
        """
        return build(self.name, self.root, rows, [*notes, *self._left_out()], published)

    def _left_out(self) -> Iterator[str]:
        for folder, depth in sorted(self._folders_with_lists):
            if unlisted := [path for path in self._listings[folder, depth] if path not in self._in_lists]:
                yield f"{len(unlisted)} pictures of {folder} are in no list and left out: {some(unlisted, 3)}"
        beside = list(self._beside())
        if passed_over := [*self._passed_over, *(name for name in beside if not name.endswith("/"))]:
            yield f"{len(passed_over)} files that are no pictures are passed over: {tally(passed_over)}"
        if folders := [name for name in beside if name.endswith("/")]:
            yield f"{len(folders)} folders beside the data set's are not looked at: {some(folders, 3)}"

    def folders(self) -> list[str]:
        """Return names of the folders of the root, sorted; hidden ones are not among them.

        Raises:
            InputError: if the root cannot be looked into.
        """
        entries = _entries(self.root, strict=True)
        return [entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)]

    def _beside(self) -> Iterator[str]:
        """Return entries that lie beside what was asked for, on every level; folders end with a slash."""
        known = {
            "/".join(parts[: end + 1]) for parts in map(_parts, self._looked_at) for end in range(len(parts))
        }
        for folder in sorted({path.rpartition("/")[0] for path in known}):
            for entry in _entries(self.root / folder, strict=True):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if path not in known:
                    yield path + ("/" if entry.is_dir() else "")

    def parse(self, paths: Iterable[str], names: Names) -> list[tuple[str, re.Match[str]]]:
        """Read the names of pictures.

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
                f"{names.example}): {some(bad, SHOWN)}; rename them or move them away"
            )
        return [(path, match) for path, match in matches if match is not None]

    def read(self, folder: str, names: Names, depth: int = 0) -> list[tuple[str, re.Match[str]]]:
        """List the pictures of a folder and read their names: `pictures`, then `parse`."""
        return self.parse(self.pictures(folder, depth, names), names)

    def lines(self, file: str) -> list[str]:
        """Read a list that belongs to the data set.

        Raises:
            InputError: if it is no UTF-8 text.
        """
        path = self.root / file
        return read_text(path, f"{self.name}: {path}", "fetch the list again").splitlines()

    def keep_to(self, folder: str, paths: Iterable[str], depth: int = 0) -> None:
        """Take note that a list says which pictures of a folder belong to the data set; the others are counted.

        Args:
            folder: whose pictures were listed, relative to the root.
            paths: of pictures, relative to the root; several lists add up.
            depth: as in `pictures`.
        """
        self._folders_with_lists.add((folder, depth))
        self._in_lists.update(paths)

    def listed(
        self, file: str, folder: str, separator: str | None = None, depth: int = 0
    ) -> list[tuple[str, str]]:
        """Read a list of pictures with a number each.

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
        for place, line in enumerate(self.lines(file), start=1):
            if not line.strip():
                continue
            path, *digits = line.strip().rsplit(separator, 1)
            if not digits or not digits[0].strip().isdecimal():
                raise InputError(
                    f"{self.name}: line {place} of {self.root / file} is {line!r}, not a path and a number; "
                    "fetch the list again"
                )
            pairs.append((f"{folder}/{path.strip()}", number(digits[0])))
        if not pairs:
            raise InputError(f"{self.name}: {self.root / file} lists no pictures; fetch the list again")
        self._looked_at.add(file)
        there = set(self.pictures(folder, depth))
        self.keep_to(folder, [path for path, _ in pairs], depth)
        if absent := [path for path, _ in pairs if path not in there]:
            raise InputError(
                f"{self.name}: {len(absent)} of the {len(pairs)} pictures listed in {self.root / file} are "
                f"not there: {some(absent, SHOWN)}; unpack the data set again"
            )
        return pairs


def _parts(path: str) -> list[str]:
    return path.split("/") if path else []


def number(digits: str) -> str:
    """Return the number of a label without leading zeros: `"012"` is `"12"`, so that spellings never differ."""
    return str(int(digits))


def _entries(folder: Path, strict: bool = False) -> list[os.DirEntry[str]]:
    """List a folder, sorted; nothing where it is not there, and, if not `strict`, where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if strict:
            cannot_enter(error)
        return []


def _walk(folder: Path, depth: int, strict: bool = True) -> Iterator[tuple[Sort, str]]:
    """List what lies at a depth of a folder and above it, and, of what is deeper, the folders that hold pictures."""
    for entry in _entries(folder, strict):
        name = entry.name
        # A link to nowhere is a picture that is missing, and not something else.
        if entry.is_dir():
            if is_hidden(name):
                yield "other", f"{name}/"
            elif depth:
                for sort, path in _walk(Path(entry.path), depth - 1, strict):
                    yield sort, f"{name}/{path}"
            else:
                yield ("deeper" if holds_pictures(Path(entry.path)) else "other"), f"{name}/"
        elif is_hidden(name) or (kind := kind_of(name)) == "other":
            yield "other", name
        else:
            yield ("above" if depth else kind), name


def holds_pictures(folder: Path) -> bool:
    """Return whether there are pictures in a folder, at any depth; it looks into some hundred folders at most."""
    for place, (_, folders, files) in enumerate(os.walk(folder, followlinks=True)):
        if place == NEIGHBOURS:
            break
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        if any(not is_hidden(name) and kind_of(name) != "other" for name in files):
            return True
    return False


def _holds(folder: Path, depth: int, names: Names | None) -> bool:
    """Return whether the first picture at a depth of a folder is of the data set looked for."""
    first = next((path for sort, path in _walk(folder, depth, strict=False) if sort == "picture"), None)
    return first is not None and (names is None or names.match(first) is not None)


def _missing(root: Path, expected: Sequence[str]) -> list[str]:
    def there(path: str) -> bool:
        try:
            return (root / path).is_dir() if path.endswith("/") else (root / path).is_file()
        except OSError:  # a folder that may not be entered
            return False

    return [path for path in expected if not there(path)]


def _misfit(root: Path, layouts: Mapping[str, Sequence[str]]) -> str:
    """Return why a root fits no layout, what was expected, and the nearest match, in one line."""
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
    return f"{problem}; expected {expected}; {look_alike(root, missing)}"


def _neighbours(root: Path) -> Iterator[Path]:
    """Return folders up to two levels around a root, nearest first; of its siblings the one spelled most like it."""

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
    return [Path(entry.path) for entry in islice(_visible(folder), NEIGHBOURS) if entry.is_dir()]


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if not is_hidden(entry.name)]


def look_alike(root: Path, missing: Sequence[str]) -> str:
    """Return the entry that is spelled most like the first thing missing, or what is there instead."""
    wanted = root if not root.is_dir() else root / missing[0]
    while not wanted.parent.is_dir():
        wanted = wanted.parent
    there = {entry.name.lower(): entry.name for entry in _visible(wanted.parent)}
    if alike := difflib.get_close_matches(wanted.name.lower(), there, n=1, cutoff=0.5):
        return f"the nearest match to {wanted.name} is {wanted.parent / there[alike[0]]}"
    held = ", ".join(islice(there.values(), SHOWN)) or "nothing"
    return f"nothing like {wanted.name} in {wanted.parent}, which holds {held}"
