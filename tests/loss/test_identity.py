import math

import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.loss.identity import CrossEntropy

from .cases import batch, dimensions, features, gradient_is_right, random_embedding


def filled(smoothing: float) -> CrossEntropy:
    """Logits of (1, 0): 1 for person 0, 2 for person 1 and 0 for person 2."""
    term = CrossEntropy(dimensions(width=2, people=3), smoothing=smoothing)
    with torch.no_grad():
        term.head.weight.copy_(torch.tensor([[0.0, 9.0], [2.0, 9.0], [0.0, 9.0]]))
        term.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    return term


POINT = torch.tensor([[1.0, 0.0]])
LOG_SUM = math.log(math.e + math.e**2 + 1)


def test_smoothed_target_is_one_minus_epsilon_plus_epsilon_over_people():
    loss = filled(0.1)(features(POINT), batch([1]))
    by_hand = LOG_SUM - (0.9 * 2 + 0.1 / 3 * (1 + 2 + 0))
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_without_smoothing_only_the_own_person_counts():
    assert filled(0.0)(features(POINT), batch([1])).item() == pytest.approx(LOG_SUM - 2, rel=1e-6)


def test_full_smoothing_asks_for_all_people_alike():
    losses = [filled(1.0)(features(POINT), batch([person])).item() for person in range(3)]
    assert losses == pytest.approx([LOG_SUM - 1] * 3, rel=1e-6)


def test_head_starts_near_zero_with_a_bias_so_that_the_first_loss_is_log_people():
    term = CrossEntropy(dimensions(width=512, people=40), smoothing=0.1)
    assert term.head.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert torch.count_nonzero(term.head.bias) == 0
    points = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    loss = term(features(points), batch(range(8)))
    assert loss.item() == pytest.approx(math.log(40), abs=0.05)


def test_gradient_of_cross_entropy():
    term = CrossEntropy(dimensions(width=4, people=3), smoothing=0.1)
    assert gradient_is_right(term, random_embedding(5, 4), batch([0, 1, 2, 2, 0]))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_smoothing_outside_0_to_1_is_refused(smoothing):
    with pytest.raises(InputError, match=r"smoothing=.* must be a number from 0 to 1$"):
        CrossEntropy(dimensions(2, 2), smoothing=smoothing)
