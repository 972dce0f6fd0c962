from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io.staging import UNFINISHED, close_stages, open_stage, staged, together
from tests.io.test_files import linked, names

__all__ = ["linked"]


def test_what_an_earlier_run_still_writes_takes_nobodys_place(tmp_path: Path) -> None:
    work, out = tmp_path / "out" / ".work", tmp_path / "out"
    old = open_stage(work)
    stages = [old]

    def write(meanwhile: bool) -> None:
        with staged(old, out, "a/old") as temporary:
            temporary.write_text("old")
            if meanwhile:
                stages.append(open_stage(work))

    for meanwhile in (True, False):
        with pytest.raises(InputError, match="cannot write"):
            write(meanwhile)
    new = stages[-1]
    with staged(new, out, "b/new") as temporary:
        temporary.write_text("new")
    close_stages(work)
    assert [path for path in names(out) if (out / path).is_file()] == ["b/new"]
    assert not work.exists()


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    stage, name = open_stage(tmp_path / ".work"), "x" * 251 + ".png"
    with staged(stage, tmp_path, name) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"


def test_a_stage_leaves_what_is_not_its_own(tmp_path: Path, linked: Path) -> None:
    work = tmp_path / "work"
    open_stage(work)
    (work / "run-of-mine").mkdir()
    (work / "run-aaaaaaaa").symlink_to(tmp_path / "theirs")
    close_stages(work)
    assert names(work) == ["run-aaaaaaaa", "run-of-mine"]
    assert names(tmp_path / "theirs") == ["precious"]
    with pytest.raises(InputError, match="is a link"):
        open_stage(linked / "linked")


def test_files_that_belong_together_take_their_places_together(tmp_path: Path) -> None:
    def save(generation: str, fails: bool) -> None:
        with together(tmp_path, "index") as folder:
            (folder / "data").write_text(generation)
            if fails:
                raise OSError(28, "No space left on device")
            (folder / "index").write_text(generation)

    save("1", fails=False)
    with pytest.raises(InputError, match=r"cannot write .*No space left on device; make room"):
        save("2", fails=True)
    assert {path: (tmp_path / path).read_text() for path in names(tmp_path)} == {"data": "1", "index": "1"}
    (tmp_path / UNFINISHED / "run-killed00").mkdir(parents=True)
    save("3", fails=False)
    assert {path: (tmp_path / path).read_text() for path in names(tmp_path)} == {"data": "3", "index": "3"}


@pytest.mark.parametrize("name", ["precious", "broken"])
def test_files_that_belong_together_are_not_written_through_links(
    name: str, linked: Path, tmp_path: Path
) -> None:
    before = names(tmp_path)

    def write() -> None:
        with together(linked, "index") as folder:
            (folder / name).write_text("ours")
            (folder / "index").write_text("ours")

    with pytest.raises(InputError, match="is a link"):
        write()
    assert names(tmp_path) == before
