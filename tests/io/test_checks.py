import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from clip3dreid.errors import InputError
from clip3dreid.io.checks import (
    Count,
    Fraction,
    Positive,
    Range,
    allows,
    alternatives,
    check,
    choose,
    hint,
    some,
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Settings:
    flip: bool = True
    batch: Positive = 64
    workers: Count = 2
    share: Fraction = 0.5
    rate: Annotated[float, Range(0, above=True)] = 0.1
    form: Literal["npz", "parquet"] = "npz"
    out: Path = Path("out")
    note: str = ""
    sheet: Path | None = None
    top: Positive | None = None
    outputs: tuple[Literal["embedding", "joint"], ...] | Literal["all"] = "all"
    colour: Colour = Colour.RED
    anything: Any = None

    def __post_init__(self) -> None:
        check(self)


def test_values_that_fit_are_taken():
    Settings(share=1, sheet=Path("x"), top=3, outputs=("joint",), colour=Colour.BLUE, anything=object())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flip": "yes"}, "flip=yes is unknown; choose true or false"),
        ({"flip": 1}, "flip=1 is unknown; choose true or false"),
        ({"batch": 0}, "batch=0 must be a whole number, 1 or more"),
        ({"batch": 1.5}, "batch=1.5 must be a whole number, 1 or more"),
        ({"batch": True}, "batch=true must be a whole number, 1 or more"),
        ({"batch": None}, "batch=null must be a whole number, 1 or more"),
        ({"workers": -1}, "workers=-1 must be a whole number, 0 or more"),
        ({"share": 1.01}, "share=1.01 must be a number from 0 to 1"),
        ({"share": float("nan")}, "share=nan must be a number from 0 to 1"),
        ({"rate": 0.0}, "rate=0.0 must be a number above 0"),
        ({"rate": float("inf")}, "rate=inf must be a number above 0"),
        ({"form": "parket"}, "form=parket is unknown; choose npz or parquet; did you mean parquet?"),
        ({"form": "xyz"}, "form=xyz is unknown; choose npz or parquet"),
        ({"out": "text"}, "out=text must be a path"),
        ({"note": 3}, "note=3 must be a text"),
        ({"top": 0}, "top=0 must be a whole number, 1 or more, or null"),
        ({"outputs": ("joint", "join")}, r"outputs[1]=join is unknown; choose embedding or joint"),
        ({"colour": "red"}, "colour=red is unknown; choose red or blue"),
    ],
)
def test_the_first_value_that_does_not_fit_is_named_with_what_would(wrong, message):
    with pytest.raises(InputError) as error:
        Settings(**wrong)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (str, "a", 1),
        (list, [], {}),
        (Positive, 1, 0),
        (Positive, 2, True),
        (Literal["npz", "parquet"], "npz", "csv"),
    ],
)
def test_one_value_is_held_against_one_annotation(annotation: Any, right: Any, wrong: Any):
    assert allows(annotation, right)
    assert not allows(annotation, wrong)
    assert not allows(annotation, None)


def test_what_was_probably_meant_is_said_only_where_it_is_near():
    assert hint("trian", ["train", "export"]) == "; did you mean train?"
    assert hint("zzz", ["train", "export"]) == ""
    assert hint("TRIAN", ["train", "export"]) == "; did you mean train?"
    with pytest.raises(InputError, match="data=ltc is unknown; choose ltcc, prcc or pku; did you mean ltcc"):
        choose("data", "ltc", ["ltcc", "prcc", "pku"])


def test_choices_and_long_lists_read_as_a_sentence():
    assert alternatives(["a"]) == "a"
    assert alternatives(["a", "b"]) == "a or b"
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdefgh"), 3) == "a, b, c and 5 more"
    assert some(["a", "b"], total=1002) == "a, b and 1,000 more"


def test_names_out_of_a_damaged_file_stay_one_legible_line():
    line = some(["a" * 500, "b\x00\n", "c"], 2)
    assert line == f"{'a' * 80}…{'a' * 80}, b\\x00\\n and 1 more"
