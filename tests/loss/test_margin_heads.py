import math

import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.loss.margin_heads import ArcFace, Circle, CosFace

from .cases import (
    batch,
    dimensions,
    features,
    gradient_is_right,
    numeric_gradient,
    on_circle,
    random_embedding,
)

HEADS = [ArcFace, CosFace, Circle]


def weight_of(term) -> torch.nn.Parameter:
    """The head's weights (people, D); the library's CosFace keeps them transposed."""
    (parameter,) = term.parameters()
    return parameter.T if isinstance(term, CosFace) else parameter


def with_rows(term, *degrees: float):
    """The term in double with one row of length 3 (which must not matter) at each angle."""
    term = term.double()
    with torch.no_grad():
        weight_of(term).copy_(3 * on_circle(*degrees))
    return term


def cross_entropy(logits: list[float], own: int) -> float:
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[own]


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_arcface_adds_the_margin_to_the_own_angle():
    term = with_rows(ArcFace(dimensions(2, 3), scale=4.0, margin=math.radians(20)), 0, 90, 200)
    loss = term(features(5 * on_circle(30)), batch([0]))
    by_hand = cross_entropy([4 * cosine(30 + 20), 4 * cosine(60), 4 * cosine(170)], own=0)
    assert loss.item() == pytest.approx(by_hand, rel=1e-9)


def test_arcface_beyond_pi_minus_margin_lowers_the_cosine_instead_of_turning_it_back():
    margin = math.radians(20)
    term = with_rows(ArcFace(dimensions(2, 2), scale=4.0, margin=margin), 0, 90)
    loss = term(features(on_circle(170)), batch([0]))
    by_hand = cross_entropy([4 * (cosine(170) - margin * math.sin(margin)), 4 * cosine(80)], own=0)
    assert loss.item() == pytest.approx(by_hand, rel=1e-9)


def test_arcface_has_a_finite_gradient_on_the_own_row_itself():
    term = ArcFace(dimensions(2, 2), scale=16.0, margin=0.1)
    with torch.no_grad():
        term.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    point = torch.tensor([[2.0, 0.0]], requires_grad=True)
    term(features(point), batch([0])).backward()
    assert torch.isfinite(point.grad).all()
    assert torch.isfinite(term.head.weight.grad).all()


def test_cosface_takes_the_margin_off_the_own_cosine():
    term = with_rows(CosFace(dimensions(2, 3), scale=4.0, margin=0.3), 0, 90, 200)
    loss = term(features(5 * on_circle(30)), batch([1]))
    by_hand = cross_entropy([4 * cosine(30), 4 * (cosine(60) - 0.3), 4 * cosine(170)], own=1)
    assert loss.item() == pytest.approx(by_hand, rel=1e-9)


def test_circle_weighs_each_cosine_by_its_distance_from_the_optimum():
    m, scale = 0.3, 5.0
    term = with_rows(Circle(dimensions(2, 3), scale=scale, margin=m), 0, 90, 200)
    loss = term(features(5 * on_circle(30)), batch([0]))
    own = scale * (1 + m - cosine(30)) * (cosine(30) - (1 - m))
    other = scale * (cosine(60) + m) * (cosine(60) - m)
    # The cosine of 170 degrees is below -m: its weight is cut at 0, and its logit is 0.
    assert loss.item() == pytest.approx(cross_entropy([own, other, 0.0], own=0), rel=1e-9)


@pytest.mark.parametrize("head", [ArcFace, CosFace])
def test_gradient_of_margin_heads(head):
    torch.manual_seed(0)
    term = head(dimensions(4, 3), scale=8.0, margin=0.2)
    assert gradient_is_right(term, random_embedding(5, 4), batch([0, 1, 2, 2, 0]))


def test_gradient_of_the_circle_head_holds_its_weights_fixed():
    torch.manual_seed(0)
    term = Circle(dimensions(4, 3), scale=8.0, margin=0.3).double()
    labels, point = batch([0, 1, 2, 2, 0]), random_embedding(5, 4).requires_grad_()
    own = torch.nn.functional.one_hot(labels.person, 3).bool()

    def cosines(points):
        rows = term.head.weight.detach()
        return (points @ rows.T) / points.norm(dim=1, keepdim=True) / rows.norm(dim=1)

    now = cosines(point.detach())
    factor = torch.where(own, 1.3 - now, now + 0.3).clamp(min=0)

    def frozen(points):
        optimum = 0.3 + 0.4 * own.double()
        logits = 8.0 * factor * (cosines(points) - optimum)
        return (logits.exp().sum(1).log() - logits[own]).mean()

    loss = term(features(point), labels)
    loss.backward()
    assert loss.item() == pytest.approx(frozen(point.detach()).item(), rel=1e-12)
    torch.testing.assert_close(point.grad, numeric_gradient(frozen, point.detach()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("head", HEADS)
def test_margin_heads_start_with_rows_of_length_one(head):
    rows = weight_of(head(dimensions(64, 7), scale=16.0, margin=0.1))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("head", [ArcFace, CosFace])
def test_margin_makes_the_same_features_cost_more(head):
    losses = []
    for margin in (0.0, 0.2):
        torch.manual_seed(0)
        term = head(dimensions(8, 4), scale=16.0, margin=margin)
        losses.append(term(features(random_embedding(6, 8).float()), batch([0, 1, 2, 3, 0, 1])).item())
    assert losses[1] > losses[0] + 0.1


@pytest.mark.parametrize("head", HEADS)
def test_margin_heads_refuse_a_scale_of_zero(head):
    with pytest.raises(InputError, match=f"{head.__name__}: scale=0 must be a number above 0"):
        head(dimensions(2, 2), scale=0, margin=0.1)
