"""Tables as other programs write them, and what is none, in one line."""

import codecs
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clip3dreid.errors import InputError
from clip3dreid.io.table_files import (
    BOX,
    COLUMNS,
    decimal_numbers,
    forward_slashes,
    read_table,
    take_boxes,
    understood,
    whole_numbers,
)

PLAIN = pl.DataFrame({"path": ["a.png", "b.png"], "person": ["007", None], "frame": ["1", "2"]})
REUSED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: Path, content: bytes | str, name: str = "t.csv") -> pl.DataFrame:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(folder / name, name)


@REUSED
@given(
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["plain", "utf-8-sig", "utf-16-le mark", "utf-16-be mark", "utf-16-le", "utf-16-be"]),
    st.sampled_from(["none", "unnamed", "Unnamed: 0", "index"]),
    st.lists(st.sampled_from([0, 1, 2, 3]), max_size=4),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_table_is_the_same_whatever_program_wrote_it(
    tmp_path: Path,
    separator: str,
    end: str,
    encoding: str,
    index: str,
    blanks: list[int],
    spaced: bool,
    quoted: bool,
    trailing: bool,
) -> None:
    cells = [PLAIN.columns, *([cell or "" for cell in row] for row in PLAIN.rows())]
    space = " " if spaced and separator != "\t" else ""
    quote = '"' if quoted else ""
    if index != "none":
        name = "" if index == "unnamed" else index
        cells = [[name, *cells[0]], *([str(row), *line] for row, line in enumerate(cells[1:]))]
    if quoted:
        cells = [[f"{quote}{cell}{quote}" for cell in line] for line in cells]
    else:
        cells = [[space + cell for cell in line] for line in cells]
    lines = [separator.join(line) + (separator if trailing else "") for line in cells]
    for place in sorted(blanks, reverse=True):
        lines.insert(place, "")
    text = end.join(lines) + end
    codec = encoding.partition(" ")[0].replace("plain", "utf-8")
    mark = {"utf-16-le mark": codecs.BOM_UTF16_LE, "utf-16-be mark": codecs.BOM_UTF16_BE}.get(encoding, b"")
    # A blank first line of UTF-16 without a mark looks like nothing at all.
    assume(mark or codec.startswith("utf-8") or text[0] not in "\r\n")
    table = read(tmp_path, mark + text.encode(codec))
    assert table.equals(PLAIN), table


def test_excels_line_about_the_separator_is_understood(tmp_path: Path) -> None:
    assert read(tmp_path, "sep=;\r\npath;person\r\na,b.png;1\r\n").rows() == [("a,b.png", "1")]


def test_the_index_of_pandas_in_parquet_is_left_out(tmp_path: Path) -> None:
    pl.DataFrame({"path": ["a"], "__index_level_0__": [0]}).write_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", "t").columns == ["path"]


def test_columns_without_a_name_that_say_something_are_kept(tmp_path: Path) -> None:
    assert read(tmp_path, "path,\na,x\nb,y\n").columns == ["path", "unnamed 0"]
    assert read(tmp_path, "path,index\na,1\nb,1\n").columns == ["path", "index"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"path,person\n", r"has a header \(path, person\) and no rows"),
        (b"path,person\n\n\n", "no rows"),
        (b"path,person\na,b\nc,d,e\n", "line 3 has 3 cells and the header 2"),
        (b'path,person\na,"b\nc,d\ne,f\n', "a quotation mark is not closed"),
        (b"path,Path\na,b\n", "names columns twice: Path, path"),
        (b"path,person\nx,caf\xe9\n", "line 2 is no UTF-8 text; save it as CSV in UTF-8"),
        (b"\xff\xfea", "is no UTF-16 text"),
        (b"crop,person\na,b\n", "has no column path; it has crop, person"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line_without_a_librarys_words(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_table(tmp_path / "t.csv", "pictures=t.csv", needs=("path",))
    line = str(caught.value)
    assert line.startswith("pictures=t.csv")
    assert "\n" not in line
    assert not any(word in line.lower() for word in ("polars", "schema", "dtype", "truncate_ragged"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([".csv", ".parquet", ".tsv"]))
def test_any_bytes_are_a_table_or_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"t{suffix}").write_bytes(content)
    try:
        made: object = read_table(tmp_path / f"t{suffix}", "t")
    except InputError as error:
        made = str(error)
    assert "\n" not in made if isinstance(made, str) else len(made)  # type: ignore[arg-type]


def test_other_names_are_read_once_and_in_any_spelling() -> None:
    table = pl.DataFrame({"File Name": ["a"], "PID": ["1"], "cam-id": ["2"], "weather": ["wet"]})
    assert understood(table, "t").columns == ["path", "person", "camera", "weather"]
    with pytest.raises(InputError, match="t: columns pid and person_id both stand for person"):
        understood(pl.DataFrame({"pid": ["1"], "person_id": ["1"]}), "t")


@given(st.sampled_from(sorted(COLUMNS)), st.data(), st.sampled_from(["", " ", "_", "-"]), st.booleans())
def test_every_name_that_is_listed_is_understood(
    own: str, data: st.DataObject, between: str, big: bool
) -> None:
    name = data.draw(st.sampled_from([own, *COLUMNS[own]]))
    spelled = name[:2] + between + name[2:] + " "
    assert understood(pl.DataFrame({spelled.upper() if big else spelled: ["x"]}), "t").columns == [own]


# Every form by its corners, and by a corner and a size.
CORNERS = [
    ("left", "top", "right", "bottom"), ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"), ("X Min", "Y Min", "X Max", "Y Max"), ("x0", "y0", "x1", "y1"),
    ("bbox_left", "bbox_top", "bbox_right", "bbox_bottom"), ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"),
    ("bbox.xmin", "bbox.ymin", "bbox.xmax", "bbox.ymax"), ("minx", "miny", "maxx", "maxy"),
    (" left", "top ", " right ", "Bottom"),
]  # fmt: skip
SIZES = [
    ("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"),
    ("bb_left", "bb_top", "bb_width", "bb_height"), ("bbox_x", "bbox_y", "bbox_w", "bbox_h"),
    ("bbox_left", "bbox_top", "bbox_w", "bbox_h"),
]  # fmt: skip
NUMBER = st.integers(-50, 5000)


@settings(deadline=None)
@given(
    st.sampled_from([*CORNERS, *SIZES]),
    st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), min_size=1, max_size=4),
    st.permutations(range(4)),
    st.sampled_from(["text", "whole", "fraction", "comma"]),
)
def test_a_box_is_the_same_by_whatever_names_and_numbers(
    names: tuple[str, ...], boxes: list[tuple[int, ...]], order: list[int], kind: str
) -> None:
    assume(any(abs(value) > 1 for box in boxes for value in box))
    columns = list(zip(*boxes, strict=True))
    if names in SIZES:
        columns[2] = tuple(r - left for left, r in zip(columns[0], columns[2], strict=True))
        columns[3] = tuple(b - top for top, b in zip(columns[1], columns[3], strict=True))
    spell = {
        "text": str,
        "whole": int,
        "fraction": lambda value: value + 0.2,
        "comma": lambda value: f"{value},0",
    }[kind]
    if kind == "fraction" and names in SIZES:
        spell = float
    table = pl.DataFrame({names[place]: [spell(v) for v in columns[place]] for place in order})
    box, rest = take_boxes(table.with_columns(score=1), "t")
    assert box is not None
    assert rest.columns == ["score"]
    assert (box.columns, box.dtypes) == (list(BOX), [pl.Int32] * 4)
    assert box.rows() == boxes


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["x", "y"], "x, y look like boxes and are not understood"),
        (["left", "top", "right"], "left, top, right look like boxes"),
        (["x_center", "y_center", "w", "h"], "x_center, y_center look like boxes"),
        (["bbox"], "bbox look like boxes"),
        (["box_x", "box_depth"], "box_x, box_depth look like boxes"),
        (["bbox_width"], "bbox_width look like boxes"),
        (
            [*BOX, "x1", "y1", "x2", "y2"],
            r"x1, y1, x2, y2 look like boxes .* beside left, top, right, bottom",
        ),
    ],
)
def test_what_looks_like_a_box_and_is_none_is_refused(columns: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        take_boxes(pl.DataFrame({name: [5] for name in columns}), "t")
    assert "name these four columns so" in str(caught.value)


def test_sizes_of_whole_pictures_are_no_boxes() -> None:
    table = pl.DataFrame({"width": [9], "height": [9], "w": [1], "h": [2], "score": [0.5], "maximum": [1]})
    box, rest = take_boxes(table, "t")
    assert box is None
    assert rest.equals(table)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.1, 0.2, 0.5, 0.9], "fractions of the picture"),
        ([1, 2, 3, None], "1 rows have no bottom"),
        ([1, 2, 3, float("nan")], "bottom nan is of the wrong kind"),
        (["1", "2", "3", "four"], "bottom 'four' is of the wrong kind"),
        ([1, 2, 3, 1e12], "reaches to 1e"),
    ],
)
def test_boxes_that_are_no_pixels_are_refused(values: list[object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        take_boxes(pl.DataFrame({name: [value] for name, value in zip(BOX, values, strict=True)}), "t")


@given(st.integers(-(2**53), 2**53), st.sampled_from([int, float, str, "{}.0".format, " {} ".format]))
def test_a_whole_number_is_one_however_it_is_written(number: int, spell: object) -> None:
    column = pl.Series("frame", [spell(number), None])  # type: ignore[operator]
    assert whole_numbers(column, "t").to_list() == [number, None]


@pytest.mark.parametrize("value", [1.5, "1.5", "soon", float("inf"), "nan"])
def test_what_is_no_whole_number_is_refused_and_not_cut(value: object) -> None:
    with pytest.raises(InputError, match=r"t: frame .* must be a whole number"):
        whole_numbers(pl.Series("frame", [value]), "t")


def test_numbers_have_a_comma_or_a_point() -> None:
    assert decimal_numbers(pl.Series("x", ["1,5", "2.5", "", None]), "t").to_list() == [1.5, 2.5, None, None]


def test_backslashes_are_slashes_where_no_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a\\b.png").touch()
    paths = pl.Series(["a\\b.png", "c\\d.png", None, "e/f.png"])
    assert forward_slashes(paths, tmp_path).to_list() == ["a\\b.png", "c/d.png", None, "e/f.png"]


def test_lists_and_bytes_are_no_labels_and_no_numbers() -> None:
    for value in ([["a"]], [b"a"]):
        with pytest.raises(
            InputError, match=r"t: column pid holds .*; it must hold one word or number a row"
        ):
            understood(pl.DataFrame({"pid": value}), "t")
    with pytest.raises(InputError, match="column left holds"):
        take_boxes(pl.DataFrame({name: [[1]] for name in BOX}), "t")
