"""Answers of a shape teacher as a guide."""

from types import SimpleNamespace

import numpy as np
import torch

from clip3dreid.guidance.settings import ShapeSettings
from clip3dreid.guidance.shapes import ShapeGuide, of_people, standardised
from clip3dreid.model.embedding_cache import MemoryCache
from clip3dreid.model.shape_teacher import ShapeAnswers, ShapeCard
from clip3dreid.types import ShapeTargets

PERSON = np.array([0, 1, 0, 2, 1, 2, 2])
CARD = ShapeCard(
    learns="betas",
    student={},
    height=4,
    width=2,
    coefficients=(1, 2),
    mean=(10.0, 20.0),
    deviation=(2.0, 4.0),
    rest=(7.0, 10.0, 20.0),
    body={"name": "b", "sha256": "0", "num_betas": 3},
)


def guide(said: torch.Tensor, card: ShapeCard = CARD, **settings: object) -> ShapeTargets:
    teacher = SimpleNamespace(card=card, name="t", fingerprint="f")
    pictures = SimpleNamespace(labels=SimpleNamespace(person=PERSON), table=range(len(PERSON)))
    asked = SimpleNamespace(teacher=teacher, pictures=pictures, cache=MemoryCache(said), lines=())
    given = ShapeGuide(ShapeSettings(**settings), asked, seed=1).prepare()()  # type: ignore[arg-type]
    assert isinstance(given.says, ShapeTargets)
    assert given.facts["shape_teacher"] == {"name": "t", "fingerprint": "f"}
    assert ("body" in given.facts) == bool(card.coefficients)
    return given.says


def answers(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(len(PERSON), 4))).float()


def test_people_are_the_mean_of_their_pictures_by_certainty() -> None:
    # Variances 1 and 1/3: weights 1 and 3.
    said = ShapeAnswers(
        torch.tensor([[4.0], [8.0], [1.0]]), torch.tensor([[0.0], [-np.log(3.0)], [0.5]], dtype=torch.float32)
    )
    found = of_people(said, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(found.value, torch.tensor([[7.0], [1.0]]))
    # The mean weight is 2; more pictures that err alike are no surer.
    torch.testing.assert_close(found.log_variance, torch.tensor([[-np.log(2.0)], [0.5]]).float())


def test_what_never_varies_is_0() -> None:
    values, mean, deviation = standardised(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    assert values.tolist() == [[-1, 0], [1, 0]]
    assert (mean.tolist(), deviation.tolist()) == ([2, 2], [1, 1])


def test_targets_are_standardised_and_lead_back_to_coefficients() -> None:
    said = answers()
    found = guide(said)
    value, variance = said.double().chunk(2, 1)
    weight = (-variance).exp()
    for person in range(3):
        mine = person == PERSON
        mean = (weight[mine] * value[mine]).sum(0) / weight[mine].sum(0)
        beta = torch.tensor([10.0, 20.0]) + mean * torch.tensor([2.0, 4.0])
        again = found.usual[1:] + found.spread[1:] * found.answers[person]
        torch.testing.assert_close(again, beta.float(), rtol=1e-5, atol=1e-5)
    assert (found.usual[0], found.spread[0]) == (7, 0)
    torch.testing.assert_close(found.answers.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.answers.std(0, correction=0), torch.ones(2))
    torch.testing.assert_close(found.certainty.mean(0), torch.ones(2))
    assert (found.by, found.coefficients) == ("person", (1, 2))


def test_pictures_by_themselves_keep_their_own_answers() -> None:
    said = answers()
    found = guide(said, level="image")
    torch.testing.assert_close(found.answers, standardised(said[:, :2])[0])
    assert found.by == "row"


def test_the_control_is_a_derangement_of_people_and_nothing_else() -> None:
    said = answers()
    real, control = guide(said), guide(said, shuffled=True)
    source = torch.cdist(control.answers, real.answers).argmin(1)
    assert sorted(source.tolist()) == [0, 1, 2]
    assert (source != torch.arange(3)).all()
    torch.testing.assert_close(control.answers, real.answers[source])
    torch.testing.assert_close(control.certainty, real.certainty[source])
    torch.testing.assert_close(control.usual, real.usual)
    torch.testing.assert_close(control.spread, real.spread)


def test_an_embedding_is_no_body() -> None:
    card = CARD._replace(learns="identity", coefficients=(), mean=(), deviation=())
    found = guide(answers(), card)
    assert found.coefficients == ()
    assert found.spread.tolist() == [0, 0, 0]
