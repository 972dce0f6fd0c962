from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip3dreid.data.manifest import (
    SCHEMA,
    Manifest,
    Published,
    build,
    concatenate,
    load,
    save,
    training_labels,
    validate,
)
from clip3dreid.errors import InputError
from clip3dreid.io.formats import read_table, write_table


def row(path: str, person: str = "1", **facts: Any) -> dict[str, Any]:
    return {"path": path, "person": person, "split": "train", "role": "train"} | facts


def test_rows_are_sorted_and_columns_complete_whatever_order_they_come_in() -> None:
    rows = [
        row("b.jpg", camera="1"),
        row("a.jpg", split="test", role="query"),
        row("c.jpg", split="test", role="gallery", frame=3),
        row("a.jpg"),
    ]
    one, other = build("x", Path("r"), rows), build("x", Path("r"), rows[::-1])
    assert one.table.equals(other.table)
    assert dict(one.table.schema) == {column: dtype() for column, dtype in SCHEMA.items()}
    assert one.table.select("split", "role", "path").rows() == [
        ("test", "gallery", "c.jpg"),
        ("test", "query", "a.jpg"),
        ("train", "train", "a.jpg"),
        ("train", "train", "b.jpg"),
    ]
    assert set(one.table["data_set"]) == {"x"}


def test_part_and_files_take_the_rows_asked_for() -> None:
    manifest = build(
        "x",
        Path("/r"),
        [row("a"), row("b", split="test", role="query"), row("b", split="test", role="gallery")],
    )
    assert manifest.part("test")["role"].to_list() == ["gallery", "query"]
    assert manifest.part("test", "query")["path"].to_list() == ["b"]
    assert manifest.files(manifest.part("train")) == [Path("/r/a")]
    assert len(manifest.files()) == 3


WRONG = {
    "no rows": ([], "no pictures found in r"),
    "unknown column": ([row("a", cloth="1")], r"unknown columns \['cloth'\]"),
    "no person": ([row("a", person=None)], "1 rows have no person"),
    "unknown split": ([row("a", split="dev")], "split=dev is unknown; choose train, val or test"),
    "unknown role": ([row("a", role="probe")], "role=probe is unknown; choose train, query or gallery"),
    "query in train": ([row("a", role="query")], "a is split train but role query"),
    "train in test": ([row("a", split="test")], "a is split test but role train"),
    "twice in a role": ([row("a"), row("a", person="2")], "a stands more than once among the train rows"),
    "shared outfit": (
        [row("a", clothes="red"), row("b", "2", clothes="red")],
        r"'red' belongs to people \['1', '2'\]",
    ),
    "frame of letters": ([row("a", frame="x")], "wrong kind"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_table_that_cannot_be_trusted_is_refused_by_name(case: str) -> None:
    rows, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        build("x", Path("r"), rows)


def test_what_only_looks_wrong_is_taken() -> None:
    rows = [
        # The outfits and people of test have nothing to do with those of train.
        row("a", "1", clothes="red"),
        row("b", "2", clothes="red", split="test", role="gallery"),
        # A picture may be query and gallery, and belong to two query sets.
        row("b", "2", split="test", role="query", query_set="B"),
        row("b", "2", split="test", role="query", query_set="C"),
    ]
    assert len(build("x", Path("r"), rows).table) == 4


def test_replace_validates_again() -> None:
    manifest = build("x", Path("r"), [row("a")])
    assert manifest.replace(notes=("n",)).notes == ("n",)
    with pytest.raises(InputError, match="more than once"):
        manifest.replace(table=pl.concat([manifest.table, manifest.table]))


def saved(folder: Path) -> tuple[Manifest, Path]:
    manifest = build(
        "x",
        folder / "root",
        [row("é/a b.jpg", "Ann", camera="3", clothes="Ann_1", tracklet="9", frame=2), row("c", "007")],
        ["a note"],
        [Published("train", "people", 2), Published("all", "pictures", 5, remembered=True)],
    )
    save(manifest, folder / "new" / "m.parquet")
    return manifest, folder / "new" / "m.parquet"


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    manifest, path = saved(tmp_path)
    back = load(path)
    assert back.table.equals(manifest.table)
    assert (back.name, back.root, back.notes, back.published) == (
        manifest.name,
        manifest.root,
        manifest.notes,
        manifest.published,
    )


def test_a_manifest_follows_its_pictures_to_another_place(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    assert load(path, root=Path("/moved")).files() == [Path("/moved/c"), Path("/moved/é/a b.jpg")]


def test_other_files_and_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = saved(tmp_path)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "plain.parquet")
    for other in (tmp_path / "plain.parquet", tmp_path / "absent.parquet"):
        with pytest.raises(InputError, match="cannot be read as a manifest"):
            load(other)
    monkeypatch.setattr("clip3dreid.data.manifest.SCHEMA_VERSION", 2)
    with pytest.raises(InputError, match="has manifest version 1, this program reads 2"):
        load(path)


def test_a_table_that_was_tampered_with_is_refused_on_loading(tmp_path: Path) -> None:
    manifest, _ = saved(tmp_path)
    bad = Manifest("x", tmp_path, pl.concat([manifest.table, manifest.table]))
    save(bad, tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="more than once"):
        load(tmp_path / "bad.parquet")


def test_people_of_two_data_sets_that_share_numbers_stay_apart(tmp_path: Path) -> None:
    one, two = (
        build(
            name,
            tmp_path / name,
            [row("1.jpg", "1", clothes="red", camera="1"), row("2.jpg", other, clothes="blue")],
        )
        for name, other in (("one", "2"), ("two", "3"))
    )
    both = concatenate([one, two])
    labels = training_labels(both.part("train"))
    assert labels.people == ("one/1", "one/2", "two/1", "two/3")
    assert labels.person.tolist() == [0, 1, 2, 3]
    # Blue is one/2's and two/3's, and sorts before red, which is one/1's and two/1's.
    assert labels.clothes.tolist() == [1, 0, 3, 2]
    assert labels.person_of_clothes.tolist() == [1, 0, 3, 2]
    assert labels.camera.tolist() == [0, -1, 1, -1]
    assert both.files() == one.files() + two.files()
    validate(both.table, both.name)


def test_joined_notes_say_whose_they_are_and_one_alone_is_itself(tmp_path: Path) -> None:
    one, two = (build(name, tmp_path, [row("1.jpg")], [f"of {name}"]) for name in ("one", "two"))
    assert concatenate([one, two]).notes == ("one: of one", "two: of two")
    assert concatenate([one]) is one


def test_a_data_set_is_not_joined_with_itself(tmp_path: Path) -> None:
    one = build("one", tmp_path, [row("1.jpg")])
    with pytest.raises(InputError, match="a name stands twice"):
        concatenate([one, one])


def test_clothes_are_unknown_for_all_where_one_picture_has_none() -> None:
    table = build("x", Path("r"), [row("a", clothes="1_1"), row("b")]).table
    labels = training_labels(table)
    assert labels.clothes.tolist() == [-1, -1]
    assert labels.person_of_clothes.size == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(-1, 3)), min_size=1, max_size=30))
def test_indices_are_dense_follow_sorted_names_and_agree_with_a_plain_loop(
    rows: list[tuple[int, int, int]],
) -> None:
    table = build(
        "x",
        Path("r"),
        [
            row(
                f"{i:03d}",
                f"p{person}",
                clothes=f"p{person}_{outfit}",
                camera=None if camera < 0 else str(camera),
            )
            for i, (person, outfit, camera) in enumerate(rows)
        ],
    ).table
    labels = training_labels(table)
    people = sorted({person for person, _, _ in rows})
    outfits = sorted({(person, outfit) for person, outfit, _ in rows})
    cameras = sorted({camera for _, _, camera in rows if camera >= 0})
    assert labels.person.tolist() == [people.index(person) for person, _, _ in rows]
    assert labels.clothes.tolist() == [outfits.index((person, outfit)) for person, outfit, _ in rows]
    assert labels.camera.tolist() == [cameras.index(c) if c >= 0 else -1 for _, _, c in rows]
    assert labels.person_of_clothes.tolist() == [people.index(person) for person, _ in outfits]
    assert np.array_equal(labels.person_of_clothes[labels.clothes], labels.person)


def test_a_manifest_of_before_locations_and_scales_is_read_and_says_nothing_of_them(tmp_path: Path) -> None:
    manifest, path = saved(tmp_path)
    table, facts = read_table(path, "a manifest", "make it anew")
    write_table(path, table.drop("location", "scale"), facts)
    assert load(path).table.equals(manifest.table)
    assert manifest.table["location"].null_count() == manifest.table["scale"].null_count() == 2
    write_table(path, table.drop("camera"), facts)
    with pytest.raises(InputError, match="manifest of this project"):
        load(path)
