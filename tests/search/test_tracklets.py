"""Tracklets: a row of shards each, searched by and evaluated."""

import logging
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from PIL import Image

from clip3dreid.config.evaluation import of_shards
from clip3dreid.data.clips import ClipSettings
from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.manifest import Manifest, build
from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel
from clip3dreid.search.extraction import extract
from clip3dreid.search.gallery import Gallery
from clip3dreid.search.ray_extraction import extract_parts
from clip3dreid.search.search import search
from clip3dreid.search.settings import ExtractSettings, PersonQuery, PictureQueries, ShardSettings
from clip3dreid.search.shards import Shards
from clip3dreid.training.evaluation import evaluate_model
from clip3dreid.training.settings import RANKING
from tests.inference.walks import by_hand, clip_model, picture_model, write_walk

QUICK = ExtractSettings(batch=8, workers=0, rows_per_shard=2)
LENGTHS = {"a": 1, "b": 13, "c": 3, "d": 6, "e": 4}


@pytest.fixture(scope="module")
def model() -> ReidModel:
    return clip_model()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, (name, length) in enumerate(LENGTHS.items()):
        write_walk(tmp_path / "walks" / name, length, seed)
    return tmp_path / "walks"


def manifest(root: Path) -> Manifest:
    rows = [
        {
            "path": path.relative_to(root).as_posix(),
            "person": str(number % 2),
            "camera": str(number),
            "split": "test",
            "role": "query" if number < 2 else "gallery",
            "tracklet": name,
        }
        for number, name in enumerate(LENGTHS)
        for path in (root / name).iterdir()
    ]
    return build("walks", root, rows)


def ordered(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: int(path.stem))


def vectors(folder: Path, name: str = "embedding") -> torch.Tensor:
    return torch.cat(list(Shards(folder).blocks(name)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_row_is_a_tracklet_with_its_labels_and_the_means_over_its_clips(model, root, tmp_path) -> None:
    result = extract(model, manifest(root), QUICK, tmp_path / "shards")
    assert str(result).startswith(f"5 tracklets of 27 frames in {tmp_path / 'shards'}, ")
    assert (result.pictures, result.frames, result.computed, result.left_out) == (5, 27, 27, 0)
    labels = Shards(tmp_path / "shards").labels
    order = labels["tracklet"].to_list()
    assert sorted(order) == list(LENGTHS)
    assert labels["frames"].to_list() == [LENGTHS[name] for name in order]
    assert labels["path"].to_list() == [f"{name}/{LENGTHS[name] // 2}.png" for name in order]
    assert dict(zip(order, labels["person"], strict=True)) == {
        "a": "0",
        "b": "1",
        "c": "0",
        "d": "1",
        "e": "0",
    }
    expected = [by_hand(model, ordered(root / name)) for name in order]
    for column in ("embedding", "joint", "betas"):
        rows = torch.stack([getattr(one, column) for one in expected])
        torch.testing.assert_close(vectors(tmp_path / "shards", column), rows, rtol=1e-5, atol=1e-5)
    said = model.best_words(torch.stack([one.joint for one in expected]))
    assert labels["words"].to_list() == said


def test_what_a_row_is_follows_from_the_model_unless_it_is_said(model, root, tmp_path, caplog) -> None:
    pictures = picture_model()
    assert extract(pictures, manifest(root), QUICK, tmp_path / "frames").pictures == 27
    always = replace(QUICK, tracklets=True)
    assert extract(pictures, manifest(root), always, tmp_path / "means").pictures == 5
    b = Shards(tmp_path / "means").labels["tracklet"].to_list().index("b")
    mean = pictures.embed(root / "b").mean(0)
    torch.testing.assert_close(vectors(tmp_path / "means")[b], mean, rtol=1e-5, atol=1e-5)
    never = replace(QUICK, tracklets=False)
    assert extract(model, manifest(root), never, tmp_path / "never").pictures == 27
    with caplog.at_level(logging.WARNING):
        assert extract(model, root, QUICK, tmp_path / "folder").pictures == 27
    assert "each is looked at by itself; tracklets=true takes the folders" in caplog.text
    with pytest.raises(
        InputError, match=r"holds shards of pictures, not of tracklets \(clips.frames=4, clips"
    ):
        extract(model, root, always, tmp_path / "folder")
    with pytest.raises(InputError, match=r"holds shards of tracklets .*, not of pictures; give another out"):
        extract(pictures, manifest(root), QUICK, tmp_path / "means")


def test_each_folder_of_a_folder_is_a_tracklet(model, root, tmp_path) -> None:
    write_walk(root / "more" / "f", 2, 9)
    (root / "0.png").write_bytes((root / "a" / "0.png").read_bytes())
    extract(model, root, replace(QUICK, tracklets=True), tmp_path / "shards")
    labels = Shards(tmp_path / "shards").labels
    assert labels.select("tracklet", "path", "frames").rows() == [
        ("walks", "0.png", 1),
        *((name, f"{name}/{length // 2}.png", length) for name, length in LENGTHS.items()),
        ("more/f", "more/f/1.png", 2),
    ]
    rows = vectors(tmp_path / "shards")
    expected = model.embed_tracklets([root / name for name in LENGTHS])
    torch.testing.assert_close(rows[1:6], expected)


def test_boxes_of_a_tracker_are_tracklets(model, root, tmp_path) -> None:
    rows = [
        {"path": f"b/{frame}.png", "x": 2, "y": 1 + track, "w": 8, "h": 20, "track_id": track, "frame": frame}
        for frame in range(3)
        for track in (1, 2)
    ]
    pl.DataFrame(rows).write_csv(root / "tracks.csv")
    extract(model, root / "tracks.csv", QUICK, tmp_path / "shards")
    labels = Shards(tmp_path / "shards").labels
    assert labels.select("tracklet", "frame", "top", "frames").rows() == [("1", 1, 2, 3), ("2", 1, 3, 3)]
    walks = [
        [Image.open(root / "b" / f"{frame}.png").crop((2, 1 + track, 10, 21 + track)) for frame in range(3)]
        for track in (1, 2)
    ]
    torch.testing.assert_close(vectors(tmp_path / "shards"), model.embed_tracklets(walks))
    # A frame's box is a part of what the row is made of.
    before = contents(tmp_path / "shards")
    pl.DataFrame(rows).with_columns(w=pl.when(pl.col("frame") == 2).then(7).otherwise("w")).write_csv(
        root / "tracks.csv"
    )
    assert extract(model, root / "tracks.csv", QUICK, tmp_path / "shards").computed == 6
    assert contents(tmp_path / "shards")["shard-000000.parquet"] != before["shard-000000.parquet"]
    pl.DataFrame(rows).with_columns(pl.col("track_id").replace(1, None)).write_csv(root / "tracks.csv")
    with pytest.raises(InputError, match=r"3 of 6 pictures of .*tracks.csv have no tracklet; leave them out"):
        extract(model, root / "tracks.csv", replace(QUICK, tracklets=True), tmp_path / "other")
    pl.DataFrame(rows).drop("track_id").write_csv(root / "tracks.csv")
    with pytest.raises(InputError, match=r"tracks.csv has no column tracklet"):
        extract(model, root / "tracks.csv", replace(QUICK, tracklets=True), tmp_path / "other")


def test_frames_that_cannot_be_read_are_left_out_and_listed(model, root, tmp_path) -> None:
    settings = replace(QUICK, tracklets=True)
    for broken in ("c/0.png", "c/1.png", "c/2.png", "d/5.png"):
        (root / broken).write_text("nothing")
    result = extract(model, root, settings, tmp_path / "shards")
    assert "4 tracklets of 27 frames" in str(result)
    assert ", 1 unreadable, 1 frames left out, " in str(result)
    shards = Shards(tmp_path / "shards")
    assert shards.labels["tracklet"].to_list() == ["a", "b", "d", "e"]
    assert pl.read_csv(tmp_path / "shards" / "unreadable.csv")["path"].to_list() == ["c/1.png", "d/5.png"]
    expected = model.embed_tracklets([ordered(root / name) for name in "abde"], on_error="skip")
    torch.testing.assert_close(vectors(tmp_path / "shards"), expected)
    with pytest.raises(InputError, match=r"cannot read the picture .*c/0.png.* on_error=skip"):
        extract(model, root, replace(settings, on_error="fail"), tmp_path / "other")
    for path in root.glob("*/*.png"):
        path.write_text("nothing")
    with pytest.raises(InputError, match=r"none of 5 tracklets could be read, first a/0.png: not a picture"):
        extract(model, root, settings, tmp_path / "third")


def test_a_changed_frame_costs_its_shard_alone_and_another_go_makes_the_same_bytes(
    model, root, tmp_path
) -> None:
    settings = replace(QUICK, tracklets=True)
    extract(model, root, settings, tmp_path / "shards")
    before = contents(tmp_path / "shards")
    assert extract(model, root, settings, tmp_path / "shards").computed == 0
    (tmp_path / "shards" / "shard-000001.parquet").unlink()
    assert extract(model, root, replace(settings, batch=8), tmp_path / "shards").computed == 3 + 6
    assert contents(tmp_path / "shards") == before
    # Not the middle frame, by which the tracklet is called.
    (root / "d" / "0.png").write_bytes((root / "e" / "0.png").read_bytes())
    assert extract(model, root, settings, tmp_path / "shards").computed == 3 + 6
    after = contents(tmp_path / "shards")
    assert {name for name in before if before[name] != after[name]} == {"shard-000001.parquet", "index.json"}
    table = pl.DataFrame(
        {"path": [f"{name}/{frame}.png" for name, length in LENGTHS.items() for frame in range(length)]}
    )
    table = table.with_columns(tracklet=pl.col("path").str.head(1))
    table.write_csv(root / "walks.csv")
    extract(model, root / "walks.csv", settings, tmp_path / "listed")
    (root / "d" / "1.png").unlink()
    with pytest.raises(
        InputError, match=r"holds shards of pictures that are not there any more, first d/1.png"
    ):
        extract(model, root / "walks.csv", settings, tmp_path / "listed")


def test_a_folder_of_frames_finds_itself_and_the_middle_frame_shows_it(model, root, tmp_path) -> None:
    extract(model, root, replace(QUICK, tracklets=True), tmp_path / "shards")
    (answer,) = search(tmp_path / "shards", model, PersonQuery((root / "b",))).answers
    assert (answer.query.name, answer.query.pictures) == (str(root / "b"), (root / "b" / "6.png",))
    assert answer.hits["path"][0] == "b/6.png"
    assert answer.hits["score"][0] == pytest.approx(1, abs=1e-5)
    (files,) = search(tmp_path / "shards", model, PersonQuery(tuple(ordered(root / "b")))).answers
    assert files.hits["score"][0] == pytest.approx(1, abs=1e-5)
    single = search(tmp_path / "shards", model, PictureQueries((root / "b" / "6.png",))).answers[0]
    assert single.hits["score"].max() < 0.9999
    # Several walks of a person: no one counts for more because it is longer.
    (both,) = search(tmp_path / "shards", model, PersonQuery((root / "b", root / "d"))).answers
    directions = model.embed_tracklets([root / "b", root / "d"], normalize=True).mean(0)
    torch.testing.assert_close(both.query.vector, directions / directions.norm())
    assert both.query.name == "2 tracklets of a person"
    (below,) = search(tmp_path / "shards", model, PersonQuery((root,))).answers
    assert below.query.name == "5 tracklets of a person"
    result = search(tmp_path / "shards", model, PersonQuery((root / "b",)))
    result.draw(tmp_path / "found.png")


def test_a_gallery_in_python_keeps_what_its_rows_are(model, root, tmp_path) -> None:
    extract(model, root, replace(QUICK, tracklets=True), tmp_path / "shards")
    gallery = Gallery.open(tmp_path / "shards", model)
    for query in (root / "b", ordered(root / "b"), model.look_at_tracklets([root / "b"])):
        hits = gallery.search(query, person=True).answers[0].hits
        assert hits["tracklet"][0] == "b"
        assert hits["score"][0] == pytest.approx(1, abs=1e-5)
    gallery.remove(tracklet="a")
    gallery.save(tmp_path / "kept", ShardSettings())
    again = Gallery.open(tmp_path / "kept", model)
    assert again.search(root / "b", person=True).answers[0].hits["score"][0] == pytest.approx(1, abs=1e-5)


def test_shards_of_tracklets_have_the_scores_of_their_model(model, root, tmp_path) -> None:
    people = manifest(root)
    expected = evaluate_model(
        model,
        people,
        batches=lambda manifests, **sizes: ReidDataModule(
            manifests, workers=0, **{**sizes, "clips": ClipSettings(**model.clips._asdict())}
        ),
        progress=False,
    )
    extract(model, people, QUICK, tmp_path / "shards")
    made = of_shards(tmp_path / "shards", None, split="test", ranking=RANKING, device="cpu")
    assert made.model == str(tmp_path / "shards")
    for protocol, scores in expected.results["walks"].items():
        for name in ("r1", "map", "minp", "queries", "gallery"):
            assert made.results[""][protocol][name] == pytest.approx(scores[name], abs=1e-6), name
    extract(model, root, replace(QUICK, tracklets=True), tmp_path / "unlabelled")
    with pytest.raises(InputError, match="does not say which are queries and which gallery"):
        of_shards(tmp_path / "unlabelled", None, split="test", ranking=RANKING, device="cpu")


def test_ray_looks_at_pictures_alone(model, tmp_path) -> None:
    with pytest.raises(InputError, match="tracklets=true is backend=local"):
        extract_parts(lambda: model, tmp_path, replace(QUICK, tracklets=True), tmp_path / "shards")
