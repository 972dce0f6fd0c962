"""A recipe of the command line as arguments of calls, by the names that the command line has."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

import clip3dreid
from clip3dreid.data.datasets import ltcc
from clip3dreid.errors import InputError
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.report.results import read_results
from clip3dreid.retrieval.standard import CLOTHES
from clip3dreid.training.data import RunData
from clip3dreid.training.run import train
from tests.conftest import Command

SMALL = {
    "model.student.backbone.width": 8,
    "datamodule.height": 32,
    "datamodule.width": 16,
    "datamodule.people": 4,
    "datamodule.pictures": 2,
    "datamodule.workers": 0,
    "datamodule.evaluation_batch": 16,
    "channels_last": False,
}
"""Makes the demo's recipe small enough for a test."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_a_call_with_a_recipe_trains_what_the_command_trains(ltcc_root: Path, invoke: Command) -> None:
    keys = [f"{key}={typed(value)}" for key, value in SMALL.items()]
    place = ["data=embedded", f"data.root={ltcc_root}", "hydra.run.dir=commanded"]
    done = invoke("train", "+experiment=demo", *place, "epochs=1", "seed=3", *keys)
    assert done.returncode == 0, done.stderr
    data = RunData(ltcc.read(ltcc_root, name="embedded"), CLOTHES)
    recipe = clip3dreid.recipe("demo", epochs=1, seed=3, options=SMALL)
    called = train(data, folder="called", **recipe.arguments)
    commanded = read_results(Path("commanded/results.json"))
    assert called.results is not None
    # The full method, its parts guided by the shipped teachers: equal to the last digit.
    assert commanded.variant == called.results.variant == "identity+local+global+shape"
    assert [one.results for one in called.results.evaluations] == [
        one.results for one in commanded.evaluations
    ]


def test_names_and_keys_mean_what_they_mean_on_the_command_line() -> None:
    base = clip3dreid.recipe("demo")
    assert list(base.losses) == ["identity", "local", "global", "shape"]
    assert (base.settings.epochs, base.settings.seed) == (50, 1)
    other = clip3dreid.recipe(
        "demo",
        method="ce",
        epochs=3,
        seed=7,
        options={"lr": 0.5, "variant": "null", "milestones": [1, 2], "retrieval.flip": False},
    )
    assert list(other.losses) == ["identity"]
    assert (other.settings.epochs, other.settings.seed) == (3, 7)
    # A text stays one, whatever a command line would read in it.
    assert other.settings.variant == "null"
    assert other.optimizer.keywords["lr"] == 0.5  # type: ignore[attr-defined]
    assert other.ranking.flip is False
    assert [round(other.schedule(epoch), 9) for epoch in range(3)] == [1.0, 0.1, 0.01]
    assert clip3dreid.recipe("demo", options={"loss": ["identity", "triplet"]}).losses.keys() == {
        "identity",
        "triplet",
    }
    paper = clip3dreid.recipe("ltcc", options={"recipe": "clip3dreid_release"})
    assert list(paper.losses) == ["local", "global"]


def test_teachers_and_words_are_made_when_they_are_asked_for() -> None:
    recipe = clip3dreid.recipe("demo")
    assert recipe.teacher().name == "body_clip"
    assert recipe.shape_teacher().name == "body_shape"
    # A rendered world hands it to its workers.
    words = pickle.loads(pickle.dumps(recipe.vocabulary))()  # noqa: S301
    assert isinstance(words, Vocabulary)
    assert words.digest == recipe.vocabulary().digest
    assert not {"teacher", "shape_teacher", "vocabulary"} & recipe.arguments.keys()


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"experiment": "dmeo"}, "demo"),
        ({"method": "clip3dried"}, "clip3dreid"),
        ({"epochs": 0}, "epochs"),
        ({"options": {"datamodule.hieght": 3}}, "did you mean datamodule.height"),
        ({"options": {"datamodule.height": "high"}}, "datamodule.height"),
        ({"options": {"data.root": "/data"}}, "data.root is no part of a recipe"),
        ({"options": {"callbacks": None}}, "callbacks is no part of a recipe"),
        ({"options": {"lr": object()}}, "lr=<object object .* is no plain value"),
        ({"options": {"model.student._target_": "os.system"}}, "not trusted"),
    ],
)
def test_what_there_is_not_is_refused_in_a_line(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line) as refused:
        clip3dreid.recipe(**{"experiment": "demo"} | keys)
    assert "\n" not in str(refused.value)


def test_the_program_that_asks_finds_hydra_as_it_was() -> None:
    GlobalHydra.instance().clear()
    clip3dreid.recipe("demo")
    assert not GlobalHydra.instance().is_initialized()
