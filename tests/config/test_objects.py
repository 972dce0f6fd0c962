from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from omegaconf import OmegaConf

from clip3dreid.config.objects import settings
from clip3dreid.errors import InputError
from clip3dreid.io.checks import Positive, check


@dataclass(frozen=True)
class Settings:
    out: Path
    sheet: Path | None = None
    top: Positive = 20
    outputs: tuple[str, ...] = ()
    pictures: tuple[Path, ...] | None = None
    split: Literal["test", "val"] = "test"
    model: object = None

    def __post_init__(self) -> None:
        check(self)


def test_keys_become_fields_of_the_kind_that_the_dataclass_asks_for():
    cfg = OmegaConf.create(
        {"out": "~/x", "sheet": None, "outputs": "joint", "pictures": ["a.jpg", 12], "hydra": {"run": 1}}
    )
    made = settings(Settings, cfg, model="given")
    assert made == Settings(
        Path("~/x").expanduser(), None, 20, ("joint",), (Path("a.jpg"), Path("12")), "test", "given"
    )


def test_references_are_resolved_and_a_key_that_is_not_set_keeps_the_default():
    cfg = OmegaConf.create({"root": "r", "out": "${root}/out", "top": "???"})
    assert settings(Settings, cfg) == Settings(Path("r/out"))


def test_a_value_that_does_not_fit_is_refused_as_from_python():
    with pytest.raises(InputError, match="split=tst is unknown; choose test or val; did you mean test"):
        settings(Settings, OmegaConf.create({"out": "x", "split": "tst"}))
