"""The folder that a world is written to: what it may hold, what may be removed from it, whether there is room.

The rule is that nobody's files get lost: only files that a `world.json` lists are ever removed, only when asked for,
and never through a link; a folder that holds anything else is refused, since pictures of two data sets must not mix
either.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from clip3dreid.data.truth_file import WRITE_ANEW
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.files import inside, remove
from clip3dreid.io.flatten import flatten
from clip3dreid.io.formats import decoding, peek_json, read_json, seal, unseal
from clip3dreid.io.work_folder import WorkFolder

SCHEMA_VERSION = 1
FORMAT = "clip3dreid world"
WORLD, WORK = "world.json", ".world"
_CHUNK = re.compile(r"chunk-\d{6}\.parquet")
WORK_FOLDER = WorkFolder(WORK, lambda name: _CHUNK.fullmatch(name) is not None)
"""Holds the truth of finished chunks."""


class FolderState(NamedTuple):
    """What a folder holds already."""

    complete: bool = False
    """The very world, with all its files."""
    replaced: tuple[str, ...] = ()
    """Files of another world that is to be replaced."""


def examine(out: Path, facts: Mapping[str, Any], overwrite: bool) -> FolderState:
    """Look at the folder that a world is to be written to; nothing is changed.

    Args:
        out: the folder, which need not be there.
        facts: what `world.json` is to say, `complete` excepted.
        overwrite: another world may be replaced.

    Raises:
        InputError: if `out` is a file or holds something else, alone or beside a world that is to be replaced, or
            another world and `overwrite` is false; or if a link is where the world has a folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; choose a folder")
    WORK_FOLDER.check(out)
    earlier = _read(out / WORLD)
    held = {
        path for path in _files(out) if not any(part.startswith(".") for part in PurePosixPath(path).parts)
    }
    if earlier is None:
        if held:
            raise InputError(
                f"out={out} holds something else ({some(sorted(held), 3)}); choose another folder, or move it away: "
                "overwrite=true replaces worlds only"
            )
        return FolderState()
    difference = _difference(earlier, facts)
    if difference is None and earlier.get("complete") is True:
        if not (lost := [path for path in facts["files"] if path not in held]):
            return FolderState(complete=True)
        difference = f"{len(lost)} of its files are gone, such as {lost[0]}"
    if difference is None:
        for folder in sorted({str(PurePosixPath(path).parent) for path in facts["files"]}):
            inside(out, folder)
        return FolderState()
    if not overwrite:
        raise InputError(
            f"out={out} holds another world: {difference}; choose another folder, or set overwrite=true"
        )
    listed = set(earlier.get("files") or ()) | {WORLD}
    if foreign := sorted(held - listed):
        raise InputError(
            f"out={out} holds {len(foreign)} files that are not of the world there ({some(foreign, 3)}); "
            "move them away, or choose another folder"
        )
    # What the list names and the folder does not hold, such as paths that lead out of it, is not removed.
    return FolderState(replaced=tuple(sorted(held)))


def world_facts(folder: Path) -> dict[str, Any]:
    """Return what `world.json` says of a complete world.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    path, kind = folder / WORLD, "the facts of a world"
    facts = unseal(read_json(path, kind, WRITE_ANEW), path, WRITE_ANEW)
    with decoding(path, kind, WRITE_ANEW):
        _check(facts)
    return facts


def _check(facts: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError if a world's facts lack what is asked of them."""
    kinds = {"fingerprint": str, "counts": dict, "config": dict, "files": list}
    for key, kind in kinds.items():
        if not isinstance(facts[key], kind):
            raise TypeError(f"its {key} is a {type(facts[key]).__name__}")
    facts["config"]["seed"]


def sealed_facts(facts: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    """Return what `world.json` is to say, with its checksum.

    Args:
        facts: all but whether it is `complete`.
        complete: all its files are there.
    """
    return seal({**facts, "complete": complete})


def _read(path: Path) -> dict[str, Any] | None:
    """Return what `world.json` says; None if it is none of this program's.

    Raises:
        InputError: if it is one that is damaged.
    """
    facts = peek_json(path)
    if facts is None or facts.get("format") != FORMAT:
        return None  # whosever it is: the folder then holds something else
    if facts.get("version") != SCHEMA_VERSION:  # and sealed in its own way
        return facts
    return unseal(
        facts, path, "move the folder away, or bring that file back: what it lists would be replaced"
    )


def _files(folder: Path) -> Iterator[str]:
    """Return all files below a folder, and links to folders, relative to it, with forward slashes."""
    for here, folders, names in os.walk(folder):
        linked = [name for name in folders if (Path(here) / name).is_symlink()]
        for name in (*names, *linked):
            yield (Path(here) / name).relative_to(folder).as_posix()


def _difference(earlier: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """Return what an earlier world has that this one has not, in a few words; None if they are the same."""
    if earlier.get("version") != SCHEMA_VERSION:
        return f"its version is {earlier.get('version')}, this program writes {SCHEMA_VERSION}"
    # Once it is complete, it does not matter who drew it.
    compared = ("config",) if earlier.get("complete") is True else ("config", "environment")
    there = flatten({key: earlier.get(key) for key in compared})
    here = flatten({key: facts[key] for key in compared})
    keys = [
        key for key in sorted(there.keys() | here.keys()) if not _same(key, there.get(key), here.get(key))
    ]
    if not keys and earlier.get("files") != facts["files"]:
        return "it has other files"
    if not keys:
        return None
    differences = [
        f"{key.partition('.')[2]} is {_short(there.get(key))} there and {_short(here.get(key))} here"
        for key in keys
    ]
    return some(differences, 3)


def _same(key: str, there: Any, here: Any) -> bool:
    """Return whether two worlds agree in a value; what made it may have moved to another module since."""
    if key.endswith("._target_"):
        there, here = (str(value).rpartition(".")[2] for value in (there, here))
    return bool(there == here)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def clear(out: Path, files: Sequence[str]) -> None:
    """Remove files of an earlier world, what it was working on, and the folders that this leaves empty.

    Its `world.json` stays until the new one replaces it, so that the rest is still known for a world's if the program
    is killed here.
    """
    WORK_FOLDER.clear(out)
    remove(out, [path for path in files if path != WORLD])


def check_space(out: Path, needed: float, pictures: int, replaced: Sequence[str] = ()) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        out: the folder, which need not be there.
        needed: bytes.
        pictures: how many are to be written, for the message.
        replaced: files in it that will make room.

    Raises:
        InputError: with the bytes needed and available.
    """
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    room = 0
    for path in replaced:
        with suppress(FileNotFoundError):  # whoever is at work there may just have removed it
            room += (out / path).lstat().st_size
    free = shutil.disk_usage(folder).free + room
    if needed > free:
        raise InputError(
            f"the disk of out={out} is too full: up to {needed / 1e6:,.1f} MB are needed for {pictures:,} pictures, "
            f"{free / 1e6:,.1f} MB are free; make room, choose another disk, or ask for fewer or smaller pictures"
        )
