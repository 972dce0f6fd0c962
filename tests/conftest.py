"""Small worlds on disk, in the real layouts, for the tests that run whole commands."""

import contextlib
import importlib
import importlib.util
import io
import logging
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins import file_config_source
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from hypothesis import settings
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image

from clip3dreid.config.folder import conf_dir
from clip3dreid.io.formats import write_table
from tests.processes import PATIENCE_S

# A timing never decides a test: another program on the machine makes any of them slow.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

Command = Callable[..., subprocess.CompletedProcess[str]]


class _ReadOnce:
    """`OmegaConf.load` of an open file, which parses a text that it has met before no second time."""

    def __init__(self) -> None:
        self._met: dict[str, Any] = {}

    def load(self, file: TextIO) -> DictConfig | ListConfig:
        text = file.read()
        if text not in self._met:
            file.seek(0)
            self._met[text] = OmegaConf.to_container(OmegaConf.load(file))
        return OmegaConf.create(self._met[text])


@pytest.fixture(scope="session", autouse=True)
def yaml_is_parsed_once() -> Iterator[None]:
    """Thousands of configs are composed from the same files; their parsing is a sixth of the time of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_config_source, "OmegaConf", _ReadOnce())
        yield


def paint(path: Path, person: int, outfit: int, seed: int, height: int = 32, width: int = 16) -> None:
    """A bar code of eight bands that tells the person, in a colour that tells the outfit, plus noise."""
    rng = np.random.default_rng([person, outfit, seed])
    bands = np.random.default_rng([3, person]).permutation([0.15] * 4 + [0.95] * 4)
    shade = np.broadcast_to(np.repeat(bands, height // 8)[:, None, None], (height, width, 1))
    colour = np.random.default_rng([77, person, outfit]).uniform(0.3, 1.0, 3)
    picture = shade * colour + rng.normal(0, 0.03, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(path)


def write_ltcc(root: Path, train: Sequence[int] = range(6), test: Sequence[int] = range(20, 24)) -> Path:
    """LTCC's layout: two outfits and two cameras a person, two frames each; the first frames are queries."""
    frame = 0
    for part, people in (("train", train), ("test", test)):
        for person in people:
            for outfit in (1, 2):
                for camera in (1, 2):
                    for shot in range(2):
                        frame += 1
                        name = f"{person:03d}_{outfit}_c{camera}_{frame:06d}.png"
                        folder = "query" if part == "test" and shot == 0 else part
                        paint(root / folder / name, person, outfit, frame)
    return root


@pytest.fixture(scope="session")
def ltcc_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LTCC: 6 training and 4 test people. The folder's name holds `_c`, which has misled parsers."""
    return write_ltcc(tmp_path_factory.mktemp("my_ccreid") / "LTCC_ReID")


TINY = (
    "method=ce",
    "model/student=resnet18",
    "model.pretrained=null",
    "model.student.backbone.width=8",
    "datamodule.height=32",
    "datamodule.width=16",
    "datamodule.people=4",
    "datamodule.pictures=2",
    "datamodule.workers=0",
    "datamodule.evaluation_batch=16",
    "trainer=cpu",
    "logger=csv",
)
"""Overrides that make any recipe small enough for a test."""


def write_bodies(root: Path, bodies: int = 8, split: str = "train") -> Path:
    """Two pictures of each body: a grey bar as wide as its second coefficient says, and the truth about it."""
    rng = np.random.default_rng(5)
    rows = []
    for body in range(bodies):
        betas = rng.normal(0, 3, 10)
        for shot in range(2):
            picture = rng.uniform(0, 0.4, (32, 16, 3))
            half = round(np.clip(4 + betas[1], 1, 8))
            picture[4:30, 8 - half : 8 + half] = 0.7
            path = Path(split) / f"{body:06d}_{shot + 1:02d}.jpg"
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray((picture * 255).astype(np.uint8)).save(root / path, quality=95)
            rows.append({"path": str(path), "split": split, "person": str(body), "betas": betas.tolist()})
    write_table(root / "truth.parquet", pl.DataFrame(rows))
    return root


@pytest.fixture(scope="session")
def bodies_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight textureless bodies, two pictures each."""
    return write_bodies(tmp_path_factory.mktemp("bodies"))


@pytest.fixture(scope="session")
def guided(bodies_root: Path) -> tuple[str, ...]:
    """Overrides, after `TINY`, that let any guided method run: the shipped teacher, eight bodies."""
    return (
        "model/teacher=body_clip",
        "model.teacher.cache=memory",
        f"bodies.root={bodies_root}",
        "bodies.batch=4",
    )


def student_config(name: str, weights_dir: str = "weights") -> DictConfig:
    """The node `model` of `model/student=NAME`, composed."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose(overrides=[f"+model/student={name}", f"+weights_dir={weights_dir}"])
    return cfg.model


STUDENT = {
    "_target_": "clip3dreid.model.student.Student",
    "backbone": {"_target_": "clip3dreid.model.resnet.ResNet", "depth": 18, "width": 8},
    "pooling": {"_target_": "clip3dreid.model.pooling.MaximumAverage"},
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""Config of a tiny student: 64 channels, 128 features."""
MODEL_GROUPS = {
    "stature": ["short", "medium height", "tall"],
    "weight": ["skinny", "average weight", "heavyset"],
    "shoulders": ["narrow shoulders", "average shoulders", "broad shoulders"],
    "gender": ["masculine", "feminine"],
}


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `save_pretrained`: a tiny untrained student of 32 x 16 pixels with words and body shapes."""
    from clip3dreid.body.smpl import body_digest
    from clip3dreid.inference.model import ReidModel
    from clip3dreid.model.student import Student

    torch.manual_seed(11)
    network: Student = instantiate(STUDENT)
    network(torch.rand(8, 3, 32, 16))
    channels, width, joint, words = 64, 128, 128, sum(map(len, MODEL_GROUPS.values()))
    card = {
        "version": 1,
        "student": STUDENT,
        "height": 32,
        "width": 16,
        "data": ["ltcc"],
        "vocabulary": {"digest": "0123", "groups": MODEL_GROUPS},
        "teacher": {"name": "body_clip", "fingerprint": "of another teacher", "width": joint},
        "body": {"name": "anny_light", "sha256": body_digest("anny_light"), "num_betas": 4},
    }
    heads = {
        "joint.weight": torch.randn(joint, channels),
        "joint.bias": torch.randn(joint),
        "joint.centre": torch.randn(joint) / 30,
        "joint.words": torch.nn.functional.normalize(torch.randn(words, joint), dim=1),
        "joint.usual": torch.randn(words) / 10,
        "joint.spread": torch.rand(words) / 10 + 0.05,
        "shape.weight": torch.randn(4, width) / 10,
        "shape.bias": torch.randn(4),
    }
    folder = tmp_path_factory.mktemp("saved") / "model"
    ReidModel(network, card, heads).save_pretrained(folder)
    return folder


@pytest.fixture
def smplx(request: pytest.FixtureRequest) -> None:
    """For tests that need the package, which nobody gets unasked."""
    if importlib.util.find_spec("smplx") is None:
        pytest.skip(
            f"{request.node.name}: smplx is not installed (make install-smpl; non-commercial research)"
        )


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides that make any recipe small enough for a test."""
    return TINY


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `python -m clip3dreid NAME arguments…` in a process of its own, in an empty folder."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clip3dreid", name, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )

    return run


@contextlib.contextmanager
def in_this_process(folder: Path) -> Iterator[Command]:
    """Runs commands as `command` does, in a folder, but here: importing torch anew takes longer than most tests."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    root = logging.getLogger()
    before = root.level, list(root.handlers)

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        status = 0
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(sys, "argv", [f"clip3dreid.{name}", *arguments])
            try:
                importlib.import_module(f"clip3dreid.cli.{name}").main()
            except SystemExit as leaving:
                status = int(leaving.code or 0)
            except Exception:
                traceback.print_exc()
                status = 1
            finally:
                GlobalHydra.instance().clear()
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    with contextlib.chdir(folder):
        try:
            yield run
        finally:
            torch.use_deterministic_algorithms(deterministic)
            root.setLevel(before[0])
            root.handlers[:] = before[1]


def trained(folder: Path, *arguments: str) -> Path:
    """What `train` leaves in `folder/run`, which the arguments name, for a fixture that many tests look at."""
    with in_this_process(folder) as run:
        done = run("train", *arguments)
    assert done.returncode == 0, done.stderr
    (folder / "run" / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    return folder / "run"


@pytest.fixture
def invoke(tmp_path: Path) -> Iterator[Command]:
    """As `command`, but in this process."""
    with in_this_process(tmp_path) as run:
        yield run
