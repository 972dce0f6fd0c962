"""`extract` as it is used: whole commands on real files, killed for real."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import clip3dreid
from clip3dreid.data import crops
from clip3dreid.search.shards import Shards
from tests.processes import PATIENCE_S
from tests.synthetic.test_writing import alive

QUICK = ("trainer=cpu", "workers=0", "batch=5", "rows_per_shard=7")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def arguments(saved_model, ltcc_root):
    return (f"checkpoint={saved_model}", "data=ltcc", f"data.root={ltcc_root}", *QUICK)


def test_shards_hold_what_the_model_says_of_each_picture(invoke, arguments, saved_model, ltcc_root, tmp_path):
    done = invoke("extract", *arguments, "out=shards", "split=test")
    assert done.returncode == 0, done.stderr
    assert "32 pictures in shards" in done.stdout
    shards = Shards(tmp_path / "shards")
    model = clip3dreid.load(saved_model)
    files = [ltcc_root / path for path in shards.labels["path"]]
    assert len(shards) == 32
    assert set(shards.labels["camera"]) == {"1", "2"}
    # Nobody knows them: with them, shards of before there were such columns would be made anew.
    assert not {"location", "scale"} & set(shards.labels.columns)
    assert torch.allclose(torch.cat(list(shards.blocks("embedding"))), model.embed(files), atol=1e-5)
    joint = model.joint(files)
    assert torch.allclose(torch.cat(list(shards.blocks("joint"))), joint, atol=1e-6)
    assert torch.allclose(torch.cat(list(shards.blocks("betas"))), model.shape(files).betas, atol=1e-6)
    said = [[words[0].word for words in person.values()] for person in model.describe(files)]
    assert shards.labels["words"].to_list() == said
    assert shards.facts["fingerprint"] == model.fingerprint


def test_a_second_run_has_nothing_to_do_and_another_model_is_refused(
    invoke, arguments, saved_model, tmp_path
):
    assert invoke("extract", *arguments, "out=shards").returncode == 0
    before = contents(tmp_path / "shards")
    again = invoke("extract", *arguments, "out=shards", "batch=3")
    assert "nothing was left to do" in again.stdout
    assert contents(tmp_path / "shards") == before
    model = clip3dreid.load(saved_model)
    model.student.neck.weight.data[0] += 0.01
    model.save_pretrained(tmp_path / "other")
    refused = invoke("extract", *arguments, "out=shards", f"checkpoint={tmp_path / 'other'}")
    assert refused.returncode == 2
    assert "holds shards of another model" in refused.stderr
    assert contents(tmp_path / "shards") == before


def test_unreadable_pictures_are_listed_and_skipped_or_end_the_run(invoke, saved_model, ltcc_root, tmp_path):
    for number, path in enumerate(sorted((ltcc_root / "query").iterdir())):
        data = path.read_bytes()
        (tmp_path / "crops" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "crops" / str(number % 2) / path.name).write_bytes(
            data[:99] if number in (3, 4) else data
        )
    arguments = (f"checkpoint={saved_model}", "pictures=crops", "out=shards", *QUICK)
    done = invoke("extract", *arguments)
    assert done.returncode == 0, done.stderr
    assert "14 pictures in shards, 2 unreadable" in done.stdout
    listed = pl.read_csv(tmp_path / "shards" / "unreadable.csv")
    assert listed.columns == ["path", "reason"]
    assert len(listed) == 2
    assert not set(listed["path"]) & set(Shards(tmp_path / "shards").labels["path"])
    ended = invoke("extract", *arguments, "out=other", "on_error=fail")
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()[-1]) < 400
    assert "cannot read the picture" in ended.stderr
    # Repaired, it is looked at; the shards of the others are kept.
    for path in (tmp_path / "crops").rglob("*.png"):
        path.write_bytes((ltcc_root / "query" / path.name).read_bytes())
    assert "16 pictures in shards" in invoke("extract", *arguments).stdout
    assert not (tmp_path / "shards" / "unreadable.csv").exists()


def test_boxes_of_a_table_and_chosen_outputs(invoke, saved_model, ltcc_root, tmp_path):
    path = sorted((ltcc_root / "query").iterdir())[0]
    rows = [
        {"path": str(path), "left": 2, "top": 4, "right": 14, "bottom": 30, "person": "007"},
        {"path": str(path), "left": 0, "top": 0, "right": 16, "bottom": 32, "person": None},
    ]
    pl.DataFrame(rows).write_csv(tmp_path / "people.csv")
    done = invoke(
        "extract", f"checkpoint={saved_model}", "pictures=people.csv", "out=shards", "outputs=[embedding,betas]",
        "format=safetensors", "dtype=float16", *QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shards = Shards(tmp_path / "shards")
    assert shards.facts["vectors"] == {"embedding": 128, "betas": 4}
    assert shards.labels["person"].to_list() == ["7", None]
    model = clip3dreid.load(saved_model)
    with Image.open(path) as picture:
        expected = model.embed([picture.crop((2, 4, 14, 30)), picture])
    assert np.allclose(
        torch.cat(list(shards.blocks("embedding"))).float().numpy(), expected.numpy(), rtol=2e-3, atol=2e-3
    )


def test_boxes_of_a_detector_are_looked_at_frame_by_frame(invoke, saved_model, tmp_path, monkeypatch):
    rng = np.random.default_rng(6)
    arrays = rng.integers(0, 256, (4, 40, 60, 3), dtype=np.uint8)
    frames, lines, expected = tmp_path / "seq" / "img1", [], []
    frames.mkdir(parents=True)
    (tmp_path / "seq" / "det").mkdir()
    for number, pixels in enumerate(arrays, 1):
        Image.fromarray(pixels).save(frames / f"{number:06}.png")
        for track in range(3):
            left, top = 18 * track, 5 * number
            lines.append(
                f"{number},{track},{left + 1},{top + 1},16,30,{0.9 if track else 0.1 * number},-1,-1,-1"
            )
            if track or number > 2:
                expected.append(pixels[top : top + 30, left : left + 16])
    (tmp_path / "seq" / "det" / "det.txt").write_text("\n".join(lines))
    real, decoded = crops.read_rgb, tmp_path / "decoded"

    def counted(path, advice):
        with decoded.open("a") as file:  # workers are processes
            file.write(f"{path}\n")
        return real(path, advice)

    monkeypatch.setattr(crops, "read_rgb", counted)
    arguments = (
        f"checkpoint={saved_model}",
        "pictures=seq/det/det.txt",
        "boxes.least_confidence=0.3",
        "out=s",
    )
    # Neither batches nor shards part the boxes of a frame, and a frame of three is a batch of two all the same.
    done = invoke("extract", *arguments, "trainer=cpu", "workers=2", "batch=2", "rows_per_shard=4")
    assert done.returncode == 0, done.stderr
    assert "10 pictures in s" in done.stdout
    assert len(set(decoded.read_text().split())) == len(decoded.read_text().split()) == 4
    shards = Shards(tmp_path / "s")
    model = clip3dreid.load(saved_model)
    wanted = model.embed([np.ascontiguousarray(crop) for crop in expected])
    assert torch.allclose(torch.cat(list(shards.blocks("embedding"))), wanted, atol=1e-5)
    assert shards.labels["frame"].to_list() == [1, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    assert shards.labels["tracklet"].to_list() == ["1", "2", "1", "2", *"012", *"012"]
    assert shards.labels["confidence"].to_list()[4:6] == pytest.approx([0.3, 0.9])
    Image.fromarray(expected[4]).save(tmp_path / "someone.png")
    found = invoke(
        "search", "gallery=s", f"checkpoint={saved_model}", "picture=someone.png", "out=found.json", "top=1",
        "where.frame=[2,4]", "sheet=found.png",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    (hit,) = json.loads((tmp_path / "found.json").read_text())["queries"][0]["hits"]
    assert {key: hit[key] for key in ("path", "frame", "tracklet", "left", "top", "right", "bottom")} == {
        **{"path": "000003.png", "frame": 3, "tracklet": "0"},
        **{"left": 0, "top": 15, "right": 16, "bottom": 40},
    }
    assert "tracklet" in found.stdout
    assert "nothing was left to do" in invoke("extract", *arguments, *QUICK, "rows_per_shard=4").stdout


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["pictures=frames.txt"], "is neither a table that is read nor boxes of a known format"),
        (["pictures=frames.txt", "boxes.format=voc"], "boxes.format=voc is unknown; choose mot, coco"),
        (["pictures=frames.txt", "boxes.least_size=big"], "boxes.least_size=big must be a number"),
        (["pictures=frames.txt", "boxes.klass=1"], "boxes.klass"),
        (["data=ltcc", "data.root=.", "boxes.classes=[1]"], "boxes.classes belongs to pictures=FILE"),
    ],
)
def test_what_is_wrong_with_boxes_is_said_in_one_line(invoke, saved_model, tmp_path, keys, said):
    (tmp_path / "frames.txt").write_text("a.png\n")
    refused = invoke("extract", f"checkpoint={saved_model}", *keys, "out=s", *QUICK)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("checkpoint=null",), "no model: give checkpoint"),
        (("checkpoint=nowhere.ckpt",), "nowhere.ckpt"),
        (("pictures=x",), "one of them"),
        (("split=val",), "has no pictures in split val"),
        (("outputs=[embedding,gait]",), "outputs=gait cannot be had"),
        (("outputs=[]",), "outputs=[] cannot be had"),
        (("on_error=ignore",), "on_error=ignore is unknown"),
        (("format=csv",), "format=csv is unknown"),
        (("batch=0",), "batch=0"),
        (("rows_per_shard=0",), "rows_per_shard=0"),
        (("workers=-1",), "workers=-1"),
        (("batch=many",), "batch=many"),
        (("flip=no",), "flip=no"),
        (("out=/proc/shards",), "/proc/shards"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(invoke, arguments, tmp_path, changes, said):
    done = invoke("extract", *arguments, "out=shards", *changes)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "shards").exists()


def test_nothing_to_look_at_is_said(invoke, saved_model):
    for given, said in (((), "what to look at"), (("pictures=absent",), "pictures=absent is not there")):
        done = invoke("extract", f"checkpoint={saved_model}", "out=shards", *given, *QUICK)
        assert done.returncode == 2
        assert said in done.stderr


def test_a_folder_is_of_one_source(invoke, saved_model, ltcc_root, tmp_path):
    arguments = (f"checkpoint={saved_model}", "out=shards", *QUICK)
    assert invoke("extract", *arguments, f"pictures={ltcc_root / 'query'}").returncode == 0
    before = contents(tmp_path / "shards")
    other = invoke("extract", *arguments, f"pictures={ltcc_root / 'test'}")
    assert other.returncode == 2
    assert "holds shards of source=" in other.stderr
    assert contents(tmp_path / "shards") == before


def test_pictures_on_a_disk_that_went_away_cost_nothing(invoke, saved_model, ltcc_root, tmp_path):
    (tmp_path / "disk").mkdir()
    for path in sorted((ltcc_root / "query").iterdir())[:8]:
        (tmp_path / "disk" / path.name).write_bytes(path.read_bytes())
    table = pl.DataFrame({"path": [f"disk/{path.name}" for path in sorted((tmp_path / "disk").iterdir())]})
    table.write_csv(tmp_path / "people.csv")
    arguments = (f"checkpoint={saved_model}", "pictures=people.csv", "out=shards", *QUICK)
    assert invoke("extract", *arguments).returncode == 0
    before = contents(tmp_path / "shards")
    (tmp_path / "disk").rename(tmp_path / "away")
    done = invoke("extract", *arguments)
    assert done.returncode == 2
    assert "not there any more" in done.stderr
    assert contents(tmp_path / "shards") == before
    nothing = invoke("extract", *arguments, "out=other")
    assert nothing.returncode == 2
    assert "none of 8 pictures could be read" in nothing.stderr


def test_odd_names_and_links_in_circles(invoke, saved_model, ltcc_root, tmp_path):
    crops = tmp_path / "crops [1], é"
    crops.mkdir()
    (crops / "a, [b] ü.png").write_bytes(next((ltcc_root / "query").iterdir()).read_bytes())
    (crops / "again").symlink_to(crops)
    arguments = (f"checkpoint={saved_model}", f"pictures='{crops}'", "out=shards", *QUICK)
    done = invoke("extract", *arguments)
    assert "1 pictures in shards" in done.stdout, done.stderr
    (crops / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    refused = invoke("extract", *arguments)
    assert refused.returncode == 2
    assert "1 file names are not UTF-8" in refused.stderr


def start(arguments: tuple[str, ...], cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "clip3dreid", "extract", *arguments],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_after(process: subprocess.Popen, folder: Path, shards: int, delay: float) -> bool:
    """Kills a run and its loader some time after it has written so many more shards; False: it was done."""
    there = len(list(folder.glob("shard-*.parquet")))
    while len(list(folder.glob("shard-*.parquet"))) < there + shards and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def check_killed(invoke, arguments: tuple[str, ...], tmp_path: Path, kills: int) -> None:
    rng = random.Random(5)
    assert invoke("extract", *arguments, "out=undisturbed").returncode == 0
    killed = 0
    for _ in range(kills):
        process = start((*arguments, "out=killed"), tmp_path)
        killed += kill_after(process, tmp_path / "killed", rng.randint(0, 2), rng.uniform(0, 0.05))
    assert killed >= kills // 2
    assert invoke("extract", *arguments, "out=killed").returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_a_killed_run_goes_on_to_the_same_shards(invoke, arguments, tmp_path):
    check_killed(invoke, (*arguments, "workers=1", "rows_per_shard=3"), tmp_path, kills=1)


@pytest.mark.slow
def test_a_run_killed_ten_times_goes_on_to_the_same_shards(invoke, arguments, tmp_path):
    settings = (*arguments, "workers=1", "rows_per_shard=2", "format=safetensors")
    check_killed(invoke, settings, tmp_path, kills=10)


def test_a_folder_in_use_is_refused_by_name_and_whoever_is_there_ends_well(invoke, arguments, tmp_path):
    """The first is stopped in the middle, so that the second comes while it works."""
    settings = (*arguments, "rows_per_shard=3", "out=shards")
    first = start(settings, tmp_path)
    while not list((tmp_path / "shards").glob("shard-*.parquet")) and first.poll() is None:
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    second = invoke("extract", *settings)
    assert second.returncode == 2
    assert f"shards is in use: process {first.pid} on " in second.stderr
    assert "(extracts); wait until it has ended" in second.stderr
    first.send_signal(signal.SIGCONT)
    assert first.wait(PATIENCE_S) == 0
    assert len(Shards(tmp_path / "shards")) == 80


TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(arguments, command, tmp_path):
    assert command("extract", *arguments, "out=one").returncode == 0
    settings = [one for one in arguments if one != "trainer=cpu"]
    done = command("extract", *settings, *TWO, "out=two")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    # One of them has nothing left to do.
    (tmp_path / "two" / "shard-000000.parquet").unlink()
    again = command("extract", *settings, *TWO, "out=two")
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_fewer_shards_than_processes(arguments, command, tmp_path):
    settings = [one for one in arguments if one != "trainer=cpu"]
    done = command("extract", *settings, *TWO, "rows_per_shard=1000", "out=two")
    assert done.returncode == 0, done.stderr
    assert "80 pictures in two" in done.stdout
    assert len(Shards(tmp_path / "two")) == 80


@pytest.mark.slow
def test_two_processes_killed_together_or_one_alone_leave_nobody_and_the_next_go_on(
    arguments, command, tmp_path
):
    settings = [*(one for one in arguments if one != "trainer=cpu"), *TWO, "rows_per_shard=1"]
    first = start((*settings, "out=two"), tmp_path)
    while len(list((tmp_path / "two").glob("shard-*.parquet"))) < 4 and first.poll() is None:
        time.sleep(0.002)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    assert children
    # The one that holds the lock, without a chance to end the other.
    first.kill()
    first.wait()
    done = command("extract", *settings, "out=two")
    assert done.returncode == 0, done.stderr
    assert not any(alive(int(child)) for child in children)
    assert command("extract", *arguments, "rows_per_shard=1", "out=one").returncode == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def write_walks(ltcc_root: Path, folder: Path, walks: int) -> None:
    for number, path in enumerate(sorted((ltcc_root / "query").iterdir())[: 2 * walks + 1]):
        (folder / str(number % walks)).mkdir(parents=True, exist_ok=True)
        (folder / str(number % walks) / path.name).write_bytes(path.read_bytes())


@pytest.mark.slow
def test_two_processes_share_tracklets_out(command, saved_model, ltcc_root, tmp_path):
    write_walks(ltcc_root, tmp_path / "walks", 5)
    asked = (f"checkpoint={saved_model}", "pictures=walks", "tracklets=true", "workers=0", "rows_per_shard=1")
    done = command("extract", *asked, *TWO, "out=two")
    assert done.returncode == 0, done.stderr
    assert "5 tracklets of 11 frames in two" in done.stdout
    assert command("extract", *asked, "trainer=cpu", "out=one").returncode == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_folders_of_frames_are_tracklets_where_it_is_said(invoke, saved_model, ltcc_root, tmp_path):
    write_walks(ltcc_root, tmp_path / "walks", 2)
    done = invoke(
        "extract", f"checkpoint={saved_model}", "pictures=walks", "tracklets=true", "out=shards", *QUICK
    )
    assert done.returncode == 0, done.stderr
    assert "2 tracklets of 5 frames in shards, " in done.stdout
    rows = torch.cat(list(Shards(tmp_path / "shards").blocks("embedding")))
    walks = [tmp_path / "walks" / name for name in "01"]
    assert torch.allclose(rows, clip3dreid.load(saved_model).embed_tracklets(walks), atol=1e-5)
