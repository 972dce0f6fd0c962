from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io.staging import open_stage
from clip3dreid.io.work_folder import WorkFolder
from tests.io.test_files import linked, names

__all__ = ["linked"]

LAST = ("plan.json",)
WORK = WorkFolder(".work", lambda name: name.startswith("chunk") or name in LAST)


def test_a_working_folder_that_holds_something_else_is_named(tmp_path: Path) -> None:
    WORK.check(tmp_path)
    stage = open_stage(tmp_path / ".work")
    for name in ("chunk-1", "plan.json"):
        (tmp_path / ".work" / name).write_text("ours")
    (stage / "half").write_text("ours")
    WORK.check(tmp_path)
    (tmp_path / ".work" / "precious").write_text("somebody's")
    with pytest.raises(InputError, match=r"\.work holds something else \(precious\); move it away"):
        WORK.check(tmp_path)
    WORK.clear(tmp_path, LAST)
    assert names(tmp_path / ".work") == ["precious"]
    (tmp_path / ".work" / "precious").unlink()
    WORK.clear(tmp_path, LAST)
    assert names(tmp_path) == []


def test_a_file_or_a_link_in_the_place_of_a_working_folder_is_refused(tmp_path: Path, linked: Path) -> None:
    (tmp_path / ".work").write_text("somebody's")
    with pytest.raises(InputError, match="holds something else"):
        WORK.check(tmp_path)
    (tmp_path / ".work").unlink()
    (tmp_path / ".work").symlink_to(linked)
    with pytest.raises(InputError, match="is a link"):
        WORK.check(tmp_path)
