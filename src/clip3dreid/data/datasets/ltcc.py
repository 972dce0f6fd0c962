"""LTCC: 12 indoor cameras, two months, clothes labelled.

Qian et al., "Long-Term Cloth-Changing Person Re-identification", ACCV 2020.
"""

import re
from pathlib import Path

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number

NAMES = Names(re.compile(r"(\d+)_(\d+)_c(\d+)_(\d+)\.\w+"), "000_1_c11_015833.png")
PARTS = (("train", "train", "train"), ("query", "test", "query"), ("test", "test", "gallery"))
PUBLISHED = (
    Published("all", "pictures", 17_119),
    Published("all", "people", 152),
    Published("all", "cameras", 12),
    Published("train", "pictures", 9_576, remembered=True),
    Published("train", "people", 77, remembered=True),
    Published("train", "clothes", 256, remembered=True),
    Published("query", "pictures", 493, remembered=True),
    Published("query", "people", 75, remembered=True),
    Published("gallery", "pictures", 7_050, remembered=True),
    Published("gallery", "people", 75, remembered=True),
    Published("test", "clothes", 221, remembered=True),
)


def read(root: Path, name: str = "ltcc") -> Manifest:
    """Read LTCC from the folder that holds `train`, `query` and `test` (the gallery).

    All training people are used, those who change clothes and those who do not: some older papers train on
    the former alone.

    Args:
        root: the folder.
        name: another one where other pictures lie in LTCC's layout; LTCC's published counts are not theirs.

    Raises:
        InputError: if the layout or a file name is another.
    """
    tree = Tree(name, root)
    tree.require(*(f"{folder}/" for folder, _, _ in PARTS))
    rows = [
        {
            "path": path,
            "person": number(parsed[1]),
            "clothes": f"{number(parsed[1])}_{number(parsed[2])}",
            "camera": number(parsed[3]),
            "frame": int(parsed[4]),
            "split": split,
            "role": role,
        }
        for folder, split, role in PARTS
        for path, parsed in tree.read(folder, NAMES)
    ]
    return tree.manifest(rows, published=PUBLISHED if name == "ltcc" else ())
