"""Read tables that users bring, whatever program wrote them, or refuse them in one line."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import polars as pl

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some
from clip3dreid.io.formats import decoding

SUFFIXES = (".csv", ".tsv", ".parquet")
_SEPARATORS = (",", ";", "\t", "|")
# What pandas and spreadsheets call the numbers of rows that they write beside a table.
_ROW_NUMBERS = re.compile(r"|index|unnamed.*|__index_level_\d+__|level_0|row|rownames", re.IGNORECASE)

COLUMNS: Mapping[str, Collection[str]] = {
    "path": (
        *("file", "filename", "filepath", "img", "imgname", "imgpath", "image", "imagename", "imagepath"),
        *("imagefile", "picture", "picturepath"),
    ),
    "person": ("pid", "personid", "identity"),
    "camera": ("cam", "camid", "cameraid"),
    "clothes": ("cloth", "clothid", "clothesid", "clothing", "outfit", "outfitid"),
    "tracklet": ("track", "trackid", "trackletid"),
    "frame": ("frameid", "framenumber", "frameindex"),
    "split": ("subset",),
    "role": (),
    "query_set": (),
    "data_set": (),
    "location": (),
    "scale": (),
}
"""The manifest's columns, with what else they are called; written small, without spaces, hyphens and underscores."""

BOX = ("left", "top", "right", "bottom")
"""Columns of a crop in a picture, in pixels; right and bottom lie outside."""
# By the keys that `_box_key` makes; of several that are complete the first is meant.
_BOX_FORMS = (
    BOX,
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x0", "y0", "x1", "y1"),
    ("tlx", "tly", "brx", "bry"),
    ("left", "top", "width", "height"),
    ("left", "top", "w", "h"),
    ("xmin", "ymin", "width", "height"),
    ("x1", "y1", "w", "h"),
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
)
_BOX_CENTRES = ("cx", "cy", "xc", "yc", "xcenter", "ycenter", "centerx", "centery", "xcentre", "ycentre")
_BOX_PARTS = frozenset([*_BOX_CENTRES, *(part for form in _BOX_FORMS for part in form)])


def read_table(path: Path, name: str, needs: Sequence[str] = (), advice: str = "correct it") -> pl.DataFrame:
    """Read a table with a header.

    A CSV or TSV file may be UTF-8, with or without a byte order mark, or UTF-16; its separator (comma, semicolon, tab
    or vertical bar) is told by its header. Everything in it stays text, without space around it. Empty lines, and
    columns without a name that are empty or count rows, are left out; so is pandas' index in a Parquet file.

    Args:
        path: file that ends in one of `SUFFIXES`.
        name: what to call it in messages, such as `pictures=FILE`.
        needs: columns that must be there.
        advice: what to do about a table that cannot be read, for messages.

    Returns:
        At least one row; columns of strings from CSV, of any type from Parquet.

    Raises:
        InputError: if the file cannot be read, has no rows, names a column twice, or lacks one.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{name} is no table that is read; a table ends in {', '.join(SUFFIXES)}")
    with decoding(name, suffix[1:], advice):
        with path.open("rb"):  # the system's word on a file that cannot be opened is clearer
            pass
        table = pl.read_parquet(path, glob=False) if suffix == ".parquet" else _read_text(path, name, advice)
    table = table.drop(column for column in table.columns if _counts_rows(table, column))
    if table.is_empty():
        raise InputError(f"{name} has a header ({some(table.columns, 8)}) and no rows; {advice}")
    if absent := [column for column in needs if column not in table.columns]:
        raise InputError(
            f"{name} has no column {', '.join(absent)}; it has {some(table.columns, 8)}; {advice}"
        )
    return table


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).partition("\n")[0].split())[:200] or type(error).__name__


def _read_text(path: Path, name: str, advice: str) -> pl.DataFrame:
    text = _decoded(path.read_bytes(), name)
    if "\n" not in text:
        text = text.replace("\r", "\n")
    text = text.lstrip("\r\n")
    separator = None
    if (first := text.partition("\n")[0].strip()).lower().startswith("sep="):  # which Excel writes and reads
        separator, text = first[4:5] or None, text.partition("\n")[2]
    if not text.strip():
        raise InputError(f"{name} is empty; {advice}")
    if text.count('"') % 2:  # it would swallow all lines up to the next one
        raise InputError(f"{name}: a quotation mark is not closed; {advice}")
    header_line = text.partition("\n")[0]
    separator = separator or max(_SEPARATORS, key=lambda one: len(_split(header_line, one)))
    header = [cell.strip() for cell in _split(header_line, separator)]
    named = [cell.casefold() for cell in header if cell]
    if twice := sorted({cell for cell in header if cell and named.count(cell.casefold()) > 1}):
        raise InputError(f"{name} names columns twice: {', '.join(twice)}; keep one of them")
    try:
        table = pl.read_csv(
            io.BytesIO(text.encode()), separator=separator, infer_schema=False, quote_char='"'
        )
    except pl.exceptions.NoDataError:
        table = pl.DataFrame(schema=dict.fromkeys(header, pl.String))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{name}: {_wrong_line(text, separator) or _first_line(error)}; {advice}") from error
    # Names as they are written, but for space; polars has its own for those that are missing.
    unnamed = (f"unnamed {place}" for place in range(len(header)))
    table.columns = [cell or next(unnamed) for cell in header]
    table = table.with_columns(pl.all().str.strip_chars()).with_columns(
        pl.when(pl.all() != "").then(pl.all())
    )
    return table.filter(~pl.all_horizontal(pl.all().is_null()))


def _decoded(data: bytes, name: str) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data[:4]:  # UTF-16 without its mark
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name}: line {line} is no {encoding[:6].upper().rstrip('-')} text; save it as CSV in UTF-8"
        ) from error


def _split(line: str, separator: str) -> list[str]:
    return next(csv.reader([line.rstrip("\r")], delimiter=separator), [])


def _wrong_line(text: str, separator: str) -> str | None:
    """Return the first line with more cells than the header, where that is what is wrong."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    wide = len(next(rows))
    try:
        for row in rows:
            if len(row) > wide:
                return f"line {rows.line_num} has {len(row)} cells and the header {wide}"
    except csv.Error as error:
        return f"line {rows.line_num}: {error}"
    return None


def _counts_rows(table: pl.DataFrame, column: str) -> bool:
    """Return whether a column is none of the table's: without a name and empty, or numbers of rows."""
    if not _ROW_NUMBERS.fullmatch(column):
        return False
    if table[column].null_count() == len(table):
        return True
    numbers = table[column].cast(pl.Int64, strict=False)
    return not numbers.null_count() and bool(numbers.is_unique().all())


def _key(name: str) -> str:
    """Return a column's name as it is compared: small, without spaces, hyphens, dots and underscores."""
    return re.sub(r"[\s_.-]", "", name).casefold()


def understood(
    table: pl.DataFrame, name: str, columns: Mapping[str, Collection[str]] = COLUMNS
) -> pl.DataFrame:
    """Give columns the names that this program knows them by, where they go by another common one.

    Args:
        table: any.
        name: what to call it in messages.
        columns: name -> others for the same, as in `COLUMNS`.

    Returns:
        The same columns, renamed; those that are not understood stay as they are.

    Raises:
        InputError: if two columns are the same by their names, or one holds lists or bytes.
    """
    meaning = {_key(other): standard for standard, others in columns.items() for other in (standard, *others)}
    called: dict[str, str] = {}
    for column in table.columns:
        standard = meaning.get(_key(column))
        if standard is None:
            continue
        if standard in called.values():
            first = next(before for before, known in called.items() if known == standard)
            raise InputError(
                f"{name}: columns {first} and {column} both stand for {standard}; keep one of them"
            )
        _require_plain(table[column], name)
        called[column] = standard
    return table.rename(called)


def take_boxes(table: pl.DataFrame, name: str) -> tuple[pl.DataFrame | None, pl.DataFrame]:
    """Take the box of a person in a larger picture out of a table, by any of its common names.

    Understood are `left, top, right, bottom` and `left, top, width, height`, also as `x1, y1, x2, y2`, `xmin, ymin,
    xmax, ymax`, `x, y, w, h` and the like, with or without `bbox` in front. Fractions of a pixel are rounded.

    Args:
        table: N rows.
        name: what to call it in messages.

    Returns:
        (N, 4) Int32 `left, top, right, bottom`, in pixels; right and bottom lie outside; None where there is no box.
        And the table's other columns.

    Raises:
        InputError: if columns look like a box and are none that is understood, or like two; if a value is missing, no
            number, or all are fractions of the picture.
    """
    place = {_box_key(column): column for column in table.columns}
    complete = [form for form in _BOX_FORMS if all(part in place for part in form)]
    chosen = complete[0] if complete else ()
    looks = [column for key, column in place.items() if key not in chosen and _looks_like_box(key, column)]
    if looks:
        beside = f" beside {', '.join(place[part] for part in chosen)}" if chosen else ""
        raise InputError(
            f"{name}: {', '.join(looks)} look like boxes and are not understood{beside}; a box has left, top, right, "
            "bottom or left, top, width, height, in pixels: name these four columns so, and leave others out"
        )
    if not chosen:
        return None, table
    columns = [table[place[part]] for part in chosen]
    for column in columns:
        if nulls := decimal_numbers(column, name).null_count():
            raise InputError(f"{name}: {nulls} rows have no {column.name}")
    left, top, third, fourth = (decimal_numbers(column, name) for column in columns)
    sized = chosen[2] in ("w", "width")
    sides = [left, top, left + third if sized else third, top + fourth if sized else fourth]
    box = in_pixels(sides, name)
    return box, table.drop(column.name for column in columns)


def in_pixels(sides: Sequence[pl.Series], name: str) -> pl.DataFrame:
    """Round the sides of boxes to whole pixels.

    Args:
        sides: left, top, right and bottom, (N,) Float64.
        name: what to call them in messages.

    Returns:
        (N, 4) Int32 `left, top, right, bottom`.

    Raises:
        InputError: if all are fractions of the picture, or one is no pixel's place.
    """
    most = max(float(side.abs().max() or 0) for side in sides)  # type: ignore[arg-type]
    if most <= 1 and any(bool((side != side.round()).any()) for side in sides):
        raise InputError(f"{name}: boxes are fractions of the picture; give pixels")
    if most >= 2**31:
        raise InputError(f"{name}: a box reaches to {most:g}; give pixels")
    return pl.DataFrame(
        {side: values.round().cast(pl.Int32) for side, values in zip(BOX, sides, strict=True)}
    )


def _box_key(column: str) -> str:
    key = re.sub(r"^(bbox|bb|box|rect|roi)(?=.)", "", _key(column))
    return re.sub(r"^(min|max)([xy])$", r"\2\1", key)


def _looks_like_box(key: str, column: str) -> bool:
    """Return whether a column might be part of a box; a width and a height alone may be the whole picture's."""
    if key in ("w", "width", "h", "height"):
        return key != _key(column)
    return key in _BOX_PARTS or re.fullmatch(r"(bbox|bb|box|rect|roi)(es|s)?.*", _key(column)) is not None


def forward_slashes(paths: pl.Series, folder: Path) -> pl.Series:
    """Return paths that were written under Windows, with slashes: a backslash that is part of a name stays.

    Args:
        paths: (N,) relative to `folder`; null stays null.
        folder: where the pictures are.
    """
    changed = {
        path: path.replace("\\", "/")
        for path in paths.filter(paths.str.contains("\\", literal=True)).unique()
        if not (folder / path).exists()
    }
    return paths.replace(changed) if changed else paths


def _require_plain(column: pl.Series, name: str) -> None:
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise InputError(
            f"{name}: column {column.name} holds {column.dtype}; it must hold one word or number a row"
        )


def whole_numbers(column: pl.Series, name: str) -> pl.Series:
    """Return a column as whole numbers, however they are written: 12, "12" or 12.0.

    Args:
        column: (N,) numbers or text.
        name: of the table, for messages.

    Returns:
        (N,) Int64, null where the column is.

    Raises:
        InputError: if a value is no whole number, with the first of them.
    """
    numbers = decimal_numbers(column, name, "a whole number")
    whole = numbers.cast(pl.Int64, strict=False)
    wrong = column.filter((whole != numbers).fill_null(False) | (whole.is_null() & numbers.is_not_null()))
    if len(wrong):
        raise InputError(
            f"{name}: {column.name} {wrong[0]!r} is of the wrong kind; it must be a whole number"
        )
    if column.dtype.is_integer():
        return column.cast(pl.Int64)
    return whole


def decimal_numbers(column: pl.Series, name: str, wanted: str = "a number") -> pl.Series:
    """Return a column as numbers, of a table whose decimal comma may be a comma.

    Args:
        column: (N,) numbers or text.
        name: of the table, for messages.
        wanted: what it must be, for messages.

    Returns:
        (N,) Float64, null where the column is.

    Raises:
        InputError: if a value is no finite number, with the first of them.
    """
    _require_plain(column, name)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        column = column.set(column == "", None)
        numbers = column.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    else:
        numbers = column.cast(pl.Float64, strict=False)
    wrong = column.filter(column.is_not_null() & ~numbers.is_finite().fill_null(False))
    if len(wrong):
        raise InputError(f"{name}: {column.name} {wrong[0]!r} is of the wrong kind; it must be {wanted}")
    return numbers
