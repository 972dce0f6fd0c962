import os
from pathlib import Path

import polars as pl
import pytest

from clip3dreid.data.datasets import custom
from clip3dreid.data.manifest import save
from clip3dreid.data.tracklets import tracklets
from clip3dreid.errors import InputError

from . import trees


def table(root: Path, text: str, name: str = "people.csv") -> Path:
    """A CSV; the pictures that its column path names are planted."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    column = text.splitlines()[0].split(",").index("path")
    trees.plant(root, *(line.split(",")[column] for line in text.splitlines()[1:]))
    return root / name


def test_folders_of_people_are_spelled_by_the_one_rule_and_label_nothing_else(tmp_path: Path) -> None:
    root = trees.custom(trees.misleading(tmp_path, "shop"))
    trees.plant(root, "val_query/v/1.png", "val_gallery/v/2.png")
    manifest = custom.read(root, name="shop")
    assert manifest.table.select("path", "person", "split", "role", "data_set").rows() == [
        ("gallery/007/g.jpg", "7", "test", "gallery", "shop"),
        ("gallery/zoe/g.jpg", "zoe", "test", "gallery", "shop"),
        ("query/007/q.jpg", "7", "test", "query", "shop"),
        ("train/Ann B/x.jpg", "Ann B", "train", "train", "shop"),
        ("val_gallery/v/2.png", "v", "val", "gallery", "shop"),
        ("val_query/v/1.png", "v", "val", "query", "shop"),
    ]
    assert manifest.table.select("camera", "clothes", "tracklet", "frame").null_count().row(0) == (6, 6, 6, 6)


def test_a_csv_keeps_words_as_they_are_written_and_reads_what_columns_it_has(tmp_path: Path) -> None:
    file = table(
        tmp_path / "my_ccreid",
        "path,person,split,role,camera,frame\na/1.jpg,007,train,train,left,12\nb.png,Ann B,train,train,,\n",
    )
    manifest = custom.read(file)
    assert manifest.root == file.parent
    assert manifest.table.select("path", "person", "camera", "frame", "clothes").rows() == [
        ("a/1.jpg", "7", "left", 12, None),
        ("b.png", "Ann B", None, None, None),
    ]


def test_a_manifest_saved_as_parquet_is_read_back_the_same(tmp_path: Path) -> None:
    root = trees.custom(tmp_path / "shop")
    first = custom.read(root)
    save(first, root / "manifest.parquet")
    assert custom.read(root / "manifest.parquet").table.equals(first.table)


def test_whole_numbers_of_a_parquet_table_are_names(tmp_path: Path) -> None:
    trees.plant(tmp_path, "1.jpg")
    frame = pl.DataFrame(
        {"path": ["1.jpg"], "person": [12], "split": ["train"], "role": ["train"], "camera": [3]}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    assert custom.read(tmp_path / "t.parquet").table.select("person", "camera").row(0) == ("12", "3")


def test_clothes_numbered_anew_for_each_person_are_told_apart_and_noted(tmp_path: Path) -> None:
    rows = ("1.jpg,a,train,train,1", "2.jpg,b,train,train,1", "3.jpg,b,train,train,2")
    text = "\n".join(("path,person,split,role,clothes", *rows))
    manifest = custom.read(table(tmp_path, text))
    assert manifest.table["clothes"].to_list() == ["a_1", "b_1", "b_2"]
    assert "person_clothes" in manifest.notes[0]


def test_clothes_that_belong_to_one_person_each_stay_as_they_are(tmp_path: Path) -> None:
    text = "path,person,split,role,clothes\n1.jpg,a,train,train,red\n2.jpg,b,train,train,blue\n"
    manifest = custom.read(table(tmp_path, text))
    assert manifest.table["clothes"].to_list() == ["red", "blue"]
    assert manifest.notes == ()


@pytest.mark.parametrize("per_person", [1, 2])
def test_queries_drawn_from_a_gallery_leave_everybody_one_picture(tmp_path: Path, per_person: int) -> None:
    root = trees.plant(
        tmp_path, *(f"gallery/{p}/{i}.jpg" for p, n in (("a", 5), ("b", 2), ("c", 1)) for i in range(n))
    )
    tables = [
        custom.read(root, query_per_person=per_person, split_seed=seed).table for seed in (0, 0, 1, 2, 3)
    ]
    counted = tables[0].group_by("person").agg((pl.col("role") == "query").sum()).sort("person")
    assert counted.rows() == [("a", per_person), ("b", 1), ("c", 0)]
    assert tables[0].equals(tables[1])
    assert not all(tables[0].equals(other) for other in tables[2:])
    assert set(tables[0]["path"]) == {
        f"gallery/{p}/{i}.jpg" for p, n in (("a", 5), ("b", 2), ("c", 1)) for i in range(n)
    }


def test_a_flat_folder_of_people_is_a_gallery_to_draw_from(tmp_path: Path) -> None:
    root = trees.plant(tmp_path / "people", "ann/1.jpg", "ann/2.jpg", "bob/1.jpg")
    manifest = custom.read(root, query_per_person=1)
    assert manifest.table["role"].to_list() == ["gallery", "gallery", "query"]
    assert set(manifest.part("test", "query")["person"]) == {"ann"}


BAD = {
    "no role": ("path,person,split\n1.jpg,a,train\n", "has no column role; it has path, person, split"),
    "unknown column": (
        "path,person,split,role,cloths\n1.jpg,a,train,train,1\n",
        r"unknown columns \['cloths'\]",
    ),
    "unknown split": (
        "path,person,split,role\n1.jpg,a,trian,train\n",
        r"split=trian is unknown; choose train, val or test; did you mean train\?",
    ),
    "no person": ("path,person,split,role\n1.jpg,,train,train\n", "1 rows have no person"),
    "frame of letters": ("path,person,split,role,frame\n1.jpg,a,train,train,x\n", "wrong kind"),
    "queries alone": ("path,person,split,role\n1.jpg,a,test,query\n", "has only query pictures"),
    "gallery alone": (
        "path,person,split,role\n1.jpg,a,val,gallery\n",
        "the val split of .* has only gallery",
    ),
    "two data sets": (
        "path,person,split,role,data_set\n1.jpg,a,train,train,x\n2.jpg,a,train,train,y\n",
        "several data sets",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_is_wrong_says_how(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(InputError, match=message):
        custom.read(table(tmp_path, text))


def test_pictures_of_a_table_that_are_not_there_are_listed_up_to_ten(tmp_path: Path) -> None:
    lines = "".join(f"{i:02d}.jpg,a,train,train\n" for i in range(12))
    file = table(tmp_path, "path,person,split,role\n" + lines)
    for i in range(12):
        (tmp_path / f"{i:02d}.jpg").unlink()
    with pytest.raises(InputError, match=r"12 pictures .*08\.jpg, 09\.jpg and 2 more"):
        custom.read(file)


def test_other_files_than_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "people.xlsx").touch()
    with pytest.raises(
        InputError, match=r"people\.xlsx is no table that is read; a table ends in \.csv, \.tsv, \.parquet"
    ):
        custom.read(tmp_path / "people.xlsx")


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "people.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"people\.parquet cannot be read as parquet \("):
        custom.read(tmp_path / "people.parquet")


def test_drawing_queries_where_there_are_some_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="queries of its own"):
        custom.read(trees.custom(tmp_path), query_per_person=1)


def test_a_folder_without_parts_says_which_parts_there_are(tmp_path: Path) -> None:
    trees.plant(tmp_path / "x", "notes/1.txt")
    with pytest.raises(
        InputError, match=r"no pictures in the folders of .*/x; expected are folders train/PERSON"
    ):
        custom.read(tmp_path / "x")


@pytest.mark.parametrize(
    ("folder", "role"),
    [("Train", ("train", "train")), ("TRAINING", ("train", "train")), ("Valid-Query", ("val", "query"))],
)
def test_parts_may_go_by_other_common_names(tmp_path: Path, folder: str, role: tuple[str, str]) -> None:
    others = (
        ("Val Query/ann/1.jpg", "val-gallery/ann/2.jpg") if role[0] != "val" else ("val_gallery/ann/2.jpg",)
    )
    trees.plant(tmp_path, f"{folder}/ann/1.jpg", *others, "probe/bob/1.jpg", "gallery/bob/2.jpg")
    table = custom.read(tmp_path).table
    assert (*role,) in set(
        table.filter(pl.col("path").str.starts_with(folder)).select("split", "role").rows()
    )
    assert ("test", "query") in set(table.select("split", "role").rows())


@pytest.mark.parametrize("part", ["valid", "val", "test", "more/deep"])
def test_a_folder_of_pictures_that_is_no_part_is_refused_by_name(tmp_path: Path, part: str) -> None:
    trees.plant(tmp_path, "train/ann/1.jpg", f"{part}/ann/1.jpg")
    name = part.partition("/")[0]
    with pytest.raises(
        InputError, match=rf"1 folders of .* hold pictures and are no part: {name}; the parts are train"
    ):
        custom.read(tmp_path)


def test_two_folders_that_are_one_part_are_refused(tmp_path: Path) -> None:
    trees.plant(tmp_path, "train/ann/1.jpg", "Training/ann/1.jpg")
    with pytest.raises(InputError, match=r"Training and train .* are both train; join them"):
        custom.read(tmp_path)


def test_folders_of_people_without_a_part_are_told_what_to_do_and_no_neighbour(tmp_path: Path) -> None:
    trees.plant(tmp_path / "people", "ann/1.jpg", "bob/1.jpg")
    trees.plant(tmp_path / "bodies", "train/1.png", "test/1.png")
    with pytest.raises(InputError, match=r"holds pictures in ann, bob and none of the parts") as caught:
        custom.read(tmp_path / "people")
    assert "data.query_per_person=1" in str(caught.value)
    assert "bodies" not in str(caught.value)


def test_a_root_that_is_not_there_is_told_the_nearest_match(tmp_path: Path) -> None:
    trees.plant(tmp_path / "people", "train/ann/1.jpg")
    with pytest.raises(
        InputError, match=rf"poeple is not there; the nearest match to poeple is {tmp_path}/people"
    ):
        custom.read(tmp_path / "poeple")


def test_names_that_are_not_utf8_are_refused_in_one_line(tmp_path: Path) -> None:
    trees.plant(tmp_path, "train/ann/1.jpg")
    (tmp_path / os.fsdecode(b"train/ann/caf\xe9.jpg")).touch()
    with pytest.raises(InputError, match="1 file names are not UTF-8"):
        custom.read(tmp_path)
    trees.plant(tmp_path / os.fsdecode(b"n\xe9"), "train/ann/1.jpg")
    with pytest.raises(InputError, match="1 file names are not UTF-8"):
        custom.read(tmp_path / os.fsdecode(b"n\xe9"))


def test_words_and_columns_of_other_programs_are_understood(tmp_path: Path) -> None:
    trees.plant(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "t.csv").write_text(
        "\ufeff;File Name;PID;Split;Role;cam\n0;1.jpg;08;Validation;Probe;A \n1;2.jpg;8.0;valid;gallery;B\n\n"
    )
    manifest = custom.read(tmp_path / "t.csv")
    assert manifest.table.select("path", "person", "camera", "split", "role").rows() == [
        ("2.jpg", "8", "B", "val", "gallery"),
        ("1.jpg", "8", "A", "val", "query"),
    ]
    assert manifest.notes == (
        "1 person labels are spelled in several ways and read as one: '08', '8.0' are '8'",
    )


def test_people_that_differ_by_case_alone_are_told(tmp_path: Path) -> None:
    text = "path,person,split,role\n1.jpg,Ann,test,query\n2.jpg,ann,test,gallery\n"
    (note,) = custom.read(table(tmp_path, text)).notes
    assert "'Ann' and 'ann'" in note


def test_a_table_in_memory_is_read_as_its_file_is(tmp_path: Path) -> None:
    text = (
        "path,pid,role,split,clothes\na.png,08,probe,test,1\nb.png,8,gallery,test,2\nc.png,9,gallery,test,1\n"
    )
    file = table(tmp_path / "shop", text + "d.png,1,training,train,1\n")
    read = custom.read(file, name="shop")
    in_memory = pl.read_csv(file, infer_schema=False)
    made = custom.from_table(in_memory, file.parent, "shop")
    assert made.table.equals(read.table)
    assert (made.root, made.notes) == (read.root, read.notes)
    # A table without splits is all of the test, but for what is to be trained on.
    assert custom.from_table(in_memory.drop("split"), file.parent, "shop").table.equals(read.table)


def test_a_table_in_memory_whose_pictures_are_elsewhere_is_refused(tmp_path: Path) -> None:
    rows = pl.DataFrame({"path": ["a.png"], "person": [1], "role": ["query"]})
    with pytest.raises(
        InputError, match=r"1 pictures of the table are not in .*: a\.png; paths are relative to root"
    ):
        custom.from_table(rows, tmp_path)
    with pytest.raises(InputError, match="custom: the table has no column split, role; it has path, person"):
        custom.from_table(rows.drop("role"), tmp_path)


def test_folders_of_tracklets_are_a_level_deeper(tmp_path: Path) -> None:
    root = trees.tracklets(tmp_path / "d")
    (root / "gallery/zoe/d").mkdir()
    manifest = custom.read(root, tracklets=True)
    rows = manifest.table.select("path", "person", "tracklet", "role").rows()
    assert ("train/Ann B/walk1/10.jpg", "Ann B", "train/Ann B/walk1", "train") in rows
    assert ("gallery/zoe/c/1.jpg", "zoe", "gallery/zoe/c", "gallery") in rows
    assert trees.said(manifest) == ("1 tracklets have no frames: gallery/zoe/d",)
    found = tracklets(manifest.part("train"), "custom")
    frames = [manifest.part("train")["path"][int(row)].split("/")[-1] for row in found.frames(0)]
    assert frames == ["1.jpg", "2.jpg", "10.jpg"]


def test_a_table_names_folders_of_frames_or_frames(tmp_path: Path) -> None:
    trees.plant(tmp_path, *(f"cam1/a/{frame}.png" for frame in range(3)), "cam1/b/7.png", "c.png")
    table = tmp_path / "walks.csv"
    table.write_text(
        "path,person,split,role,tracklet\ncam1/a,1,test,query,\ncam1/b/,1,test,gallery,x\nc.png,2,test,gallery,y\n"
    )
    rows = custom.read(table, tracklets=True).table.select("path", "person", "tracklet").rows()
    assert sorted(rows) == [
        ("c.png", "2", "y"),
        *((f"cam1/a/{frame}.png", "1", "cam1/a") for frame in range(3)),
        ("cam1/b/7.png", "1", "x"),
    ]


def test_a_table_that_names_empty_or_missing_folders_lists_them(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    table = tmp_path / "walks.csv"
    table.write_text("path,person,split,role\nempty,1,train,train\n")
    with pytest.raises(InputError, match=r"1 tracklets of .*walks\.csv have no pictures: empty; "):
        custom.read(table, tracklets=True)
    table.write_text("path,person,split,role\ngone,1,train,train\nlost,1,train,train\n")
    with pytest.raises(InputError, match=r"2 pictures of .*walks\.csv are not in .*: gone, lost; "):
        custom.read(table, tracklets=True)


def test_whole_tracklets_are_drawn_as_queries(tmp_path: Path) -> None:
    root = trees.plant(
        tmp_path / "d",
        *(f"{person}/{walk}/{frame}.jpg" for person in "ab" for walk in range(3) for frame in range(4)),
    )
    table = custom.read(root, query_per_person=1, tracklets=True).table
    drawn = table.filter(role="query").group_by("person", "tracklet").len()
    assert sorted(drawn["person"]) == ["a", "b"]
    assert set(drawn["len"]) == {4}
    assert not set(drawn["tracklet"]) & set(table.filter(role="gallery")["tracklet"])
