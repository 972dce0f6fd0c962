"""MSMT17, first version and second (faces blurred): 15 cameras, clothes not labelled.

Wei et al., "Person Transfer GAN to Bridge Domain Gap for Person Re-Identification", CVPR 2018.
"""

import re
from pathlib import Path

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number

NAMES = Names(re.compile(r"\d+_\d+_(\d+)_.+\.\w+"), "0000_000_01_0303morning_0015_0.jpg")
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
VERSIONS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
FACES = {"V1": "faces as recorded", "V2": "faces blurred"}
PUBLISHED = (
    Published("all", "people", 4_101),
    Published("all", "cameras", 15),
    Published("train", "people", 1_041),
    Published("test", "people", 3_060),
    Published("query", "pictures", 11_659),
    Published("gallery", "pictures", 82_161),
)


def read(root: Path, val_in_train: bool = False) -> Manifest:
    """Read MSMT17; the version follows from the folders' names and is noted.

    Args:
        root: the folder that holds the four lists and `train` and `test` (V1) or `mask_train_v2` and
            `mask_test_v2` (V2).
        val_in_train: add the pictures of `list_val.txt`, which show training people, to train. CLIP-ReID
            always does, torchreid and fast-reid only on request: say which with every score.

    Raises:
        InputError: if the layout, a list or a file name is another.
    """
    tree = Tree("msmt17", root)
    version = tree.choose(
        {version: [*(f"{folder}/" for folder in folders), *LISTS] for version, folders in VERSIONS.items()}
    )
    train, test = VERSIONS[version]
    parts = [
        ("list_train.txt", train, "train", "train"),
        ("list_val.txt", train, "train", "train"),
        ("list_query.txt", test, "test", "query"),
        ("list_gallery.txt", test, "test", "gallery"),
    ]
    rows = []
    for file, folder, split, role in parts:
        # Read whether it is used or not: its pictures are left out on purpose, and not for want of a list.
        pairs = tree.listed(file, folder, depth=1)
        if file == "list_val.txt" and not val_in_train:
            continue
        names = tree.parse([path for path, _ in pairs], NAMES)
        for (path, person), (_, name) in zip(pairs, names, strict=True):
            rows.append(
                {
                    "path": path,
                    "person": person,
                    "camera": number(name[1]),
                    "split": split,
                    "role": role,
                }
            )
    notes = [
        f"MSMT17 {version}, {FACES[version]}",
        f"the pictures of list_val.txt are {'added to train' if val_in_train else 'left out'}",
        "person numbers restart in the test split: person 0 of train and person 0 of test are two people",
    ]
    # The sum is printed in public code, the parts are remembered.
    pictures = Published("train", "pictures", 32_621 if val_in_train else 30_248, remembered=not val_in_train)
    return tree.manifest(rows, notes, (pictures, *PUBLISHED))
