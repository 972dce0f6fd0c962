"""What a training is told of its guides."""

from pathlib import Path
from typing import Any

import pytest

from clip3dreid.errors import InputError
from clip3dreid.guidance.settings import BodySettings, LabelRun, LabelSettings, TeacherUse


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (LabelSettings, {"tokens": "word"}, "labels.tokens=word is unknown; choose descriptor or words; did"),
        (LabelSettings, {"level": "people"}, "labels.level=people is unknown; choose person or image"),
        (LabelSettings, {"calibration": "zscores"}, "labels.calibration=zscores is unknown; choose zscore or none"),
        (BodySettings, {"root": Path("x"), "batch": 0}, "bodies.batch=0 must be a whole number, 1 or more"),
        (BodySettings, {"root": Path("x"), "batch_norm": "both"}, "bodies.batch_norm=both is unknown; choose"),
        (TeacherUse, {"cache": "ram"}, "model.teacher.cache=ram is unknown; choose disk, memory, off or off_erased"),
        (LabelRun, {"out": Path("x"), "format": "json"}, "format=json is unknown; choose parquet or csv"),
        (LabelRun, {"out": Path("x"), "workers": -1}, "workers=-1 must be a whole number, 0 or more"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_of_those_there_are_is_refused(
    kind: type, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        kind(**values)
    assert str(caught.value).startswith(message)
