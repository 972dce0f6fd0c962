"""The folder of a blurred copy: what it may hold, what an earlier run has done in it, what may be removed from it.

While it is being made the folder holds a folder `.blur_faces`; then `blur_faces.csv` says what became of each file
and `blur_faces.json` how many there were, with detector and kernel. Nobody's files get lost: only files that these
lists name are ever removed, and a file that they do not name is never written over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.files import inside, remove, write_json
from clip3dreid.io.formats import damaged, decoding, peek_json
from clip3dreid.io.pictures import is_hidden, require_utf8
from clip3dreid.io.staging import staged
from clip3dreid.io.work_folder import WorkFolder

REPORT_VERSION = 1
REPORT = "blur_faces.json"
LISTING = "blur_faces.csv"
WORK = ".blur_faces"
"""Folder in an unfinished copy: its settings, its list of files, those that are done, and files being written."""
SETTINGS, FILES, JOURNAL = "settings.json", "files.json", "done.jsonl"
WORKING_FILES = (JOURNAL, FILES, SETTINGS)
"""In the order in which they are removed, so that what is left is known for its own."""


def _is_ours(name: str) -> bool:
    """Return whether a killed run may have left a file in the working folder."""
    return name in WORKING_FILES or (name.startswith((".settings-", ".files-")) and name.endswith(".json"))


WORK_FOLDER = WorkFolder(WORK, _is_ours)


class Outcome(NamedTuple):
    """What became of one file."""

    path: str
    """Relative to the source, with forward slashes."""
    outcome: str
    """`blurred`, `no_face` (picture copied as it is), `copied` (no picture) or `unreadable` (left out)."""
    boxes: int
    """Boxes that the detector gave; several may lie on one face."""


class BlurReport(NamedTuple):
    """Counts over a finished copy."""

    pictures: int
    boxes: int
    without_face: int
    copied: int
    unreadable: int

    @property
    def share_without_face(self) -> float:
        """Return the fraction of the pictures, 0..1, in which no face was found."""
        return self.without_face / max(self.pictures, 1)


def walk(source: Path) -> tuple[list[str], list[str]]:
    """Return folders and files under `source`, sorted, relative to it, links to folders followed."""
    folders, files = [], []
    for here, below, names in os.walk(source, followlinks=True):
        place = Path(here)
        if place.is_symlink() and place.resolve() in (parent.resolve() for parent in place.parents):
            raise InputError(f"{place} links to a folder that holds it; remove the link")
        below[:] = sorted(name for name in below if not is_hidden(name))
        relative = place.relative_to(source)
        folders.append(relative.as_posix())
        files += [(relative / name).as_posix() for name in names if not is_hidden(name)]
    require_utf8([*folders, *files], f"source={source}")
    return folders, sorted(path for path in files if path not in (REPORT, LISTING))


def check_folder(
    out: Path, settings: Mapping[str, Any], folders: Sequence[str], files: Sequence[str], overwrite: bool
) -> None:
    """Check that the copy may be made, or gone on with, in the folder; nothing is changed.

    Raises:
        InputError: if the folder holds something else, or a copy that was made with other settings.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; choose a folder")
    for name in WORKING_FILES:
        inside(inside(out, WORK), name)
    WORK_FOLDER.check(out)
    earlier = _settings(out / WORK / SETTINGS) or _settings(out / REPORT)
    if earlier is not None and not overwrite:
        for key, value in settings.items():
            if earlier.get(key) != value:
                raise InputError(
                    f"out={out} was made with {key} {earlier.get(key)}, not {value}; choose another folder, "
                    "or set overwrite=true"
                )
    held = [name for name in _names(out) if not name.startswith(".")]
    if earlier is None and held and not overwrite:
        raise InputError(
            f"out={out} holds something else ({some(held, 3)}); choose another folder, or set overwrite=true, "
            "which replaces none of its files"
        )
    for folder in folders:
        inside(out, folder)
    ours = own_files(out) | ({REPORT, LISTING} if earlier is not None else set())
    foreign = [path for path in (*files, REPORT, LISTING) if path not in ours and os.path.lexists(out / path)]
    if foreign:
        raise InputError(
            f"out={out} holds {len(foreign)} files that are not of a blurred copy and would be written over "
            f"({some(foreign, 3)}); move them away, or choose another folder"
        )


def _names(folder: Path) -> list[str]:
    """Return what a folder holds, sorted; nothing if it is not there."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def own_files(out: Path) -> set[str]:
    """Return the files that an earlier run has made in the folder, or was going to make."""
    path, planned = out / WORK / FILES, []
    if path.is_file():
        advice = "restore it, or choose another folder"
        with decoding(path, "the list of a blurred copy", advice):
            planned = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(planned, list):
            raise damaged(path, "it holds no list", advice)
    listed = (*_listing(out / LISTING), *_journal(out / WORK / JOURNAL))
    return {str(path) for path in planned} | {outcome.path for outcome in listed}


def finished(out: Path) -> dict[str, Outcome]:
    """Return what an earlier run has done, by path."""
    return {
        outcome.path: outcome
        for outcome in (*_listing(out / LISTING), *_journal(out / WORK / JOURNAL))
        if outcome.outcome != "unreadable" and (out / outcome.path).is_file()
    }


def clear_copy(out: Path) -> None:
    """Remove an earlier copy, its lists last, so that what is left is known for its own if the program is killed."""
    remove(out, [path for path in sorted(own_files(out)) if path not in (REPORT, LISTING)])
    WORK_FOLDER.clear(out, WORKING_FILES)
    remove(out, [LISTING, REPORT])


def _settings(path: Path) -> dict[str, Any] | None:
    settings = peek_json(path)
    ours = settings is not None and {"version", "source", "detector", "kernel"} <= settings.keys()
    return settings if ours else None


def _journal(path: Path) -> Iterator[Outcome]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield Outcome(*json.loads(line))
            except (ValueError, TypeError, RecursionError):  # what was being written when the run was killed
                continue


def _listing(path: Path) -> Iterator[Outcome]:
    if path.is_file():
        advice = "restore it, or choose another folder"
        with decoding(path, "the list of a blurred copy", advice):
            outcomes = [Outcome._make(row) for row in pl.read_csv(path, glob=False).iter_rows()]
        yield from outcomes


def finish(out: Path, stage: Path, settings: Mapping[str, Any], outcomes: Sequence[Outcome]) -> BlurReport:
    """Write listing and report, and remove the working folder."""
    table = pl.DataFrame(
        sorted(outcomes), schema={"path": pl.String, "outcome": pl.String, "boxes": pl.Int64}, orient="row"
    )
    count = dict(table.group_by("outcome").len().iter_rows())
    report = BlurReport(
        pictures=count.get("blurred", 0) + count.get("no_face", 0),
        boxes=int(table["boxes"].sum()),
        without_face=count.get("no_face", 0),
        copied=count.get("copied", 0),
        unreadable=count.get("unreadable", 0),
    )
    with staged(stage, out, LISTING) as temporary:
        table.write_csv(temporary)
    share = {"share_without_face": report.share_without_face}
    with staged(stage, out, REPORT) as temporary:
        write_json(temporary, {**settings, **report._asdict(), **share})
    WORK_FOLDER.clear(out, WORKING_FILES)
    return report
