"""Commands of the README and of docs/ are run, in a folder that holds what they name: tiny data, tiny runs."""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_pretrain_teacher import TINY as TINY_TEACHER
from tests.conftest import TINY, Command, paint, write_bodies, write_ltcc
from tests.data.test_boxes import write_coco, write_mot, write_supervision, write_yolo
from tests.processes import PATIENCE_S
from tests.test_docs import TEXTS, commands_of
from tests.test_examples import block
from tests.training.test_shape_teacher import SMALLER
from tests.training.test_shape_teacher import TINY as TINY_SHAPES

COMPOSED = {
    "GPUs or a cluster": r"trainer=(gpu|ddp)(?!.* trainer\.accelerator=cpu)|=cuda|ray\.gpus=|=submitit_slurm",
    "what others publish": r"=clip_vit_|\.pth\b|aim_prcc|osnet_|=openvino|embedder\.onnx",
    "code or configs of a reader's own": r"trusted=|--config-dir=",
    "a page that is served until Ctrl-C, as tests/serving/test_serve.py does": r"^serve\b",
    "a run that was cut off, as tests/training/test_resume.py has them": r"\bresume=",
}
"""What a command asks for that is not here -> how that is known. `test_docs.py` composes such a command."""

_LTCC = tuple(f"layout.{name}=2" for name in ("outfits", "cameras", "seen", "pictures", "test_pictures"))
_DRESSED = ("layout=bodies", "layout.dress=dressed")
_WALKS = ("layout=ccvid", "layout.frames=4", "layout.walks=2")
_WORLD = ("train_people=8", "test_people=4", "height=32", "width=16", "antialias=1", "workers=0")
_UNLESS_SAID = ("method=", "logger=", "trainer=")
_TRAIN = (
    *(word for word in TINY if not word.startswith(_UNLESS_SAID)),
    *("model/teacher=body_clip", "teacher_cache=memory", "bodies.batch=4"),
    *("epochs=1", "milestones=[1]", "clothes_start_epoch=0"),
)
SMALL = {
    "train": _TRAIN,
    "tune": ("trials=2",),
    "synthesize": _WORLD,
    "pretrain_teacher": TINY_TEACHER,
    "pretrain_shape_teacher": (*TINY_SHAPES, *SMALLER),
    "evaluate": ("datamodule.workers=0",),
    "pack": ("height=32", "width=16", "workers=0"),
    "extract": ("workers=0",),
    "blur_faces": ("workers=0",),
}
"""Of a command: what makes it small, and stands in for weights that would be downloaded. It has the last word."""
FEW = {"data.val_people": 2, "+data.protocols.clothes_changing.gallery_people": 2, "boxes.least_size": 8}
"""Numbers that tiny data cannot give."""
TREES = {
    **{"ltcc": "ltcc", "embedded": "ltcc", "demo": "ltcc", "custom": "custom", "prcc": "prcc", "pku": "pku"},
    **{"ccvid": "ccvid", "walking": "ccvid"},
}
"""Data set or experiment -> folder in its layout."""


def made_small(words: Sequence[str]) -> list[str]:
    """Return a page's command with tiny data and sizes, and with one value of a key that it sweeps over."""
    if not words or words[0].startswith("-") or "--help" in words:
        return list(words)
    name, *said = words
    said = [
        re.sub(r"\bruns/((ltcc|walking)/)?FOLDER", "runs/…", re.sub("=/data/", "=data/", word))
        for word in said
    ]
    said = [f"{key}={FEW[key]}" if (key := word.partition("=")[0]) in FEW else word for word in said]
    for data in re.findall(r"(?:^|\s)(?:data|\+experiment)=(\w+)", " ".join(said)):
        said = [re.sub(r"^data\.root=.*", f"data.root=trees/{TREES[data]}", word) for word in said]
    if "-m" in said:
        said = [word.partition(",")[0] if "[" not in word else word for word in said]
    if "--" in said:
        place = said.index("--")
        return [name, *said[:place], *SMALL[name], *said[place:], *_TRAIN, "evaluate_every=1"]
    more = list(SMALL.get(name, ()))
    if name == "train":
        more += [word for word in ("trainer=cpu", "logger=csv") if word.partition("=")[0] not in _keys(said)]
    if "+sweep=ablation" in said:
        more.append("hydra.sweeper.params={+ablation:all}")
    return [name, *said, *more]


def _keys(words: Sequence[str]) -> set[str]:
    return {word.partition("=")[0] for word in words}


PAGES = {name: text for name, text in TEXTS.items() if name == "README.md" or name.startswith("docs/")}
DOCUMENTED = [words for text in PAGES.values() for words in commands_of(text) if "…" not in words]
RUN = {
    " ".join(small): small
    for words in DOCUMENTED
    if not any(re.search(pattern, " ".join(words)) for pattern in COMPOSED.values())
    for small in [made_small(words)]
}


def write_custom(root: Path) -> Path:
    """Folders of one's own: PART/PERSON/picture."""
    for part, people in (("train", range(6)), ("query", range(20, 24)), ("gallery", range(20, 24))):
        for person in people:
            for shot in range(4):
                paint(root / part / f"p{person}" / f"{shot}.png", person, 1, 10 * person + shot + len(part))
    return root


def write_prcc(root: Path) -> Path:
    """PRCC's layout: cameras A and B see one outfit, C another."""
    for camera, outfit in (("A", 1), ("B", 1), ("C", 2)):
        for person in range(4):
            for frame in range(2):
                paint(
                    root / f"rgb/train/{person:03}/{camera}_cropped_rgb{frame:03}.png", person, outfit, frame
                )
                paint(
                    root / f"rgb/test/{camera}/{person + 9:03}/cropped_rgb{frame:03}.png",
                    person + 9,
                    outfit,
                    frame,
                )
    (root / "rgb/val").mkdir()
    return root


def write_pku(root: Path) -> Path:
    """PKU-Reid's layout: everybody under two cameras."""
    for person in range(1, 11):
        for camera in (1, 2):
            for turn in (1, 2):
                paint(root / f"{person:03}_{camera:02}_{turn}.png", person, 1, 2 * camera + turn)
    return root


def clip3dreid(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clip3dreid", *words],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that commands name: data, worlds, runs in all their places, shards, features, boxes."""
    place = tmp_path_factory.mktemp("commands")
    for write in (write_custom, write_ltcc, write_pku, write_prcc):
        write(place / "trees" / write.__name__.removeprefix("write_"))
    write_bodies(place / "worlds/bodies")
    clip3dreid(place, "synthesize", "layout=ltcc", "out=worlds/teacher", *_LTCC, *_WORLD)
    clip3dreid(place, "synthesize", *_WALKS, "out=trees/ccvid", *_WORLD)
    for name in ("dressed", "wide"):
        clip3dreid(place, "synthesize", *_DRESSED, f"out=worlds/{name}", *_WORLD)
    write_pictures(place, sorted((place / "trees/ltcc/query").iterdir()))
    with contextlib.chdir(place):
        exec(block("docs/protocols.md", "Features from any model"), {})
    shutil.copy(place / "FILE.npz", place / "features.npz")
    data = ("+experiment=ltcc", "data.root=trees/ltcc", "trainer=cpu", "logger=csv")
    for name, method, variant in (("runs/a", "ce", "ce"), ("runs/b", "clip3dreid", "all")):
        what = (f"method={method}", f"variant={variant}", f"hydra.run.dir={name}")
        clip3dreid(place, "train", *data, *what, *_TRAIN)
        shutil.copytree(place / name, place / "runs/ablation/FOLDER" / variant)
    shutil.copytree(place / "runs/b", place / "runs/…")
    labelled = ("data=ltcc", "data.root=trees/ltcc", "split=test", "out=shards/ltcc")
    walks = ("pictures=walks", "tracklets=true", "out=shards/walks")
    for pictures in (("pictures=crops", "out=shards/crops"), walks, labelled):
        clip3dreid(place, "extract", "checkpoint=runs/…", *pictures, "workers=0")
    clip3dreid(place, "pack", "data=ltcc", "data.root=trees/ltcc", "out=packs/ltcc", *SMALL["pack"])
    return place


def write_pictures(place: Path, crops: Sequence[Path]) -> None:
    """Write folders of crops, single ones, and frames with boxes in every format."""
    for folder in ("crops", "data/Celeb-reID", "walks/7"):
        (place / folder).mkdir(parents=True)
        for file in crops:
            shutil.copy(file, place / folder / file.name)
    for file, name in zip(crops, ("someone.jpg", "a.jpg", "b.jpg"), strict=False):
        shutil.copy(file, place / name)
    rng = np.random.default_rng(3)
    for folder in ("MOT17-02/img1", "img1", "frames/img1", "images/train"):
        (place / folder).mkdir(parents=True)
        for number in (1, 2, 3):
            pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / folder / f"{number:06}.png")
    (place / "MOT17-02/det").mkdir()
    shutil.copy(write_mot(place), place / "MOT17-02/det/det.txt")
    write_coco(place).rename(place / "people.json")
    write_supervision(place)
    (place / "labels").mkdir()
    with tempfile.TemporaryDirectory() as folder:
        shutil.move(write_yolo(Path(folder)), place / "labels/train")


def test_whatever_is_not_run_is_left_out_for_a_reason_that_is_there() -> None:
    shown = [" ".join(words) for words in DOCUMENTED]
    for pattern in COMPOSED.values():
        assert any(re.search(pattern, command) for command in shown), pattern
    assert len(RUN) > len(set(shown)) / 2


@pytest.mark.slow
@pytest.mark.parametrize("shown", RUN)
def test_a_command_of_a_page_does_its_work(
    shown: str,
    prepared: Path,
    invoke: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = RUN[shown]
    written = [tmp_path / place for place in re.findall(r"(?:^|\s)(?:out|sheet)=(\S+)", shown)]
    for place in written:
        if place.is_dir():
            shutil.rmtree(place)
    # Options of the program itself, and processes that start the command again, need one of their own.
    if not words or words[0].startswith("-") or "trainer=ddp" in words:
        clip3dreid(tmp_path, *words)
    else:
        done = invoke(*words)
        assert done.returncode == 0, done.stderr[-3000:]
    for place in written:
        assert place.exists(), place
