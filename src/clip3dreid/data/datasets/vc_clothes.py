"""VC-Clothes: rendered with a game engine, four cameras, one to three outfits a person.

Wan et al., "When Person Re-identification Meets Changing Clothes", CVPR Workshops 2020.
"""

import re
from pathlib import Path

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number

NAMES = Names(re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)\.\w+"), "001-02-03-04.jpg")
PARTS = (("train", "train", "train"), ("query", "test", "query"), ("gallery", "test", "gallery"))
PUBLISHED = (
    Published("all", "pictures", 19_060),
    Published("all", "people", 512),
    Published("all", "cameras", 4),
    Published("train", "pictures", 9_449, remembered=True),
    Published("train", "people", 256, remembered=True),
    Published("query", "pictures", 1_020, remembered=True),
    Published("query", "people", 256, remembered=True),
    Published("gallery", "pictures", 8_591, remembered=True),
)


def read(root: Path) -> Manifest:
    """Read VC-Clothes from the folder that holds `train`, `query` and `gallery`, all four cameras.

    One model is tested on all cameras, on 2 and 3 (same clothes), and on 3 and 4 (other clothes): the
    protocols choose among the rows.

    Raises:
        InputError: if the layout or a file name is another.
    """
    tree = Tree("vc_clothes", root)
    tree.require(*(f"{folder}/" for folder, _, _ in PARTS))
    rows = [
        {
            "path": path,
            "person": number(name[1]),
            "camera": number(name[2]),
            "clothes": f"{number(name[1])}_{number(name[3])}",
            "frame": int(name[4]),
            "split": split,
            "role": role,
        }
        for folder, split, role in PARTS
        for path, name in tree.read(folder, NAMES)
    ]
    return tree.manifest(rows, published=PUBLISHED)
