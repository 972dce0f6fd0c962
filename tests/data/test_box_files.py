"""What detectors and trackers write, read as it is meant; what is none of it, refused with its place."""

import json
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from clip3dreid.data.box_files import format_of, read_box_file
from clip3dreid.data.box_settings import Boxes
from clip3dreid.errors import InputError
from clip3dreid.io.table_files import BOX

SINK = "x_min,y_min,x_max,y_max,class_id,confidence,tracker_id"


def frames(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30)).save(folder / name)
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def coco(path: Path, annotations: list[dict[str, object]], **images: object) -> Path:
    document = {
        "images": [{"id": 7, "file_name": "b.png", **images}, {"id": 3, "file_name": "a.png"}],
        "categories": [{"id": 4, "name": "person"}, {"id": 9, "name": "dog"}],
        "annotations": annotations,
    }
    return write(path, json.dumps(document))


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """A sequence of MOTChallenge, with frames 1 to 3."""
    root = tmp_path / "MOT99-01"
    frames(root / "img1", *(f"{number:06}.png" for number in (1, 2, 3)))
    write(root / "seqinfo.ini", "[Sequence]\nname=MOT99-01\nimDir=img1\nseqLength=3\nimExt=.png\n")
    write(
        root / "gt" / "gt.txt",
        "2,1,3,4,10,20,1,1,0.5\n1,1,1,1,10,20,1,1,1\n1,2,5,5,8,8,0,1,1\n1,3,5,5,8,8,1,3,0.25\n",
    )
    write(root / "det" / "det.txt", "1,-1,1.5,2,10,20,2.25,-1,-1,-1\n3,-1,4,4,5,5,-0.5,-1,-1,-1\n")
    return root


def test_ground_truth_of_mot_counts_pixels_from_one_and_says_what_counts(sequence: Path) -> None:
    read = read_box_file(Boxes(sequence / "gt" / "gt.txt"), "gt")
    assert read.frames == sequence / "img1"
    assert read.ignored == 1
    assert read.person == "1"
    assert read.table.select("path", *BOX).rows() == [
        ("000001.png", 0, 0, 10, 20),
        ("000001.png", 4, 4, 12, 12),
        ("000002.png", 2, 3, 12, 23),
    ]
    assert read.table.select("frame", "tracklet", "class", "confidence").rows() == [
        (1, "1", "1", None),
        (1, "3", "3", None),
        (2, "1", "1", None),
    ]
    assert read_box_file(Boxes(sequence), "seq").table.equals(read.table)


def test_detections_of_mot_have_a_confidence_and_no_class(sequence: Path) -> None:
    table = read_box_file(Boxes(sequence / "det" / "det.txt"), "det").table
    assert table.select(BOX).rows() == [(0.5, 1, 10.5, 21), (3, 3, 8, 8)]
    assert table["confidence"].to_list() == [2.25, -0.5]
    assert table["class"].null_count() == 2


@pytest.mark.parametrize("separator", [",", " ", ", "])
def test_what_a_tracker_hands_in_has_frames_elsewhere(sequence: Path, tmp_path: Path, separator: str) -> None:
    lines = (
        ["1", "12", "5", "6", "7", "8", "-1", "-1", "-1", "-1"],
        ["2", "12", "5", "6", "7", "8"] + ["-1"] * 4,
    )
    file = write(tmp_path / "out" / "MOT99-01.txt", "".join(f"{separator.join(line)}\n" for line in lines))
    assert format_of(file) == "mot"
    with pytest.raises(InputError, match=r"out has no frames beside it \(.*img1.*boxes\.frames=FOLDER"):
        read_box_file(Boxes(file), "out")
    table = read_box_file(Boxes(file, frames=sequence / "img1"), "out").table
    assert table["tracklet"].to_list() == ["12", "12"]
    assert table["confidence"].null_count() == 2
    assert table["path"].to_list() == ["000001.png", "000002.png"]


def test_a_score_in_nine_columns_is_a_confidence_unless_all_are_marks(sequence: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "t.txt", "1,1,1,1,9,9,0.5,0,-1\n1,2,1,1,9,9,1,0,-1\n")
    read = read_box_file(Boxes(file, frames=sequence / "img1"), "t")
    assert read.table["confidence"].to_list() == [0.5, 1]
    assert read.table["class"].to_list() == ["0", "0"]


def test_annotations_of_coco_stand_in_the_order_of_their_images(tmp_path: Path) -> None:
    frames(tmp_path / "images", "a.png", "b.png")
    file = coco(
        tmp_path / "c.json",
        [
            {"image_id": 3, "category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5, "track_id": 8},
            {"image_id": 7, "category_id": 9, "bbox": [0, 0, 2, 2], "iscrowd": 0},
            {"image_id": 7, "category_id": 4, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"image_id": 7, "category_id": 4, "bbox": [0.5, 0, 9, 9], "attributes": {"person_id": "Ann"}},
        ],
        frame_id=12,
    )
    assert format_of(file) == "coco"
    read = read_box_file(Boxes(file), "c")
    assert read.frames.resolve() == tmp_path / "images"
    assert read.ignored == 1
    assert read.table.select("path", *BOX).rows() == [
        ("b.png", 0, 0, 2, 2),
        ("b.png", 0.5, 0, 9.5, 9),
        ("a.png", 1, 2, 4, 6),
    ]
    assert read.table.select("frame", "class_name", "confidence", "tracklet", "person").rows() == [
        (12, "dog", None, None, None),
        (12, "person", None, None, "Ann"),
        (None, "person", 0.5, "8", None),
    ]


def test_a_table_of_supervision_counts_frames_from_zero_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = frames(tmp_path / "frames", *(f"shot_{number}.png" for number in (8, 9, 10)))
    file = write(tmp_path / "s.csv", f"{SINK},frame_index\n1.5,2,3,4,0,0.75,5,2\n1,2,3,4,2,0.5,,0\n")
    assert format_of(file) == "supervision"
    read = read_box_file(Boxes(file, frames=folder), "s")
    assert read.table.select("path", *BOX, "frame", "class", "confidence", "tracklet").rows() == [
        ("shot_8.png", 1, 2, 3, 4, 0, "2", 0.5, None),
        ("shot_10.png", 1.5, 2, 3, 4, 2, "0", 0.75, "5"),
    ]
    with pytest.raises(InputError, match=r"names no files; give their folder as boxes\.frames=FOLDER"):
        read_box_file(Boxes(file), "s")
    with pytest.raises(
        InputError, match=r"row 2 is of frame 0, and .* has frames 1 to 3.*boxes\.first_frame"
    ):
        read_box_file(Boxes(file, frames=folder, first_frame=1), "s")
    (folder / "shot_9.png").unlink()
    with pytest.raises(InputError, match=r"numbers of the 2 frames have gaps \(8 to 10\)"):
        read_box_file(Boxes(file, frames=folder), "s")


def test_a_table_of_supervision_may_name_its_files(tmp_path: Path) -> None:
    frames(tmp_path, "a.png")
    file = write(tmp_path / "s.csv", f"{SINK},class_name,file\n1,2,3,4,7,0.75,5,person,a.png\n")
    table = read_box_file(Boxes(file), "s").table
    assert table.select("path", "class", "class_name").rows() == [("a.png", "7", "person")]
    pl.read_csv(file).write_parquet(tmp_path / "s.parquet")
    assert read_box_file(Boxes(tmp_path / "s.parquet", format="supervision"), "s").table.equals(table)


def test_texts_of_yolo_are_fractions_of_the_picture_of_their_name(tmp_path: Path) -> None:
    frames(tmp_path / "images" / "train", "a.png", "b.png")
    labels = tmp_path / "labels" / "train"
    write(labels / "a.txt", "0 0.5 0.5 0.5 1\n\n2 0.25 0.25 0.5 0.5 0.75\n")
    write(labels / "b.txt", "0 0.5 0.5 1 1 0.5 3\n")
    write(labels / "empty.txt", "")
    write(tmp_path / "data.yaml", "names: {0: person, 2: car}\n")
    assert format_of(labels) == "yolo"
    read = read_box_file(Boxes(labels), "y")
    assert read.fractions
    assert read.frames == tmp_path / "images" / "train"
    assert read.table.select("path", *BOX, "class", "class_name", "confidence", "tracklet").rows() == [
        ("a.png", 0.25, 0, 0.75, 1, "0", "person", None, None),
        ("a.png", 0, 0, 0.5, 0.5, "2", "car", 0.75, None),
        ("b.png", 0, 0, 1, 1, "0", "person", 0.5, "3"),
    ]
    alone = read_box_file(Boxes(labels / "b.txt"), "b")
    assert alone.table["path"].to_list() == ["b.png"]


def test_a_sixth_value_of_yolo_that_no_confidence_can_be_is_a_track(tmp_path: Path) -> None:
    frames(tmp_path, "a.png")
    write(tmp_path / "a.txt", "0 0.5 0.5 1 1 1\n0 0.5 0.5 1 1 12\n")
    table = read_box_file(Boxes(tmp_path, format="yolo"), "y").table
    assert table.select("confidence", "tracklet").rows() == [(None, "1"), (None, "12")]


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("a.txt", "1,2,3,4,5,6\n", "mot"),
        ("a.csv", "1,2,3,4,5,6,1,-1,-1,-1\n", "mot"),
        ("a.txt", "0 0.5 0.5 0.1 0.1 0.9\n", "yolo"),
        ("a.txt", "1 -1 300 200 50 100 0.9\n", "mot"),
        ("a.csv", "path,left,top,right,bottom\n", None),
        ("a.txt", "crops/a.png\n", None),
        ("a.txt", "", None),
        ("a.parquet", "1,2,3,4,5,6\n", None),
    ],
)
def test_the_format_is_told_by_content(tmp_path: Path, name: str, text: str, form: str | None) -> None:
    assert format_of(write(tmp_path / name, text)) == form


def test_a_folder_with_pictures_is_pictures_whatever_texts_lie_there(tmp_path: Path) -> None:
    write(tmp_path / "README.txt", "crops of people\n")
    assert format_of(tmp_path) is None
    write(tmp_path / "a.txt", "0 0.5 0.5 1 1\n")
    assert format_of(tmp_path) == "yolo"
    frames(tmp_path, "a.png")
    assert format_of(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,1,1,1,9,9\n\n1,1,x,1,9,9\n", r"t: line 3: left 'x' is no number"),
        ("1,1,1,1,9,nan\n", "line 1: height 'nan' is no number"),
        ("1.5,1,1,1,9,9\n", "line 1: frame '1.5' is no whole number"),
        ("1,1,1,1,9,9\n1,1,1\n", "line 2 has 3 values; a box of MOT has 6 to 10: frame, id, left"),
    ],
)
def test_a_wrong_line_of_mot_is_named(sequence: Path, tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "t.txt", text)
    with pytest.raises(InputError, match=said):
        read_box_file(Boxes(file, format="mot", frames=sequence / "img1"), "t")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_id": 5}, "annotation 0 is of no image that the file names"),
        ({"image_id": [3]}, "annotation 0 is of no image"),
        ({"bbox": [1, 2, 3]}, "annotation 0 has no bbox of four numbers"),
        ({"bbox": [1, 2, "wide", 4]}, "annotation 0: bbox 'wide' is no number"),
        ({"score": True}, "annotation 0: score 'True' is no number"),
    ],
)
def test_a_wrong_annotation_of_coco_is_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    frames(tmp_path, "a.png", "b.png")
    one = {"image_id": 3, "category_id": 4, "bbox": [1, 2, 3, 4]} | changes
    with pytest.raises(InputError, match=said):
        read_box_file(Boxes(coco(tmp_path / "c.json", [one])), "c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "has no images and annotations"),
        ("{", "cannot be read as JSON"),
        ('{"images": [{"id": 1}], "annotations": []}', "image 0 has no file_name"),
        ('{"images": [], "annotations": []}', "c holds no boxes"),
    ],
)
def test_json_of_something_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_box_file(Boxes(write(tmp_path / "c.json", text)), "c")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 1", "line 1 has 4 values; a box of YOLO has 5 to 7"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4 0.4", "line 1 has 9 values"),
        ("0 320 240 50 80", "line 1: 320 is no fraction of a frame"),
        ("0.5 0.5 0.5 1 1", "line 1: class '0.5' is no whole number"),
        ("0 0.5 half 1 1", "line 1: y 'half' is no number"),
    ],
)
def test_a_wrong_line_of_yolo_is_named_with_its_file(tmp_path: Path, line: str, said: str) -> None:
    frames(tmp_path, "a.png")
    write(tmp_path / "a.txt", line)
    with pytest.raises(InputError, match=rf"y/a\.txt: {said}"):
        read_box_file(Boxes(tmp_path, format="yolo"), "y")


def test_a_wrong_row_of_supervision_is_named(tmp_path: Path) -> None:
    frames(tmp_path, "a.png")
    file = write(tmp_path / "s.csv", f"{SINK},path\n1,2,3,4,0,,,a.png\n1,,3,4,0,0.5,,a.png\n")
    with pytest.raises(InputError, match="s: row 2: y_min 'None' is no number"):
        read_box_file(Boxes(file), "s")
    file.write_text(f"{SINK}\n1,2,3,4,0,,\n")
    with pytest.raises(InputError, match="row 1 neither a path nor a frame; give CSVSink custom_data"):
        read_box_file(Boxes(file, frames=tmp_path), "s")


def test_two_pictures_for_one_frame_are_told(sequence: Path, tmp_path: Path) -> None:
    frames(sequence / "img1", "2.png")
    with pytest.raises(InputError, match=r"has two frames 2, 000002\.png and 2\.png"):
        read_box_file(Boxes(sequence), "s")
    frames(tmp_path, "a.png", "a.jpg")
    write(tmp_path / "a.txt", "0 0.5 0.5 1 1\n")
    with pytest.raises(InputError, match=r"a\.jpg and a\.png for one text"):
        read_box_file(Boxes(tmp_path, format="yolo"), "y")


def test_what_is_no_file_of_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="x is not there"):
        read_box_file(Boxes(tmp_path / "absent.txt"), "x")
    with pytest.raises(InputError, match=r"x is in no known format of boxes; give boxes\.format=mot, coco"):
        read_box_file(Boxes(write(tmp_path / "a.txt", "people\n")), "x")
    with pytest.raises(InputError, match=r"x has neither gt/gt\.txt nor det/det\.txt"):
        read_box_file(Boxes(tmp_path, format="mot"), "x")


def test_settings_check_themselves() -> None:
    with pytest.raises(InputError, match=r"boxes\.format=voc is unknown; choose mot, coco"):
        Boxes("a", format="voc")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"boxes\.least_size=-1 must be a number, 0 or more"):
        Boxes("a", least_size=-1)
