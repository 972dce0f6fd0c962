import sqlite3

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip3dreid.errors import InputError
from clip3dreid.io.spelling import label
from clip3dreid.search.filters import Filter, read_values

TABLE = pl.DataFrame(
    {
        "path": ["a", "b", "c", "d", "e"],
        "person": ["1", "1", "2", "2", "3"],
        "camera": ["1", "2", "1", None, "3"],
        "clothes": pl.Series([None] * 5, dtype=pl.String),
        "frame": [10, 20, 30, 40, None],
        "site": [7, 7, 8, 8, 9],
        "words": [["tall"]] * 5,
    }
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"camera": "1"}, [0, 2]),
        ({"camera": 1}, [0, 2]),
        ({"camera": [1, 3]}, [0, 2, 4]),
        ({"camera": 1, "person": ["2"]}, [2]),
        ({"frame": [20, 40]}, [1, 2, 3]),
        ({"frame": [None, 20]}, [0, 1]),
        ({"frame": [30, None], "person": 2}, [2, 3]),
        ({"frame": 30}, [2]),
        ({"site": [8]}, [2, 3]),
    ],
)
def test_only_rows_with_all_the_labels_are_left(where, rows):
    mask = Filter(**where).mask(TABLE)
    assert mask.nonzero()[:, 0].tolist() == rows


@pytest.mark.parametrize(
    "where", [{}, {"camera": None}, {"camera": []}, {"frame": None}, {"frame": [None, None]}]
)
def test_a_filter_that_asks_for_nothing_allows_everything(where):
    assert Filter(**where).mask(TABLE) is None
    assert list(Filter(**where).clauses({})) == []


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"mood": "glad"}, "where.mood: the gallery has no such label; it has path, person, camera"),
        ({"words": "tall"}, "where.words: the gallery has no such label"),
        ({"clothes": "1"}, "where.clothes: the gallery knows it of no picture"),
        ({"camera": 9}, r"where.camera=\[9\] leaves no picture of 5; there is camera 1, 2, 3"),
        (
            {"person": 3, "camera": [1, 2]},
            r"where.camera=\[1,2\] leaves no picture of the 1 that where.person=\[3\] left; there is camera 3",
        ),
        ({"person": 1, "frame": [25, None]}, r"where.frame=\[25,null\] .* of the 2 .* there is frame 10, 20"),
        ({"frame": [3, 2]}, "ends before it starts"),
        ({"frame": [1, 2, 3]}, "is no range"),
        ({"frame": ["1", 2]}, "is no range"),
        ({"camera": [1.5]}, "1.5 is no label"),
        ({"camera": [None]}, "None is no label"),
        ({"camera": True}, "True is no label"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(where, message):
    with pytest.raises(InputError, match=message) as caught:
        Filter(**where).mask(TABLE)
    assert "\n" not in str(caught.value)


def test_a_gallery_of_a_mere_folder_says_where_labels_come_from():
    with pytest.raises(InputError, match="it has path; extract from a data set or a table to have labels"):
        Filter(camera=1).mask(TABLE.select("path"))
    with pytest.raises(InputError, match=r"it has [^;]*$"):
        Filter(mood="glad").mask(TABLE)


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=6
    ),
    st.data(),
)
def test_sql_selects_what_the_mask_does_whatever_is_in_the_labels(values, data):
    asked = data.draw(st.lists(st.sampled_from(values), min_size=1))
    column = "my `label'\""
    table = pl.DataFrame({column: values, "frame": list(range(len(values)))})
    where = Filter(frame=[None, len(values)], **{column: asked})
    asked_for = where.clauses({column: column, "frame": "frame"})
    condition = " AND ".join(clause.sql for clause in asked_for)
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE gallery (`my ``label'\"` TEXT, frame INTEGER)")
    spelled = [(label(text), frame) for text, frame in table.rows()]
    database.executemany("INSERT INTO gallery VALUES (?, ?)", spelled)
    found = database.execute(f"SELECT frame FROM gallery WHERE {condition} ORDER BY frame").fetchall()
    assert [row for (row,) in found] == where.mask(table).nonzero()[:, 0].tolist()


def test_a_filter_is_equal_to_another_that_asks_the_same():
    assert Filter(camera=1, frame=3) == Filter(camera=["1"], frame=[3, 3])


def test_labels_are_found_in_any_spelling_on_either_side():
    table = pl.DataFrame({"camera": ["1", "01", "1.0", "10", "c1", None]})
    for asked in (1, "1", "001", " 1 "):
        where = Filter(camera=asked)
        assert where.mask(table).nonzero()[:, 0].tolist() == [0, 1, 2]
        (clause,) = where.clauses({"camera": "spelled"})
        assert clause == ("camera", "where.camera=[1]", "`spelled` IN ('1')")
    with pytest.raises(InputError, match=r"where\.mood: the gallery has no such label; it has camera"):
        list(Filter(mood="glad").clauses({"camera": "spelled"}))


@pytest.mark.parametrize(
    ("column", "text", "values"),
    [
        ("camera", "3", ["3"]),
        ("camera", " [1, 2]", ["1", "2"]),
        ("frame", "[100,null]", [100, None]),
        ("frame", "soon", ["soon"]),
        ("clothes", "null", None),
        ("clothes", "", [""]),
    ],
)
def test_what_is_typed_is_read_as_values(column, text, values):
    assert read_values(column, text) == values
