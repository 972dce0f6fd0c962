"""A folder of a small network of ours: written whole or not at all, with a list of checksums to know it by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.files import inside, writing
from clip3dreid.io.staging import UNFINISHED, close_stages, open_stage

CHECKSUMS = "SHA256SUMS"
WEIGHTS = "model.safetensors"
CARD = "card.json"


def check_place(folder: Path) -> None:
    """Check that a network may be written there, for the sake of what the folder holds."""
    inside(folder.parent, folder.name)
    if not folder.exists():
        return
    if not (folder / CHECKSUMS).is_file():
        raise InputError(f"{folder} is there and holds no network of ours; give another place")
    own = {name for _, name in _listed(folder)} | {CHECKSUMS}
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in own or path.is_dir())
    if foreign:
        raise InputError(
            f"{folder} holds {len(foreign)} files that are not of the network there ({some(foreign, 3)}); move "
            "them away, or give another place"
        )


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder, all of it or nothing; one of ours that was there before is replaced.

    Args:
        folder: where. Whoever else may write it must be kept away (`locks.at_work`).
        fill: writes the files into the empty folder that it is given; the list of checksums comes on top.

    Raises:
        InputError: if the place cannot be written, a full disk included, or holds something that is no such folder,
            or other files beside it.
    """
    check_place(folder)
    work = folder.parent / f".{folder.name}{UNFINISHED}"
    stage = open_stage(work)
    made, earlier = stage / "new", stage / "earlier"
    try:
        # The libraries that write weights have errors of their own.
        with writing(folder):
            made.mkdir()
            fill(made)
            lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(made.iterdir())]
            (made / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
            # Training takes its time: once more.
            check_place(folder)
            if folder.exists():
                folder.rename(earlier)
            made.rename(folder)
    finally:
        with suppress(OSError):
            close_stages(work)


def write_plain(path: Path, value: Mapping[str, Any]) -> None:
    """Write plain values as JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_sums(folder: Path) -> None:
    """Compare the files of a folder with its list of checksums, if it has one.

    Raises:
        InputError: naming the first file that is missing or differs, or the list if it is damaged.
    """
    if not (folder / CHECKSUMS).is_file():
        return
    for expected, name in _listed(folder):
        path = folder / name
        if not path.is_file() or _sha256(path) != expected:
            raise InputError(f"{path} is not the file that {CHECKSUMS} lists; get the folder anew")


def _listed(folder: Path) -> list[tuple[str, str]]:
    """Return checksums and names of a folder's list."""
    path = folder / CHECKSUMS
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(expected, name) for expected, name in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no list of checksums, or damaged; get the folder anew") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
