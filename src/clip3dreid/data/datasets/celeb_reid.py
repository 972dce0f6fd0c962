"""Celeb-reID, Celeb-reID-light, face-blurred copies of both, and CCDA, which borrowed their names.

Huang et al., "Beyond Scalar Neuron: Adopting Vector-Neuron Capsules for Long-Term Person Re-Identification",
TCSVT 2020. CCDA: Liu et al., "Learning Clothing and Pose Invariant 3D Shape Representation for Long-Term
Person Re-Identification", ICCV 2023.
"""

import re
from pathlib import Path

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import Names, Tree, number

# PERSON_IMAGE_ANYTHING: the last part means nothing, and CCDA does not always have it.
NAMES = Names(re.compile(r"(-?\d+)_(\d+)(?:_.*)?\.\w+"), "12_3_0.jpg")
PARTS = (("train", "train", "train"), ("query", "test", "query"), ("gallery", "test", "gallery"))
CELEB = (
    Published("all", "pictures", 34_186),
    Published("all", "people", 1_052),
    Published("train", "pictures", 20_208),
    Published("train", "people", 632),
    Published("query", "pictures", 2_972),
    Published("query", "people", 420),
    Published("gallery", "pictures", 11_006),
    Published("gallery", "people", 420),
)
LIGHT = (
    Published("all", "pictures", 10_842),
    Published("all", "people", 590),
    Published("train", "pictures", 9_021),
    Published("train", "people", 490),
    Published("query", "pictures", 887),
    Published("query", "people", 100),
    Published("gallery", "pictures", 934),
    Published("gallery", "people", 100),
)
CCDA = (
    Published("all", "pictures", 1_555, remembered=True),
    Published("all", "people", 100, remembered=True),
)
NUMBERS = "person numbers restart in the test split: person 1 of train and person 1 of test are two people"
BLURRED = "the original's pictures with blurred faces: how (blur_faces.json says it) belongs to every score"
# A blurred copy has its original's counts: no split of its own was ever published.
VARIANTS = {
    "celeb_reid": (CELEB, (NUMBERS,)),
    "celeb_reid_light": (LIGHT, (NUMBERS,)),
    "celeb_reid_blur": (CELEB, (NUMBERS, BLURRED)),
    "celeb_reid_light_blur": (LIGHT, (NUMBERS, BLURRED)),
    "ccda": (CCDA, (NUMBERS,)),
}


def read(root: Path, variant: str = "celeb_reid") -> Manifest:
    """Read one of the data sets of the Celeb-reID family.

    None of them labels cameras or clothes; `frame` is the number of the picture, unique for a person, whose
    first digit some code takes for a camera.

    Args:
        root: the folder that holds `train`, `query` and `gallery`.
        variant: a key of `VARIANTS`; it names the data set and chooses the published counts.

    Raises:
        InputError: if the layout, a file name or the variant is another.
    """
    published, notes = Tree("celeb_reid", root).option("variant", variant, VARIANTS)
    tree = Tree(variant, root)
    tree.require(*(f"{folder}/" for folder, _, _ in PARTS))
    rows, junk = [], 0
    for folder, split, role in PARTS:
        for path, name in tree.read(folder, NAMES):
            if name[1] == "-1":
                junk += 1
                continue
            person, frame = number(name[1]), int(name[2])
            rows.append({"path": path, "person": person, "frame": frame, "split": split, "role": role})
    if junk:
        notes = (*notes, f"{junk} pictures of person -1 (junk) are left out")
    return tree.manifest(rows, notes, published)
