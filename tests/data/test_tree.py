import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip3dreid.data.tree import Names, Tree, number
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import SUFFIXES, UNREAD_SUFFIXES, find_pictures, kind_of

from .datasets import trees

NAMES = Names(re.compile(r"(\d+)_c(\d+)\.\w+"), "01_c2.jpg")


SCANDIR = os.scandir


class Backwards:
    """A directory that lists its entries in the reverse of alphabetical order."""

    def __init__(self, path: Path) -> None:
        with SCANDIR(path) as entries:
            self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

    def __enter__(self) -> list[os.DirEntry[str]]:
        return self.entries

    def __exit__(self, *_: object) -> None:
        pass


def message(tree: Tree, *expected: str) -> str:
    with pytest.raises(InputError) as caught:
        tree.require(*expected)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_strays_hidden_files_and_folders_are_no_pictures(tmp_path: Path) -> None:
    root = trees.plant(tmp_path, "a/1.jpg", "a/2.JPEG", "a/3.png", "a/.4.jpg", "a/5.mp4")
    (root / "a/6.jpg").mkdir()
    assert Tree("t", root).pictures("a") == ["a/1.jpg", "a/2.JPEG", "a/3.png"]


def test_pictures_are_listed_at_the_asked_depth_only_and_sorted(tmp_path: Path) -> None:
    tree = Tree("t", trees.plant(tmp_path, "a/q/2.jpg", "a/p/9.jpg", "a/p/1.jpg", "b/p/deep/1.jpg"))
    assert tree.pictures("a", depth=1) == ["a/p/1.jpg", "a/p/9.jpg", "a/q/2.jpg"]
    assert tree.pictures("b", depth=2) == ["b/p/deep/1.jpg"]


def test_the_order_of_the_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree("t", trees.plant(tmp_path, *(f"a/{i}.jpg" for i in range(20))))
    straight = tree.pictures("a")
    monkeypatch.setattr(os, "scandir", Backwards)
    assert tree.pictures("a") == straight


def test_folders_that_are_links_are_followed(tmp_path: Path) -> None:
    trees.plant(tmp_path / "disk", "p/1.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a").symlink_to(tmp_path / "disk")
    assert Tree("t", tmp_path / "root").pictures("a", depth=1) == ["a/p/1.jpg"]


def test_twelve_names_that_do_not_parse_are_listed_up_to_ten_and_counted(tmp_path: Path) -> None:
    root = trees.plant(tmp_path, "a/1_c2.jpg", *(f"a/bad{i:02d}.jpg" for i in range(12)))
    with pytest.raises(InputError) as caught:
        Tree("t", root).read("a", NAMES)
    line = str(caught.value)
    assert "t: 12 file names" in line
    assert [f"bad{i:02d}" in line for i in range(12)] == [True] * 10 + [False] * 2
    assert "and 2 more" in line
    assert "01_c2.jpg" in line
    assert "\n" not in line


def test_names_are_read_from_the_basename_and_from_all_of_it(tmp_path: Path) -> None:
    tree = Tree("t", trees.plant(tmp_path / "9_c9.jpg", "8_c8.jpg/1_c2.jpg"))
    ((path, match),) = tree.read("8_c8.jpg", NAMES)
    assert (path, match.groups()) == ("8_c8.jpg/1_c2.jpg", ("1", "2"))
    with pytest.raises(InputError, match=r"x1_c2\.jpg"):
        tree.parse(["x1_c2.jpg"], NAMES)
    with pytest.raises(InputError, match=r"1_c2\.jpg\.part"):
        tree.parse(["1_c2.jpg.part"], NAMES)


def test_a_name_of_two_parts_takes_the_folder_along() -> None:
    names = Names(re.compile(r"(\d+)/([ABC])\d+\.jpg"), "007/A1.jpg", parts=2)
    ((_, match),) = Tree("t", Path("x")).parse(["9/B2.jpg/007/A1.jpg"], names)
    assert match.groups() == ("007", "A")


def test_an_empty_folder_is_named_with_the_pictures_below_it(tmp_path: Path) -> None:
    tree = Tree("t", trees.plant(tmp_path, "train/inner/1_c2.jpg"))
    with pytest.raises(
        InputError, match=rf"no pictures such as 01_c2\.jpg in {tmp_path}/train; .* {tmp_path}/train/inner$"
    ):
        tree.read("train", NAMES)


def test_an_empty_folder_is_not_told_of_the_pictures_of_another_part(tmp_path: Path) -> None:
    tree = Tree("t", trees.plant(tmp_path, "query/1_c2.jpg"))
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"/train; put the data set's pictures there$"):
        tree.read("train", NAMES)


def test_numbers_lose_leading_zeros_but_not_their_sign() -> None:
    assert [number(digits) for digits in ("000", "012", "-1", "7")] == ["0", "12", "-1", "7"]


@pytest.mark.parametrize(
    "place", [".", "sets", "sets/LTCC_ReID/train", "sets/LTCC_ReID/info/deep", "sets/LTCC", "sets/other"]
)
def test_a_root_up_to_two_levels_off_is_told_the_right_one(tmp_path: Path, place: str) -> None:
    right = trees.ltcc(tmp_path / "sets" / "LTCC_ReID")
    (right / "info/deep").mkdir()
    (tmp_path / "sets/other").mkdir()
    line = message(Tree("ltcc", tmp_path / place), "train/", "query/", "test/")
    assert line.endswith(f"set data.root={right}")
    assert "expected train/, query/, test/" in line


def test_of_several_data_sets_beside_a_misspelled_root_the_one_spelled_most_like_it_is_named(
    tmp_path: Path,
) -> None:
    for name in ("Celeb-reID", "VC-Clothes", "A"):
        trees.vc_clothes(tmp_path / name)
    line = message(Tree("vc_clothes", tmp_path / "vc_cloths"), "train/", "query/", "gallery/")
    assert line.startswith(f"vc_clothes: the data root {tmp_path}/vc_cloths is not there")
    assert line.endswith(f"set data.root={tmp_path}/VC-Clothes")


@pytest.mark.parametrize("spelled", ["Train", "trian", "train_set"])
def test_a_folder_spelled_differently_is_named(tmp_path: Path, spelled: str) -> None:
    trees.plant(tmp_path / "x", f"{spelled}/1.jpg", "query/1.jpg", "test/1.jpg")
    line = message(Tree("ltcc", tmp_path / "x"), "train/", "query/", "test/")
    assert "lacks train/;" in line
    assert line.endswith(f"the nearest match to train is {tmp_path}/x/{spelled}")


def test_a_folder_spelled_differently_half_way_down_is_named(tmp_path: Path) -> None:
    trees.plant(tmp_path / "x", "RGB/train/1.jpg")
    assert message(Tree("prcc", tmp_path / "x"), "rgb/train/").endswith(
        f"nearest match to rgb is {tmp_path}/x/RGB"
    )


def test_where_nothing_is_alike_what_is_there_is_named_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "scandir", Backwards)
    (tmp_path / "x/photos").mkdir(parents=True)
    (tmp_path / "x/films").mkdir()
    assert message(Tree("t", tmp_path / "x"), "zebra-7/").endswith(
        f"in {tmp_path}/x, which holds films, photos"
    )
    (tmp_path / "y").mkdir()
    assert message(Tree("t", tmp_path / "y"), "zebra-7/").endswith("which holds nothing")


def test_a_file_is_no_root_and_a_folder_is_no_list(tmp_path: Path) -> None:
    trees.plant(tmp_path / "x", "a.zip", "list.txt/1.jpg")
    assert f"{tmp_path}/x/a.zip is a file" in message(Tree("t", tmp_path / "x/a.zip"), "train/")
    assert "expected list.txt" in message(Tree("t", tmp_path / "x"), "list.txt")


def test_the_first_layout_that_fits_is_chosen(tmp_path: Path) -> None:
    tree = Tree("t", trees.plant(tmp_path, "b/1.jpg", "c/1.jpg"))
    assert tree.choose({"one": ["a/", "b/"], "two": ["b/"], "three": ["c/"]}) == "two"


def notes(tree: Tree) -> tuple[str, ...]:
    row = {"path": "x.jpg", "person": "1", "split": "train", "role": "train"}
    return tree.manifest([row]).notes


def test_what_is_no_picture_is_counted_by_kind_with_an_example(tmp_path: Path) -> None:
    tree = Tree("t", trees.plant(tmp_path, "a/1.jpg"))
    (tmp_path / "a/empty").mkdir()
    tree.pictures("a")
    (note,) = notes(tree)
    assert note.startswith("6 files that are no pictures are passed over: 2 hidden such as a/.DS_Store")
    assert all(
        name in note
        for name in ("a/Thumbs.db", "a/desktop.ini", "a/readme.txt", "1 folders such as a/empty/")
    )


def test_what_lies_beside_is_named_on_every_level(tmp_path: Path) -> None:
    for path in ("rgb/train/1.jpg", "rgb/valid/1.jpg", "sketch/1.jpg", "rgb/list.txt", "z.zip"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    tree = Tree("t", tmp_path)
    tree.require("rgb/train/")
    tree.pictures("rgb/train")
    passed_over, folders = notes(tree)
    assert passed_over == (
        "2 files that are no pictures are passed over: 1 *.txt such as rgb/list.txt, 1 *.zip such as z.zip"
    )
    assert folders == "2 folders beside the data set's are not looked at: sketch/, rgb/valid/"


@pytest.mark.parametrize(
    ("depth", "stray", "said"),
    [
        (0, "a/more/2.jpg", r"1 folders hold pictures on a deeper level: more/; expected is picture"),
        (0, "a/more/and/more/2.heic", r"1 folders hold pictures on a deeper level: more/"),
        (
            1,
            "a/p/more/2.jpg",
            r"1 folders hold pictures on a deeper level: p/more/; expected is FOLDER/picture",
        ),
        (1, "a/2.jpg", r"1 pictures lie in the folder itself: 2\.jpg; expected is FOLDER/picture"),
        (1, "a/2.heic", r"1 pictures lie in the folder itself: 2\.heic"),
        (
            0,
            "a/2.HEIC",
            r"1 pictures are in formats that are not read: 1 \*\.heic such as 2\.HEIC; convert them",
        ),
        (1, "a/p/2.dng", r"1 pictures are in formats that are not read: 1 \*\.dng such as p/2\.dng"),
        (0, os.fsdecode(b"a/caf\xe9.jpg"), r"1 file names are not UTF-8: 'caf\\udce9\.jpg'; rename them"),
    ],
)
def test_pictures_that_would_be_missed_are_refused(tmp_path: Path, depth: int, stray: str, said: str) -> None:
    trees.plant(tmp_path, "a/p/1.jpg" if depth else "a/1.jpg")
    (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / stray).touch()
    with pytest.raises(InputError, match=rf"t: {tmp_path}/a: {said}") as caught:
        Tree("t", tmp_path).pictures("a", depth)
    assert "\n" not in str(caught.value)


SUFFIX = st.sampled_from(
    [*sorted(SUFFIXES), *sorted(UNREAD_SUFFIXES), ".txt", ".db", ".mp4", ".jpg.txt", "", ".JPG", ".Jfif"]
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(
        st.tuples(st.sampled_from(["a", "a/p", "a/p/q", "a/.h"]), st.sampled_from(["x", ".y", "é"]), SUFFIX)
    ),
    st.integers(0, 1),
)
def test_every_file_is_listed_counted_or_the_reason_for_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, files: set[tuple[str, str, str]], depth: int
) -> None:
    root = tmp_path_factory.mktemp("tree")
    paths = {f"{folder}/{stem}{suffix}" for folder, stem, suffix in files} | {
        "a/p/z.png" if depth else "a/z.png"
    }
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()

    def sort(path: str) -> str:
        hidden = any(part.startswith(".") for part in path.split("/"))
        return "other" if hidden else kind_of(path)

    level = 1 + depth
    misplaced = [p for p in paths if sort(p) != "other" and p.count("/") != level]
    unread = [p for p in paths if sort(p) == "unread" and p.count("/") == level]
    tree = Tree("t", root)
    if misplaced or unread:
        with pytest.raises(InputError):
            tree.pictures("a", depth)
        return
    assert tree.pictures("a", depth) == sorted(p for p in paths if sort(p) == "picture")
    # Of a folder that is no picture's the folder is counted, not what is in it.
    strays = {p for p in paths if sort(p) == "other"}
    top = {"/".join(p.split("/")[: level + 1]) + ("/" if p.count("/") > level else "") for p in strays}
    top = {"a/.h/" if p.startswith("a/.h") else p for p in top}
    said = " ".join(notes(tree))
    assert f"{len(top)} files that are no pictures" in said if top else "files that" not in said


def test_a_link_to_nowhere_is_a_picture_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").symlink_to(tmp_path / "gone.jpg")
    assert Tree("t", tmp_path).pictures("a") == ["a/1.jpg"]


def test_a_folder_that_cannot_be_entered_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.plant(tmp_path, "a/p/1.jpg", "a/q/1.jpg")

    def refuse(path: Path) -> object:
        if str(path).endswith("/q"):
            raise PermissionError(13, "Permission denied", str(path))
        return SCANDIR(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"a/q cannot be looked into: Permission denied"):
        Tree("t", tmp_path).pictures("a", depth=1)


def test_no_file_is_asked_for_more_than_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.plant(tmp_path, *(f"a/{i}.jpg" for i in range(30)))
    asked: list[object] = []
    for call in ("stat", "lstat"):
        real = getattr(os, call)
        monkeypatch.setattr(
            os, call, lambda *given, real=real, **how: asked.append(given) or real(*given, **how)
        )
    assert len(Tree("t", tmp_path).pictures("a")) == 30
    assert asked == []


def test_pictures_that_no_list_names_are_counted(tmp_path: Path) -> None:
    tree = Tree("t", trees.plant(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg"))
    (tmp_path / "one.txt").write_text("1.jpg 7\n")
    (tmp_path / "two.txt").write_text("2.jpg 8\n")
    tree.listed("one.txt", "a")
    tree.listed("two.txt", "a")
    assert "1 pictures of a are in no list and left out: a/3.jpg" in notes(tree)


@pytest.mark.parametrize("folder", ["@eaDir/1.jpg", "__MACOSX", "lost+found", ".thumbnails"])
def test_what_disks_and_archives_leave_behind_is_nobodys_picture(tmp_path: Path, folder: str) -> None:
    trees.plant(tmp_path, "a/p/1.jpg", f"a/{folder}/thumb.jpg", f"a/p/{folder}/thumb.jpg")
    tree = Tree("t", tmp_path)
    assert tree.pictures("a", depth=1) == ["a/p/1.jpg"]
    assert "hidden" in notes(tree)[0] or "folders" in notes(tree)[0]
    assert find_pictures(tmp_path, "x").pictures == ["a/p/1.jpg"]
