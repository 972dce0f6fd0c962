"""What CONTRIBUTING.md says is done, to the letter, in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TREE = (
    "src",
    "conf",
    "tests",
    "docs",
    "tools",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "constraints.txt",
)


class Block(NamedTuple):
    section: str
    language: str
    code: str
    file: str | None
    """Where it belongs, by the path that the paragraph before it begins, or ends, with."""
    added: bool
    """At the end of a file that is there."""


def blocks() -> Iterator[Block]:
    """Yield the page's fenced blocks in order."""
    section, paragraph = "", ""
    for part in re.split(r"(^```\w+\n.*?^```$)", PAGE, flags=re.M | re.S):
        fenced = re.fullmatch(r"```(\w+)\n(.*?)^```", part, flags=re.M | re.S)
        if fenced is None:
            section = ([section, *re.findall(r"^## (.+)$", part, flags=re.M)])[-1]
            paragraph = part.strip().split("\n\n")[-1]
            continue
        named = re.match(r"`([\w./]+\.\w+)`", paragraph)
        added = re.search(r"Add to\s+`([\w./]+\.\w+)`:$", paragraph)
        file = added[1] if added else named[1] if named else None
        yield Block(section, fenced[1], fenced[2], file, added is not None)


SECTIONS = list(dict.fromkeys(block.section for block in blocks()))


def test_the_page_shows_how_each_kind_of_thing_is_added() -> None:
    assert SECTIONS == ["A data set", "A loss", "A backbone", "A protocol", "A command"]
    for section in SECTIONS:
        own = [block for block in blocks() if block.section == section]
        assert all(block.file for block in own if block.language != "bash"), section
        assert any(block.language == "bash" for block in own), section
        assert any(block.file and block.file.startswith("tests/") for block in own), section


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with all that the page adds, and commands that run it."""
    folder = tmp_path_factory.mktemp("contributing") / "clip3dreid"
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in TREE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name, **({"ignore": ignore} if copy is shutil.copytree else {}))
    for block in blocks():
        if block.file is None:
            continue
        file = folder / block.file
        assert file.exists() == block.added, block.file
        file.parent.mkdir(exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(f"\n\n{block.code}" if block.added else block.code)
    commands = folder / "bin"
    commands.mkdir()
    for name, module in (("python", ""), ("clip3dreid", " -m clip3dreid")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n', encoding="utf-8")
        (commands / name).chmod(0o755)
    return folder


def run(tree: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the page as it stands."""
    environment = os.environ | {
        "PATH": f"{tree / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(tree / "src"),
        "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:xdist",
    }
    # What a test's worker tells its own children about itself is no business of a run of its own.
    environment = {key: value for key, value in environment.items() if not key.startswith("PYTEST_XDIST")}
    return subprocess.run(
        command, shell=True, cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )


def added(folder: str) -> list[str]:
    """Return the Python files that the page makes below a folder."""
    files = [block.file for block in blocks() if block.file and not block.added]
    return [file for file in files if file.startswith(folder) and file.endswith(".py")]


def touched(folder: str) -> list[str]:
    """Return the Python files that the page makes or adds to below a folder."""
    files = dict.fromkeys(block.file for block in blocks() if block.file)
    return [file for file in files if file.startswith(folder) and file.endswith(".py")]


def test_what_the_page_adds_passes_its_tests_and_those_of_every_config(tree: Path) -> None:
    every = [
        "tests/data/datasets/test_data_configs.py",
        "tests/loss/test_loss_configs.py",
        "tests/model/test_student.py",
        "tests/retrieval/test_protocol.py",
    ]
    names = "mall or centre or plain or same_camera_soon or outfits"
    done = run(tree, f"python -m pytest -q -rA {' '.join([*added('tests/'), *every])} -k '{names}'")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for file in [*added("tests/"), *every]:
        assert f"PASSED {file}" in done.stdout, file


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_the_commands_of_a_section_do_what_it_says(tree: Path, section: str) -> None:
    for block in blocks():
        if block.section != section or block.language != "bash":
            continue
        for command in block.code.splitlines():
            done = run(tree, command)
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            if "pytest" in command:
                assert re.search(r"\b\d+ passed", done.stdout), done.stdout[-3000:]


def test_what_the_page_adds_is_formatted_and_passes_ruff(tree: Path) -> None:
    files = " ".join(touched(""))
    for command in (f"ruff check {files}", f"ruff format --check {files}"):
        done = run(tree, f"{Path(sys.executable).parent}/{command}")
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


@pytest.mark.slow
def test_what_the_page_adds_passes_mypy_and_the_import_rules(tree: Path) -> None:
    for command in (f"mypy {' '.join(touched('src/'))}", "lint-imports"):
        done = run(tree, f"{Path(sys.executable).parent}/{command}")
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
