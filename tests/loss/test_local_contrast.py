import math

import numpy as np
import ot
import pytest
import torch
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.loss.local_contrast import LocalContrast, descriptions
from clip3dreid.loss.transport import Sinkhorn, Transport
from clip3dreid.types import Features, TextTargets

from .cases import batch, dimensions, on_circle, random_embedding

PLAIN = {
    "centre": "none",
    "positions": "uniform",
    "tokens": "uniform",
    "temperature": 0.1,
    "learn_temperature": False,
}


def contrasted(words, index, *, confidence=None, solver=None, by="person", sizes=(), **options):
    """The term in double, whose projection leaves maps as they are."""
    index = torch.tensor(index)
    sure = torch.ones(index.shape) if confidence is None else torch.tensor(confidence)
    told = TextTargets(words, index, sure, by, words, sizes)
    at = dimensions(words.shape[1], len(index))._replace(guides=(told,))
    solver = solver or Sinkhorn(eps=0.1, iterations=2000, tolerance=1e-10)
    term = LocalContrast(at, solver=solver, **{**PLAIN, **options}).double()
    with torch.no_grad():
        term.head.weight.copy_(torch.eye(words.shape[1])[:, :, None, None])
        term.head.bias.zero_()
    return term


def pictures(*positions) -> Features:
    """Features of one picture per argument, whose rows (N, C) are the positions."""
    maps = torch.stack(positions).mT.unflatten(2, (1, -1))
    return Features(map=maps, pooled=torch.empty(0), embedding=torch.empty(0))


def random_pictures(count, channels=4, seed=2) -> Features:
    maps = random_embedding(count, 6 * channels, seed=seed).view(count, channels, 2, 3)
    return Features(map=maps, pooled=torch.empty(0), embedding=torch.empty(0))


VOCABULARY = F.normalize(random_embedding(6, 4, seed=1), dim=1)
INDEX = [[0, 2, 4], [1, 3, 4], [5, 3, -1]]
SURE = [[1.0, 2, 3], [2, 0.5, 1], [4, 1, 7]]


def by_pot(features, owner, words, index, weights, centre, eps, temperature):
    """The loss by NumPy and POT, picture by picture and description by description."""
    words = words.numpy()
    mean = {"none": np.zeros((len(words), 1)), "vocabulary": words.mean(0, keepdims=True)}.get(centre)
    if mean is None:
        mean = np.concatenate(
            [words[:3].mean(0, keepdims=True).repeat(3, 0), words[3:].mean(0)[None].repeat(3, 0)]
        )
    directions = words - mean
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    present = sorted(set(owner))
    losses = []
    for picture, own in zip(features.map.numpy(), owner, strict=True):
        x = picture.reshape(len(picture), -1).T
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        costs = []
        for person in present:
            there = [slot for slot, token in enumerate(index[person]) if token >= 0]
            y = directions[[index[person][slot] for slot in there]]
            b = np.array([weights[person][slot] for slot in there], float)
            cost = 1 - x @ y.T
            plan = ot.sinkhorn(
                np.full(len(x), 1 / len(x)), b / b.sum(), cost, eps, method="sinkhorn_log",
                numItermax=20000, stopThr=1e-12,
            )  # fmt: skip
            costs.append((plan * cost).sum())
        logits = -np.array(costs) / temperature
        losses.append(np.log(np.exp(logits).sum()) - logits[present.index(own)])
    return np.mean(losses)


@pytest.mark.parametrize("centre", ["none", "vocabulary", "group"])
@pytest.mark.parametrize("tokens", ["uniform", "margin"])
def test_loss_is_that_of_pot_and_numpy(centre, tokens):
    owner = [0, 1, 0, 2]
    term = contrasted(VOCABULARY, INDEX, confidence=SURE, centre=centre, tokens=tokens, sizes=(3, 3))
    features = random_pictures(4)
    weights = SURE if tokens == "margin" else np.ones((3, 3))
    expected = by_pot(features, owner, VOCABULARY, INDEX, weights, centre, eps=0.1, temperature=0.1)
    assert term(features, batch(owner)).item() == pytest.approx(expected, rel=1e-6)


def test_one_token_and_one_position_make_it_the_cross_entropy_of_cosines():
    # Pictures at 0 and 60 degrees, words at 0, 90 and 180, the last of nobody in the batch.
    term = contrasted(on_circle(0, 90, 180), [[0], [1], [2]], temperature=0.5)
    loss = term(pictures(on_circle(0), 7 * on_circle(60)), batch([0, 1]))
    cosines = np.array([[1, 0], [0.5, 3**0.5 / 2]]) / 0.5
    by_hand = np.log(np.exp(cosines).sum(1)) - cosines[[0, 1], [0, 1]]
    assert loss.item() == pytest.approx(by_hand.mean(), rel=1e-6)
    assert term.observed["own_description"].item() == 1
    assert term.observed["temperature"].item() == pytest.approx(0.5)


def test_people_with_the_same_words_are_no_negatives_of_each_other():
    words = on_circle(0, 90, 180)
    seen = pictures(on_circle(10, 80), on_circle(20, 70), on_circle(100, 170))
    shared = contrasted(words, [[0, 1], [1, 0], [1, 2]])
    alone = contrasted(words, [[0, 1], [1, 2]])
    assert shared(seen, batch([0, 1, 2])).item() == pytest.approx(
        alone(seen, batch([0, 0, 1])).item(), rel=1e-9
    )
    # Everybody has the same words: nothing is to be told apart.
    assert shared(pictures(on_circle(10, 80), on_circle(100, 9)), batch([0, 1])).item() == 0


def test_descriptions_are_sets_whose_tokens_keep_their_confidence():
    tokens = torch.tensor([[3, 1, -1], [1, 2, 3], [1, -1, 3]])
    confidence = torch.tensor([[0.5, 0.1, 9], [1, 2, 3], [0.3, 9, 0.9]])
    found = descriptions(tokens, confidence)
    rows = [found.tokens[row].tolist() for row in found.which]
    assert rows == [[-1, 1, 3], [1, 2, 3], [-1, 1, 3]]
    # Means over the two who are alike, of tokens 1 and 3.
    assert found.confidence[found.which[0]].tolist() == pytest.approx([9, (0.1 + 0.3) / 2, (0.5 + 0.9) / 2])
    assert found.confidence[found.which[1]].tolist() == [1, 2, 3]


def test_exchanged_words_change_the_loss_and_words_of_rows_go_by_row():
    right = contrasted(VOCABULARY, INDEX)
    wrong = contrasted(VOCABULARY, INDEX[1:] + INDEX[:1])
    features = random_pictures(3)
    losses = [term(features, batch([0, 1, 2])).item() for term in (right, wrong)]
    assert abs(losses[0] - losses[1]) > 0.01
    rows = contrasted(VOCABULARY, INDEX, by="row")
    labels = batch([0, 0, 0])._replace(row=torch.tensor([1, 2, 0]))
    assert rows(features, labels).item() == pytest.approx(wrong(features, batch([0, 1, 2])).item(), rel=1e-9)


def test_the_plan_is_that_to_the_own_words_in_the_order_in_which_they_are_told():
    term = contrasted(on_circle(0, 90), [[1, 0], [0, -1]])
    plan = term.plan(pictures(on_circle(0, 90), on_circle(0, 90)), batch([0, 1]))
    other = 0.5 / (1 + math.e**10)
    expected = torch.tensor([[[other, 0.5 - other], [0.5 - other, other]], [[0.5, 0], [0.5, 0]]])
    torch.testing.assert_close(plan, expected.double()[:, None])
    assert not plan.requires_grad


def test_it_learns_whose_words_they_are():
    quick = Sinkhorn(eps=0.1, iterations=20, tolerance=0)
    term = contrasted(VOCABULARY, INDEX, solver=quick, learn_temperature=True)
    features, labels = random_pictures(6), batch([0, 0, 1, 1, 2, 2])
    step = torch.optim.SGD(term.parameters(), lr=0.5)
    for _ in range(60):
        step.zero_grad()
        loss = term(features, labels)
        loss.backward()
        step.step()
    assert loss.item() < 0.5 * math.log(3)
    assert term.observed["own_description"].item() > 0.8


def test_a_learnt_temperature_moves_and_stays_above_its_bound():
    term = contrasted(VOCABULARY, INDEX, learn_temperature=True, temperature=0.05)
    assert term.temperature.item() == pytest.approx(0.05)
    term(random_pictures(3), batch([0, 1, 2])).backward()
    assert term.excess.grad.item() != 0
    with torch.no_grad():
        term.excess.fill_(-50)
    assert term.temperature.item() == pytest.approx(0.01)
    fixed = contrasted(VOCABULARY, INDEX)
    assert [name for name, _ in fixed.named_parameters()] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("learn", [False, True])
def test_gradient_with_the_plans_held_fixed(learn):
    plans = []

    def remembered(x, y, a, b):
        plans.append(Sinkhorn(eps=0.1, iterations=100, tolerance=0)(x, y, a, b).plan)
        return replay(len(plans) - 1)(x, y, a, b)

    def replay(number):
        return lambda x, y, a, b: Transport(
            (plans[number % 3] * (1 - x @ y.mT)).sum((1, 2)), plans[number % 3]
        )

    term = contrasted(VOCABULARY, INDEX, solver=remembered, learn_temperature=learn)
    features, labels = random_pictures(4), batch([0, 1, 0, 2])
    term(features, labels)
    assert len(plans) == 3
    calls = iter(range(10**6))
    term.solver = lambda x, y, a, b: replay(next(calls))(x, y, a, b)
    names = [name for name, _ in term.named_parameters()]

    def loss(maps, *parameters):
        filled = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(term, filled, (features._replace(map=maps), labels))

    inputs = [features.map, *(parameter.detach() for parameter in term.parameters())]
    assert torch.autograd.gradcheck(loss, [values.clone().requires_grad_() for values in inputs])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "norm"}, "positions=norm is unknown"),
        ({"tokens": "sure"}, "tokens=sure is unknown"),
        ({"centre": "words"}, "centre=words is unknown; choose vocabulary, group or none"),
        ({"temperature": 0}, "temperature=0 must be a number above 0$"),
        (
            {"temperature": 0.01, "learn_temperature": True},
            r"temperature=0\.01 must be a number above 0\.01$",
        ),
    ],
)
def test_options_that_will_not_do_are_refused(options, message):
    with pytest.raises(InputError, match=f"^LocalContrast: {message}"):
        contrasted(VOCABULARY, INDEX, **options)
