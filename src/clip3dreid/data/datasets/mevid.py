"""MEVID: tracklets of 158 people in 598 outfits under 33 cameras, indoors and outdoors, from MEVA.

Davila et al., "MEVID: Multi-view Extended Videos with Identities for Video Person Re-Identification", WACV 2023;
files as github.com/Kitware/MEVID describes them and its loaders read them.
"""

import re
from pathlib import Path
from typing import NamedTuple

import polars as pl

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tracklets import spread
from clip3dreid.data.tree import SHOWN, Tree
from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, some
from clip3dreid.io.formats import read_text

NAME = re.compile(r"(?P<person>\d{4})O(\d+)C(?P<camera>\d+)T\d+F(\d+)\.jpg")
EXAMPLE = "0201O003C330T004F00192.jpg"
INFO, QUERIES = "track_{}_info.txt", "query_IDX.txt"
LOCATIONS = {
    **dict.fromkeys((329, 330, 507, 508, 509), "indoors"),
    **dict.fromkeys((301, 336, 340, 436, 505, 639), "outdoors"),
}
"""Where the cameras of the test split stand, as the authors' code divides them; it says nothing of other cameras."""
SCALES = {"m": "medium", "l": "large"}
UNLISTED = "unlisted"
"""The scale of a test tracklet that the list of scales does not name: another than the listed ones."""
PUBLISHED = (
    Published("all", "people", 158),
    Published("all", "clothes", 598),
    Published("all", "cameras", 33),
    Published("all", "tracklets", 8_092),
    Published("train", "people", 104),
    Published("train", "clothes", 485),
    Published("train", "tracklets", 6_338),
    Published("test", "people", 54),
    Published("test", "clothes", 113),
    Published("test", "tracklets", 1_754),
    Published("query", "tracklets", 316),
    Published("gallery", "tracklets", 1_438),
)


class _Track(NamedTuple):
    """A line of a list of tracklets."""

    first: int
    last: int
    person: int
    outfit: int
    camera: int


def read(root: Path, frames: int = 0, scales: Path | str | None = None) -> Manifest:
    """Read the frames of MEVID from the folder that holds its five lists, `bbox_train` and `bbox_test`.

    A tracklet is a line of `track_{train,test}_info.txt`, named `train_LINE` or `test_LINE`, counted from 0: the
    lines of `train_name.txt` or `test_name.txt` from its first to its last one, both included. Test tracklets that
    `query_IDX.txt` names are the queries, all others the gallery. An outfit is named `person_outfit`. The location of
    a test tracklet, indoors or outdoors, is that of its camera.

    Args:
        root: the folder.
        frames: how many frames of a tracklet to take, evenly spread from its first on; 0 takes all, about 590 each.
        scales: the authors' list `test_track_scale.txt`, which is no part of the data set: lines of a picture and `l`
            (large, 96 pixels or more as the root of its area) or `m` (medium). The test tracklet of the picture has
            that scale, wherever in the list it stands; one that is not listed is `unlisted`. None: scales are
            unknown.

    Raises:
        InputError: if the layout, a list or a name is another, listed pictures are not there, a tracklet's pictures
            are of another person or camera than its line says, the list of scales is another, or `frames` is
            negative.
    """
    check_number("mevid: frames", frames, Range(0), whole=True)
    tree = Tree("mevid", root)
    lists = [text for part in ("train", "test") for text in (f"{part}_name.txt", INFO.format(part))]
    tree.require(*lists, QUERIES, "bbox_train/", "bbox_test/")
    queries = {line[0] for line in _numbers(tree, QUERIES, 1)}
    tables, notes = [], []
    for part in ("train", "test"):
        folder = f"bbox_{part}"
        paths = _paths(tree, part)
        tracks = [_Track(*line) for line in _numbers(tree, INFO.format(part), 5)]
        if part == "test" and (beyond := [line for line in queries if not 0 <= line < len(tracks)]):
            raise InputError(
                f"mevid: {root / QUERIES} names tracklets {some(sorted(beyond), 3)} of {len(tracks)}; fetch the "
                "list again"
            )
        empty = [line for line, track in enumerate(tracks) if track.last < track.first]
        if empty:
            notes.append(f"{len(empty)} lines of {INFO.format(part)} name no pictures: {some(empty, 3)}")
        own = {
            line: _own(tree, part, line, track, paths)
            for line, track in enumerate(tracks)
            if track.first <= track.last
        }
        tree.keep_to(folder, [path for held in own.values() for path in held], depth=1)
        there = set(tree.pictures(folder, depth=1))
        if absent := [path for held in own.values() for path in held if path not in there]:
            raise InputError(
                f"mevid: {len(absent)} listed pictures are not in {root}: {some(absent, SHOWN)}; unpack the data set "
                "again"
            )
        sizes = _scales(tree, Path(scales), own) if part == "test" and scales is not None else {}
        if unlisted := [line for line, scale in sizes.items() if scale == UNLISTED]:
            notes.append(f"{len(unlisted)} test tracklets are not in {scales}: {some(unlisted, 3)}")
        tables.append(_table(part, tracks, own, queries, frames, sizes))
    if frames:
        notes.append(f"up to {frames} frames of each tracklet, evenly spread")
    return tree.manifest(pl.concat(tables), notes, PUBLISHED)


def _paths(tree: Tree, part: str) -> list[str]:
    """Return the pictures that a list of names names, relative to the root."""
    file = f"{part}_name.txt"
    names = [line.strip() for line in tree.lines(file) if line.strip()]
    if bad := [name for name in names if NAME.fullmatch(name) is None]:
        raise InputError(
            f"mevid: {len(bad)} names of {tree.root / file} do not parse (expected such as {EXAMPLE}): "
            f"{some(bad, SHOWN)}; fetch the list again"
        )
    return [f"bbox_{part}/{name[:4]}/{name}" for name in names]


def _numbers(tree: Tree, file: str, count: int) -> list[list[int]]:
    """Return whole numbers of a list, so many a line; they may be written as fractions (`1.03e+02`)."""
    lines = []
    for place, line in enumerate(tree.lines(file), start=1):
        if not line.strip():
            continue
        try:
            values = [float(cell) for cell in line.split()]
        except ValueError:
            values = []
        if len(values) != count or not all(value.is_integer() for value in values):
            raise InputError(
                f"mevid: line {place} of {tree.root / file} is {line!r}, not {count} whole numbers; fetch the list "
                "again"
            )
        lines.append([int(value) for value in values])
    return lines


def _own(tree: Tree, part: str, line: int, track: _Track, paths: list[str]) -> list[str]:
    """Return the pictures of a tracklet."""
    where = f"mevid: line {line + 1} of {tree.root / INFO.format(part)}"
    if not 0 <= track.first <= track.last < len(paths):
        raise InputError(
            f"{where} names pictures {track.first} to {track.last} of {len(paths)}; fetch the lists again"
        )
    own = paths[track.first : track.last + 1]
    for path in own:
        name = NAME.fullmatch(path.rpartition("/")[2])
        if name is None or (int(name["person"]), int(name["camera"])) != (track.person, track.camera):
            raise InputError(
                f"{where} is of person {track.person} and camera {track.camera}, and has {path}; fetch the lists "
                "again"
            )
    return own


def _scales(tree: Tree, file: Path, own: dict[int, list[str]]) -> dict[int, str]:
    """Return the scales of test tracklets, by the line of the tracklet, as a list of pictures tells them.

    The list is shorter than the data set by one and need not have its order: lines do not tell whose they are.
    """
    advice = "give test_track_scale.txt of github.com/Kitware/MEVID, or leave data.scales out"
    text = read_text(file, f"mevid: scales={file}", advice)
    said = {}
    for place, line in enumerate(text.splitlines(), start=1):
        name, *scale = line.split() or [""]
        if not name:
            continue
        if len(scale) != 1 or scale[0] not in SCALES or NAME.fullmatch(name) is None:
            raise InputError(
                f"mevid: line {place} of {file} is {line!r}, not a picture and one of {', '.join(SCALES)}; {advice}"
            )
        said[f"bbox_test/{name[:4]}/{name}"] = SCALES[scale[0]]
    found = {path: line for line, paths in own.items() for path in paths if path in said}
    if others := [path for path in said if path not in found]:
        raise InputError(
            f"mevid: {len(others)} pictures of {file} are in no test tracklet of {tree.root}: {some(others, 3)}; "
            f"{advice}"
        )
    named = {line: said[path] for path, line in found.items()}
    return {line: named.get(line, UNLISTED) for line in own}


def _table(
    part: str,
    tracks: list[_Track],
    own: dict[int, list[str]],
    queries: set[int],
    frames: int,
    scales: dict[int, str],
) -> pl.DataFrame:
    """Return a row for each picture; made of columns, since there are millions."""
    role = {True: "query", False: "gallery"} if part == "test" else dict.fromkeys((True, False), "train")
    table = pl.DataFrame(
        {
            "path": [spread(paths, frames) for paths in own.values()],
            "person": [str(tracks[line].person) for line in own],
            "camera": [str(tracks[line].camera) for line in own],
            "clothes": [f"{tracks[line].person}_{tracks[line].outfit}" for line in own],
            "tracklet": [f"{part}_{line}" for line in own],
            "split": part,
            "role": [role[line in queries] for line in own],
            "location": [LOCATIONS.get(tracks[line].camera) if part == "test" else None for line in own],
            "scale": [scales.get(line) for line in own],
        },
        schema_overrides={"path": pl.List(pl.String), "location": pl.String, "scale": pl.String},
    )
    return table.explode("path").with_columns(
        frame=pl.col("path").str.extract(r"F(\d+)\.\w+$").cast(pl.Int64)
    )
