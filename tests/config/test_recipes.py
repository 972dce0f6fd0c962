"""Every method on every data set of the paper, for two steps: what composes must also train."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY, Command
from tests.data.datasets import trees
from tests.data.datasets.test_data_configs import TREES

METHODS = ("clip3dreid", "clip3dreid_cal", "clip3dreid_release", "ce", "cal", "cal_triplet")
PAPER = (
    "celeb_reid",
    "celeb_reid_light",
    "celeb_reid_blur",
    "celeb_reid_light_blur",
    "prcc",
    "ltcc",
    "ccda",
    "deepchange",
    "market1501",
    "msmt17",
)
MORE = {
    "celeb_reid": ["gallery/1_45_0.jpg"],
    "ltcc": ["test/012_3_c7_000700.png"],
    "deepchange": [
        "train-set/P0002_C05_12_09_00031_0.jpg",
        "test-set-gallery/P0601_C09_12_09_00035_0.jpg",
    ],
    "msmt17": [
        "train/0001/0001_000_01_0303morning_0015_0.jpg",
        "test/0000/0000_004_15_0113afternoon_0002_1.jpg",
    ],
}
LISTED = {
    "deepchange": {
        "train-set-bbox.txt": "P0002_C05_12_09_00031_0.jpg,27",
        "test-set-gallery-bbox.txt": "P0601_C09_12_09_00035_0.jpg,28",
    },
    "msmt17": {
        "list_train.txt": "0001/0001_000_01_0303morning_0015_0.jpg 1",
        "list_gallery.txt": "0000/0000_004_15_0113afternoon_0002_1.jpg 0",
    },
}
WITHOUT_CLOTHES = {
    name
    for name in PAPER
    if name.startswith("celeb") or name in ("ccda", "deepchange", "market1501", "msmt17")
}
SMALL = (
    *(
        override
        for override in TINY
        if not override.startswith(("method", "datamodule.people", "model.student"))
    ),
    "model.student.backbone.width=8",
    "datamodule.people=2",
    "datamodule.pictures=2",
    "epochs=2",
    "clothes_start_epoch=1",
    "hydra.run.dir=run",
)


def tree(name: str, root: Path) -> Path:
    """A tiny tree in the data set's layout, its files turned into pictures."""
    (TREES.get(name) or getattr(trees, name))(root)
    # The trees hold what misleads readers; to be trained and evaluated on, they lack some people and positives.
    for path in MORE.get("celeb_reid" if name in TREES else name, ()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    for file, line in LISTED.get(name, {}).items():
        with (root / file).open("a") as listing:
            listing.write(line + "\n")
    rng = np.random.default_rng(3)
    for path in sorted(root.rglob("*")):
        # Strays stay as they are.
        if path.suffix in (".png", ".jpg") and not path.name.startswith("._") and not path.stat().st_size:
            noise = rng.integers(0, 255, (32, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    return root


def check(experiment: str, method: str, invoke: Command, guided: tuple[str, ...], folder: Path) -> None:
    root = tree(experiment, folder / "data")
    done = invoke(
        "train", f"+experiment={experiment}", f"data.root={root}", f"method={method}", "model/student=resnet18",
        *SMALL, *guided,
    )  # fmt: skip
    if "cal" in method and experiment in WITHOUT_CLOTHES:
        assert done.returncode == 2
        assert "clothes" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["cost"]["steps"] == 2
    assert results["evaluations"][0]["results"]


@pytest.mark.parametrize("experiment", PAPER)
def test_the_full_method_trains_on_every_data_set_of_the_paper(
    experiment: str, invoke: Command, guided: tuple[str, ...], tmp_path: Path
) -> None:
    check(experiment, "clip3dreid", invoke, guided, tmp_path)


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("experiment", ["ltcc", "market1501"])
def test_every_method_trains_or_says_which_labels_are_missing(
    experiment: str, method: str, invoke: Command, guided: tuple[str, ...], tmp_path: Path
) -> None:
    check(experiment, method, invoke, guided, tmp_path)


def test_the_recipe_of_last_trains_with_its_triplet(
    invoke: Command, guided: tuple[str, ...], tmp_path: Path
) -> None:
    check("last", "cal_triplet", invoke, guided, tmp_path)
    logged = next((tmp_path / "run").rglob("metrics.csv")).read_text().partition("\n")[0].split(",")
    assert {"loss/identity", "loss/triplet", "loss/clothes_adversarial/adversarial"} <= set(logged)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("experiment", [name for name in PAPER if name not in ("ltcc", "market1501")])
def test_every_method_on_every_data_set(
    experiment: str, method: str, invoke: Command, guided: tuple[str, ...], tmp_path: Path
) -> None:
    check(experiment, method, invoke, guided, tmp_path)


def test_the_whole_release_trains_at_tiny_sizes_and_its_model_pads_in_evaluation_too(
    invoke: Command, guided: tuple[str, ...], ltcc_root: Path, tmp_path: Path
) -> None:
    kept = ("datamodule.workers", "datamodule.evaluation_batch", "trainer", "logger", "model.pretrained")
    done = invoke(
        "train", "+experiment=ltcc", "+recipe=clip3dreid_release", f"data.root={ltcc_root}", *guided,
        *(override for override in TINY if override.startswith(kept)),
        # Pictures stay as large as they are: its weights of places belong to them.
        "datamodule.pictures=2", "epochs=1", "hydra.run.dir=run", "model.teacher.cache=off_erased",
        "model.student.backbone.widths=[4,8,8,12]", "model.student.backbone.depths=[1,1,1,1]",
        "model.student.backbone.heads=[1,2,2,3]", "model.student.pooling.channels=12",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trained = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"][0]["results"]
    done = invoke(
        "evaluate", "checkpoint=run/checkpoints/last.ckpt", "data=ltcc", f"data.root={ltcc_root}", "trainer=cpu",
        "datamodule.workers=0", "out=again.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "again.json").read_text())["results"]
    for protocol, scores in trained.items():
        assert [again[protocol][key] for key in ("r1", "map")] == [scores[key] for key in ("r1", "map")]
