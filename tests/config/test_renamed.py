"""Keys of before their renaming are known by their new names."""

import logging
from pathlib import Path

import pytest

from clip3dreid.config.renamed import renamed_config, renamed_key, renamed_override
from clip3dreid.config.resumed import resumed
from tests.config.test_resumed import a_run


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("loader=laptop", "datamodule=laptop"),
        ("loader.people=4", "datamodule.people=4"),
        ("++loader.rule=chunks", "++datamodule.sampler=chunks"),
        ("~loader.rule", "~datamodule.sampler"),
        ("+loader@datamodule.x=laptop", "+datamodule@datamodule.x=laptop"),
        ("rung=cal", "variant=cal"),
        ("+ladder=cal", "+ablation=cal"),
        ("+sweep=ladder", "+sweep=ablation"),
        ("bodies.view=${loader.train_view}", "bodies.view=${datamodule.train_view}"),
    ],
)
def test_an_override_of_before_is_one_of_now(before: str, now: str) -> None:
    assert renamed_override(before) == now
    assert renamed_override(now) == now


@pytest.mark.parametrize(
    "line",
    ["data=ltcc", "data.root=/loader/rung=ladder", "loss.loader=1", "run_name=ladder", "loaders.x=1", "-m"],
)
def test_what_was_never_renamed_stays(line: str) -> None:
    assert renamed_override(line) == line


def test_the_config_of_a_run_of_before_has_the_keys_of_now() -> None:
    before = {
        "rung": "cal",
        "loader": {"rule": "chunks", "people": 4, "train_view": {"rule": 1}},
        "data": {"rung": 1},
    }
    now = {
        "variant": "cal", "datamodule": {"sampler": "chunks", "people": 4, "train_view": {"rule": 1}},
        "data": {"rung": 1},
    }  # fmt: skip
    assert renamed_config(before) == now
    assert before["rung"] == "cal"
    assert renamed_key("loader.rule") == "datamodule.sampler"


def test_a_run_of_before_goes_on_under_the_names_of_now_and_they_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = a_run(tmp_path / "run", "data=ltcc", "loader=laptop", "loader.rule=chunks", "rung=cal")
    with caplog.at_level(logging.INFO):
        assert resumed([f"resume={folder}", "epochs=3"])[:5] == [
            "data=ltcc", "datamodule=laptop", "datamodule.sampler=chunks", "variant=cal", "epochs=3",
        ]  # fmt: skip
    (record,) = caplog.records
    assert "loader.rule=chunks is datamodule.sampler=chunks now" in record.message
