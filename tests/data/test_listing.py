import logging
from pathlib import Path

import polars as pl
import pytest

from clip3dreid.data.datasets.ltcc import read
from clip3dreid.data.listing import list_pictures
from clip3dreid.data.manifest import SCHEMA, build, save
from clip3dreid.errors import InputError
from clip3dreid.io.pictures import UnreadablePicture, read_rgb


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_pictures_of_a_folder_at_any_depth_sorted(tmp_path):
    touch(tmp_path, "b.JPG", "a/z.png", "a/b/c/d.webp", ".hidden/x.png", ".y.png", "list.txt", "Thumbs.db")
    root, table = list_pictures(tmp_path)
    assert root == tmp_path
    assert table.to_dict(as_series=False) == {"path": ["a/b/c/d.webp", "a/z.png", "b.JPG"]}


def test_a_table_keeps_its_order_its_labels_and_its_boxes(tmp_path):
    (tmp_path / "t.csv").write_text(
        "path,person,camera,left,top,right,bottom,weather\nb.png,007,1,0,1,20,40,wet\na.png,,2,5,5,9,9,dry\n"
    )
    root, table = list_pictures(tmp_path / "t.csv")
    assert root == tmp_path
    assert table.drop("left", "top", "right", "bottom").rows() == [
        ("b.png", "7", "1"),
        ("a.png", None, "2"),
    ]
    assert table.select("left", "top", "right", "bottom").rows() == [(0, 1, 20, 40), (5, 5, 9, 9)]
    table.write_parquet(tmp_path / "t.parquet")
    assert list_pictures(tmp_path / "t.parquet").table.equals(table)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "crop,person\nx,1\n", "no column path"),
        ("t.csv", "path\n", "no rows"),
        ("t.csv", "path,left,top\nx,1,2\n", "left, top look like boxes and are not understood"),
        ("t.csv", "path,left,top,right,bottom\nx,1,2,3,four\n", "wrong kind"),
        ("t.csv", "path,left,top,right,bottom\nx,1,2,3,\n", "1 rows have no bottom"),
        ("t.csv", "path,frame\nx,soon\n", "wrong kind"),
        ("t.txt", "x.png", r"ends in \.csv, \.tsv, \.parquet"),
        ("t.parquet", "no parquet", "cannot be read"),
    ],
)
def test_what_is_no_list_is_refused_in_one_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        list_pictures(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_saved_manifest_knows_where_its_pictures_are(ltcc_root, tmp_path):
    manifest = read(ltcc_root)
    save(manifest, tmp_path / "manifest.parquet")
    root, table = list_pictures(tmp_path / "manifest.parquet")
    assert root == ltcc_root
    assert table.equals(manifest.table.drop("location", "scale"))


def test_nothing_to_list_is_said(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        list_pictures(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no pictures"):
        list_pictures(tmp_path)
    pl.DataFrame({"path": []}, schema={"path": pl.String}).write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="no rows"):
        list_pictures(tmp_path / "empty.parquet")


def test_pictures_of_formats_that_are_not_read_are_listed_so_that_opening_them_says_so(tmp_path, caplog):
    touch(tmp_path, "a.jpg", "b.HEIC", "c.txt")
    with caplog.at_level(logging.INFO):
        assert list_pictures(tmp_path).table["path"].to_list() == ["a.jpg", "b.HEIC"]
    assert "1 other files are passed over: 1 *.txt such as c.txt" in caplog.text
    with pytest.raises(UnreadablePicture, match="not a picture of a format that is read"):
        read_rgb(tmp_path / "b.HEIC")


@pytest.mark.parametrize(
    "names", ["x,y,w,h", " left , top,width, height", "bb_left,bb_top,bb_width,bb_height"]
)
def test_boxes_by_other_names_are_boxes(tmp_path, names):
    (tmp_path / "t.csv").write_text(f"path,{names},person\na.png,1,2,10,20,08\na.png,5.4,6,10,20,9\n")
    table = list_pictures(tmp_path / "t.csv").table
    assert table.select("left", "top", "right", "bottom").rows() == [(1, 2, 11, 22), (5, 6, 15, 26)]
    assert table["person"].to_list() == ["8", "9"]


def test_fractions_in_parquet_are_rounded_and_not_cut(tmp_path):
    pl.DataFrame(
        {"path": ["a"], "left": [1.6], "top": [2.2], "right": [30.7], "bottom": [90.9]}
    ).write_parquet(tmp_path / "t.parquet")
    assert list_pictures(tmp_path / "t.parquet").table.row(0) == (2, 2, 31, 91, "a")


def test_columns_that_mean_nothing_are_named(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("path,weather,persn\na.png,wet,1\n")
    with caplog.at_level(logging.INFO):
        assert list_pictures(tmp_path / "t.csv").table.columns == ["path"]
    assert "left out: weather, persn" in caplog.text


def test_what_a_manifest_says_of_no_picture_is_no_column_where_earlier_programs_had_none(tmp_path):
    rows = [
        {"path": name, "person": "1", "split": "test", "role": "gallery", **facts}
        for name, facts in (("a", {}), ("b", {"location": "indoors"}))
    ]
    earlier = [column for column in SCHEMA if column not in ("location", "scale")]
    for held, columns in ((rows[:1], earlier), (rows, [*earlier, "location"])):
        save(build("x", tmp_path, held), tmp_path / "m.parquet")
        assert list_pictures(tmp_path / "m.parquet").table.columns == columns
