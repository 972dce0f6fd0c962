"""The typed call, as a notebook makes it, and that the command line makes the same."""

import dataclasses
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from clip3dreid.body.smpl import load_body
from clip3dreid.config import objects
from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.synthetic import layouts
from clip3dreid.synthetic.settings import SynthesisSettings
from clip3dreid.synthetic.synthesis import synthesize
from clip3dreid.synthetic.writing import WorldReport, fingerprint
from tests.config.test_conf import composed
from tests.conftest import Command
from tests.processes import PATIENCE_S

LAYOUT = partial(layouts.ltcc, outfits=2, cameras=2, seen=2, pictures=1, test_pictures=2)
SMALL: dict[str, Any] = {"train_people": 3, "test_people": 2, "height": 32, "width": 16, "antialias": 1}
KEYS = ["layout=ltcc", "workers=0", *(f"{key}={value}" for key, value in SMALL.items())]
KEYS += ["layout.outfits=2", "layout.cameras=2", "layout.seen=2", "layout.test_pictures=2"]


def settings(**changes: Any) -> SynthesisSettings:
    words = yaml.safe_load((conf_dir() / "language" / "body_words.yaml").read_text(encoding="utf-8"))
    words.pop("_target_")
    made = SynthesisSettings(
        layout=LAYOUT,
        body=partial(load_body, "anny_light"),
        vocabulary=partial(Vocabulary, **words),
        workers=0,
        **SMALL,
    )
    return dataclasses.replace(made, **changes)


def test_a_world_is_written_by_a_call(tmp_path: Path) -> None:
    assert synthesize(settings(), tmp_path / "w") == WorldReport(28, 28)
    truth = pl.read_parquet(tmp_path / "w" / "truth.parquet")
    assert len([column for column in truth.columns if column.startswith("word_")]) == 16
    assert synthesize(settings(workers=2), tmp_path / "w") == WorldReport(28, 0)


def test_the_command_line_knows_a_world_again_that_a_call_wrote_and_makes_the_same(
    tmp_path: Path, invoke: Command
) -> None:
    synthesize(settings(), tmp_path / "w")
    again = invoke("synthesize", *KEYS, "out=w")
    assert again.returncode == 0, again.stderr
    assert "complete already" in again.stdout
    typed = invoke("synthesize", *KEYS, "out=typed")
    assert typed.returncode == 0, typed.stderr
    files = json.loads((tmp_path / "w/world.json").read_text())["files"]
    for path in files:
        if path != "world.json":  # which says 20 where Python says 20.0
            assert (tmp_path / "w" / path).read_bytes() == (tmp_path / "typed" / path).read_bytes(), path


def test_a_world_without_a_vocabulary_tells_no_words(tmp_path: Path) -> None:
    synthesize(settings(vocabulary=None), tmp_path / "w")
    columns = pl.read_parquet_schema(tmp_path / "w" / "truth.parquet")
    assert not [name for name in columns if name.startswith("word_")]
    assert "measure_stature" in columns


def test_the_settings_of_the_code_are_those_of_the_config() -> None:
    made = objects.synthesis_settings(composed("synthesize", "layout=ltcc", "out=/nowhere"))
    assert made.described()["world"] == settings().described()["world"]
    fields = {field.name: field.default for field in dataclasses.fields(SynthesisSettings)}
    for name, default in fields.items():
        if default is not dataclasses.MISSING and name not in ("vocabulary", "config"):
            assert getattr(made, name) == default, name


def test_a_world_from_before_its_code_moved_is_known_again(tmp_path: Path, invoke: Command) -> None:
    config = settings().described()
    config["layout"]["_target_"] = "clip3dreid.body.layouts.ltcc"
    config["world"]["people"]["_target_"] = "clip3dreid.body.people.People"
    synthesize(settings(config=config), tmp_path / "w")
    assert synthesize(settings(), tmp_path / "w").rendered == 0
    config["layout"]["_target_"] = "clip3dreid.body.layouts.prcc"
    with pytest.raises(InputError, match=r"another world: layout\._target_ is .*ltcc there and .*prcc here"):
        synthesize(settings(config=config), tmp_path / "w")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed=-1 must be a whole number, 0 or more"),
        ({"height": 15}, "height=15 must be a whole number, 16 or more"),
        ({"antialias": 2.0}, "antialias=2.0 must be a whole number"),
        ({"overwrite": "yes"}, "overwrite=yes is unknown; choose true or false"),
        ({"poses": "file.npz"}, "poses=file.npz must be a path, or null"),
        ({"poses": Path("none.npz")}, "none.npz"),
    ],
)
def test_settings_that_make_no_world_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        synthesize(settings(**changes), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_settings_are_checked_without_torch() -> None:
    code = (
        "import sys; import clip3dreid.synthetic.settings, clip3dreid.synthetic.layouts; "
        "assert not {'torch', 'polars'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr


def test_the_fingerprint_of_a_world_stays_what_it_was() -> None:
    keys = [key for key in KEYS if not key.startswith("workers=")]
    made = objects.synthesis_settings(composed("synthesize", *keys, "seed=7", "out=/nowhere"))
    assert made.config is not None
    # Of the config alone, as versions before wrote it; the body's file has a digest of its own.
    assert fingerprint(made.config) == "2cc5a313a4652b2e07ea7ca050a8d959290c7dff636e633ee4ea3d98725e3d2f"
