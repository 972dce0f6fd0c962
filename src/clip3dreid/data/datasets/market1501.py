"""Market-1501: six cameras, clothes do not change and are not labelled.

Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015.
"""

import re
from collections import Counter
from pathlib import Path

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number

NAMES = Names(re.compile(r"(-?\d+)_c(\d)s(\d)_(\d+)_(\d+)(?:\.\w+)+"), "0002_c1s1_000451_03.jpg")
PARTS = (
    ("bounding_box_train", "train", "train"),
    ("query", "test", "query"),
    ("bounding_box_test", "test", "gallery"),
)
JUNK, DISTRACTOR = -1, 0
PUBLISHED = (
    Published("all", "cameras", 6),
    Published("train", "pictures", 12_936),
    Published("train", "people", 751),
    Published("query", "pictures", 3_368),
    Published("query", "people", 750),
    Published("gallery", "pictures", 15_913),
)


def read(root: Path) -> Manifest:
    """Read Market-1501 from the folder that holds `bounding_box_train`, `query` and `bounding_box_test`.

    Person -1 (bad boxes) is left out everywhere. Person 0 (background and other people) stays in the gallery,
    where it matches nobody, and is left out elsewhere.

    Raises:
        InputError: if the layout or a file name is another.
    """
    tree = Tree("market1501", root)
    tree.require(*(f"{folder}/" for folder, _, _ in PARTS))
    rows, counts = [], Counter[str]()
    for folder, split, role in PARTS:
        for path, name in tree.read(folder, NAMES):
            person = int(name[1])
            if person == JUNK:
                counts["pictures of person -1 (junk) are left out"] += 1
                continue
            if person == DISTRACTOR and role != "gallery":
                counts[f"pictures of person 0 (distractors) in {folder} are left out"] += 1
                continue
            if person == DISTRACTOR:
                counts["gallery pictures are distractors (person 0), nobody's match"] += 1
            rows.append(
                {
                    "path": path,
                    "person": str(person),
                    "camera": number(name[2]),
                    "frame": int(name[4]),
                    "split": split,
                    "role": role,
                }
            )
    return tree.manifest(rows, [f"{count} {what}" for what, count in counts.items()], PUBLISHED)
