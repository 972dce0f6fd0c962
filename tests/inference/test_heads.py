import math

import pytest
import torch

from clip3dreid.inference.heads import CONFIDENCE_TEMPERATURE, describe

GROUPS = {"build": ["slim", "stocky"], "legs": ["short legs", "average legs", "long legs"]}
SCORES = torch.tensor([[1.5, -0.5, 0.2, 0.1, 0.3]])


def test_a_word_is_as_sure_as_its_margin_says() -> None:
    (found,) = describe(SCORES, GROUPS, calibrated=True)
    assert found.confidences()["build"] == pytest.approx(1 / (1 + math.exp(-2 / CONFIDENCE_TEMPERATURE)))
    legs = (torch.tensor([0.2, 0.1, 0.3]) / CONFIDENCE_TEMPERATURE).softmax(0).max()
    assert found.confidences()["legs"] == pytest.approx(float(legs))


def test_it_prints_the_surest_word_first() -> None:
    turned = {"legs": GROUPS["legs"], "build": GROUPS["build"]}
    (found,) = describe(SCORES.flip(1), turned, calibrated=True)
    assert str(found) == "stocky (73%), short legs (35%)"
    (found,) = describe(SCORES, GROUPS, calibrated=True)
    assert str(found) == "slim (73%), long legs (35%)"


def test_cosines_alone_say_nothing_of_how_sure_a_word_is() -> None:
    (found,) = describe(SCORES, GROUPS)
    assert found.confidences() == {}
    assert str(found) == "slim, long legs"
    assert found == {"build": [("slim", 1.5), ("stocky", -0.5)], "legs": found["legs"]}
