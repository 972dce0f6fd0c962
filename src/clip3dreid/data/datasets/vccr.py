"""VCCR: tracklets of 392 people in 2 to 10 outfits each.

Layout and names as the public code of VCCReID-Baseline (github.com/dustin-nguyen-qil/VCCReID-Baseline) reads them;
Han et al., "3D Shape Temporal Aggregation for Video-Based Clothing-Change Person Re-Identification", ACCV 2022.
"""

import re
from pathlib import Path

import polars as pl

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number
from clip3dreid.io.checks import Range, check_number, some

# Parts between hyphens: something, letter and camera, letter and clothes, perhaps more, letter and frame.
_NAME = r"[^-/]+-\D(?P<camera>\d+)-\D(?P<clothes>\d+)(?:-[^-/]+)*-\D(?P<frame>\d+)\.\w+"
_PERSON = r"(?P<person>\d+)/"
EXAMPLE = "0001-C2-D1-F0003.jpg"
TRAIN = Names(re.compile(_PERSON + r"[^/]+/" + _NAME), f"0001/TRACKLET/{EXAMPLE}", parts=3)
TEST = Names(re.compile(_PERSON + r"[^/]+/[^/]+/" + _NAME), f"0001/CAMERA/TRACKLET/{EXAMPLE}", parts=4)
FOLDER_OF_CAMERA = r"^test_qg/[^/]+/[^/]+/[^/\d]*(\d+)/"
PARTS = (
    ("train", "train", "train", TRAIN),
    ("test_qg/query", "test", "query", TEST),
    ("test_qg/gallery", "test", "gallery", TEST),
)
PUBLISHED = (
    Published("all", "people", 392),
    Published("all", "tracklets", 4_384),
    Published("train", "people", 232, remembered=True),
    Published("train", "tracklets", 2_873, remembered=True),
    Published("test", "people", 160, remembered=True),
    Published("test", "tracklets", 1_511, remembered=True),
)


def read(root: Path, min_frames: int = 8) -> Manifest:
    """Read the frames of VCCR from the folder that holds `train` and `test_qg`.

    Camera and clothes are those of a frame's name, as published, and an outfit is named `person_clothes`. A tracklet
    is a folder; one whose frames are of several cameras or outfits is several tracklets, `FOLDER:CAMERA_CLOTHES`,
    which a note counts, as one does test tracklets in the folder of another camera than their names say.

    Args:
        root: the folder.
        min_frames: test tracklets with fewer frames are left out, as the public code does; 0 keeps all.

    Raises:
        InputError: if the layout or a name is another, or `min_frames` is negative.
    """
    check_number("vccr: min_frames", min_frames, Range(0), whole=True)
    tree = Tree("vccr", root)
    tree.require(*(f"{folder}/" for folder, *_ in PARTS))
    rows, notes, empty = [], [], []
    for part, split, role, names in PARTS:
        for path, name in tree.read(part, names, depth=names.parts - 1):
            person = number(name["person"])
            rows.append(
                {
                    "path": path,
                    "person": person,
                    "camera": number(name["camera"]),
                    "clothes": f"{person}_{number(name['clothes'])}",
                    "tracklet": path.rpartition("/")[0],
                    "frame": int(name["frame"]),
                    "split": split,
                    "role": role,
                }
            )
        empty += tree.without_pictures(part, names.parts - 1)
    table = pl.DataFrame(rows)
    labels = pl.concat_str("camera", pl.col("clothes").str.extract(r"(\d+)$"), separator="_")
    mixed = pl.struct("camera", "clothes").n_unique().over("tracklet") > 1
    # A query's own camera is dropped by what names say: what folders say otherwise should be known.
    folder, camera = pl.col("path").str.extract(FOLDER_OF_CAMERA), pl.col("camera")
    elsewhere = folder.cast(pl.Int64, strict=False) != camera.cast(pl.Int64, strict=False)
    if odd := table.filter(pl.col("split") == "test", elsewhere)["tracklet"].unique().sort().to_list():
        notes.append(
            f"{len(odd)} test tracklets lie in the folder of another camera than their names say, which count: "
            f"{some(odd, 3)}"
        )
    if divided := table.filter(mixed)["tracklet"].unique().sort().to_list():
        notes.append(
            f"{len(divided)} tracklets of several cameras or outfits are divided: {some(divided, 3)}"
        )
        own = pl.concat_str("tracklet", labels, separator=":")
        table = table.with_columns(tracklet=pl.when(mixed).then(own).otherwise("tracklet"))
    short = (pl.col("split") == "test") & (pl.len().over("tracklet") < min_frames)
    if left_out := table.filter(short)["tracklet"].n_unique():
        notes.append(f"{left_out} test tracklets of fewer than {min_frames} frames are left out")
        table = table.filter(~short)
    if empty:
        notes.append(f"{len(empty)} tracklets have no frames: {some(empty, 3)}")
    return tree.manifest(table, notes, PUBLISHED)
