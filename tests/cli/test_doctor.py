import json
import sys
import tomllib
from pathlib import Path

import pytest

from clip3dreid.cli import doctor
from clip3dreid.io import diagnosis


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs the command in an empty folder; gives exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    for name in ("WEIGHTS", "DATA", "BODIES"):
        monkeypatch.delenv(f"CLIP3DREID_{name}", raising=False)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["doctor", *arguments])
        status = 0
        try:
            doctor.main()
        except SystemExit as end:
            status = int(end.code)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def test_what_is_here_is_printed_and_written(run, tmp_path: Path) -> None:
    weights = tmp_path / "w" / "resnet50-0676ba61.pth"
    weights.parent.mkdir()
    weights.touch()
    (tmp_path / "d" / "LTCC_ReID").mkdir(parents=True)
    status, out, err = run("weights_dir=w", "data_dir=d", "out=2026_11.json")
    assert (status, err) == (0, "")
    for word in ("torch", "polars", "onnx", "lance", "cpu", "LTCC_ReID", "CLIP3DREID_WEIGHTS", "anny_light"):
        assert word in out
    found = json.loads((tmp_path / "2026_11.json").read_text())
    assert found["version"] == 1
    states = {(one["group"], one["name"]): one["there"] for one in found["weights"]}
    assert states["model/student", "resnet50"]
    assert not states["model/student", "resnet101"]
    assert states["model/teacher", "body_clip"]
    assert found["data"]["folders"] == ["LTCC_ReID"]
    assert not found["textureless_bodies"]["there"]
    assert all(room > 0 for room in found["free_gigabytes"].values())
    assert found["devices"][0]["name"] == "cpu"
    assert found["devices"][0]["gigabytes"] > 0.1
    assert {one["extra"] for one in found["packages"]} - {None} == set(diagnosis.EXTRAS)
    assert all(one["wanted"][0] in "<>=~" for one in found["packages"] if one["wanted"])


def test_every_extra_that_users_ask_for_is_said_to_be_there_or_not() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) - {"all", "dev", "docs", "export"} == set(diagnosis.EXTRAS)


def test_places_are_those_of_the_environment(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP3DREID_WEIGHTS", "/somewhere/weights")
    monkeypatch.setenv("CLIP3DREID_BODIES", "/somewhere/bodies")
    _, out, _ = run()
    assert "/somewhere/weights/resnet50-0676ba61.pth" in out
    assert "/somewhere/bodies" in out
    assert "no such folder" in out


def test_an_old_a_missing_and_a_broken_package_end_with_status_2(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = [
        diagnosis.Package("polars", ">=1.20", "1.3.0", None),
        diagnosis.Package("numpy", ">=2.0", None, None),
        diagnosis.Package("lancedb", ">=0.40", None, "lance"),
        diagnosis.Package("torch", ">=2.8", "2.13.0+cpu", None),
    ]
    monkeypatch.setattr(diagnosis, "packages", lambda: packages)
    monkeypatch.setattr(diagnosis, "broken", lambda: ["cv2 does not load: libGL.so.1"])
    status, out, err = run()
    assert status == 2
    assert err == "error: polars 1.3.0, wanted >=1.20; numpy is missing; cv2 does not load: libGL.so.1\n"
    assert "pip install 'clip3dreid[lance]'" in out


@pytest.mark.parametrize(
    ("installed", "wanted", "good"),
    [
        ("2.8.0", ">=2.8", True), ("2.10", ">=2.8", True), ("2.7.9", ">=2.8", False), ("5.0", ">=4.10,<5", False),
        ("4.14.0.94", "<5,>=4.10", True), ("2.0.8", "==2.0.8", True), ("2.0.9", "==2.0.8", False),
        ("2.13.0+cpu", ">=2.8", True), ("1.0", "", True), ("2.6.3", "!=2.6.3,>=2.6", False),
    ],
)  # fmt: skip
def test_a_version_is_held_against_its_bounds(installed: str, wanted: str, good: bool) -> None:
    assert (diagnosis.Package("x", wanted, installed, None).state == "there") is good


def test_builds_of_torch_and_torchvision_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cu126"}
    monkeypatch.setattr(diagnosis, "installed", versions.get)
    assert any("torchvision 0.28.0+cu126" in line for line in diagnosis.broken())
    versions["torchvision"] = "0.28.0+cpu"
    assert diagnosis.broken() == []
