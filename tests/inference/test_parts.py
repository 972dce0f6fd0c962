"""Which parts a feature is made of: however it is given, and what is refused."""

import re
import subprocess
import sys
from typing import Any

import pytest

from clip3dreid.errors import InputError
from clip3dreid.inference.parts import EMBEDDING, Feature, as_feature, feature_of


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ("betas", {"betas": 1.0}),
        (["betas", "embedding"], {"embedding": 1.0, "betas": 1.0}),
        (("embedding", "joint", "teacher"), {"embedding": 1.0, "teacher": 1.0, "joint": 1.0}),
        ({"betas": 0.5, "embedding": 1}, {"embedding": 1.0, "betas": 0.5}),
        ({"embedding": 1, "betas": 0, "joint": 2}, {"embedding": 1.0, "joint": 2.0}),
        # Alone a part has nothing to be weighed against.
        ({"embedding": 0.3, "betas": 0}, {"embedding": 1.0}),
    ],
)
def test_a_feature_is_the_same_however_it_is_given(given: Any, weights: dict[str, float]) -> None:
    found = as_feature(given)
    assert list(found.weights.items()) == list(weights.items())
    assert found == as_feature(weights) == as_feature(found)
    assert hash(found) == hash(as_feature(weights))


def test_a_feature_says_what_it_is_in_words() -> None:
    assert str(EMBEDDING) == "embedding"
    assert (
        str(as_feature({"betas": 0.5, "embedding": 1, "teacher": 2})) == "embedding + 2 teacher + 0.5 betas"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["embeding"],
            "retrieval.feature=embeding is unknown; choose embedding, teacher, joint or betas; did you mean",
        ),
        ([], "retrieval.feature has no part with a weight above 0; give one of embedding"),
        ({"embedding": 0}, "has no part with a weight above 0"),
        ({"embedding": -1}, "retrieval.feature.embedding=-1 must be a number, 0 or more"),
        ({"embedding": "much"}, "retrieval.feature.embedding=much must be a number"),
        ({"embedding": True}, "retrieval.feature.embedding=true must be a number"),
        ({"embedding": float("nan")}, "must be a number"),
        (["betas", "betas"], "retrieval.feature names a part twice; give it once, with a weight: {betas: 2}"),
        (
            3,
            "retrieval.feature=3 must name parts: [embedding,betas], or with weights {embedding: 1, betas: 0.5}",
        ),
        ([["embedding"]], "is unknown; choose"),
        ({1: 1}, "retrieval.feature=1 is unknown"),
    ],
)
def test_what_is_no_feature_is_refused_in_a_line(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as error:
        as_feature(given, "retrieval.feature")
    assert "\n" not in str(error.value)


def test_a_part_needs_the_head_that_makes_it() -> None:
    every = Feature((("embedding", 1.0), ("teacher", 1.0), ("joint", 1.0), ("betas", 1.0)))
    every.check_learnt(["teacher.weight", "joint.weight", "shape.weight"], "runs/a")
    EMBEDDING.check_learnt([], "runs/a")
    with pytest.raises(
        InputError,
        match=r"feature=embedding \+ teacher \+ joint \+ betas: runs/a does not know joint, which loss.local "
        r"\(projection=student\) teaches; leave joint out",
    ):
        every.check_learnt(["teacher.weight", "shape.weight"], "runs/a")


def test_files_from_before_there_were_parts_hold_the_embedding_and_wrong_ones_are_named() -> None:
    assert feature_of({}, "a.ckpt") == EMBEDDING
    assert feature_of({"feature": {"embedding": 1, "betas": 0.5}}, "a").weights == {
        "embedding": 1,
        "betas": 0.5,
    }
    with pytest.raises(InputError, match=r"a\.ckpt: its feature=7 must name parts"):
        feature_of({"feature": 7}, "a.ckpt")


def test_settings_know_features_without_torch() -> None:
    code = (
        "import sys, clip3dreid.training.settings, clip3dreid.search.settings, clip3dreid.export.settings\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
