"""DeepChange: 17 outdoor cameras, twelve months; tracklets but no clothes labels.

Xu, Zhu, "DeepChange: A Long-Term Person Re-Identification Benchmark with Clothes Change", ICCV 2023.
"""

import re
from pathlib import Path

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number

# Letter and person, letter and camera, day, hour, two more: nothing readable says what the last two are.
NAMES = Names(re.compile(r"[A-Za-z](\d+)_[A-Za-z](\d+)_([^_.]+)_.+\.\w+"), "P0001_C05_12_09_00031_0.jpg")
PARTS = (
    ("train-set", "train", "train"),
    ("val-set-query", "val", "query"),
    ("val-set-gallery", "val", "gallery"),
    ("test-set-query", "test", "query"),
    ("test-set-gallery", "test", "gallery"),
)
PUBLISHED = (
    Published("all", "pictures", 178_407),
    Published("all", "people", 1_121),
    Published("all", "cameras", 17),
    Published("train", "pictures", 75_083, remembered=True),
    Published("train", "people", 450, remembered=True),
    Published("val", "people", 150, remembered=True),
    Published("val_query", "pictures", 4_976, remembered=True),
    Published("val_gallery", "pictures", 17_865, remembered=True),
    Published("test", "people", 521, remembered=True),
    Published("query", "pictures", 17_527, remembered=True),
    Published("gallery", "pictures", 62_956, remembered=True),
)


def read(root: Path, clothes_from_day: bool = False) -> Manifest:
    """Read DeepChange from the folder that holds `train-set`, `val-set-query` … and their `-bbox.txt` lists.

    Args:
        root: the folder.
        clothes_from_day: take a person's day for an outfit, as Simple-CCReID's code does. The data set has no
            clothes labels: what then is called same-clothes and clothes-changing is same-day and other-day.

    Raises:
        InputError: if the layout, a list or a file name is another.
    """
    tree = Tree("deepchange", root)
    tree.require(*(path for folder, _, _ in PARTS for path in (f"{folder}/", f"{folder}-bbox.txt")))
    rows = []
    for folder, split, role in PARTS:
        pairs = tree.listed(f"{folder}-bbox.txt", folder, separator=",")
        names = tree.parse([path for path, _ in pairs], NAMES)
        for (path, tracklet), (_, name) in zip(pairs, names, strict=True):
            person = number(name[1])
            rows.append(
                {
                    "path": path,
                    "person": person,
                    "camera": number(name[2]),
                    "clothes": f"{person}_{name[3]}" if clothes_from_day else None,
                    "tracklet": tracklet,
                    "split": split,
                    "role": role,
                }
            )
    notes = ["clothes stand for days: DeepChange has no clothes labels"] if clothes_from_day else []
    return tree.manifest(rows, notes, PUBLISHED)
