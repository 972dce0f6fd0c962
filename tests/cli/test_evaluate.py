"""The evaluator's command line on features from anywhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from clip3dreid.config.folder import conf_dir
from clip3dreid.model.weights import CARD, HEADS, read_checkpoint
from tests.config.test_conf import check_bindings, composed
from tests.conftest import Command, write_ltcc


def features(path: Path, **changes: Any) -> Path:
    """Two queries, five gallery pictures, on a line: distances can be read off.

    Query 0 (person 1, camera 1, clothes 1) at 0; gallery at 1 (person 1, clothes 1), 2 (person 2), 3 (person 1,
    clothes 2), 4 (person 2), 0.5 (person 1, its own camera). Query 1 (person 3) has nobody in the gallery.
    """
    arrays: dict[str, Any] = {
        "query_features": np.array([[0.0, 1], [9, 1]], np.float32),
        "query_pids": [1, 3],
        "query_camids": [1, 1],
        "query_clothes": [1, 1],
        "gallery_features": np.array([[1, 1], [2, 1], [3, 1], [4, 1], [0.5, 1]], np.float32),
        "gallery_pids": [1, 2, 1, 2, 1],
        "gallery_camids": [2, 2, 3, 2, 1],
        "gallery_clothes": [1, 1, 2, 1, 1],
    }
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_scores_by_hand_for_every_protocol_the_labels_allow(invoke: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "f.npz")
    done = invoke("evaluate", f"features={path}", "metric=euclidean", "out=o.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "o.json").read_text())["results"]
    assert list(results) == ["general", "same_clothes", "clothes_changing"]
    # Own camera dropped: ranks of the positives are 1 and 3.
    assert results["general"]["r1"] == 1
    assert results["general"]["map"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert results["general"]["minp"] == pytest.approx(2 / 3)
    assert results["same_clothes"]["map"] == pytest.approx(1)
    # Only the picture at 3 is left, behind the stranger at 2.
    assert results["clothes_changing"]["r1"] == 0
    assert results["clothes_changing"]["r5"] == 1
    assert results["clothes_changing"]["map"] == pytest.approx(1 / 2)
    for scores in results.values():
        assert (scores["queries"], scores["valid_queries"]) == (2, 1)
        assert scores["without_positive"] == ["query[1]"]
    assert "clothes_changing" in done.stdout


def test_clothes_are_optional_and_a_protocol_can_be_chosen(invoke: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "f.npz", query_clothes=None, gallery_clothes=None)
    done = invoke("evaluate", f"features={path}", "protocol=no_removal", "metric=euclidean", "out=o.json")
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "o.json").read_text())
    # The own camera's picture counts here: ranks 1, 2 and 4.
    assert facts["results"]["no_removal"]["map"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert facts["metric"] == "euclidean"


def test_a_collapsed_model_scores_chance_and_not_everything(invoke: Command, tmp_path: Path) -> None:
    people = np.repeat(np.arange(20), 5)
    path = features(
        tmp_path / "f.npz",
        query_features=np.ones((20, 4), np.float32), query_pids=np.arange(20), query_camids=np.zeros(20, int),
        gallery_features=np.ones((100, 4), np.float32), gallery_pids=people, gallery_camids=np.ones(100, int),
        query_clothes=None, gallery_clothes=None,
    )  # fmt: skip
    done = invoke("evaluate", f"features={path}", "protocol=general", "out=o.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "o.json").read_text())["results"]["general"]
    # In gallery order only person 0 is first for its own query: 1 of 20.
    assert scores["r1"] == pytest.approx(1 / 20)
    assert scores["chance_r1"] == pytest.approx(5 / 100)


def test_a_reranking_is_named_with_every_number_and_in_the_table(invoke: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "f.npz")
    done = invoke(
        "evaluate", f"features={path}", "rerank=k_reciprocal", "rerank.k1=3", "rerank.k2=1", "out=o.json"
    )
    assert done.returncode == 0, done.stderr
    for scores in json.loads((tmp_path / "o.json").read_text())["results"].values():
        assert scores["rerank"]["method"] == "KReciprocal"
        assert (scores["rerank"]["k1"], scores["rerank"]["lambda"]) == (3, 0.3)
    assert done.stdout.count("re-ranked: method=KReciprocal, k1=3") == 3


def test_a_reranking_of_the_original_distance_alone_changes_no_score(invoke: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "f.npz")
    for name, arguments in {"plain": [], "one": ["rerank=k_reciprocal", "rerank.lambda_=1"]}.items():
        done = invoke("evaluate", f"features={path}", "metric=euclidean", f"out={name}.json", *arguments)
        assert done.returncode == 0, done.stderr
    plain, one = (json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("plain", "one"))
    for protocol, scores in plain.items():
        assert {k: v for k, v in one[protocol].items() if k != "rerank"} == {
            k: v for k, v in scores.items() if k != "rerank"
        }
        assert scores["rerank"] is None


def test_each_query_is_written_where_it_is_asked_for(invoke: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "f.npz")
    done = invoke("evaluate", f"features={path}", "metric=euclidean", "per_query=queries")
    assert done.returncode == 0, done.stderr
    files = sorted(file.name for file in (tmp_path / "queries").iterdir())
    assert files == ["clothes_changing.parquet", "general.parquet", "same_clothes.parquet"]
    table = pl.read_parquet(tmp_path / "queries" / "general.parquet")
    # Ranks 1 and 3; the query of person 3 is not valid.
    assert table.rows(named=True) == [
        {
            "query": "query[0]", "person": "1", "first_hit": 1.0, "r1": 1.0, "ap": pytest.approx(5 / 6),
            "inp": pytest.approx(2 / 3), "positives": 2, "junk": 1,
        }
    ]  # fmt: skip


def test_open_set_rates_by_hand(invoke: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "f.npz")
    done = invoke(
        "evaluate",
        f"features={path}",
        "metric=euclidean",
        "protocol=general",
        "open_set=[0.1,0.5]",
        "out=o.json",
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "o.json").read_text())["results"]["general"]
    # Strangers at 2 and 4, positives at 1 and 3. At 0.1 none of the strangers may pass, at 0.5 one of them.
    assert scores["tpr_at_fpr"] == {"0.1": 0.5, "0.5": 1.0}
    assert "TPR at FPR: 50.0 at 0.1, 100.0 at 0.5" in done.stdout


def test_intervals_are_written_and_shown(invoke: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = features(
        tmp_path / "f.npz",
        query_features=rng.normal(size=(60, 4)), query_pids=rng.integers(6, size=60), query_camids=np.zeros(60, int),
        gallery_features=rng.normal(size=(90, 4)), gallery_pids=rng.integers(6, size=90),
        gallery_camids=np.ones(90, int), query_clothes=None, gallery_clothes=None,
    )  # fmt: skip
    done = invoke("evaluate", f"features={path}", "out=o.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "o.json").read_text())["results"]["general"]
    for name in ("r1", "map", "minp"):
        low, high = scores["interval"][name]
        assert 0 <= low < scores[name] < high <= 1
    low, high = scores["interval"]["r1"]
    assert f"R1 [{100 * low:.1f}, {100 * high:.1f}]" in done.stdout


def test_one_person_has_no_interval_and_the_table_none_either(invoke: Command, tmp_path: Path) -> None:
    done = invoke("evaluate", f"features={features(tmp_path / 'f.npz')}", "out=o.json")
    results = json.loads((tmp_path / "o.json").read_text())["results"]
    assert all(scores["interval"] is None for scores in results.values())
    assert "over query people" not in done.stdout


RERANKINGS = sorted(path.stem for path in (conf_dir() / "rerank").glob("*.yaml"))


@pytest.mark.parametrize("name", RERANKINGS)
def test_every_reranking_composes_and_binds_here_and_in_training(name: str) -> None:
    cfg = composed("evaluate", f"rerank={name}")
    assert cfg.rerank["_target_"].startswith("clip3dreid.retrieval.rerank.")
    assert check_bindings(cfg) > 1
    train = composed("train", "data=ltcc", "data.root=/nowhere", f"+rerank@retrieval.rerank={name}")
    assert train.retrieval.rerank == cfg.rerank
    assert check_bindings(train) > 10


nan = np.array([[0.0, 1], [np.nan, 1]], np.float32)
BAD = {
    "NaN": ({"query_features": nan}, [], "NaN"),
    "unequal width": ({"query_features": np.ones((2, 3), np.float32)}, [], "wide"),
    "no clothes": (
        {"query_clothes": None, "gallery_clothes": None},
        ["protocol=clothes_changing"],
        "clothes",
    ),
    "lengths": ({"query_pids": [1]}, [], "query_pids"),
    "missing array": ({"gallery_camids": None}, [], "gallery_camids"),
    "pickled objects": ({"query_pids": np.array([1, "x"], object)}, [], "query_pids"),
    "unknown metric": ({}, ["metric=manhattan"], "manhattan"),
    "unknown protocol": ({}, ["protocol=generel"], "generel"),
    "unknown re-ranking": ({}, ["rerank=k_reciprocl"], "k_reciprocl"),
    "no rate": ({}, ["open_set=[1.5]"], "open_set"),
    "no list": ({}, ["open_set=0.01"], "open_set"),
    "open set of a re-ranking": (
        {},
        ["open_set=[0.01]", "rerank=aqe"],
        "leave open_set or the re-ranking out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_features_get_one_line_status_two_and_no_output(
    case: str, invoke: Command, tmp_path: Path
) -> None:
    changes, arguments, message = BAD[case]
    path = features(tmp_path / "f.npz", **changes)
    done = invoke("evaluate", f"features={path}", "out=o.json", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "o.json").exists()


def test_a_model_is_the_same_by_its_folder_and_by_its_file(
    saved_model: Path, invoke: Command, ltcc_root: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    content = read_checkpoint(saved_model / "model.safetensors")
    state = {f"student.{name}": tensor for name, tensor in content.state.items()}
    torch.save({"state_dict": state, CARD: content.card, HEADS: content.heads}, run / "last.ckpt")
    places = {
        saved_model: "model.safetensors",
        saved_model / "model.safetensors": "model.safetensors",
        tmp_path / "run": "last.ckpt",
        run: "last.ckpt",
    }
    found = []
    for place, file in places.items():
        done = invoke(
            "evaluate", f"checkpoint={place}", "data=ltcc", f"data.root={ltcc_root}", "trainer=cpu",
            "datamodule.workers=0", "out=o.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        written = json.loads((tmp_path / "o.json").read_text())
        assert Path(written["checkpoint"]).name == file
        found.append(written["results"])
    assert all(results == found[0] for results in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no data set"),
        (["data=ltcc", "data.root=ROOT"], "nothing to evaluate"),
        (
            ["data=ltcc", "data.root=ROOT", "checkpoint=/no.ckpt"],
            "/no.ckpt is not there; give a run's folder",
        ),
        (["data=ltcc", "data.root=ROOT", "checkpoint=ROOT"], "holds no model"),
        (
            ["data=ltcc", "data.root=ROOT", "checkpoint=ROOT", "datamodule.height=64"],
            "evaluation takes height=PIXELS",
        ),
        (["data=ltcc", "data.root=ROOT", "model/student=resnet18", "model.pretrained=null"], "untrained"),
        (["features=/no.npz"], "/no.npz"),
    ],
)
def test_a_missing_piece_is_named(
    arguments: list[str], message: str, invoke: Command, tmp_path: Path
) -> None:
    root = write_ltcc(tmp_path / "LTCC_ReID", train=range(2), test=range(3))
    done = invoke("evaluate", *[argument.replace("ROOT", str(root)) for argument in arguments])
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_queries_in_the_gallery_stand_beside_the_score(invoke: Command, tmp_path: Path) -> None:
    paths = {"query_paths": ["a", "b"], "gallery_paths": ["a", "x", "y", "z", "v"]}
    path = features(tmp_path / "f.npz", **paths, gallery_camids=[2, 2, 3, 2, 2])
    done = invoke("evaluate", f"features={path}", "protocol=general", "out=o.json")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 queries are in the gallery themselves, by path or by bytes: dropped there" in done.stdout
    assert "same_picture=drop" in done.stdout
    scores = json.loads((tmp_path / "o.json").read_text())["results"]["general"]
    assert (scores["queries_in_gallery"], scores["same_picture"]) == (1, "drop")
    kept = invoke("evaluate", f"features={path}", "protocol=general", "+protocol.general.same_picture=keep")
    assert "KEPT, so that they find themselves" in kept.stdout, kept.stderr


def test_equal_features_without_paths_are_said(invoke: Command, tmp_path: Path) -> None:
    same = np.array([[0, 1], [2, 1], [3, 1], [4, 1], [0.5, 1]], np.float32)
    done = invoke("evaluate", f"features={features(tmp_path / 'f.npz', gallery_features=same)}", "out=o.json")
    assert "1 of 2 queries have the very features of a gallery item of their person" in done.stdout
    assert len(json.loads((tmp_path / "o.json").read_text())["notes"]) == 1


def test_features_are_ranked_on_the_device_that_is_asked_for(invoke: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "f.npz")
    scores = []
    for device in ("auto", "cpu"):
        done = invoke("evaluate", f"features={path}", "metric=euclidean", f"device={device}", "out=o.json")
        assert done.returncode == 0, done.stderr
        scores.append(json.loads((tmp_path / "o.json").read_text())["results"])
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["features=f.npz", "device=cuda:63"], "device=cuda:63 cannot be used"),
        (["features=f.npz", "device=gpu"], "device=gpu cannot be used"),
        (["checkpoint=run", "data=ltcc", "data.root=.", "device=cpu"], "device=cpu is of features=FILE"),
    ],
)
def test_a_device_that_is_not_there_is_one_line_and_status_two(
    invoke: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    features(tmp_path / "f.npz")
    done = invoke("evaluate", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
