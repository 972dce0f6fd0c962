"""Tables of people in video files, and whatever reads pictures by the paths that are made of them."""

import json
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import clip3dreid
from clip3dreid.data import same_pictures
from clip3dreid.data.clips import ClipSettings, EvaluationClips
from clip3dreid.data.crops import CropBatches
from clip3dreid.data.datasets import custom
from clip3dreid.data.images import FileRows, TestView
from clip3dreid.data.inspection import describe_data
from clip3dreid.data.listing import list_pictures
from clip3dreid.data.manifest import Manifest, load
from clip3dreid.data.pack import Pack
from clip3dreid.data.pack_settings import PackSettings
from clip3dreid.data.packing import pack
from clip3dreid.data.resizing import fit
from clip3dreid.data.same_pictures import mark_same_pictures
from clip3dreid.data.selection import drop_unreadable
from clip3dreid.data.tracklets import tracklets
from clip3dreid.errors import InputError
from clip3dreid.io.files import identify
from clip3dreid.io.pictures import read_rgb
from clip3dreid.report.parts import readable
from clip3dreid.search.shards import Shards
from tests.conftest import TINY, Command
from tests.io.test_videos import HEIGHT, WIDTH, av, number, write

assert av  # which the other file asks for

read = partial(custom.read, name="videos", tracklets=True)

HEADER = "video,tracklet,frame,left,top,width,height,person,camera,clothes,split,role"


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "tracks.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_boxes_of_a_table_are_cut_out_of_their_frames(tmp_path: Path) -> None:
    write(tmp_path / "hall.mp4")
    write(tmp_path / "door.mp4", frames=20)
    root = table(
        tmp_path,
        "hall.mp4,7,12,0,0,96,16,ann,1,red,test,query",
        "hall.mp4,7,11,0,0,96,16,ann,1,red,test,query",
        "hall.mp4,7,11,0,16,48,32,bob,1,red,test,query",
        "door.mp4,7,19,-5,-3,101,19,ann,2,blue,test,gallery",
    )
    manifest = read(root)
    rows = manifest.table.select("path", "person", "camera", "clothes", "tracklet", "frame").rows()
    assert rows[0] == ("door.mp4#frame=0000019&xywh=0,0,96,16", "ann", "2", "ann_blue", "7", 19)
    # People share `red`, so it is each one's own.
    assert {row[3] for row in rows} == {"ann_blue", "ann_red", "bob_red"}
    crops = FileRows(manifest.files())
    assert len(rows) == 4
    for row, (path, _, _, _, _, frame) in enumerate(rows):
        if "0,0,96,16" in path:
            assert number(np.vstack([crops[row]] * 2)) == frame
        else:
            assert crops[row].shape == (32, 48, 3)
            assert crops[row].mean((0, 1)).argmax() == 2  # blue


def test_tracklets_and_clips_are_made_of_them_as_of_files(tmp_path: Path) -> None:
    write(tmp_path / "hall.mp4")
    rows = [f"hall.mp4,1,{frame},0,0,{WIDTH},{HEIGHT},ann,1,,test,gallery" for frame in range(40)]
    manifest = read(table(tmp_path, *rows, f"hall.mp4,2,0,0,0,{WIDTH},{HEIGHT},bob,1,,test,query"))
    part = manifest.part("test", "gallery")
    found = tracklets(part, "videos")
    assert found.table["frames"].to_list() == [40]
    crops = FileRows(manifest.files(part))
    clips = EvaluationClips(crops, found, TestView(HEIGHT, WIDTH), ClipSettings())
    images = clips.__getitems__(range(len(clips))).images.permute(0, 1, 3, 4, 2).numpy()
    seen = [[number(image) for image in clip] for clip in images]
    assert seen[1] == list(range(1, 32, 4))
    assert seen[4] == list(range(32, 40))


def test_rows_beyond_the_end_of_a_video_are_refused_or_counted(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    rows = [f"cut.mp4,1,{frame},0,0,9,9,ann,1,,test,gallery" for frame in range(40)]
    root = table(
        tmp_path, *rows, "whole.mp4,2,0,0,0,9,9,ann,1,,test,query", "whole.mp4,2,40,0,0,9,9,ann,1,,test,query"
    )
    with pytest.raises(InputError) as refused:
        read(root)
    message = str(refused.value)
    assert "\n" not in message
    assert "of 42 rows lie beyond the end of their videos: frame " in message
    assert "of 40 frames are there)" in message
    assert "frame 40 of whole.mp4 (40 frames)" in message
    manifest = read(root, on_error="skip")
    assert any("lie beyond the end of their videos" in note and "left out" in note for note in manifest.notes)
    assert 0 < len(manifest.part("test", "gallery")) < 40
    assert len(manifest.part("test", "query")) == 1


def test_boxes_outside_their_frame_are_refused_or_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", frames=3)
    good = "a.mp4,1,0,0,0,9,9,ann,1,,test,query", "a.mp4,2,1,0,0,9,9,ann,1,,test,gallery"
    root = table(tmp_path, *good, f"a.mp4,1,2,{WIDTH},0,9,9,ann,1,,test,query")
    with pytest.raises(InputError, match=r"1 of 3 rows have their box outside the frame: frame 2 of a\.mp4"):
        read(root)
    assert len(read(root, on_error="skip").table) == 2


def test_rows_of_videos_that_cannot_be_read_are_refused_or_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", frames=3)
    (tmp_path / "b.mp4").write_bytes(b"not a video" * 100)
    good = "a.mp4,1,0,0,0,9,9,ann,1,,test,query", "a.mp4,2,1,0,0,9,9,ann,1,,test,gallery"
    root = table(tmp_path, *good, *(f"b.mp4,1,{frame},0,0,9,9,ann,1,,test,query" for frame in (0, 1)))
    with pytest.raises(InputError, match=r"b\.mp4 cannot be read as a video: Invalid data"):
        read(root)
    manifest = read(root, on_error="skip")
    assert manifest.notes[0].startswith(
        "2 of 4 rows lie in videos that cannot be read: b.mp4 (Invalid data found"
    )
    assert len(manifest.table) == 2
    with pytest.raises(InputError, match=r"no row is left: 1 of 1 rows lie in videos"):
        read(table(tmp_path, "b.mp4,1,0,0,0,9,9,ann,1,,test,query"), on_error="skip")


def test_missing_videos_are_listed(tmp_path: Path) -> None:
    root = table(tmp_path, "a.mp4,1,0,0,0,9,9,ann,1,,test,query", "b.mp4,1,0,0,0,9,9,ann,1,,test,query")
    with pytest.raises(InputError, match=r"tracks\.csv: 2 videos are not in .*: a\.mp4, b\.mp4; "):
        read(root)


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (
            "video,frame,person,split,role",
            "a.mp4,0,ann,test,query",
            "no column tracklet, left, top, right, bottom",
        ),
        (HEADER, "a.mp4,1,,0,0,9,9,ann,1,,test,query", "1 rows lack one of video, frame, tracklet"),
        (HEADER, "a.mp4,1,0.5,0,0,9,9,ann,1,,test,query", "frame '0.5' is of the wrong kind"),
        (HEADER, "a.mp4,1,0,0,0,9,9,ann,1,,test,probes\na.mp4,2,0,0,0,9,9,ann,1,,test,gallery", "role"),
    ],
)
def test_tables_that_say_too_little_are_refused(tmp_path: Path, header: str, row: str, said: str) -> None:
    write(tmp_path / "a.mp4", frames=3)
    with pytest.raises(InputError, match=said):
        read(table(tmp_path, row, header=header))


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of two people in two videos, 20 crops of each of them in each."""
    folder = tmp_path_factory.mktemp("hall")
    write(folder / "hall.mp4")
    write(folder / "door.mkv", codec="libx264", key=7)
    rows = [
        f"{video},{camera}{person},{frame},{left},0,{WIDTH // 2},{HEIGHT},{person},{camera},{role},test,{role}"
        for camera, (video, role) in enumerate([("hall.mp4", "query"), ("door.mkv", "gallery")])
        for person, left in (("ann", 0), ("bob", WIDTH // 2))
        for frame in range(0, 40, 2)
    ]
    return table(folder, *rows)


@pytest.fixture(scope="module")
def manifest(hall: Path) -> Manifest:
    return read(hall)


def whole_frames(manifest: Manifest) -> list[np.ndarray]:
    """The crops of the hall, each cut by the tests' own hand out of a video that is decoded from its beginning."""
    decoded = {}
    for video in ("hall.mp4", "door.mkv"):
        with av.open(str(manifest.root / video)) as container:
            decoded[video] = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
    crops = []
    for path, person, frame in manifest.table.select("path", "person", "frame").rows():
        left = 0 if person == "ann" else WIDTH // 2
        crops.append(decoded[path.partition("#")[0]][frame][:, left : left + WIDTH // 2])
    return crops


def test_forked_loaders_and_threads_read_what_one_process_reads(manifest: Manifest) -> None:
    expected = whole_frames(manifest)
    # In no order, so that both workers and all threads want both videos, forwards and backwards.
    order = np.random.default_rng(0).permutation(len(expected)).tolist()
    files = manifest.files()
    # The parent has both open before it forks.
    alone = [read_rgb(files[row]) for row in order]
    assert all(np.array_equal(crop, expected[row]) for crop, row in zip(alone, order, strict=True))
    paths = manifest.table["path"][order]
    batches = [range(start, start + 4) for start in range(0, len(order), 4)]
    view = TestView(HEIGHT, WIDTH // 2)
    crops = CropBatches(manifest.root, paths, None, batches, view, skip=False)
    loader = DataLoader(crops, batch_size=None, num_workers=2, multiprocessing_context="fork")
    images = torch.cat([batch.images for batch in loader]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, np.stack(alone))
    with ThreadPool(4) as pool:
        threads = pool.map(lambda row: read_rgb(files[row]), order, chunksize=1)
    assert np.array_equal(np.stack(threads), np.stack(alone))
    # And the parent goes on where it was.
    assert np.array_equal(read_rgb(files[order[0]]), alone[0])


def test_inspection_counts_and_decodes_them(manifest: Manifest) -> None:
    for decode in (False, True):
        report = describe_data(manifest, decode=decode, workers=2)
        assert report.unreadable == ()
        assert report.sizes is not None
        assert report.sizes.most_common == f"{WIDTH // 2} x {HEIGHT} (100%)"
        assert report.counts["all"][:5] == (80, 2, 4, 2, 4)


def test_a_table_of_videos_is_a_data_set_on_the_command_line(
    hall: Path, manifest: Manifest, invoke: Command, tmp_path: Path
) -> None:
    data = ("data=tracklets", f"data.root={hall}")
    done = invoke("inspect_data", *data, "manifest=m.parquet", "workers=2")
    assert done.returncode == 0, done.stderr
    assert f"{WIDTH // 2} x {HEIGHT} (100%)" in done.stdout
    # What was written names the same pictures, and is a data set of its own.
    assert load(tmp_path / "m.parquet").table.drop("data_set").equals(manifest.table.drop("data_set"))
    done = invoke("pack", *data, "out=packed", "height=32", "width=16", "workers=0")
    assert done.returncode == 0, done.stderr
    assert "80 pictures" in done.stdout


@pytest.mark.slow  # two trainings
def test_training_on_videos_is_training_on_their_crops_in_files(invoke: Command, tmp_path: Path) -> None:
    write(tmp_path / "hall.mp4")
    # No two crops are alike, which in files would be one picture and as crops of a video are two.
    rows = [
        f"hall.mp4,{person},{frame},0,{person},{WIDTH},30,{person},{frame % 2},,{split},{role}"
        for person in range(4)
        for split, role, first in (("train", "train", 0), ("test", "query", 16), ("test", "gallery", 28))
        for frame in range(first, first + 8)
    ]
    root = table(tmp_path, *rows)
    manifest = read(root)
    for file in manifest.files():
        Image.fromarray(read_rgb(file)).save(f"{file}.png")
    crops = manifest.table.with_columns(path=pl.col("path") + ".png").drop("clothes", "query_set", "data_set")
    crops.write_csv(tmp_path / "crops.csv")
    found = {}
    for name in (root.name, "crops.csv"):
        run = (f"hydra.run.dir=of_{name}", "epochs=2", "datamodule.workers=2")
        done = invoke("train", "data=tracklets", f"data.root={name}", *TINY, *run)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / f"of_{name}" / "results.json").read_text())["evaluations"]
    assert found[root.name] == found["crops.csv"]


def test_extraction_looks_at_them_as_a_data_set_and_as_a_table(
    hall: Path, manifest: Manifest, saved_model: Path, invoke: Command, tmp_path: Path
) -> None:
    model = clip3dreid.load(saved_model)
    expected = model.embed(whole_frames(manifest))
    quick = (f"checkpoint={saved_model}", "trainer=cpu", "batch=16", "rows_per_shard=50")
    done = invoke("extract", *quick, "data=tracklets", f"data.root={hall}", "out=data", "workers=2")
    assert done.returncode == 0, done.stderr
    shards = Shards(tmp_path / "data")
    assert shards.labels["path"].to_list() == manifest.table["path"].to_list()
    assert torch.allclose(torch.cat(list(shards.blocks("embedding"))), expected, atol=1e-5)
    done = invoke("extract", *quick, f"pictures={hall}", "out=pictures", "workers=0")
    assert done.returncode == 0, done.stderr
    shards = Shards(tmp_path / "pictures")
    order = [shards.labels["path"].to_list().index(path) for path in manifest.table["path"]]
    assert torch.allclose(torch.cat(list(shards.blocks("embedding")))[order], expected, atol=1e-5)
    # A path is a query, not a description, and what is drawn of it is the crop.
    gallery = clip3dreid.Gallery.open(tmp_path / "data", model)
    asked = str(manifest.files()[3])
    (answer,) = gallery.search(asked, top=3).answers
    assert torch.allclose(answer.query.vector, torch.nn.functional.normalize(expected[3], dim=0), atol=1e-5)
    (drawn,) = readable([Path(asked)], 1, WIDTH // 2, HEIGHT)
    assert np.array_equal(np.asarray(drawn), whole_frames(manifest)[3])


def test_a_pack_holds_them_resized(manifest: Manifest, tmp_path: Path) -> None:
    settings = PackSettings(tmp_path / "pack", height=32, width=16, workers=0)
    assert pack([manifest], settings, rows_per_part=30).pictures == 80
    made = Pack(tmp_path / "pack")
    rows = made.rows_of(identify(manifest.root, manifest.table["path"]), "hall")
    expected = [fit(crop, 32, 16, False) for crop in whole_frames(manifest)]
    assert np.array_equal(np.stack([made[row] for row in rows]), np.stack(expected))


def test_crops_of_a_video_are_one_picture_where_their_paths_are(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_bytes(path: Path) -> None:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(same_pictures, "_digest", no_bytes)
    query = manifest.part("test", "query")
    gallery = pl.concat([manifest.part("test", "gallery"), query[:2]])
    found = mark_same_pictures(manifest.root, query, gallery)
    assert found.query["picture"].to_list() == query["path"].to_list()
    assert found.gallery["picture"].to_list() == gallery["path"].to_list()
    assert (found.sizes_asked, found.files_read) == (0, 0)


def cut_short(folder: Path) -> Path:
    """A table of 40 frames of a video of which half is there."""
    whole = write(folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    rows = [f"cut.mp4,1,{frame},0,0,48,48,ann,1,,test,gallery" for frame in range(40)]
    return table(folder, *rows, "whole.mp4,2,0,0,0,48,48,ann,2,,test,query")


def test_a_video_that_ends_early_is_one_line_or_left_out(
    saved_model: Path, invoke: Command, tmp_path: Path
) -> None:
    root = cut_short(tmp_path)
    data = ("data=tracklets", f"data.root={root}")
    done = invoke("inspect_data", *data)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "of 41 rows lie beyond the end of their videos: frame " in done.stderr
    assert "data.on_error=skip" in done.stderr
    done = invoke("inspect_data", *data, "data.on_error=skip")
    assert done.returncode == 0, done.stderr
    assert "lie beyond the end" in " ".join(done.stdout.split())
    # A table without roles is not looked at before its pictures are, as a folder is not.
    quick = (f"checkpoint={saved_model}", f"pictures={root}", "trainer=cpu", "workers=0", "batch=16")
    done = invoke("extract", *quick, "out=shards")
    assert done.returncode == 0, done.stderr
    listed = pl.read_csv(tmp_path / "shards" / "unreadable.csv")
    assert listed["path"][-1] == "cut.mp4#frame=0000039&xywh=0,0,48,48"
    assert "frames and promises 40" in listed["reason"][-1]
    done = invoke("extract", *quick, "out=others", "on_error=fail")
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if "cannot read frame" in line]
    assert "cut.mp4: the video has " in said
    assert said.endswith("frames and promises 40; replace it, or leave it out with on_error=skip")


def test_a_video_that_was_cut_after_it_was_listed_is_skipped_as_pictures_are(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4")
    rows = [f"a.mp4,1,{frame},0,0,48,48,ann,1,,test,gallery" for frame in range(0, 40, 3)]
    manifest = read(table(tmp_path, *rows, "a.mp4,2,39,0,0,48,48,ann,2,,test,query"))
    assert len(read_rgb(manifest.files()[-1])) == HEIGHT
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(
        InputError, match=r"cannot read frame 39 of .*a\.mp4: the video has \d+ frames.*; replace it$"
    ):
        read_rgb(manifest.files(manifest.part("test", "query"))[0])
    kept = drop_unreadable(manifest, 2)
    assert 0 < len(kept.table) < len(manifest.table)
    assert "unreadable pictures skipped: a.mp4#frame=" in kept.notes[-1]
    video.unlink()
    report = describe_data(manifest, workers=1)
    assert {one.reason for one in report.unreadable} == {"No such file or directory"}


def test_a_table_may_name_places_itself(hall: Path, manifest: Manifest, tmp_path: Path) -> None:
    rows = manifest.table.select("path", "person", "split", "role", "tracklet")
    named = hall.with_name("named.csv")
    rows.write_csv(named)
    assert read(named).table["path"].to_list() == rows["path"].to_list()
    rows.with_columns(pl.col("path").str.replace("door", "floor")).write_csv(named)
    with pytest.raises(InputError, match=r"40 pictures of .* are not in "):
        read(named)


def test_a_listing_of_boxes_in_videos_keeps_what_is_known(hall: Path) -> None:
    listing = list_pictures(hall)
    assert listing.root == hall.parent
    assert set(listing.table.columns) == {
        "path",
        "person",
        "camera",
        "clothes",
        "tracklet",
        "frame",
        "split",
        "role",
    }
    assert listing.table["path"][21] == "hall.mp4#frame=0000002&xywh=48,0,48,48"
