import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io.files import write_json
from clip3dreid.io.formats import seal
from clip3dreid.model.places import find_model
from clip3dreid.serving.source import SMALL_WORLD, Source, find_source
from tests.processes import PATIENCE_S


def shards(folder: Path, model: str = "runs/mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "version": 1, "model": model, "fingerprint": "f", "format": "parquet", "dtype": "float32",
        "rows_per_shard": 8, "shards": [], "vectors": {},
    }  # fmt: skip
    write_json(folder / "index.json", seal(facts))
    return folder


def run(folder: Path) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """What two demos of different worlds have left, and a third that was stopped."""
    for digest, age in (("old", 100), ("new", 50), ("stopped", 10)):
        made = shards(tmp_path / "demo" / f"shards_{digest}")
        if digest != "stopped":
            run(tmp_path / "demo" / f"clip3dreid_{digest}")
        os.utime(made, (1e9 - age, 1e9 - age))
    return tmp_path / "demo"


def test_without_anything_it_is_what_the_newest_finished_demo_has_left(demo: Path) -> None:
    assert find_source(None, None, demo) == Source(str(demo / "clip3dreid_new"), demo / "shards_new")


def test_without_a_demo_it_is_a_world_of_its_own_and_the_packages_model(tmp_path: Path) -> None:
    # The names that the package has are those that `load` finds in it.
    assert find_model("body_student").weights.is_file()
    found = find_source(None, None, tmp_path / "demo")
    assert found == Source("body_student", tmp_path / "demo" / SMALL_WORLD, is_world=True)
    assert find_source(tmp_path, None, tmp_path / "demo") == Source("body_student", tmp_path)


def test_a_model_that_is_given_looks_at_a_world_and_not_at_another_ones_shards(demo: Path) -> None:
    assert find_source(None, "mine", demo) == Source("mine", demo / SMALL_WORLD, is_world=True)


def test_shards_bring_the_model_that_has_filled_them_if_it_is_there(tmp_path: Path) -> None:
    model = run(tmp_path / "model")
    there, gone = shards(tmp_path / "a", str(model)), shards(tmp_path / "b", "runs/gone")
    assert find_source(there, None, tmp_path) == Source(str(model), there)
    assert find_source(there, None, tmp_path).holds_shards
    assert find_source(gone, "mine", tmp_path).checkpoint == "mine"
    assert find_source(shards(tmp_path / "c", "body_student"), None, tmp_path).checkpoint == "body_student"
    with pytest.raises(InputError, match="runs/gone, is not there; give its place as checkpoint=FOLDER"):
        find_source(gone, None, tmp_path)


def test_a_gallery_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gallery=.*nowhere is not there; give a folder"):
        find_source(tmp_path / "nowhere", "mine", tmp_path)


def loaded(code: str) -> set[str]:
    """Return which heavy packages some code has loaded."""
    ask = "print(*({'torch', 'polars', 'transformers', 'gradio', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{ask}"],
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_nothing_heavy_is_loaded_to_find_out() -> None:
    assert loaded("import clip3dreid.cli.serve") == set()


def test_the_page_is_there_before_torch_is() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (pip install 'clip3dreid[serve]')")
    code = (
        "from clip3dreid.serving.backend import Backend\n"
        "from clip3dreid.serving.serve import application\n"
        "from clip3dreid.serving.source import Source\n"
        "from pathlib import Path\n"
        "application(Backend(Source('model', Path('gallery'))))\n"
    )
    assert loaded(code) == {"gradio", "fastapi"}
