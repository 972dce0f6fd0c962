"""`transformers` is loaded where a model of it is used, and nowhere else."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import TINY, write_ltcc
from tests.processes import PATIENCE_S

RUN = """
import sys
from clip3dreid.__main__ import main
sys.argv = sys.argv[1:]
main()
assert "torch" in sys.modules
print("transformers" in sys.modules)
"""


def loads_transformers(folder: Path, *arguments: str) -> bool:
    command = [sys.executable, "-c", RUN, "clip3dreid", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] == "True"


def test_a_training_without_a_teacher_never_loads_transformers(tmp_path: Path) -> None:
    write_ltcc(tmp_path / "pictures")
    recipe = ["data=ltcc", "data.root=pictures", *TINY, "epochs=1", "hydra.run.dir=run"]
    assert not loads_transformers(tmp_path, "train", *recipe)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]


def test_a_search_by_picture_never_loads_transformers(saved_model: Path, tmp_path: Path) -> None:
    write_ltcc(tmp_path / "pictures", train=[], test=range(2))
    extracting = [f"checkpoint={saved_model}", "pictures=pictures", "out=shards", "trainer=cpu", "workers=0"]
    subprocess.run(
        [sys.executable, "-m", "clip3dreid", "extract", *extracting],
        cwd=tmp_path,
        check=True,
        timeout=PATIENCE_S,
        capture_output=True,
    )
    assert not loads_transformers(
        tmp_path, "search", "gallery=shards", f"checkpoint={saved_model}", "picture=pictures/query", "top=2"
    )
