"""The student in the package: whole, small, and worth what its card says of rendered people."""

from pathlib import Path

import pytest

import clip3dreid
from clip3dreid.data.datasets import ltcc
from clip3dreid.model.checked_folder import check_sums
from clip3dreid.model.places import SHIPPED, find_model, packaged


@pytest.fixture(scope="module")
def model() -> clip3dreid.ReidModel:
    return clip3dreid.load("body_student")


def test_it_is_whole_and_small_and_has_a_card() -> None:
    folder = packaged("body_student")
    check_sums(folder)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    for said in ("PKU-Reid", "colour histogram", "MobileNetV2", "## For whom it is not"):
        assert said in card


def test_its_name_stands_for_it_wherever_no_file_or_folder_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert SHIPPED == ("body_student",)
    assert find_model("body_student").weights == packaged("body_student") / "model.safetensors"
    (tmp_path / "body_student").mkdir()
    (tmp_path / "body_student" / "model.safetensors").write_bytes(b"another")
    (tmp_path / "body_student" / "config.json").write_text("{}")
    assert find_model("body_student").weights == Path("body_student/model.safetensors")


def test_it_finds_and_describes_rendered_people_whom_it_never_met(
    model: clip3dreid.ReidModel, sixteen_people: Path
) -> None:
    manifest = ltcc.read(sixteen_people)
    scores = clip3dreid.evaluate(model, manifest, protocol=["same_clothes", "clothes_changing"])
    for row in scores.to_polars().iter_rows(named=True):
        assert row["r1_low"] > 2 * row["chance_r1"], row
    found = model.describe(manifest.files(manifest.part("test"))[:2])
    assert len(found[0].confidences()) == 16
    assert model.shape(manifest.files(manifest.part("test"))[:2]).vertices.shape[0] == 2
