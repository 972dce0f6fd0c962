"""PRCC: 221 people, three cameras; A and B see one outfit of a person, C another.

Yang, Wu, Zheng, "Person Re-identification by Contour Sketch under Moderate Clothing Change", TPAMI 2021.
"""

import re
from pathlib import Path
from typing import Any

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number

# The camera leads the names of train and val; in test it is a folder and the names do not tell.
PERSON, FRAME = r"(?P<person>\d+)/", r".*?(?P<frame>\d*)\.\w+"
TRAIN_NAMES = Names(re.compile(PERSON + "(?P<camera>[ABC])" + FRAME), "001/A_cropped_rgb001.jpg", 2)
TEST_NAMES = Names(re.compile(PERSON + FRAME), "001/cropped_rgb001.jpg", 2)
OUTFITS = {"A": "AB", "B": "AB", "C": "C"}
TRAIN_FOLDERS = {"ignore": ("train",), "train": ("train", "val")}
PUBLISHED = (
    Published("train", "people", 150),
    Published("train", "clothes", 300),
    Published("test", "people", 71),
    Published("test", "pictures", 10_800),
    Published("gallery", "pictures", 3_384, remembered=True),
    Published("query B", "pictures", 3_543, remembered=True),
    Published("query C", "pictures", 3_873, remembered=True),
)
TRAIN_PICTURES = {"ignore": 17_896, "train": 17_896 + 5_002}


def read(root: Path, use_val: str = "ignore") -> Manifest:
    """Read PRCC from the folder that holds `rgb`; a `sketch` tree beside it is not looked at.

    Camera A of the test people is the gallery; B (same clothes) and C (other clothes) are the query sets
    `B` and `C`.

    Args:
        root: the folder that holds `rgb/{train,val}/PERSON` and `rgb/test/{A,B,C}/PERSON`.
        use_val: what to do with `rgb/val`, which shows the training people and so validates nothing:
            `ignore`, or `train` to train on it too.

    Raises:
        InputError: if the layout, a name or `use_val` is another.
    """
    tree = Tree("prcc", root)
    folders = tree.option("use_val", use_val, TRAIN_FOLDERS)
    tree.require(*(f"rgb/{part}/" for part in (*folders, "test/A", "test/B", "test/C")))
    rows = []
    for folder in folders:
        for path, name in tree.read(f"rgb/{folder}", TRAIN_NAMES, depth=1):
            rows.append(_row(path, name, name["camera"], split="train", role="train"))
    for camera in OUTFITS:
        role = {"role": "gallery"} if camera == "A" else {"role": "query", "query_set": camera}
        for path, name in tree.read(f"rgb/test/{camera}", TEST_NAMES, depth=1):
            rows.append(_row(path, name, camera, split="test", **role))
    left = "left out" if use_val == "ignore" else "trained on"
    notes = [f"the val folder shows the training people, so it is {left} and validates nothing"]
    published = (Published("train", "pictures", TRAIN_PICTURES[use_val]), *PUBLISHED)
    return tree.manifest(rows, notes, published)


def _row(path: str, name: re.Match[str], camera: str, **part: str) -> dict[str, Any]:
    person = number(name["person"])
    facts = {"path": path, "person": person, "camera": camera, "clothes": f"{person}_{OUTFITS[camera]}"}
    return facts | {"frame": int(name["frame"]) if name["frame"] else None} | part
