"""Scores of a model in one call, by the names that the command line has for data sets and protocols."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import polars as pl
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase

import clip3dreid
from clip3dreid.config.folder import conf_dir
from clip3dreid.data.datasets import ltcc
from clip3dreid.data.sources import DataSpec
from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel
from clip3dreid.retrieval.protocol import Protocol, nothing
from clip3dreid.retrieval.standard import CLOTHES, GENERAL
from clip3dreid.training.data import RunData
from tests.cli.test_evaluate import features
from tests.conftest import Command, paint

SCORES = ("r1", "r5", "map", "minp")


@pytest.fixture(scope="module")
def model(saved_model: Path) -> ReidModel:
    return clip3dreid.load(saved_model)


@pytest.fixture(scope="module")
def pku_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny PKU-Reid: five people, two cameras, two orientations."""
    root = tmp_path_factory.mktemp("pku") / "PKU-Reid"
    for person in range(1, 6):
        for camera in (1, 2):
            for way in (1, 2):
                paint(root / f"{person:03d}_{camera:02d}_{way}.png", person, 1, 10 * camera + way)
    return root


def commanded(invoke: Command, *arguments: str) -> Any:
    on_cpu = ["trainer=cpu", "datamodule.workers=0"]
    done = invoke("evaluate", *arguments, *([] if "features" in arguments[0] else on_cpu), "out=o.json")
    assert done.returncode == 0, done.stderr
    return json.loads(Path("o.json").read_text())


def test_digits_are_those_of_the_command(
    model: ReidModel, saved_model: Path, ltcc_root: Path, pku_root: Path, invoke: Command
) -> None:
    checkpoint = f"checkpoint={saved_model}"
    written = commanded(invoke, checkpoint, "data=ltcc", f"data.root={ltcc_root}")
    scores = clip3dreid.evaluate(model, "ltcc", ltcc_root)
    assert list(scores.results["ltcc"]) == ["general", "same_clothes", "clothes_changing"]
    assert scores.to_dict()["results"] == written["results"]
    assert {**scores.to_dict(), "checkpoint": ""} | {
        key: written[key] for key in ("version", "environment")
    } == {**written, "checkpoint": ""}
    assert clip3dreid.evaluate(saved_model, "ltcc", str(ltcc_root)).to_dict()["results"] == written["results"]
    written = commanded(
        invoke, checkpoint, "data=pku_reid", f"data.root={pku_root}", "data.train_fraction=0", "metric=euclidean",
        "protocol=[no_removal,general]", "rerank=k_reciprocal", "flip=false",
    )  # fmt: skip
    scores = clip3dreid.evaluate(
        model, "pku_reid", pku_root, ["no_removal", "general"], options={"train_fraction": 0}, metric="euclidean",
        rerank="k_reciprocal", flip=False,
    )  # fmt: skip
    assert scores.to_dict()["results"] == written["results"]
    assert scores.to_polars()["people"].to_list() == [5, 5]


def test_digits_of_a_features_file_are_those_of_the_command(invoke: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "f.npz")
    written = commanded(invoke, f"features={path}", "open_set=[0.1,0.5]")
    scores = clip3dreid.evaluate(path, open_set=[0.1, 0.5])
    assert scores.to_dict() == {key: written[key] for key in scores.to_dict()}
    assert clip3dreid.evaluate(str(path), protocol="no_removal").to_dict()["results"].keys() == {"no_removal"}


def test_features_are_scored_as_the_model_that_made_them_in_the_order_of_the_manifest(
    model: ReidModel, ltcc_root: Path
) -> None:
    manifest = ltcc.read(ltcc_root)
    part = manifest.part("test")
    made = model.embed([str(path) for path in manifest.files(part)])
    by_model = clip3dreid.evaluate(model, "ltcc", ltcc_root)
    table = part.select("person", "camera", "clothes", "role", "path")
    renamed = table.rename({"person": "pid", "camera": "camid"}).drop("path")
    mixed = np.random.default_rng(0).permutation(len(part))
    forms: list[tuple[Any, Any, Any]] = [
        (made, "ltcc", ltcc_root),
        (made.numpy(), manifest, None),
        (made.double(), RunData(manifest, CLOTHES), None),
        (made, table, None),
        (made[mixed], renamed[mixed.tolist()], None),
    ]
    for rows, data, root in forms:
        scores = clip3dreid.evaluate(rows, data, root)
        name = "" if isinstance(data, pl.DataFrame) else "ltcc"
        assert list(scores.results) == [name]
        for protocol, expected in by_model.results["ltcc"].items():
            found = scores.results[name][protocol]
            assert {key: found[key] for key in SCORES} == pytest.approx(
                {key: expected[key] for key in SCORES}, abs=1e-6
            )
        assert scores.to_dict()["features"] == "features"
        assert scores.to_dict().get("data", "") == name
    half = clip3dreid.evaluate(made.bfloat16(), "ltcc", ltcc_root)
    assert half.results["ltcc"]["general"]["map"] == pytest.approx(
        by_model.results["ltcc"]["general"]["map"], abs=0.05
    )


def test_a_table_a_manifest_and_a_description_are_data_too(model: ReidModel, ltcc_root: Path) -> None:
    manifest = ltcc.read(ltcc_root)
    expected = clip3dreid.evaluate(model, "ltcc", ltcc_root).results["ltcc"]
    table = manifest.table.select("path", "person", "camera", "clothes", "role")
    assert clip3dreid.evaluate(model, table, ltcc_root).results["custom"] == expected
    assert clip3dreid.evaluate(model, manifest).results["ltcc"] == expected
    spec = DataSpec("mine", ltcc_root, ltcc.read)
    assert clip3dreid.evaluate(model, spec).results["mine"] == expected
    general = clip3dreid.evaluate(model, RunData(spec, GENERAL)).results["mine"]
    assert general == {"general": expected["general"]}
    # Where outfits are unknown, what asks for them is left out.
    bare = table.drop("clothes")
    assert list(clip3dreid.evaluate(model, bare, ltcc_root).results["custom"]) == ["general"]
    own = Protocol("mine", nothing, "all of them")
    asked = clip3dreid.evaluate(model, manifest, protocol=[own, "general"]).results["ltcc"]
    assert list(asked) == ["mine", "general"]
    assert asked["general"] == expected["general"]


def test_held_out_people_are_a_split_of_their_own(model: ReidModel, ltcc_root: Path) -> None:
    scores = clip3dreid.evaluate(model, "ltcc", ltcc_root, options={"val_people": 2}, split="val")
    assert scores.to_polars()["people"].to_list() == [2, 2, 2]
    assert repr(scores).startswith("ltcc (val), ")


def test_the_model_and_the_program_around_it_stay_as_they_were(
    saved_model: Path, ltcc_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = clip3dreid.load(saved_model, dtype="bfloat16")
    model.student.train()
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "clip3dreid")}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clip3dreid.evaluate(model, "ltcc", ltcc_root, "general")
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert model.student.training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == state[name].dtype for name, tensor in model.state_dict().items())
    assert not torch.is_inference(next(model.parameters()))
    assert capsys.readouterr() == ("", "")


def test_a_program_of_hydras_finds_its_own_hydra_as_it_was(tmp_path: Path) -> None:
    path = features(tmp_path / "f.npz")
    with hydra.initialize_config_dir(version_base="1.2", config_dir=str(conf_dir() / "data")):
        before = GlobalHydra.instance().hydra
        clip3dreid.evaluate(path, protocol="general")
        assert GlobalHydra.instance().hydra is before
        assert str(VersionBase.instance().getbase()) == "1.2"
        assert hydra.compose("base").on_error == "fail"
    assert not GlobalHydra.instance().is_initialized()


def test_what_a_page_shows_runs(
    saved_model: Path,
    pku_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.M | re.S)
    (code,) = [block for block in blocks if "clip3dreid.evaluate(" in block]
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(saved_model)
    Path("PKU-Reid").symlink_to(pku_root)
    names: dict[str, Any] = {}
    exec(code, names)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "pku_reid (test), model, cosine"
    named = re.search(r"^The table has (.*?), a row", page, flags=re.M | re.S)
    assert named is not None
    assert re.findall(r"\w+", named[1]) == re.findall(r"\w+", shown[2])
    assert any(line.startswith("│ general") for line in shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("MODEL",),
            "no data set: give a name with its folder, a table or a manifest; NAME is one of .*pku_reid",
        ),
        (("MODEL", "pku_ried", "ROOT"), "data=pku_ried is unknown; .*did you mean pku_reid"),
        (("MODEL", "pku_reid"), "root is not given; give the folder of pku_reid"),
        (("MODEL", "pku_reid", "here/nowhere"), "here/nowhere, which is not there"),
        (("MODEL", "pku_reid", "ROOT", "generel"), "protocol=generel is unknown; .*did you mean general"),
        (("MODEL", "pku_reid", "ROOT", "prcc_same_clothes"), "query_set"),
        (("MODEL", "pku_reid", "ROOT", []), "no protocol is chosen"),
        ((3, "pku_reid", "ROOT"), "a int is no model"),
        (("nowhere", "pku_reid", "ROOT"), "nowhere is not there"),
        (("f.npz",), "f.npz"),
        (("f.npz", "pku_reid", "ROOT"), "f.npz has labels of its own"),
        ((torch.rand(2, 3),), "no data set"),
        ((torch.rand(2, 3), "pku_reid", "ROOT"), r"shape \(2, 3\) and pku_reid \(test\) has 12 pictures"),
        ((torch.rand(12), "pku_reid", "ROOT"), r"shape \(12,\)"),
        ((torch.full((12, 3), torch.nan), "pku_reid", "ROOT"), "6 of 6 query features hold NaN"),
        ((torch.rand(2, 3), pl.DataFrame({"person": [1, 2]})), "data has no column role"),
        ((torch.rand(1, 3), pl.DataFrame({"person": [1], "role": ["qery"]})), "role=qery is unknown"),
        (
            ("MODEL", pl.DataFrame({"path": ["x"], "person": [1], "role": ["query"]})),
            "1 pictures .* relative to root",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    arguments: Any,
    message: str,
    model: ReidModel,
    pku_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"MODEL": model, "ROOT": pku_root}
    filled = [given.get(one, one) if isinstance(one, str) else one for one in arguments]
    with pytest.raises(InputError, match=message) as caught:
        clip3dreid.evaluate(*filled)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"options": {"train_fractoin": 0}},
            "options=train_fractoin is unknown; .*did you mean train_fraction",
        ),
        ({"options": {"read": "x"}}, "options=read is unknown"),
        ({"options": {"train_fraction": [1]}}, "train_fraction=.* is no plain value"),
        ({"options": {"train_fraction": 2}}, "train_fraction"),
        ({"split": "tset"}, "split=tset is unknown; choose test or val"),
        ({"split": "val"}, "no queries and gallery in split val"),
        ({"metric": "manhattan"}, "metric=manhattan"),
        ({"feature": "betsa"}, "feature=betsa is unknown"),
        ({"feature": "teacher"}, "does not know teacher"),
        ({"rerank": "k_reciprocl"}, "rerank=k_reciprocl is unknown; .*did you mean k_reciprocal"),
        ({"open_set": [2]}, "open_set"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"height": 0}, "height"),
    ],
)
def test_what_is_asked_for_wrongly_is_said_in_one_line(
    how: Any, message: str, model: ReidModel, pku_root: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        clip3dreid.evaluate(model, "pku_reid", pku_root, **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"data": "TABLE", "options": {"val_people": 1}},
            "options are those of a data set that is given by its name",
        ),
        ({"data": "TABLE", "flip": True}, "flip and feature say how a model looks"),
        ({"data": "MANIFEST", "root": "x"}, "root is that of a data set"),
        ({"data": "TABLE", "root": "x"}, "root is that of a data set"),
    ],
)
def test_what_means_nothing_is_refused(how: Any, message: str, ltcc_root: Path) -> None:
    manifest = ltcc.read(ltcc_root)
    part = manifest.part("test")
    given = {"TABLE": part, "MANIFEST": manifest}
    with pytest.raises(InputError, match=message):
        clip3dreid.evaluate(torch.rand(len(part), 3), **{**how, "data": given[how["data"]]})
