"""Heavy packages are loaded where a model, a compilation or a figure needs them, and nowhere else."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import TINY, Command, write_ltcc
from tests.processes import PATIENCE_S

RUN = """
import sys
from clip3dreid.__main__ import main
sys.argv = sys.argv[1:]
main()
assert "torch" in sys.modules
print("loaded", *({"transformers", "torch._dynamo", "lightning", "matplotlib", "scipy.signal"} & set(sys.modules)))
"""


def loaded(folder: Path, *arguments: str) -> set[str]:
    """Return which of some heavy packages a command loads."""
    command = [sys.executable, "-c", RUN, "clip3dreid", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    word, *names = done.stdout.splitlines()[-1].split()
    assert word == "loaded"
    return set(names)


def test_a_training_without_a_teacher_loads_neither_transformers_nor_what_draws(tmp_path: Path) -> None:
    write_ltcc(tmp_path / "pictures")
    recipe = ["data=ltcc", "data.root=pictures", *TINY, "epochs=1", "hydra.run.dir=run"]
    assert not {"transformers", "matplotlib", "scipy.signal"} & loaded(tmp_path, "train", *recipe)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]


def test_what_lightning_is_imported_without_is_there_afterwards() -> None:
    code = """
import gc, sys
from importlib.metadata import version
from importlib.util import find_spec
from clip3dreid.io.lean import import_lightning
import_lightning()
assert not {"transformers", "matplotlib", "scipy"} & set(sys.modules)
assert gc.isenabled() and gc.get_freeze_count()
import matplotlib, scipy.special
assert find_spec("transformers") and all(map(version, ("transformers", "matplotlib", "scipy")))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


def test_a_search_by_picture_loads_neither_a_teachers_library_nor_a_compiler(
    saved_model: Path, invoke: Command, tmp_path: Path
) -> None:
    write_ltcc(tmp_path / "pictures", train=[], test=range(2))
    extracting = [f"checkpoint={saved_model}", "pictures=pictures", "out=shards", "trainer=cpu", "workers=0"]
    assert invoke("extract", *extracting).returncode == 0
    asked = ["gallery=shards", f"checkpoint={saved_model}", "picture=pictures/query", "top=2"]
    assert not loaded(tmp_path, "search", *asked)
