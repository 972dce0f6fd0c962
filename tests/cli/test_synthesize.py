"""The generator through the command line: same bytes whoever draws, real readers and recipes on what it writes."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hydra.utils import get_object, instantiate
from PIL import Image

from clip3dreid.config.folder import conf_dir
from clip3dreid.data.bodies import read_bodies
from clip3dreid.errors import InputError
from tests.config.test_conf import check_bindings, composed
from tests.conftest import TINY, Command

LAYOUTS = sorted(path.stem for path in (conf_dir() / "layout").glob("*.yaml"))
READ = [name for name in LAYOUTS if name != "bodies"]
SMALL = ("train_people=3", "test_people=2", "height=32", "width=16", "antialias=1", "seed=7")
FEW = {
    "ltcc": ("layout.outfits=2", "layout.cameras=2", "layout.seen=2", "layout.test_pictures=2"),
    "prcc": ("layout.pictures=2", "layout.test_pictures=2"),
    "celeb_reid": ("layout.outfits=2", "layout.pictures=2", "layout.test_pictures=2"),
    "market1501": ("layout.cameras=2", "layout.pictures=2", "layout.test_pictures=2"),
    "vc_clothes": ("layout.pictures=1", "layout.test_pictures=2"),
    "ccvid": ("layout.walks=2", "layout.frames=2", "layout.outfits=2"),
    "vccr": ("layout.walks=2", "layout.frames=8", "layout.outfits=2"),
    "bodies": ("layout.pictures=2",),
}


def held(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where each layout's small world is written once, on demand."""
    return tmp_path_factory.mktemp("worlds")


def world(name: str, worlds: Path, invoke: Command) -> Path:
    out = worlds / name
    if not out.exists():
        done = invoke("synthesize", f"layout={name}", f"out={out}", "workers=0", *SMALL, *FEW[name])
        assert done.returncode == 0, done.stderr
    return out


def inspected(
    name: str, worlds: Path, invoke: Command, *arguments: str
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A layout's world, and what `inspect_data` says of it; its manifest is `m.parquet`."""
    root = world(name, worlds, invoke)
    done = invoke("inspect_data", f"data={name}", f"data.root={root}", "manifest=m.parquet", *arguments)
    assert done.returncode == 0, done.stderr
    return root, done


@pytest.mark.parametrize("name", READ)
def test_inspect_data_finds_nothing_wrong_with_a_layout(
    name: str, worlds: Path, invoke: Command, tmp_path: Path
) -> None:
    _, done = inspected(name, worlds, invoke, "out=o.json")
    assert done.stderr == ""
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["unreadable"] == []
    assert report["sizes"]["most_common"] == "16 x 32 (100%)"
    # Only Celeb-reID's numbers start anew.
    assert report["names_in_train_and_test"] == (2 if name == "celeb_reid" else 0)
    assert (report["counts"]["train"]["people"], report["counts"]["query"]["people"]) == (3, 2)
    assert report["protocols"]
    for protocol in report["protocols"]:
        assert protocol["valid_queries"] == protocol["queries"] > 0, protocol["protocol"]


@pytest.mark.parametrize("name", READ)
def test_the_truth_says_of_every_picture_what_the_reader_says(
    name: str, worlds: Path, invoke: Command, tmp_path: Path
) -> None:
    root, _ = inspected(name, worlds, invoke, "decode=false")
    truth = pl.read_parquet(root / "truth.parquet")
    on_disk = {path for path in held(root) if path.endswith((".png", ".jpg"))}
    assert set(truth["path"]) == on_disk
    known = truth.filter(pl.col("role") != "left_out")
    both = pl.read_parquet(tmp_path / "m.parquet").join(
        known, on="path", how="full", suffix="_true", coalesce=True
    )
    assert len(both) == len(known)
    for column in ("person", "split", "role"):
        assert (both[column] == both[f"{column}_true"]).all(), column
    for column in ("camera", "clothes", "tracklet", "frame"):
        told = both.filter(pl.col(column).is_not_null())
        assert (told[column] == told[f"{column}_true"]).all(), column


def test_the_truth_has_shapes_measures_and_sixteen_words(worlds: Path, invoke: Command) -> None:
    truth = pl.read_parquet(world("ltcc", worlds, invoke) / "truth.parquet")
    assert len([column for column in truth.columns if column.startswith("word_")]) == 16
    assert truth.select(pl.col("^(word|measure)_.*$").null_count()).sum_horizontal().item() == 0
    assert truth["measure_stature"].is_between(1.2, 2.3).all()
    assert truth["betas"].list.len().unique().to_list() == [10]
    assert truth["pose"].list.len().unique().to_list() == [72]
    # A shape is a person's, whatever he or she wears and wherever.
    assert truth.group_by("split", "person").agg(pl.col("betas").n_unique())["betas"].to_list() == [1] * 5
    assert truth.filter(split="train").join(truth.filter(split="test"), on="betas").is_empty()


def test_the_description_has_the_config_its_fingerprint_versions_and_counts(
    worlds: Path, invoke: Command
) -> None:
    facts = json.loads((world("ltcc", worlds, invoke) / "world.json").read_text())
    assert facts["version"] == 1
    assert facts["complete"] is True
    assert facts["config"]["seed"] == 7
    assert facts["config"]["world"]["people"]["shape_spread"] == [5, 5, 5, 7, 7, 7, 7, 7, 7]
    assert facts["config"]["world"]["shot"]["view_range"] == 20
    assert len(facts["config"]["inputs"]["body_sha256"]) == 16
    assert set(facts["environment"]) >= {"python", "torch", "numpy", "clip3dreid"}
    assert facts["counts"]["train/train"] == {"pictures": 12, "people": 3}
    assert facts["counts"]["test/query"] == {"pictures": 8, "people": 2}
    assert not {"out", "workers", "overwrite"} & set(facts["config"])


def test_textureless_bodies_come_with_their_shapes(worlds: Path, invoke: Command) -> None:
    root = world("bodies", worlds, invoke)
    truth = pl.read_parquet(root / "truth.parquet")
    assert len(truth) == 10
    assert truth["betas"].n_unique() == 5
    assert not [
        column for column in truth.columns if column.startswith("outfit_") and column != "outfit_index"
    ]
    assert Image.open(root / truth["path"][0]).size == (16, 32)
    for split, bodies in (("train", 3), ("test", 2)):
        table = read_bodies(root, split)
        assert table.body.tolist() == np.repeat(np.arange(bodies), 2).tolist()
        assert table.betas.shape == (2 * bodies, 10)
        assert all(path.is_file() for path in table.files)


def test_clothed_worlds_are_no_textureless_bodies(worlds: Path, invoke: Command) -> None:
    with pytest.raises(InputError, match="shows clothed people"):
        read_bodies(world("ltcc", worlds, invoke))


def test_the_bytes_do_not_depend_on_the_workers(worlds: Path, invoke: Command, tmp_path: Path) -> None:
    root = world("ccvid", worlds, invoke)
    done = invoke("synthesize", "layout=ccvid", "out=w", "workers=2", *SMALL, *FEW["ccvid"])
    assert done.returncode == 0, done.stderr
    assert held(tmp_path / "w") == held(root)


def test_a_second_run_does_nothing_and_says_so(worlds: Path, invoke: Command) -> None:
    root = world("ltcc", worlds, invoke)
    before = held(root)
    done = invoke("synthesize", "layout=ltcc", f"out={root}", "workers=2", *SMALL, *FEW["ltcc"])
    assert done.returncode == 0, done.stderr
    assert "complete already" in done.stdout
    assert held(root) == before


def test_another_seed_shares_no_picture(worlds: Path, invoke: Command, tmp_path: Path) -> None:
    root = world("ltcc", worlds, invoke)
    done = invoke("synthesize", "layout=ltcc", "out=w", "workers=0", *SMALL[:-1], "seed=8", *FEW["ltcc"])
    assert done.returncode == 0, done.stderr
    pictures = [{v for k, v in held(place).items() if k.endswith(".png")} for place in (root, tmp_path / "w")]
    assert len(pictures[0]) == len(pictures[1]) == 12 + 16
    assert not pictures[0] & pictures[1]


def test_a_run_that_was_killed_is_continued_to_the_same_bytes(tmp_path: Path, invoke: Command) -> None:
    arguments = ["layout=ltcc", *SMALL, *FEW["ltcc"], "layout.pictures=20"]
    command = [sys.executable, "-m", "clip3dreid", "synthesize", *arguments, "out=w", "workers=2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        work = tmp_path / "w" / ".world"
        while run.poll() is None and not (work.is_dir() and list(work.glob("chunk-*.parquet"))):
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert json.loads((tmp_path / "w/world.json").read_text())["complete"] is False
    done = invoke("synthesize", *arguments, "out=w", "workers=0")
    assert done.returncode == 0, done.stderr
    assert "from an interrupted run" in done.stdout
    done = invoke("synthesize", *arguments, "out=whole", "workers=0")
    assert done.returncode == 0, done.stderr
    assert held(tmp_path / "w") == held(tmp_path / "whole")


def test_another_world_in_the_folder_is_kept_until_overwrite_is_asked_for(
    worlds: Path, invoke: Command, tmp_path: Path
) -> None:
    shutil.copytree(world("ltcc", worlds, invoke), tmp_path / "w")
    before = held(tmp_path / "w")
    arguments = ("synthesize", "layout=prcc", "out=w", "workers=0", *SMALL, *FEW["prcc"])
    done = invoke(*arguments)
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("error: out=w holds another world: layout._target_ is")
    )
    assert held(tmp_path / "w") == before
    done = invoke(*arguments, "overwrite=true")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "w/train").exists()
    assert json.loads((tmp_path / "w/world.json").read_text())["files"] == sorted(held(tmp_path / "w"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no layout: give layout=NAME; NAME is one of bodies, ccvid, celeb_reid, ltcc,"),
        (("layout=ltcc",), "out is not set; give it on the command line as out=VALUE"),
        (("layout=ltcc", "out=w", "train_people=0"), "train_people=0 must be a whole number, 1 or more"),
        (("layout=ltcc", "out=w", "layout.seen=1"), "layout.seen=1 is too small"),
        (("layout=ltcc", "out=w", "poses=none.npz"), "none.npz"),
        (("layout=ltcc", "out=w", "backgrounds=nowhere"), "nowhere"),
        (("layout=ltcc", "out=w", "body=smpl", "body.path=none.pkl"), "none.pkl"),
        (("layout=ltcc", "out=w", "world.shot.view_range=300"), "view_range"),
        (("layout=ltcc", "out=w", "world.wardrobe.upper={cape: 1}"), "cape"),
        (("layout=ltcc", "out=w", "world.poses={flying: 1}"), "flying"),
        (("layout=ltcc", "out=w", "workers=-1"), "workers=-1"),
        (("layout=ltcc", "out=w", "height=1000000", "width=1000000"), "is too full: up to"),
        (("layout=ltcc", "out=full"), "out=full holds something else (mine.txt)"),
        (("layout=ltcc", "out=full", "overwrite=true"), "out=full holds something else (mine.txt)"),
    ],
)
def test_bad_input_is_told_in_a_line_and_writes_nothing(
    arguments: tuple[str, ...], message: str, invoke: Command, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    done = invoke("synthesize", *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert held(tmp_path) == {"full/mine.txt": b"mine"}


def test_a_user_s_poses_and_backgrounds_are_used_and_told_apart(tmp_path: Path, invoke: Command) -> None:
    poses = np.zeros((3, 72), np.float32)
    poses[:, 3 * 4] = 0.2
    np.savez(tmp_path / "poses.npz", poses=poses)
    (tmp_path / "places").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 48), (200, 0, 0)).save(tmp_path / "places" / f"{name}.png")
    arguments = ("layout=ltcc", "out=w", "workers=0", *SMALL, *FEW["ltcc"], "world.shot.occluder=0")
    done = invoke("synthesize", *arguments, "poses=poses.npz", "backgrounds=places")
    assert done.returncode == 0, done.stderr
    truth = pl.read_parquet(tmp_path / "w/truth.parquet")
    assert set(truth["pose_kind"]) == {"file"}
    corner = np.stack([np.asarray(Image.open(tmp_path / "w" / path))[:4, :3] for path in truth["path"][:8]])
    red, green, blue = corner.reshape(-1, 3).mean(0)
    assert red > green + 60
    assert red > blue + 60
    Image.new("RGB", (640, 480), (0, 200, 0)).save(tmp_path / "places/b.png")
    done = invoke("synthesize", *arguments, "poses=poses.npz", "backgrounds=places")
    assert done.returncode == 2
    assert "inputs.backgrounds_sha256 is" in done.stderr


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_composes_and_binds(name: str) -> None:
    assert check_bindings(composed("synthesize", f"layout={name}", "out=/nowhere")) > 7


@pytest.mark.parametrize("body", sorted(path.stem for path in (conf_dir() / "body").glob("*.yaml")))
def test_every_body_composes_and_binds(body: str) -> None:
    assert check_bindings(composed("synthesize", "layout=ltcc", f"body={body}", "out=/nowhere")) > 7


def test_the_config_names_every_setting_with_the_value_of_the_code() -> None:
    cfg: Any = composed("synthesize", "layout=ltcc", "out=/nowhere").world
    for node in (cfg.people, cfg.wardrobe, cfg.camera, cfg.shot):
        target = get_object(node["_target_"])
        assert set(node) - {"_target_"} == {field.name for field in dataclasses.fields(target)}, target
        filled, default = (
            dataclasses.asdict(made) for made in (instantiate(node, _convert_="all"), target())
        )
        # A pair is a list in YAML.
        assert json.loads(json.dumps(filled)) == json.loads(json.dumps(default)), target


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_an_epoch_of_the_recipe_trains_on_a_layout(
    name: str, worlds: Path, invoke: Command, tmp_path: Path
) -> None:
    root = world(name, worlds, invoke)
    recipe = (
        [f"+experiment={name}"] if (conf_dir() / "experiment" / f"{name}.yaml").exists() else [f"data={name}"]
    )
    done = invoke(
        "train", *recipe, f"data.root={root}", "epochs=1", "hydra.run.dir=run", *TINY, "datamodule.people=2"
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert all(evaluation["results"] for evaluation in results["evaluations"])


def test_a_working_folder_that_is_a_link_costs_nobody_a_file(invoke: Command, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    for name in (".bashrc", "part-1.png", "chunk-000000.parquet"):
        (tmp_path / "home" / name).write_text("mine")
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / ".world").symlink_to(tmp_path / "home")
    before = held(tmp_path / "home")
    done = invoke("synthesize", "layout=ltcc", "out=world", *SMALL, *FEW["ltcc"], "workers=0")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: world/.world is a link, and nothing is")
    assert "Traceback" not in done.stderr
    assert held(tmp_path / "home") == before
