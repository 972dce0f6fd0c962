import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.loss.shape import ShapeAlignment
from clip3dreid.types import Dimensions, ShapeTargets

from .cases import batch, dimensions, features, gradient_is_right, random_embedding


def targets(**changes) -> ShapeTargets:
    plain = ShapeTargets(
        answers=torch.tensor([[1.0, -1.0], [-1.0, 3.0]]),
        certainty=torch.tensor([[1.0, 0.5], [1.0, 1.5]]),
        by="person",
        coefficients=(1, 3),
        usual=torch.tensor([5.0, 10.0, 6.0, 20.0]),
        spread=torch.tensor([0.0, 2.0, 0.0, 4.0]),
    )
    return plain._replace(**changes)


def told(said: ShapeTargets | None = None, width: int = 2) -> Dimensions:
    return dimensions(width, 2)._replace(guides=(said or targets(),))


def identity_head(term: ShapeAlignment) -> ShapeAlignment:
    with torch.no_grad():
        term.head.weight.copy_(torch.eye(2))
        term.head.bias.zero_()
    return term


def test_the_loss_is_the_mean_squared_error_against_the_persons_answers() -> None:
    term = identity_head(ShapeAlignment(told(), weighting="uniform"))
    # Errors 0 1 and 2 1 and 1 0: squares 0 1 4 1 1 0.
    found = term(features(torch.tensor([[1.0, 0.0], [1.0, 2.0], [2.0, -1.0]])), batch([0, 1, 0]))
    assert found.item() == pytest.approx(7 / 6)


def test_certain_answers_weigh_more() -> None:
    term = identity_head(ShapeAlignment(told(), weighting="certainty"))
    found = term(features(torch.tensor([[1.0, 0.0], [1.0, 2.0]])), batch([0, 1]))
    assert found.item() == pytest.approx((0 + 0.5 * 1 + 1 * 4 + 1.5 * 1) / 4)


def test_answers_of_pictures_go_by_row() -> None:
    said = targets(by="row")
    term = identity_head(ShapeAlignment(told(said), weighting="uniform"))
    rows = batch([0, 0])._replace(row=torch.tensor([1, 0]))
    assert term(features(said.answers[[1, 0]]), rows).item() == 0


def test_what_is_explained_is_1_for_a_head_that_knows_and_0_for_one_that_says_the_mean() -> None:
    term = identity_head(ShapeAlignment(told(), weighting="uniform"))
    term(features(targets().answers), batch([0, 1]))
    assert term.observed["explained"].item() == pytest.approx(1)
    term(features(targets().answers.mean(0).expand(2, 2)), batch([0, 1]))
    assert term.observed["explained"].item() == pytest.approx(0, abs=1e-6)


def test_gradients_are_right() -> None:
    for weighting in ("uniform", "certainty"):
        term = ShapeAlignment(told(width=5), weighting=weighting)
        assert gradient_is_right(term, random_embedding(3, 5), batch([0, 1, 1]))


def test_the_head_is_shipped_as_one_that_gives_coefficients() -> None:
    torch.manual_seed(0)
    term = ShapeAlignment(told(width=3), weighting="uniform")
    shipped, embedding = term.heads(), torch.randn(4, 3)
    found = embedding @ shipped["shape.weight"].T + shipped["shape.bias"]
    answers = term.head(embedding)
    torch.testing.assert_close(found[:, [1, 3]], torch.tensor([10.0, 20]) + answers * torch.tensor([2.0, 4]))
    # What the shape teacher does not say is the same for everybody, and compares nobody.
    torch.testing.assert_close(found[:, [0, 2]], torch.tensor([[5.0, 6]]).expand(4, 2))
    assert shipped["shape.usual"].tolist() == [5, 10, 6, 20]
    assert shipped["shape.spread"].tolist() == [0, 2, 0, 4]


def test_answers_that_are_no_coefficients_ship_nothing_and_leave_no_table_in_a_checkpoint() -> None:
    term = ShapeAlignment(told(targets(coefficients=())), weighting="uniform")
    assert term.heads() == {}
    assert set(term.state_dict()) == {"head.weight", "head.bias"}


def test_an_unknown_weighting_is_named() -> None:
    with pytest.raises(InputError, match=r"weighting=sure is unknown; choose uniform or certainty"):
        ShapeAlignment(told(), weighting="sure")
