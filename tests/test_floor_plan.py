"""The picture of the packages in CONTRIBUTING.md shows the code as it is."""

import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[1]


def floor_plan(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a checkout's own tool."""
    return subprocess.run(
        [sys.executable, root / "tools" / "floor_plan.py", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the picture is drawn from, with a picture of its own."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    for file in ("pyproject.toml", "tools/floor_plan.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "docs").mkdir()
    assert floor_plan(tmp_path).returncode == 0
    return tmp_path


def words_of(picture: Path) -> list[str]:
    return [
        element.text or "" for element in ElementTree.parse(picture).iter() if element.tag.endswith("}text")
    ]


def test_the_committed_picture_is_the_one_that_the_code_gives() -> None:
    done = floor_plan(ROOT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_picture_is_refused_with_the_command_that_draws_it_anew(checkout: Path) -> None:
    (checkout / "src/clip3dreid/model/another.py").write_text('"""One more module."""\n', encoding="utf-8")
    done = floor_plan(checkout, "--check")
    assert done.returncode == 1
    assert "python tools/floor_plan.py" in done.stdout
    assert floor_plan(checkout).returncode == 0
    assert floor_plan(checkout, "--check").returncode == 0


def test_every_package_is_in_the_picture(checkout: Path) -> None:
    words = words_of(checkout / "docs/floor_plan.svg")
    packages = [path.name for path in (ROOT / "src/clip3dreid").iterdir() if (path / "__init__.py").is_file()]
    assert len(packages) >= 15
    assert set(packages) <= set(words)


def test_an_import_upwards_or_sideways_is_shown_as_wrong(checkout: Path) -> None:
    picture = checkout / "docs/floor_plan.svg"
    before = picture.read_text(encoding="utf-8").count("stroke-dasharray")
    (checkout / "src/clip3dreid/model/up.py").write_text(
        '"""Imports upwards and sideways."""\n\nfrom clip3dreid import search\nfrom clip3dreid import loss\n',
        encoding="utf-8",
    )
    assert floor_plan(checkout).returncode == 0
    assert picture.read_text(encoding="utf-8").count("stroke-dasharray") == before + 2
    assert f"{before + 2} imports break the rule" in words_of(picture)


def test_the_picture_does_not_depend_on_hashing_or_on_the_machine(checkout: Path) -> None:
    pictures = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, checkout / "tools/floor_plan.py"],
            env={"PYTHONHASHSEED": seed},
            cwd="/",
            capture_output=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        pictures.add((checkout / "docs/floor_plan.svg").read_bytes())
    assert len(pictures) == 1
