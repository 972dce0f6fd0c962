"""CCVID: walking sequences of 226 people in three sessions, clothes labelled.

Gu et al., "Clothes-Changing Person Re-identification with RGB Modality Only", CVPR 2022; made from FVG, Zhang et
al., "Gait Recognition via Disentangled Representation Learning", CVPR 2019.
"""

import re
from pathlib import Path
from typing import Any

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tracklets import spread
from clip3dreid.data.tree import SHOWN, Names, Tree, number
from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, some

# A tracklet's folder: the session, then person and walk.
TRACKLET = re.compile(r"session(?P<session>\d+)/(?P<person>\d+)_(?P<walk>\d+)")
EXAMPLE = "session1/001_01 001 u0_l0_s0_c0_a0"
NAMES = Names(re.compile(r"(\d+)\.\w+"), "00001.jpg")
PARTS = (("train.txt", "train", "train"), ("query.txt", "test", "query"), ("gallery.txt", "test", "gallery"))
WALKS = 12
"""Walks, and so cameras, of the first two sessions: those of session 3 are counted on from here, as the authors' code
does."""
CAVEAT = (
    "cameras are the numbers of walks, 12 more in session 3, as published, and no cameras: sessions 1 and 2 share "
    "them, so that what drops the query's camera drops the same walk of another day, and leaves other walks past the "
    "same camera"
)
PUBLISHED = (
    Published("all", "people", 226),
    Published("all", "pictures", 347_833),
    Published("all", "tracklets", 2_856),
    Published("train", "people", 75),
    Published("train", "clothes", 159),
    Published("train", "tracklets", 948),
    Published("test", "people", 151),
    Published("test", "clothes", 321),
    Published("query", "pictures", 116_799),
    Published("gallery", "pictures", 112_421),
    Published("query", "tracklets", 834),
    Published("gallery", "tracklets", 1_074),
)


def read(root: Path, frames: int = 0) -> Manifest:
    """Read the frames of CCVID from the folder that holds the three lists and `session1` … `session3`.

    The camera is the number of the walk, and twelve more in session 3 (another day, another place), as the authors'
    code counts. An outfit is named `person_label`: the labels of the lists count each person's own garments.

    Args:
        root: the folder.
        frames: how many frames of a tracklet to take, evenly spread from its first on; 0 takes all. Neighbouring
            frames of a video differ little: a few are enough for pictures.

    Raises:
        InputError: if the layout, a list or a name is another, a listed tracklet is not there or has no pictures, or
            `frames` is negative.
    """
    check_number("ccvid: frames", frames, Range(0), whole=True)
    tree = Tree("ccvid", root)
    tree.require(*(file for file, _, _ in PARTS), "session1/")
    rows: list[dict[str, Any]] = []
    absent: list[str] = []
    empty: list[str] = []
    for file, split, role in PARTS:
        for folder, person, label, walk in _listed(tree, file):
            pictures = tree.held(folder)
            if not pictures:
                (empty if (root / folder).is_dir() else absent).append(folder)
                continue
            session, camera = walk["session"], int(walk["walk"])
            in_time = sorted(tree.parse(pictures, NAMES), key=lambda one: int(one[1][1]))
            for path, name in spread(in_time, frames):
                rows.append(
                    {
                        "path": path,
                        "person": person,
                        "camera": str(camera + WALKS if session == "3" else camera),
                        "clothes": f"{person}_{label}",
                        "tracklet": folder,
                        "frame": int(name[1]),
                        "split": split,
                        "role": role,
                    }
                )
    for wrong, what in ((absent, "are not there"), (empty, "have no pictures")):
        if wrong:
            raise InputError(
                f"ccvid: {len(wrong)} listed tracklets {what} in {root}: {some(wrong, SHOWN)}; unpack the data set "
                "again"
            )
    notes = [CAVEAT]
    if frames:
        notes.append(f"up to {frames} frames of each tracklet, evenly spread")
    return tree.manifest(rows, notes, PUBLISHED if not frames else _without_pictures())


def _listed(tree: Tree, file: str) -> list[tuple[str, str, str, re.Match[str]]]:
    """Return folder, person, clothes label and parsed folder of each line of a list.

    Raises:
        InputError: if the list is empty or a line is another.
    """
    tracklets = []
    for place, line in enumerate(tree.lines(file), start=1):
        if not line.strip():
            continue
        folder, *labels = line.split()
        walk = TRACKLET.fullmatch(folder.strip("/"))
        if walk is None or len(labels) != 2 or not labels[0].isdecimal():
            raise InputError(
                f"ccvid: line {place} of {tree.root / file} is {line!r}, not tracklet, person and clothes such as "
                f"{EXAMPLE!r}; fetch the list again"
            )
        tracklets.append((folder.strip("/"), number(labels[0]), labels[1], walk))
    if not tracklets:
        raise InputError(f"ccvid: {tree.root / file} lists no tracklets; fetch the list again")
    return tracklets


def _without_pictures() -> tuple[Published, ...]:
    """Return the published counts that a choice of frames leaves as they are."""
    return tuple(count for count in PUBLISHED if count.what != "pictures")
