"""Tiny trees in the data sets' real layouts, with what misleads parsers: `_c`, digits, strays."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

from clip3dreid.data.manifest import Manifest

STRAYS = ("Thumbs.db", ".DS_Store", "._0001_c1s1_000001_00.jpg", "readme.txt", "desktop.ini")


def said(manifest: Manifest) -> tuple[str, ...]:
    """Notes of a manifest, without the last one, which counts the strays."""
    *notes, strays = manifest.notes
    assert "are no pictures are passed over" in strays
    return tuple(notes)


def misleading(tmp_path: Path, name: str) -> Path:
    """A root whose folders look like labels of every data set."""
    return tmp_path / "my_ccreid" / "2024-01-02-03" / "0007_c2s1_query_99_5_3" / name


def plant(root: Path, *paths: str) -> Path:
    """Empty files, each with strays beside it: readers go by names, so content does not matter."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        for stray in STRAYS:
            (file.parent / stray).touch()
    return root


def ltcc(root: Path) -> Path:
    return plant(
        root,
        "train/000_1_c11_015833.png",
        "train/000_2_c1_000100.png",
        "train/007_1_c3_000200.png",
        "query/012_1_c2_000300.png",
        "test/012_1_c4_000400.png",
        "test/012_3_c2_000500.png",
        "test/099_1_c2_000600.png",
        "info/cloth-change_id_test.txt",
    )


def prcc(root: Path) -> Path:
    return plant(
        root,
        "rgb/train/001/A_cropped_rgb001.jpg",
        "rgb/train/001/B_cropped_rgb002.jpg",
        "rgb/train/001/C_cropped_rgb003.jpg",
        "rgb/train/020/C_cropped_rgb010.jpg",
        "rgb/val/001/A_cropped_rgb900.jpg",
        "rgb/test/A/003/cropped_rgb001.jpg",
        "rgb/test/A/003/cropped_rgb005.jpg",
        "rgb/test/B/003/cropped_rgb001.jpg",
        "rgb/test/C/003/cropped_rgb001.jpg",
        "sketch/train/001/A_cropped_rgb001.jpg",
    )


def celeb_reid(root: Path) -> Path:
    return plant(
        root,
        "train/1_1_0.jpg",
        "train/1_12_0.jpg",
        "train/2_1_0.jpg",
        "train/-1_5_0.jpg",
        "query/1_3_0.jpg",
        "gallery/1_30_0.jpg",
        "gallery/9_1_0.jpg",
        "gallery/-1_2_0.jpg",
    )


def deepchange(root: Path) -> Path:
    names = {
        "train-set": ("P0001_C05_12_09_00031_0.jpg,17", "P0001_C05_13_09_00032_0.jpg,18"),
        "val-set-query": ("P0451_C01_12_09_00031_0.jpg,5",),
        "val-set-gallery": ("P0451_C02_12_09_00031_0.jpg,6",),
        "test-set-query": ("P0601_C01_12_09_00031_0.jpg,0007",),
        "test-set-gallery": ("P0601_C01_12_09_00035_0.jpg,7", "P0602_C17_30_09_00031_0.jpg,9"),
    }
    for folder, lines in names.items():
        plant(root, *(f"{folder}/{line.split(',')[0]}" for line in lines))
        # A byte-order mark, Windows line ends and an empty last line, as lists edited by hand have.
        text = "\r\n".join(lines) + "\r\n\r\n"
        (root / f"{folder}-bbox.txt").write_bytes(text.encode("utf-8-sig"))
    return root


def last(root: Path) -> Path:
    return plant(
        root,
        "train/000001/000001_film_0012_1.jpg",
        "train/000001/000001_film_0400_2.jpg",
        "train/000002/000002_7.jpg",
        "val/query/000010_film_0001_0.jpg",
        "val/gallery/000010/000010_film_0002_0.jpg",
        "test/query/000011_film_0001_0.jpg",
        "test/gallery/000011/000011_film_0002_0.jpg",
        "test/gallery/000012/000012_film_0002_0.jpg",
    )


def vc_clothes(root: Path) -> Path:
    return plant(
        root,
        "train/001-02-03-04.jpg",
        "train/256-01-01-01.jpg",
        "query/257-03-01-09.jpg",
        "gallery/257-04-02-10.jpg",
    )


def market1501(root: Path) -> Path:
    return plant(
        root,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0007_c6s3_077419_02.jpg",
        "bounding_box_train/0000_c1s1_000001_01.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "query/0000_c2s1_000001_00.jpg",
        "bounding_box_test/0001_c2s1_000301_02.jpg",
        "bounding_box_test/0000_c3s1_000551_00.jpg",
        "bounding_box_test/-1_c4s1_000401_03.jpg",
        "bounding_box_test/-1_c4s1_000402_03.jpg",
    )


MSMT17_FOLDERS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}


def msmt17(root: Path, version: str = "V1") -> Path:
    train, test = MSMT17_FOLDERS[version]
    lists = {
        "list_train.txt": (train, "0000/0000_000_01_0303morning_0015_0.jpg 0"),
        "list_val.txt": (train, "0000/0000_001_14_0303noon_0020_0.jpg 0"),
        "list_query.txt": (test, "0000/0000_000_02_0113afternoon_0001_1.jpg 0"),
        "list_gallery.txt": (test, "0001/0001_004_15_0113afternoon_0002_1.jpg 1"),
    }
    for name, (folder, line) in lists.items():
        plant(root, f"{folder}/{line.split()[0]}")
        (root / name).write_text(line + "\n")
    return root


def cuhk03_np(root: Path, kind: str = "detected") -> Path:
    return plant(
        root,
        f"{kind}/bounding_box_train/0001_c1_1.png",
        f"{kind}/bounding_box_train/0001_c2_6.png",
        f"{kind}/query/0003_c1_1.png",
        f"{kind}/bounding_box_test/0003_c2_2.png",
    )


def cuhk03_np_indices(root: Path, kind: str = "labeled") -> Path:
    """torchreid's form; one picture of the archive belongs to no part."""
    names = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_01.png", "2_001_1_03.png", "2_001_2_07.png"]
    plant(root, *(f"images_{kind}/{name}" for name in names))
    savemat(
        root / f"cuhk03_new_protocol_config_{kind}.mat",
        {
            "filelist": np.array(names, dtype=object).reshape(-1, 1),
            "labels": np.array([[1], [1], [2], [844], [844]], dtype=np.uint16),
            "train_idx": np.array([[1], [2]], dtype=np.uint16),
            "query_idx": np.array([[4]], dtype=np.uint16),
            "gallery_idx": np.array([[5]], dtype=np.uint16),
        },
    )
    return root


def pku_reid(root: Path) -> Path:
    return plant(root, *(f"{p:03d}_{c:02d}_{o}.png" for p in range(1, 9) for c in (1, 2) for o in (1, 8)))


def custom(root: Path) -> Path:
    return plant(root, "train/Ann B/x.jpg", "query/007/q.jpg", "gallery/007/g.jpg", "gallery/zoe/g.jpg")


def ccvid(root: Path) -> Path:
    lists = {
        "train": "session1/001_01\t001\tu0_l0_s0_c0_a0",
        "query": "session1/076_12\t076\tu0_l0_s0_c0_a0",
        "gallery": "session3/076_01\t076\tu1_l1_s0_c0_a0",
    }
    for name, line in lists.items():
        plant(root, f"{line.split()[0]}/00001.jpg", f"{line.split()[0]}/00002.jpg")
        (root / f"{name}.txt").write_text(line + "\n")
    return root


def vccr(root: Path) -> Path:
    tracklets = {
        "train/0001/t1": ("0001-C1-D1-F0001.jpg", "0001-C1-D1-F0002.jpg"),
        "test_qg/query/0233/C2/t7": [f"0233-C2-D1-x-F{frame}.jpg" for frame in range(1, 12)],
        "test_qg/gallery/0233/C3/t8": [f"0233-C3-D2-F{frame}.jpg" for frame in range(1, 9)],
    }
    return plant(root, *(f"{folder}/{name}" for folder, names in tracklets.items() for name in names))


MEVID = {
    # Frames of each tracklet, and the line that names them.
    "train": (
        ("0103O020C424T000", 3, "0.0e+00 2.0e+00 1.03e+02 2.0e+01 4.24e+02"),
        ("0103O021C330T001", 2, "3 4 103 21 330"),
    ),
    "test": (
        ("0201O003C330T004", 2, "0 1 201 3 330"),
        ("0201O003C508T000", 3, "2 4 201 3 508"),
        ("0007O000C330T000", 1, "5 5 7 0 330"),
    ),
}


def mevid(root: Path) -> Path:
    for part, tracklets in MEVID.items():
        names = [f"{stem}F{frame:05d}.jpg" for stem, frames, _ in tracklets for frame in range(frames)]
        plant(root, *(f"bbox_{part}/{name[:4]}/{name}" for name in names))
        (root / f"{part}_name.txt").write_text("\n".join(names) + "\n")
        (root / f"track_{part}_info.txt").write_text("\n".join(line for *_, line in tracklets) + "\n")
    (root / "query_IDX.txt").write_text("0.000000000000000000e+00\n")
    return root


def tracklets(root: Path) -> Path:
    return plant(
        root,
        *(f"train/Ann B/walk1/{frame}.jpg" for frame in (1, 2, 10)),
        "query/007/a/1.jpg",
        "gallery/007/b/1.jpg",
        "gallery/zoe/c/1.jpg",
    )
