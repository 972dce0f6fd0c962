from pathlib import Path

import pytest

from clip3dreid.data.datasets import ccvid
from clip3dreid.data.tracklets import tracklets
from clip3dreid.errors import InputError
from clip3dreid.retrieval.protocol import Protocol, same_camera
from clip3dreid.retrieval.protocol_counts import count

from . import trees

LISTS = {
    "train.txt": ("session1/001_01\t001\tu0_l0_s0_c0_a0", "session3/001_02\t001\tu1_l1_s0_c0_a0"),
    "query.txt": ("session1/076_12\t076\tu0_l0_s0_c0_a0",),
    "gallery.txt": ("session2/076_07\t076\tu1_l0_s0_c0_a0", "session3/077_01\t077\tu0_l0_s0_c0_a0"),
}


def tree(root: Path, frames: int = 2) -> Path:
    for name, lines in LISTS.items():
        for line in lines:
            folder = line.split()[0]
            trees.plant(root, *(f"{folder}/{frame:05d}.jpg" for frame in range(1, frames + 1)))
        (root / name).write_text("\n".join(lines) + "\n\n")
    return root


def test_tracklets_cameras_and_clothes_come_from_folders_and_lists(tmp_path: Path) -> None:
    manifest = ccvid.read(tree(trees.misleading(tmp_path, "CCVID")))
    columns = ("path", "person", "camera", "clothes", "tracklet", "frame", "split", "role")
    rows = {row[0]: row[1:] for row in manifest.table.select(columns).rows()}
    assert len(rows) == 10
    assert rows["session1/001_01/00001.jpg"] == (
        *("1", "1", "1_u0_l0_s0_c0_a0", "session1/001_01", 1, "train", "train"),
    )
    assert rows["session1/076_12/00002.jpg"] == (
        *("76", "12", "76_u0_l0_s0_c0_a0", "session1/076_12", 2, "test", "query"),
    )
    # Sessions 1 and 2 share cameras; session 3 has its own, twelve further on.
    assert rows["session2/076_07/00001.jpg"][:3] == ("76", "7", "76_u1_l0_s0_c0_a0")
    assert rows["session3/077_01/00001.jpg"][:3] == ("77", "13", "77_u0_l0_s0_c0_a0")
    assert rows["session3/001_02/00001.jpg"][1] == "14"


def test_the_same_label_of_two_people_is_two_outfits(tmp_path: Path) -> None:
    clothes = ccvid.read(tree(tmp_path / "d")).part("test", "gallery")["clothes"]
    assert set(clothes) == {"76_u1_l0_s0_c0_a0", "77_u0_l0_s0_c0_a0"}


def test_frames_are_chosen_evenly_and_a_note_says_so(tmp_path: Path) -> None:
    manifest = ccvid.read(tree(tmp_path / "d", frames=9), frames=3)
    assert manifest.part("test", "query")["frame"].to_list() == [1, 4, 7]
    assert "3 frames" in trees.said(manifest)[-1]
    assert not any(count.what == "pictures" for count in manifest.published)


def test_more_frames_than_there_are_takes_all_once(tmp_path: Path) -> None:
    manifest = ccvid.read(tree(tmp_path / "d", frames=2), frames=5)
    assert manifest.part("test", "query")["frame"].to_list() == [1, 2]


def test_a_negative_number_of_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"frames=-1 must be a whole number, 0 or more"):
        ccvid.read(tree(tmp_path / "d"), frames=-1)


def test_a_tracklet_without_pictures_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    for picture in (root / "session1/001_01").glob("*.jpg"):
        picture.unlink()
    with pytest.raises(InputError, match=r"1 listed tracklets have no pictures .*session1/001_01; unpack"):
        ccvid.read(root)


def test_a_tracklet_that_is_not_there_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    (root / "gallery.txt").write_text(
        "session2/080_01 080 u0\nsession2/076_07 076 u1\nsession3/081_02 081 u0\n"
    )
    with pytest.raises(
        InputError, match=r"2 listed tracklets are not there .*2/080_01, session3/081_02; unpack"
    ):
        ccvid.read(root)


def test_of_many_tracklets_that_are_not_there_a_line_names_ten(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    (root / "gallery.txt").write_text("".join(f"session2/{p:03d}_01 {p} u0\n" for p in range(80, 93)))
    with pytest.raises(InputError) as refused:
        ccvid.read(root)
    assert str(refused.value).startswith("ccvid: 13 listed tracklets are not there in ")
    assert "session2/089_01 and 3 more; unpack" in str(refused.value)
    assert "session2/090_01" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("end", ["\r\n", "  \r\n", " \t\n", "\n\n"])
def test_blanks_at_the_ends_of_lines_mean_nothing(tmp_path: Path, end: str) -> None:
    plain, other = tree(tmp_path / "plain"), tree(tmp_path / "other")
    for name, lines in LISTS.items():
        (other / name).write_bytes("".join(line + end for line in lines).encode())
    assert ccvid.read(other).table.equals(ccvid.read(plain).table)


def test_a_note_says_what_is_called_a_camera_and_the_same_walk_of_another_day_is_dropped(
    tmp_path: Path,
) -> None:
    """Published camera numbers are walks: one walk of two days is one camera, and three days have two."""
    root = tmp_path / "d"
    for name, line in {
        "train.txt": "session1/001_01 001 u0",
        "query.txt": "session1/076_03 076 u0",
        "gallery.txt": "session2/076_03 076 u1\nsession3/076_03 076 u1\nsession1/076_04 076 u0",
    }.items():
        for one in line.splitlines():
            trees.plant(root, f"{one.split()[0]}/00001.jpg")
        (root / name).write_text(line + "\n")
    manifest = ccvid.read(root)
    (caveat,) = trees.said(manifest)
    assert caveat.startswith(
        "cameras are the numbers of walks, 12 more in session 3, as published, and no cameras"
    )
    query, gallery = (tracklets(manifest.part("test", role), "ccvid").table for role in ("query", "gallery"))
    assert dict(gallery.select("tracklet", "camera").rows()) == {
        "session2/076_03": "3",
        "session3/076_03": "15",
        "session1/076_04": "4",
    }
    general = count(Protocol("general", same_camera, ""), query, gallery)
    assert (general.positives_per_query, general.junk_per_query) == (2, 1)


def test_frames_are_counted_and_not_spelled(tmp_path: Path) -> None:
    (root := tmp_path / "d").mkdir()
    tree(root, frames=0)
    for folder in (
        "session1/001_01",
        "session3/001_02",
        "session1/076_12",
        "session2/076_07",
        "session3/077_01",
    ):
        trees.plant(root, *(f"{folder}/{frame}.jpg" for frame in (1, 2, 10, 11)))
    assert ccvid.read(root, frames=2).part("test", "query")["path"].to_list() == [
        "session1/076_12/1.jpg",
        "session1/076_12/10.jpg",
    ]


@pytest.mark.parametrize("line", ["session1/001_01 001", "001_01 001 u0", "session1/001_01 x u0"])
def test_a_line_of_another_kind_is_named_with_its_place(tmp_path: Path, line: str) -> None:
    root = tree(tmp_path / "d")
    (root / "query.txt").write_text(f"{LISTS['query.txt'][0]}\n{line}\n")
    with pytest.raises(InputError, match=r"line 2 of .*query\.txt"):
        ccvid.read(root)


def test_an_empty_list_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    (root / "query.txt").write_text("\n")
    with pytest.raises(InputError, match=r"query\.txt lists no tracklets"):
        ccvid.read(root)


def test_a_missing_list_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    (root / "gallery.txt").unlink()
    with pytest.raises(InputError, match=r"lacks gallery\.txt"):
        ccvid.read(root)


def test_a_frame_of_another_name_is_listed(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    trees.plant(root, "session1/076_12/face_1.jpg")
    with pytest.raises(
        InputError, match=r"do not parse \(expected such as 00001\.jpg\): session1/076_12/face_1"
    ):
        ccvid.read(root)


def test_tracklets_that_no_list_names_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    assert not any("not looked at" in note for note in ccvid.read(root).notes)
    trees.plant(root, "session2/099_01/00001.jpg")
    assert "1 folders beside the data set's are not looked at: session2/099_01/" in ccvid.read(root).notes


def test_pictures_of_a_tracklet_that_are_not_read_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    (root / "session1/001_01/00003.heic").touch()
    with pytest.raises(InputError, match=r"session1/001_01: 1 pictures are in formats that are not read"):
        ccvid.read(root)
