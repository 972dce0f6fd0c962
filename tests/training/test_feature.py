"""Runs that compare pictures by several parts: what is refused before they begin, and what they report."""

import json
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import clip3dreid
from clip3dreid.data.datasets import ltcc
from clip3dreid.errors import InputError
from clip3dreid.inference.parts import as_feature
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.report.results import ALONE, print_results, read_results
from clip3dreid.retrieval.standard import CLOTHES
from clip3dreid.training.data import RunData
from clip3dreid.training.evaluation import evaluate_model
from clip3dreid.training.run import train
from clip3dreid.training.settings import RankingSettings
from clip3dreid.types import Dimensions
from tests.conftest import STUDENT, TINY, Command
from tests.training.test_call import CPU, SMALL

PARTS = as_feature({"embedding": 1, "teacher": 3})


class Taught(CrossEntropy):
    """A cross-entropy that ships a head of three coefficients, as a global term does."""

    teaches: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __init__(self, dimensions: Dimensions, *, ships: bool = True) -> None:
        super().__init__(dimensions, smoothing=0.1)
        self.ships = ships
        weight = torch.randn(3, dimensions.width, generator=torch.Generator().manual_seed(1))
        self.register_buffer("drawn", weight, persistent=False)

    def heads(self) -> dict[str, Tensor]:
        return {"teacher.weight": self.drawn, "teacher.bias": torch.ones(3)} if self.ships else {}


def entry(term: Any) -> Any:
    return {"identity": {"weight": 1.0, "start_epoch": 0, "warmup_epochs": 0, "term": term}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(root: Path, losses: Any, **more: Any) -> Any:
    keys = {"student": STUDENT, "folder": "run", "batches": SMALL, "trainer": CPU, "epochs": 1, "loggers": ()}
    return train(RunData(ltcc.read(root), CLOTHES), losses=losses, **keys | more)


def test_a_run_reports_its_feature_and_the_embedding_alone_and_its_model_embeds_by_its_feature(
    ltcc_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(ltcc_root, entry(Taught), ranking=RankingSettings(feature=PARTS))
    results = read_results(Path("run/results.json"))
    assert results == result.results
    assert [dict(one.feature) for one in results.evaluations] == [PARTS.weights, ALONE]
    assert [(one.checkpoint, one.data, one.headline) for one in results.evaluations] == 2 * [
        ("last", "ltcc", "clothes_changing")
    ]
    files = [set(one.per_query.values()) for one in results.evaluations]
    assert not files[0] & files[1]
    assert all(Path("run", file).is_file() for file in files[0] | files[1])
    assert result.headline == results.evaluations[0].results["clothes_changing"]["r1"]
    print_results(results)
    printed = capsys.readouterr().out
    assert "ltcc, last checkpoint (last epoch), by embedding + 3 teacher" in printed
    assert "ltcc, last checkpoint (last epoch), by embedding\n" in printed
    # The scores are those of the features that the model gives, ranked here once more.
    model = clip3dreid.load("run")
    assert model.feature == PARTS
    for one in results.evaluations:
        expected = hits(model, ltcc_root, dict(one.feature))
        found = pl.read_parquet(Path("run", one.per_query["general"])).sort("query")
        assert (found["first_hit"] <= 1).to_list() == expected
    again = evaluate_model("run", RunData(ltcc.read(ltcc_root), CLOTHES), trainer=CPU, batches=SMALL)
    assert again.feature == PARTS
    for scored, one in zip((again.results, again.alone), results.evaluations, strict=True):
        found_map = scored["ltcc"]["general"]["map"]
        assert found_map == pytest.approx(one.results["general"]["map"], abs=1e-9)
    facts = again.to_dict()
    assert facts["feature"] == PARTS.weights
    assert facts["embedding_alone"]["ltcc"] == again.alone["ltcc"]
    json.dumps(facts)
    plain = evaluate_model(
        "run",
        RunData(ltcc.read(ltcc_root), CLOTHES),
        trainer=CPU,
        batches=SMALL,
        ranking=RankingSettings(feature=as_feature("embedding")),
    )
    assert plain.results["ltcc"]["general"]["map"] == again.alone["ltcc"]["general"]["map"]
    assert not plain.alone
    assert "embedding_alone" not in plain.to_dict()


def hits(model: clip3dreid.ReidModel, root: Path, feature: dict[str, float]) -> list[bool]:
    """Whether the nearest picture of another camera is of the person, for each query that has one, by path."""
    manifest = ltcc.read(root)
    test = manifest.part("test")
    query, gallery = (test.filter(pl.col("role") == role) for role in ("query", "gallery"))
    vectors = [
        F.normalize(model.embed([manifest.root / path for path in part["path"]], feature=feature), dim=1)
        for part in (query, gallery)
    ]
    found = {}
    for row, score in zip(query.to_dicts(), (vectors[0] @ vectors[1].T).tolist(), strict=True):
        others = [
            (value, other["person"] == row["person"])
            for value, other in zip(score, gallery.to_dicts(), strict=True)
            if not (other["person"] == row["person"] and other["camera"] == row["camera"])
        ]
        if any(same for _, same in others):
            found[row["path"]] = max(others)[1]
    return [found[path] for path in sorted(found)]


def test_the_default_run_has_one_entry_and_a_card_that_says_embedding(ltcc_root: Path) -> None:
    result = run(ltcc_root, entry(Taught))
    assert [dict(one.feature) for one in result.results.evaluations] == [ALONE]
    assert result.card["feature"] == ALONE
    assert clip3dreid.load("run").widths["embedding"] == 128


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        # Known of the classes, before anything is read …
        (partial(CrossEntropy, smoothing=0.1), ["embedding", "teacher"]),
        (Taught, ["embedding", "betas"]),
        # … and, of what only a built term knows, before anything is trained.
        (partial(Taught, ships=False), ["embedding", "teacher"]),
        (lambda dimensions: CrossEntropy(dimensions, smoothing=0.1), ["embedding", "teacher"]),
    ],
)
def test_a_part_that_no_loss_teaches_is_refused_before_training(
    ltcc_root: Path, term: Any, parts: list[str]
) -> None:
    said = rf"retrieval\.feature=embedding \+ {parts[1]}: a model of these losses does not know {parts[1]}, which"
    with pytest.raises(InputError, match=said) as error:
        run(ltcc_root, entry(term), ranking=RankingSettings(feature=as_feature(parts)))
    assert "\n" not in str(error.value)
    assert not Path("run/checkpoints").exists()


def test_a_command_ends_with_status_2_before_it_trains_and_before_it_evaluates(
    ltcc_root: Path, invoke: Command, tmp_path: Path, saved_model: Path
) -> None:
    where = f"data.root={ltcc_root}"
    done = invoke(
        "train",
        "data=ltcc",
        where,
        *TINY,
        "method=ce",
        "retrieval.feature=[embedding,betas]",
        "hydra.run.dir=r",
    )
    assert done.returncode == 2
    assert "retrieval.feature=embedding + betas: a model of these losses does not know betas" in done.stderr
    assert not (tmp_path / "r" / "checkpoints").exists()
    done = invoke(
        "evaluate", f"checkpoint={saved_model}", "data=ltcc", where, "feature={embedding:1,teacher:2}"
    )
    assert done.returncode == 2
    assert "feature=embedding + 2 teacher: " in done.stderr
    assert "does not know teacher, which loss.global (source=embedding) teaches" in done.stderr
    done = invoke("evaluate", f"checkpoint={saved_model}", "data=ltcc", where, "feature=[nose]")
    assert done.returncode == 2
    assert "feature=nose is unknown; choose embedding, teacher, joint or betas" in done.stderr


def test_evaluate_prints_both_and_writes_both(
    ltcc_root: Path, invoke: Command, tmp_path: Path, saved_model: Path
) -> None:
    done = invoke(
        "evaluate", f"checkpoint={saved_model}", "data=ltcc", f"data.root={ltcc_root}", "trainer=cpu",
        "feature={embedding:1,betas:0.5}", "datamodule.workers=0", "out=o.json", "per_query=q",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ", by embedding + 0.5 betas\n" in done.stdout
    assert ", by embedding\n" in done.stdout
    written = json.loads((tmp_path / "o.json").read_text())
    assert written["feature"] == {"embedding": 1.0, "betas": 0.5}
    assert set(written["embedding_alone"]["ltcc"]) == set(written["results"])
    names = {path.name for path in (tmp_path / "q").iterdir()}
    assert names == {
        f"{before}ltcc_{name}.parquet" for before in ("", "embedding_") for name in written["results"]
    }
