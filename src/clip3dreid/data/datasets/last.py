"""LaST: people cut from films; clothes labelled for training only, no cameras.

Shu et al., "Large-Scale Spatio-Temporal Person Re-identification: Algorithm and Benchmark", TCSVT 2022.
"""

import re
from pathlib import Path

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number

# First part the person, last part the outfit; both end before the first dot.
NAMES = Names(re.compile(r"(\d+)_(?:[^.]*_)?([^_.]+)\..+"), "000001_0012_3.jpg")
PARTS = (
    ("train", "train", "train", 1),
    ("val/query", "val", "query", 0),
    ("val/gallery", "val", "gallery", 1),
    ("test/query", "test", "query", 0),
    ("test/gallery", "test", "gallery", 1),
)
PUBLISHED = (
    Published("all", "pictures", 228_156),
    Published("all", "people", 10_862),
    Published("train", "pictures", 71_248),
    Published("train", "people", 5_000),
    Published("val", "people", 56),
    Published("val_query", "pictures", 100),
    Published("val_gallery", "pictures", 21_279),
    Published("query", "pictures", 10_176),
    Published("query", "people", 5_805),
    Published("gallery", "pictures", 125_353),
    Published("gallery", "people", 5_806),
)


def read(root: Path) -> Manifest:
    """Read LaST from the folder that holds `train`, `val` and `test`.

    Training pictures and galleries lie in a folder a person, queries in one flat folder.

    Raises:
        InputError: if the layout or a file name is another.
    """
    tree = Tree("last", root)
    tree.require(*(f"{folder}/" for folder, *_ in PARTS))
    rows = [
        {
            "path": path,
            "person": number(name[1]),
            # The last part of a name is an outfit in train only; elsewhere it labels nothing.
            "clothes": f"{number(name[1])}_{name[2]}" if split == "train" else None,
            "split": split,
            "role": role,
        }
        for folder, split, role, depth in PARTS
        for path, name in tree.read(folder, NAMES, depth)
    ]
    return tree.manifest(rows, published=PUBLISHED)
