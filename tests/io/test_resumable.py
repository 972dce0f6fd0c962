"""The one folder of parts that survives a kill, apart from what is in it."""

import json
from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io.resumable import INDEX, PartKind, Parts, cut, look_into, read_index

KIND = PartKind(
    what="letters",
    stem="letter",
    digits=4,
    suffixes=(".txt", ".sum"),
    version=3,
    needs={"made_by": str},
    elsewhere="give another out",
    others=("notes.csv",),
)
FACTS = {"version": 3, "made_by": "hand"}


def opened(folder: Path, rows: int = 10, share: tuple[int, int] = (0, 1), good: str = "good") -> Parts:
    def usable(number: int) -> bool:
        return (folder / KIND.name(number, ".txt")).read_text() == good

    return Parts(folder, KIND, cut(rows, 4), usable, share)


def fill(parts: Parts) -> None:
    parts.write_index(FACTS)
    for number in parts.missing():
        with parts.write(number, ".txt") as temporary:
            temporary.write_text("good")
        parts.done.add(number)


def test_rows_are_cut_into_parts_of_equal_size_and_a_rest() -> None:
    assert cut(10, 4) == [range(4), range(4, 8), range(8, 10)]
    assert cut(8, 4) == [range(4), range(4, 8)]
    assert cut(0, 4) == []


def test_what_is_there_and_good_is_kept_and_the_rest_is_missing(tmp_path: Path) -> None:
    parts = opened(tmp_path)
    assert parts.missing() == [0, 1, 2]
    fill(parts)
    assert parts.missing() == []
    (tmp_path / "letter-0001.txt").write_text("bad")
    (tmp_path / "letter-0002.txt").unlink()
    again = opened(tmp_path)
    assert (again.done, again.missing(), again.stale) == ({0}, [1, 2], 1)


def test_each_process_has_its_own_parts_and_sweeps_after_its_own_alone(tmp_path: Path) -> None:
    fill(opened(tmp_path, share=(1, 2)))
    assert sorted(path.name for path in tmp_path.glob("letter*")) == ["letter-0001.txt"]
    litter = [f".letter-{number:04d}-abcdefgh.txt" for number in (0, 1, 2, 9)]
    for name in (*litter, ".index-abcdefgh.json", ".notes-abcdefgh.csv", ".other-abcdefgh.txt"):
        (tmp_path / name).write_text("half")
    opened(tmp_path, share=(1, 2)).sweep()
    assert sorted(path.name for path in tmp_path.glob(".letter*")) == [litter[0], litter[2]]
    opened(tmp_path, share=(0, 2)).sweep()
    assert [path.name for path in tmp_path.glob(".*")] == [".other-abcdefgh.txt"]


def test_parts_beyond_a_shorter_list_go(tmp_path: Path) -> None:
    fill(opened(tmp_path, rows=20))
    (tmp_path / "letter-0009.txt").write_text("somebody's")
    opened(tmp_path, rows=10).remove_beyond(5)
    assert sorted(path.name for path in tmp_path.glob("letter*")) == [
        *(f"letter-{number:04d}.txt" for number in range(3)),
        "letter-0009.txt",
    ]


def test_a_folder_says_what_it_holds_and_looking_changes_nothing(tmp_path: Path) -> None:
    assert look_into(tmp_path / "new", KIND) is None
    assert not (tmp_path / "new").exists()
    fill(opened(tmp_path))
    assert look_into(tmp_path, KIND) == read_index(tmp_path, KIND) == FACTS


@pytest.mark.parametrize("name", ["letter-0000.txt", "letter-00012.sum", "notes.csv"])
def test_files_that_are_nobody_knows_whose_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(InputError, match=f"the names that letters have \\({name}\\) and no index"):
        look_into(tmp_path, KIND)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 9}, "has version 9, this program reads 3; give another out"),
        ({"made_by": 5}, "is damaged .*made_by"),
        ({"made_by": "foot"}, "its checksum is another"),
    ],
)
def test_an_index_of_another_version_or_a_damaged_one_is_refused(
    tmp_path: Path, change: dict, said: str
) -> None:
    fill(opened(tmp_path))
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(index | change))
    with pytest.raises(InputError, match=said):
        look_into(tmp_path, KIND)


def test_a_file_or_a_link_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder; give another out"):
        look_into(tmp_path / "file", KIND)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / INDEX).symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a link"):
        look_into(tmp_path / "folder", KIND)
    (tmp_path / "folder" / "letter-0000.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a link"), opened(tmp_path / "folder").write(0, ".txt"):
        pass
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (RuntimeError("a defect"), RuntimeError, "a defect"),
        (
            OSError(28, "No space left on device"),
            InputError,
            r"cannot write letter-0000\.txt to .*: No space left on device; make room and run again",
        ),
    ],
)
def test_a_part_is_written_whole_or_not_at_all(
    tmp_path: Path, error: Exception, raised: type[Exception], said: str
) -> None:
    def write_half() -> None:
        with opened(tmp_path).write(0, ".txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(raised, match=said):
        write_half()
    assert list(tmp_path.iterdir()) == []
