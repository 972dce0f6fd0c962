"""PKU-Reid: two cameras, eight body orientations each; clothes do not change.

Ma et al., "Orientation Driven Bag of Appearances for Person Re-identification", arXiv:1605.02464, 2016.
"""

import re
from pathlib import Path

import numpy as np

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number
from clip3dreid.io.checks import Range, check_number

# Person, camera, orientation. The pictures are JPEG data whatever the suffix: decoders look at the content.
NAMES = Names(re.compile(r"(\d+)_(\d+)_(\d+)\.\w+"), "001_01_1.png")
TEST_ROLES = {"1": "query", "2": "gallery"}
PUBLISHED = (
    Published("all", "pictures", 1_824),
    Published("all", "people", 114),
    Published("all", "cameras", 2),
)


def read(root: Path, train_fraction: float = 0.5, split_seed: int = 0) -> Manifest:
    """Read PKU-Reid from the one folder that holds all its pictures.

    Half of the people were used for training in the paper; which ones was drawn and never published, so they
    are drawn here. Of the test people camera 1 is the query and camera 2 the gallery.

    Args:
        root: the folder of pictures.
        train_fraction: share of the people to train on, 0..1: 0 makes everyone a test person, 1 nobody.
        split_seed: of the draw.

    Raises:
        InputError: if a file name is another, a camera is neither 1 nor 2, or the fraction is outside 0..1.
    """
    check_number("pku_reid: train_fraction", train_fraction, Range(0, 1))
    tree = Tree("pku_reid", root)
    named = tree.read("", NAMES)
    people = sorted({int(name[1]) for _, name in named})
    drawn = np.random.default_rng(split_seed).permutation(people)
    train = set(drawn[: round(train_fraction * len(people))].tolist())
    rows = []
    for path, name in named:
        camera = number(name[2])
        test_role = tree.option(f"the camera of {path}", camera, TEST_ROLES)
        role = "train" if int(name[1]) in train else test_role
        rows.append(
            {
                "path": path,
                "person": number(name[1]),
                "camera": camera,
                "clothes": f"{number(name[1])}_1",
                "frame": int(name[3]),
                "split": "train" if role == "train" else "test",
                "role": role,
            }
        )
    draw = f"train_fraction {train_fraction}, split_seed {split_seed}"
    notes = [f"{len(train)} of {len(people)} people train ({draw})"]
    return tree.manifest(rows, notes, PUBLISHED)
