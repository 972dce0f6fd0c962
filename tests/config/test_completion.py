import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clip3dreid.config.completion import SCRIPTS, completions
from clip3dreid.config.folder import options
from tests.processes import PATIENCE_S


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["help", "tra"], ["train"]),
        (["--ver"], ["--version"]),
        (["train", "+exp"], ["+experiment="]),
        (["train", "epo"], ["epochs="]),
        (["train", "a=1", "model/st"], ["model/student="]),
        (["train", "data.ro"], ["data.root="]),
        (["train", "+experiment=lt"], ["+experiment=ltcc"]),
        (["train", "loss=[identity,bo"], ["loss=[identity,body", "loss=[identity,body_identity"]),
        (["inspect-data", "data=lt"], ["data=ltcc"]),
        (["search", "where.cam"], ["where.camera="]),
        (["search", "picture="], []),
        (["weights", "conv"], ["convert="]),
        (["weights", "epo"], ["epochs="]),
        (["nothing", "x"], []),
    ],
)
def test_the_last_word_is_completed(words: list[str], expected: list[str]) -> None:
    assert completions(words) == expected


def test_every_option_of_a_group_is_offered() -> None:
    assert completions(["train", "data="]) == [f"data={name}" for name in options("data")]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which `clip3dreid` is a command."""
    program = tmp_path / "bin" / "clip3dreid"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m clip3dreid "$@"\n')
    program.chmod(0o755)
    return os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("clip3dreid sea", "search"),
        ("clip3dreid train +experiment=lt", "ltcc"),
        ("clip3dreid train epo", "epochs="),
        ("clip3dreid search picture=cr", "crop.jpg crops"),
    ],
)
def test_bash_completes_by_what_clip3dreid_prints(
    tmp_path: Path, shell: dict[str, str], typed: str, expected: str
) -> None:
    (tmp_path / "crop.jpg").touch()
    (tmp_path / "crops").mkdir()
    # As readline calls it, with = among the characters that end a word.
    code = f"""
eval "$(clip3dreid --completion bash)"
complete -p clip3dreid >/dev/null || exit 1
COMP_LINE={typed!r} COMP_POINT={len(typed)}
_clip3dreid
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stderr == ""
    assert " ".join(sorted(done.stdout.split())) == expected


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_shell_that_is_there_takes_its_script(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name}")
    path = tmp_path / "script"
    path.write_text(SCRIPTS[name])
    done = subprocess.run([name, "-n", str(path)], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")
