"""A teacher from nothing, through the command line: tiny, resumable, the same twice."""

import json
import os
import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from clip3dreid.config import objects
from clip3dreid.config.folder import conf_dir
from clip3dreid.config.pretraining import teacher_parts
from clip3dreid.errors import InputError
from clip3dreid.model.teacher import Teacher
from clip3dreid.model.teacher_view import Native
from clip3dreid.training.pretraining_data import recolour
from clip3dreid.training.teacher import TeacherPretrainingModule, pretrain_teacher
from clip3dreid.training.teacher_data import read_training_set
from clip3dreid.training.teacher_settings import PretrainingSettings
from tests.conftest import Command, in_this_process
from tests.processes import holding

TINY = (
    "trainer=cpu",
    "epochs=2",
    "naming_epochs=1",
    "batch=4",
    "sentences_per_picture=2",
    "vocabulary_size=400",
    "train_view.height=32",
    "train_view.width=16",
    "optimizer.schedule.warmup_epochs=1",
    "clip.projection_dim=8",
    "clip.vision_config={image_size: 24, patch_size: 8, hidden_size: 16, intermediate_size: 16, "
    "num_hidden_layers: 1, num_attention_heads: 2}",
    "clip.text_config={hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training and two test people of 32x16 pixels."""
    out = tmp_path_factory.mktemp("worlds") / "small"
    sizes = ["train_people=4", "test_people=2", "height=32", "width=16", "antialias=1", "workers=0"]
    few = ["layout=ltcc", "layout.outfits=2", "layout.cameras=2", "layout.seen=2", "layout.test_pictures=2"]
    few += ["layout.pictures=2"]
    with in_this_process(out.parent) as run:
        done = run("synthesize", *few, *sizes, f"out={out}")
    assert done.returncode == 0, done.stderr
    return out


def test_recolouring_keeps_shapes_and_forgets_colours() -> None:
    image = np.zeros((3, 4, 2), np.uint8)
    image[0, 1:3] = 200
    found = {tuple(recolour(image, np.random.default_rng(seed)).any((1, 2))) for seed in range(30)}
    assert found == {(True, False, False), (False, True, False), (False, False, True)}
    bright = recolour(image, np.random.default_rng(0)).max(0)
    assert (bright > 0).tolist() == (image[0] > 0).tolist()
    assert 0.7 * 200 - 1 <= bright.max() <= 255


def test_a_killed_training_goes_on_to_the_same_teacher(
    world: Path, tmp_path: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = invoke("pretrain_teacher", f"worlds={world}", "out=whole", *TINY)
    assert whole.returncode == 0, whole.stderr
    step, steps = TeacherPretrainingModule.training_step, 0

    def killed(self: TeacherPretrainingModule, *batch: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 13:  # in the second epoch of eight steps
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *batch)

    monkeypatch.setattr(TeacherPretrainingModule, "training_step", killed)
    stopped = invoke("pretrain_teacher", f"worlds={world}", "out=parts", *TINY)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "stopped by SIGTERM in epoch 2 after batch 5 of 8, saved" in stopped.stdout
    assert not (tmp_path / "parts" / "teacher").exists()
    monkeypatch.setattr(TeacherPretrainingModule, "training_step", step)
    again = invoke("pretrain_teacher", f"worlds={world}", "out=parts", *TINY)
    assert again.returncode == 0, again.stderr
    first, second = (
        load_file(tmp_path / name / "teacher" / "model.safetensors") for name in ("whole", "parts")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)

    teacher = Teacher(str(tmp_path / "whole" / "teacher"), Native(32, 16), name="t")
    assert teacher.embed_texts(["a tall person"]).shape == (1, 8)
    card = json.loads((tmp_path / "whole" / "teacher" / "card.json").read_text())
    assert card["trained_on"]["pictures"] == 32
    assert card["view"] == {"height": 32, "width": 16}
    assert sorted(path.name for path in (tmp_path / "parts" / "csv").rglob("metrics*.csv")) == [
        "metrics.1.csv",
        "metrics.csv",
    ]
    (log,) = (tmp_path / "whole").rglob("metrics.csv")
    rows = [row for row in pl.read_csv(log)["loss/contrastive"].to_list() if row is not None]
    assert len(rows) == 1, "the contrastive loss begins after the epochs of naming"

    other = invoke("pretrain_teacher", f"worlds={world}", "out=whole", *TINY, "seed=2")
    assert other.returncode == 2
    assert "holds a training with another seed" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("worlds=nowhere",), "nowhere has no truth.parquet"),
        (("worlds={world}", "batch=400"), "batch=400"),
        (("worlds={world}", "vocabulary_size=10"), "vocabulary_size=10"),
        (("worlds={world}", "clip.vision_config.num_attention_heads=3"), "clip: "),
        (("worlds={world}", "~sentences.groups.belly"), "sentences.groups lacks belly"),
    ],
)
def test_what_makes_no_training_gets_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], message: str, world: Path, tmp_path: Path, invoke: Command
) -> None:
    filled = [argument.format(world=world) for argument in arguments]
    done = invoke("pretrain_teacher", "out=run", *TINY, *filled)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_notebook_pretrains_by_a_typed_call_and_its_folder_is_one_trainings(
    world: Path, tmp_path: Path
) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        plain = ["logger=[]", "callbacks=[]", "trainer.default_root_dir=null"]
        cfg = compose("pretrain_teacher", [f"worlds={world}", "out=run", *TINY, *plain])
    parts = teacher_parts(cfg)
    del parts["record"]
    parts["trainer"] = partial(
        lightning.Trainer,
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    settings = PretrainingSettings(
        epochs=1, naming_epochs=0, batch=4, vocabulary_size=400, workers=0, in_memory=False
    )
    made = pretrain_teacher([world], tmp_path / "run", settings, **parts)
    assert made.folder == tmp_path / "run" / "teacher"
    assert made.pictures == 32
    teacher = Teacher(str(made.folder), Native(32, 16), name="t")
    assert sum(value.numel() for value in teacher.model.parameters()) == made.weights
    with pytest.raises(InputError, match="holds a training with another seed"):
        pretrain_teacher([world], tmp_path / "run", replace(settings, seed=2), **parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be a whole number, 1 or more"),
        ({"naming_weight": -1}, "naming_weight=-1 must be a number, 0 or more"),
        ({"in_memory": "perhaps"}, "in_memory=perhaps is unknown; choose true or false"),
        ({"std": (0.5, 0.5)}, "must be three numbers each"),
    ],
)
def test_settings_that_make_no_training_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PretrainingSettings(**changes)


def test_defaults_of_the_code_are_those_of_the_yaml() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("pretrain_teacher", ["worlds=x", "out=y"])
    assert objects.settings(PretrainingSettings, cfg) == PretrainingSettings()


def test_a_place_that_the_teacher_may_not_take_is_refused_before_the_training(
    world: Path, tmp_path: Path, invoke: Command
) -> None:
    mine = tmp_path / "run" / "teacher" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    done = invoke("pretrain_teacher", f"worlds={world}", "out=run", *TINY)
    assert done.returncode == 2
    assert "holds no network of ours" in done.stderr
    assert mine.read_text() == "keep"
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_world_whose_truth_is_damaged_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "truth.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        InputError,
        match=r"truth\.parquet cannot be read as the truth about a world .*; write a world there with",
    ):
        read_training_set([tmp_path], [])
    pl.DataFrame({"path": ["a"]}).write_parquet(tmp_path / "truth.parquet")
    with pytest.raises(InputError, match="has no column split, bad_box"):
        read_training_set([tmp_path], [])


def test_a_folder_in_use_is_refused_and_not_touched(world: Path, tmp_path: Path, invoke: Command) -> None:
    with holding(tmp_path / "run", "trains a teacher") as holder:
        done = invoke("pretrain_teacher", f"worlds={world}", "out=run", *TINY)
        assert done.returncode == 2
        assert f"run is in use: process {holder} on" in done.stderr
        assert not list((tmp_path / "run").glob("*.yaml"))


DAMAGED = r"config\.yaml (is damaged|cannot be read)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", DAMAGED),
        ("- 1\n", DAMAGED),
        ("a: ${nowhere}\n", "run holds a training with another a, batch, "),
        ("\xff\xfe", DAMAGED),
    ],
)
def test_a_folder_of_something_else_is_one_line(
    text: str, message: str, world: Path, tmp_path: Path, invoke: Command
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text, encoding="latin-1")
    done = invoke("pretrain_teacher", f"worlds={world}", "out=run", *TINY)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="latin-1") == text


@pytest.mark.parametrize("place", ["checkpoints", "csv", "teacher", "config.yaml"])
def test_nothing_is_written_through_a_link(place: str, world: Path, tmp_path: Path, invoke: Command) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / place).symlink_to(tmp_path / "precious")
    done = invoke("pretrain_teacher", f"worlds={world}", "out=run", *TINY)
    assert done.returncode == 2
    assert f"run/{place} is a link" in done.stderr
    assert not list((tmp_path / "precious").iterdir())
