"""CUHK03 under the new protocol (767 training people, 700 test people), detected or hand-labelled boxes.

Li et al., "DeepReID: Deep Filter Pairing Neural Network for Person Re-identification", CVPR 2014; protocol:
Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from clip3dreid.data.manifest import Manifest, Published
from clip3dreid.data.tree import SHOWN, Names, Tree, number
from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.formats import decoding

FOLDER_NAMES = Names(re.compile(r"(\d+)_c(\d)_(\d+)\.\w+"), "0001_c1_1.png")
# Pair of cameras, person of that pair, camera of the pair, picture.
EXTRACTED_NAMES = Names(re.compile(r"(\d+)_(\d+)_(\d+)_(\d+)\.\w+"), "1_001_1_01.png")
# The files spell it the American way; both are understood.
BOXES = {"detected": "detected", "labelled": "labeled", "labeled": "labeled"}
PARTS = (
    ("bounding_box_train", "train_idx", "train", "train"),
    ("query", "query_idx", "test", "query"),
    ("bounding_box_test", "gallery_idx", "test", "gallery"),
)
PEOPLE = (
    Published("all", "cameras", 2),
    Published("train", "people", 767),
    Published("test", "people", 700),
    Published("query", "pictures", 1_400),
)
PICTURES = {
    "detected": (Published("train", "pictures", 7_365), Published("gallery", "pictures", 5_332)),
    "labeled": (Published("train", "pictures", 7_368), Published("gallery", "pictures", 5_328)),
}


def read(root: Path, boxes: str = "detected") -> Manifest:
    """Read CUHK03-NP in either of the two forms it goes around in.

    The first is a tree like Market-1501's for each kind of boxes, `{detected,labeled}/{bounding_box_train,
    query,bounding_box_test}`. The second is torchreid's: `cuhk03_new_protocol_config_{detected,labeled}.mat`
    beside the extracted pictures `images_{detected,labeled}`. The original archive, `cuhk-03.mat`, is not
    read: it is HDF5 and holds every picture in one file. Where both forms are there the first is taken.

    Args:
        root: the folder that holds either form.
        boxes: `detected` or `labelled`.

    Raises:
        InputError: if the layout, a file name or `boxes` is another, or the pictures are not extracted.
    """
    tree = Tree("cuhk03_np", root)
    kind = tree.option("boxes", boxes, BOXES)
    config, extracted = f"cuhk03_new_protocol_config_{kind}.mat", f"images_{kind}"
    if (root / config).is_file() and not (root / kind).is_dir() and not (root / extracted).is_dir():
        raise InputError(
            f"cuhk03_np: {root} holds {config} but no {extracted}/: extract cuhk-03.mat into it as torchreid "
            f"does on its first use of CUHK03, or fetch the form with {kind}/bounding_box_train/"
        )
    form = tree.choose(
        {"folders": [f"{kind}/{folder}/" for folder, *_ in PARTS], "indices": [config, f"{extracted}/"]}
    )
    rows = FORMS[form](tree, kind)
    notes = [f"{boxes} boxes, read from {'folders' if form == 'folders' else config}"]
    return tree.manifest(rows, notes, (*PEOPLE, *PICTURES[kind]))


def _from_folders(tree: Tree, kind: str) -> list[dict[str, Any]]:
    return [
        {
            "path": path,
            "person": number(name[1]),
            "camera": number(name[2]),
            "frame": int(name[3]),
            "split": split,
            "role": role,
        }
        for folder, _, split, role in PARTS
        for path, name in tree.read(f"{kind}/{folder}", FOLDER_NAMES)
    ]


def _from_indices(tree: Tree, kind: str) -> list[dict[str, Any]]:
    """Return rows of torchreid's form: the config holds a list of file names, their people, and 1-based indices."""
    file, folder = tree.root / f"cuhk03_new_protocol_config_{kind}.mat", f"images_{kind}"
    with decoding(f"cuhk03_np: {file}", "the new protocol's config", "fetch it again"):
        config = loadmat(file)
        people = config["labels"].ravel().astype(int)
        names = [str(np.asarray(cell).item()) for cell in config["filelist"].ravel()]
        indices = {key: config[key].ravel().astype(int) - 1 for _, key, _, _ in PARTS}
        chosen = {key: [(names[i], people[i]) for i in index] for key, index in indices.items()}
    there: dict[str, str] = {}
    for path in tree.pictures(folder):
        other = there.setdefault(path.rpartition("/")[2].partition(".")[0], path)
        if other != path:
            raise InputError(
                f"cuhk03_np: {other} and {path} are one picture by their names; remove one of them"
            )
    rows: list[dict[str, Any]] = []
    for _, key, split, role in PARTS:
        stems = [name.partition(".")[0] for name, _ in chosen[key]]
        if absent := [stem for stem in stems if stem not in there]:
            raise InputError(
                f"cuhk03_np: {len(absent)} pictures of {key} are not in {tree.root / folder}: "
                f"{some(absent, SHOWN)}; extract them again"
            )
        parsed = tree.parse([there[stem] for stem in stems], EXTRACTED_NAMES)
        for (path, name), (_, person) in zip(parsed, chosen[key], strict=True):
            facts = {"path": path, "person": str(person), "camera": number(name[3]), "frame": int(name[4])}
            rows.append(facts | {"split": split, "role": role})
    tree.keep_to(folder, [row["path"] for row in rows])
    return rows


FORMS = {"folders": _from_folders, "indices": _from_indices}
