from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from clip3dreid.data import selection
from clip3dreid.data.manifest import Manifest, build
from clip3dreid.data.selection import drop_unreadable, find_unreadable, hold_out
from clip3dreid.errors import InputError
from clip3dreid.io.ranks import Ranks
from tests.io.test_ranks import together
from tests.random_pictures import noise


def world(people: int = 5) -> Manifest:
    rows = [
        {"path": f"{p}_{o}_{c}_{i}.png", "person": str(p), "clothes": f"{p}_{o}", "camera": str(c)}
        | {"split": "train", "role": "train"}
        for p in range(people)
        for o in range(2)
        for c in range(2)
        for i in range(3)
    ]
    rows.append({"path": "t.png", "person": "0", "split": "test", "role": "gallery"})
    rows.append({"path": "v.png", "person": "9", "split": "val", "role": "gallery"})
    return build("world", Path("/nowhere"), rows)


def test_held_out_people_leave_training_whole_and_take_the_place_of_val() -> None:
    manifest = hold_out(world(), 2, seed=0)
    train, val = set(manifest.part("train")["person"]), set(manifest.part("val")["person"])
    assert len(val) == 2
    assert len(train) == 3
    assert not train & val
    assert manifest.part("test").equals(world().part("test"))
    assert "2 of 5" in manifest.notes[-1]


def test_one_picture_of_each_outfit_and_camera_is_a_query() -> None:
    val = hold_out(world(), 2, seed=0).part("val")
    queries = val.filter(pl.col("role") == "query")
    assert len(queries) == 2 * 2 * 2
    assert not queries.select("person", "clothes", "camera").is_duplicated().any()
    assert len(val) == 2 * 2 * 2 * 3


def test_without_cameras_and_clothes_each_person_has_one_query() -> None:
    bare, unknown = world(), pl.lit(None, pl.String)
    bare = bare.replace(table=bare.table.with_columns(camera=unknown, clothes=unknown))
    assert len(hold_out(bare, 3, seed=0).part("val", "query")) == 3


def walks(tracklets: int, cameras: int) -> Manifest:
    """Five people with three frames of each tracklet, tracklets spread over cameras."""
    rows = [
        {
            "path": f"{person}/{tracklet}/{frame}.png", "person": str(person), "split": "train", "role": "train",
            "camera": str(tracklet % cameras), "clothes": f"{person}_a", "tracklet": str(tracklet), "frame": frame,
        }
        for person in range(5) for tracklet in range(tracklets) for frame in range(3)
    ]  # fmt: skip
    return build("walks", Path("/nowhere"), rows)


# Where each is under a camera of its own, everybody has one query; a person of one tracklet is gallery only.
@pytest.mark.parametrize(
    ("tracklets", "cameras", "queries", "gallery"), [(6, 2, 2, 4), (4, 4, 1, 3), (1, 1, 0, 1)]
)
def test_where_there_are_tracklets_they_are_drawn_and_stay_whole(
    tracklets: int, cameras: int, queries: int, gallery: int
) -> None:
    val = hold_out(walks(tracklets, cameras), 3, seed=0).part("val")
    sides = {
        role: val.filter(pl.col("role") == role).select("person", "tracklet").rows()
        for role in ("query", "gallery")
    }
    assert not set(sides["query"]) & set(sides["gallery"])
    assert len(set(sides["query"])) == 3 * queries
    assert len(set(sides["gallery"])) == 3 * gallery
    assert len(val) == 3 * 3 * tracklets


def test_a_person_with_one_picture_is_gallery_only() -> None:
    rows = [{"path": f"{p}.png", "person": str(p), "split": "train", "role": "train"} for p in range(4)]
    val = hold_out(build("singles", Path("/nowhere"), rows), 2, seed=0).part("val")
    assert val["role"].to_list() == ["gallery", "gallery"]


def test_people_with_one_picture_of_each_combination_keep_a_gallery() -> None:
    rows = [
        {"path": f"{p}_{c}.png", "person": str(p), "camera": str(c), "split": "train", "role": "train"}
        for p in range(6)
        for c in range(3)
    ]
    val = hold_out(build("scattered", Path("/nowhere"), rows), 2, seed=0).part("val")
    counts = val.group_by("person", "role").len()
    assert sorted(counts.filter(role="query")["len"]) == [1, 1]
    assert sorted(counts.filter(role="gallery")["len"]) == [2, 2]


def test_the_seed_decides_and_nothing_else() -> None:
    first, again, other = (hold_out(world(12), 4, seed=s).part("val") for s in (1, 1, 2))
    assert first.equals(again)
    assert set(first["person"]) != set(other["person"])


def test_zero_changes_nothing_and_too_many_is_refused() -> None:
    manifest = world()
    assert hold_out(manifest, 0, seed=0) is manifest
    with pytest.raises(InputError, match="val_people=4"):
        hold_out(manifest, 4, seed=0)


def test_find_unreadable_names_the_bad_ones_in_order_and_counts_all(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for i, path in enumerate(paths):
        Image.fromarray(noise(8, 4)).save(path)
        if i in (3, 17, 39):
            path.write_bytes(path.read_bytes()[:60])
    seen: list[int] = []
    assert find_unreadable(paths, 3, seen.append) == [paths[3], paths[17], paths[39]]
    assert seen == list(range(1, 41))


def test_three_processes_find_what_one_does_and_decode_every_picture_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{i}.png" for i in range(11)]
    for name in names:
        Image.fromarray(noise(8, 4)).save(tmp_path / name)
    for name in ("2.png", "9.png"):
        (tmp_path / name).write_bytes(b"no picture")
    labels = {"person": "1", "split": "train", "role": "train"}
    manifest = build("world", tmp_path, [{"path": name} | labels for name in names])
    alone = drop_unreadable(manifest, 1)
    decoded: list[Path] = []
    real = selection.read_rgb

    def counted(path: Path) -> object:
        decoded.append(path)
        return real(path)

    monkeypatch.setattr(selection, "read_rgb", counted)

    def work(ranks: Ranks) -> Manifest:
        return drop_unreadable(manifest, 1, ranks=ranks)

    for found in together(3, tmp_path, work):
        assert found.table.equals(alone.table)
        assert found.notes == alone.notes == ("2 unreadable pictures skipped: 2.png, 9.png",)
    assert sorted(decoded) == sorted(manifest.files())
