"""Boxes of people, cut to their frames: compared with plain slices of the frames' arrays."""

import json
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip3dreid.data import crops
from clip3dreid.data.box_settings import Boxes
from clip3dreid.data.boxes import clipped, read_boxes
from clip3dreid.data.crops import CropBatches, cut_between_pictures
from clip3dreid.data.images import TestView
from clip3dreid.data.listing import Listing, list_pictures
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import UnreadablePicture

WIDTH, HEIGHT = 40, 30
VIEW = TestView(8, 4)
# Left, top, right, bottom in frames of 40 x 30, from 0: inside, over two edges, larger than the frame.
INSIDE = ((3, 4, 13, 24), (-5, -2, 9, 11), (20, 10, 60, 50))
SINK = "x_min,y_min,x_max,y_max,class_id,confidence,tracker_id"


@pytest.fixture
def arrays(tmp_path: Path) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(3)
    made = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(3)]
    (tmp_path / "img1").mkdir()
    for number, pixels in enumerate(made, 1):
        Image.fromarray(pixels).save(tmp_path / "img1" / f"{number:06}.png")
    return made


def write_mot(root: Path) -> Path:
    rows = [
        f"{frame},{track},{left + 1},{top + 1},{right - left},{bottom - top},0.9,-1,-1,-1\n"
        for track, (left, top, right, bottom) in enumerate(INSIDE, 1)
        for frame in (1, 2, 3)
    ]
    (root / "tracks.txt").write_text("".join(rows))
    return root / "tracks.txt"


def write_coco(root: Path) -> Path:
    document = {
        "images": [{"id": frame, "file_name": f"img1/{frame:06}.png"} for frame in (1, 2, 3)],
        "annotations": [
            {
                "image_id": frame,
                "category_id": 1,
                "bbox": [left, top, right - left, bottom - top],
                "track_id": track,
                "score": 0.9,
            }
            for track, (left, top, right, bottom) in enumerate(INSIDE, 1)
            for frame in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "Person"}],
    }
    (root / "coco.json").write_text(json.dumps(document))
    return root / "coco.json"


def write_supervision(root: Path) -> Path:
    rows = [
        f"{left},{top},{right},{bottom},0,0.9,{track},img1/{frame:06}.png\n"
        for track, (left, top, right, bottom) in enumerate(INSIDE, 1)
        for frame in (1, 2, 3)
    ]
    (root / "sink.csv").write_text(f"{SINK},path\n{''.join(rows)}")
    return root / "sink.csv"


def write_yolo(root: Path) -> Path:
    lines = [
        f"0 {(left + right) / 2 / WIDTH} {(top + bottom) / 2 / HEIGHT} {(right - left) / WIDTH} "
        f"{(bottom - top) / HEIGHT} 0.9 {track}\n"
        for track, (left, top, right, bottom) in enumerate(INSIDE, 1)
    ]
    (root / "labels").mkdir()
    for frame in (1, 2, 3):
        (root / "labels" / f"{frame:06}.txt").write_text("".join(lines))
    (root / "images").symlink_to(root / "img1")
    return root / "labels"


FORMATS = (write_mot, write_coco, write_supervision, write_yolo)


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_crops_of_every_format_are_slices_of_the_frames(tmp_path, arrays, write):
    root, table = list_pictures(write(tmp_path))
    assert len(table) == 9
    assert table["tracklet"].to_list() == ["1", "2", "3"] * 3
    assert table["confidence"].to_list() == [0.9] * 9
    batch = CropBatches.of(Listing(root, table), [range(9)], VIEW, skip=False)[0]
    expected = [
        VIEW(np.ascontiguousarray(pixels[max(top, 0) : bottom, max(left, 0) : right]))
        for pixels in arrays
        for left, top, right, bottom in INSIDE
    ]
    assert np.array_equal(batch.images.numpy(), np.stack(expected))
    assert table.select("left", "top", "right", "bottom").row(1) == (0, 0, 9, 11)
    assert table.select("left", "top", "right", "bottom").row(2) == (20, 10, 40, 30)


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_frame_is_decoded_once_for_all_of_its_boxes(tmp_path, arrays, write, workers, monkeypatch):
    from torch.utils.data import DataLoader

    listing, count, real = list_pictures(write(tmp_path)), tmp_path / "decoded", crops.read_rgb

    def counted(path, advice):
        with count.open("a") as file:  # workers are processes
            file.write(f"{Path(path).name}\n")
        return real(path, advice)

    monkeypatch.setattr(crops, "read_rgb", counted)
    batches = cut_between_pictures(listing.table["path"], range(9), 4)
    assert batches == [range(3), range(3, 6), range(6, 9)]
    loader = DataLoader(
        CropBatches.of(listing, batches, VIEW, skip=False), batch_size=None, num_workers=workers
    )
    assert [batch.rows.tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert sorted(count.read_text().split()) == ["000001.png", "000002.png", "000003.png"]


sides = st.integers(-60, 120)


@given(st.lists(st.tuples(sides, sides, sides, sides), min_size=1, max_size=20), st.data())
def test_clipping_keeps_exactly_the_pixels_that_a_frame_has(boxes, data):
    size = data.draw(st.tuples(st.integers(1, 50), st.integers(1, 50)))
    frame = np.arange(size[0] * size[1]).reshape(size[1], size[0])
    padded = np.full((181, 181), -1)  # what lies around the frame
    padded[60 : 60 + size[1], 60 : 60 + size[0]] = frame
    made = clipped(np.array(boxes, np.int32), np.array([size] * len(boxes), np.int32))
    for (left, top, right, bottom), (x, y, far, low) in zip(boxes, made.tolist(), strict=True):
        window = padded[60 + top : 60 + bottom, 60 + left : 60 + right]
        shown = frame[y:low, x:far] if x < far and y < low else frame[:0]
        assert np.array_equal(window[window >= 0], shown.ravel())
        assert 0 <= min(x, far) <= max(x, far) <= size[0]
        assert 0 <= min(y, low) <= max(y, low) <= size[1]


def test_what_is_left_out_is_counted_in_the_log(tmp_path, arrays, caplog):
    file = tmp_path / "t.txt"
    file.write_text(
        "1,1,1,1,10,20,0.9,1,1\n1,2,1,1,10,20,0.1,1,1\n1,3,1,1,10,20,0.9,3,1\n1,4,1,1,10,20,0.9,7,1\n"
        "2,5,41,1,10,20,0.9,1,1\n2,6,9,9,0,20,0.9,1,1\n2,7,38,1,10,20,0.9,1,1\n3,-1,1.4,1,10.2,20,0.9,1,1\n"
    )
    with caplog.at_level(logging.INFO):
        root, table = read_boxes(Boxes(file, least_confidence=0.5, least_size=4))
    assert root == tmp_path / "img1"
    assert table.to_dicts() == [
        {"left": 0, "top": 0, "right": 10, "bottom": 20, "path": "000001.png", "tracklet": "1", "frame": 1}
        | {"confidence": 0.9},
        {"left": 0, "top": 0, "right": 11, "bottom": 20, "path": "000003.png", "tracklet": None, "frame": 3}
        | {"confidence": 0.9},
    ]
    for said in (
        "2 of 8 boxes, in 2 frames; left out: 2 of other classes",
        "3: 1",
        "7: 1",
        "1 below confidence 0.5",
        "2 outside of their frame or empty",
        "1 smaller than 4 pixels",
    ):
        assert said in caplog.text


@pytest.mark.parametrize(
    ("classes", "tracks"), [(None, ["1"]), (("rider",), ["2"]), ((3, "PERSON"), ["1", "3"])]
)
def test_people_are_taken_or_the_classes_that_are_asked_for(tmp_path, arrays, classes, tracks):
    kinds = {1: "person", 2: "Rider", 3: "dog"}
    document = {
        "images": [{"id": 0, "file_name": "000001.png"}],
        "categories": [{"id": number, "name": name} for number, name in kinds.items()],
        "annotations": [
            {"image_id": 0, "category_id": number, "bbox": [0, 0, 9, 9], "track_id": number}
            for number in kinds
        ],
    }
    (tmp_path / "img1" / "c.json").write_text(json.dumps(document))
    _, table = read_boxes(Boxes(tmp_path / "img1" / "c.json", classes=classes))
    assert table["tracklet"].to_list() == tracks


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("1,1,1,1,9,9,0.5,3,1\n", {}, r"of 1 boxes none is left: 1 of other classes \(3: 1\)"),
        ("1,1,1,1,9,9,0.5\n", {"least_confidence": 0.9}, "1 below confidence 0.9; ask for others"),
        ("1,1,99,1,9,9,0.5\n", {}, "1 outside of their frame or empty"),
        ("1,1,1,1,9,9,0.5\n", {"classes": ("person",)}, "says of no box what it shows"),
        ("1,1,1,1,9,9\n", {"least_confidence": 0.9}, "says no confidence"),
        ("1,1,0.1,0.2,0.3,0.4,0.5\n", {}, "boxes are fractions of the picture; give pixels"),
        (
            "1,1,1,1,9,9\n7,1,1,1,9,9\n8,1,1,1,9,9\n",
            {},
            r"2 of 3 frames are not in .*img1, first 000007\.jpg",
        ),
        ("1,1,1,1,9e12,9\n", {}, "a box reaches to 9e"),
    ],
)
def test_boxes_that_cannot_be_meant_are_refused_in_one_line(tmp_path, arrays, text, settings, said):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_boxes(Boxes(tmp_path / "t.txt", **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [write_mot, write_yolo], ids=lambda write: write.__name__)
def test_boxes_in_a_damaged_frame_are_left_to_whoever_opens_it(tmp_path, arrays, write):
    (tmp_path / "img1" / "000002.png").write_bytes(b"no picture")
    listing = list_pictures(write(tmp_path))
    assert len(listing.table) == 9
    batch = CropBatches.of(listing, [range(9)], VIEW, skip=True)[0]
    assert batch.rows.tolist() == [0, 1, 2, 6, 7, 8]
    assert [row for row, _ in batch.skipped] == [3, 4, 5]
    with pytest.raises(UnreadablePicture, match=r"000002\.png: not a picture"):
        CropBatches.of(listing, [range(9)], VIEW, skip=False)[0]


def test_boxes_count_in_the_upright_frame(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "000001.png", exif=turned)
    (tmp_path / "t.txt").write_text("1,1,1,31,30,20\n")
    listing = list_pictures(Boxes(tmp_path / "t.txt", frames=tmp_path))
    assert listing.table.select("right", "bottom").row(0) == (30, 40)
    batch = CropBatches.of(listing, [range(1)], VIEW, skip=False)[0]
    upright = np.rot90(pixels, -1)
    assert np.array_equal(batch.images[0].numpy(), VIEW(np.ascontiguousarray(upright[30:40])))
