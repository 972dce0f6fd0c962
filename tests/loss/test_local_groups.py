import numpy as np
import ot
import pytest
import torch
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.loss.local_groups import LocalGroups, members
from clip3dreid.loss.transport import Sinkhorn, Transport
from clip3dreid.types import Features, TextTargets

from .cases import batch, dimensions, random_embedding

PLAIN = {
    "pool": "mean",
    "positions": "uniform",
    "tokens": "uniform",
    "temperature": 0.5,
    "topic_weight": 1.0,
}
SIZES = (2, 3)
WORDS = F.normalize(random_embedding(5, 4, seed=1) + 1, dim=1)
INDEX = [[0, 3], [1, 4], [1, -1]]
SURE = [[1.0, 3], [2, 0], [4, 7]]


def chosen(words=WORDS, index=INDEX, *, confidence=None, solver=None, by="person", sizes=SIZES, **options):
    """The term in double, whose projection leaves maps as they are."""
    index = torch.tensor(index)
    sure = torch.ones(index.shape) if confidence is None else torch.tensor(confidence)
    told = TextTargets(words, index, sure, by, words, sizes)
    at = dimensions(words.shape[1], len(index))._replace(guides=(told,))
    solver = solver or Sinkhorn(eps=0.1, iterations=2000, tolerance=1e-10)
    term = LocalGroups(at, solver=solver, **{**PLAIN, **options}).double()
    with torch.no_grad():
        term.head.weight.copy_(torch.eye(words.shape[1])[:, :, None, None])
        term.head.bias.zero_()
    return term


def random_pictures(count, seed=2) -> Features:
    maps = random_embedding(count, 24, seed=seed).view(count, 4, 2, 3)
    return Features(map=maps, pooled=torch.empty(0), embedding=torch.empty(0))


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def by_numpy(features, owner, pool, weights, *, eps=0.1, temperature=0.5):
    """Choice and topics by NumPy and POT, picture by picture and group by group."""
    words = WORDS.numpy()
    groups = [words[:2], words[2:]]
    topics = unit(np.stack([group.mean(0) - words.mean(0) for group in groups]))
    choices, costs = [], []
    for picture, own in zip(features.map.numpy(), owner, strict=True):
        x = picture.reshape(len(picture), -1).T
        cost = 1 - unit(x) @ topics.T
        plan = ot.sinkhorn(
            np.full(len(x), 1 / len(x)), [0.5, 0.5], cost, eps, method="sinkhorn_log",
            numItermax=20000, stopThr=1e-12,
        )  # fmt: skip
        costs.append((plan * cost).sum())
        choice, total = 0.0, 0.0
        for slot, token in enumerate(INDEX[own]):
            if token < 0:
                continue
            feature = x.mean(0) if pool == "mean" else np.average(x, axis=0, weights=plan[:, slot])
            logits = unit(groups[slot] - groups[slot].mean(0)) @ unit(feature) / temperature
            place = token - (0, 2)[slot]
            choice += weights[own][slot] * (np.log(np.exp(logits).sum()) - logits[place])
            total += weights[own][slot]
        choices.append(choice / total)
    return np.mean(choices), np.mean(costs)


@pytest.mark.parametrize("tokens", ["uniform", "margin"])
@pytest.mark.parametrize("pool", ["mean", "plan"])
def test_loss_is_that_of_pot_and_numpy(pool, tokens):
    owner = [0, 1, 2, 0]
    term = chosen(confidence=SURE, pool=pool, tokens=tokens, topic_weight=3)
    features = random_pictures(4)
    weights = SURE if tokens == "margin" else np.ones((3, 2))
    choice, cost = by_numpy(features, owner, pool, weights)
    parts = term(features, batch(owner))
    assert parts["choice"].item() == pytest.approx(choice, rel=1e-6)
    assert set(parts) == ({"choice"} if pool == "mean" else {"choice", "topics"})
    if pool == "plan":
        assert parts["topics"].item() == pytest.approx(3 * cost, rel=1e-6)


def test_the_plan_looks_at_no_one_s_words_and_has_the_map_s_shape():
    features = random_pictures(3)
    plans = [
        chosen(index=index, pool="plan").plan(features, batch([0, 1, 2])) for index in (INDEX, INDEX[::-1])
    ]
    assert torch.equal(*plans)
    assert plans[0].shape == (3, 2, 3, 2)
    assert not plans[0].requires_grad
    torch.testing.assert_close(plans[0].sum((1, 2)), torch.full((3, 2), 0.5).double())
    torch.testing.assert_close(plans[0].sum(3), torch.full((3, 2, 3), 1 / 6).double())


def test_a_worked_choice_between_opposites():
    # Two groups of opposites on four axes; the only position lies 60 degrees from the first word's direction.
    words = torch.tensor([[2.0, 0, 1, 0], [0, 2, 1, 0], [0, 0, 3, 2], [0, 0, 3, -2]]).double()
    words = words / words.norm(dim=1, keepdim=True)
    direction = (words[0] - words[1]) / (words[0] - words[1]).norm()
    aside = torch.tensor([0.0, 0, 0, 1]).double()
    position = 0.5 * direction + 0.75**0.5 * aside
    features = Features((9 * position).view(1, 4, 1, 1), torch.empty(0), torch.empty(0))
    term = chosen(words, [[0, 3]], sizes=(2, 2), confidence=[[3.0, 1.0]], tokens="margin")
    first = np.log(1 + np.exp(-2 * 0.5 / 0.5))
    second = np.log(1 + np.exp(2 * 0.75**0.5 / 0.5))
    loss = term(features, batch([0]))["choice"]
    assert loss.item() == pytest.approx((3 * first + second) / 4, rel=1e-6)
    # The first group's word is chosen as told, the second's is not.
    assert term.observed["right_word"].item() == 0.5


def test_a_group_that_someone_has_no_word_of_counts_nothing():
    told = chosen(confidence=SURE, tokens="margin")
    other = chosen(index=[[0, 3], [1, 4], [1, -1]], confidence=[[1.0, 3], [2, 0], [4, 99]], tokens="margin")
    features = random_pictures(2)
    losses = [term(features, batch([2, 2]))["choice"].item() for term in (told, other)]
    assert losses[0] == losses[1]


def test_exchanged_words_change_the_loss_and_words_of_rows_go_by_row():
    features = random_pictures(3)
    right, wrong = chosen(), chosen(index=INDEX[1:] + INDEX[:1])
    losses = [term(features, batch([0, 1, 2]))["choice"].item() for term in (right, wrong)]
    assert abs(losses[0] - losses[1]) > 0.01
    labels = batch([0, 0, 0])._replace(row=torch.tensor([1, 2, 0]))
    assert chosen(by="row")(features, labels)["choice"].item() == pytest.approx(losses[1], rel=1e-9)


def test_it_learns_the_words():
    quick = Sinkhorn(eps=0.1, iterations=20, tolerance=0)
    term = chosen(pool="plan", temperature=0.1, solver=quick)
    features, labels = random_pictures(6), batch([0, 0, 1, 1, 2, 2])
    step = torch.optim.SGD(term.parameters(), lr=0.3)
    first = sum(term(features, labels).values()).item()
    for _ in range(200):
        step.zero_grad()
        sum(term(features, labels).values()).backward()
        step.step()
    assert sum(term(features, labels).values()).item() < 0.7 * first
    assert term.observed["right_word"].item() > 0.8


@pytest.mark.parametrize("pool", ["mean", "plan"])
def test_gradient_with_the_plan_held_fixed(pool):
    term = chosen(pool=pool, confidence=SURE, tokens="margin")
    features, labels = random_pictures(3), batch([0, 1, 2])
    plan = term._transport(features.map, term._projected(features.map)).plan
    term.solver = lambda x, y, a, b: Transport((plan * (1 - x @ y.mT)).sum((1, 2)), plan)
    names = [name for name, _ in term.named_parameters()]

    def loss(maps, *parameters):
        filled = dict(zip(names, parameters, strict=True))
        return sum(torch.func.functional_call(term, filled, (features._replace(map=maps), labels)).values())

    inputs = [features.map, *(parameter.detach() for parameter in term.parameters())]
    assert torch.autograd.gradcheck(loss, [values.clone().requires_grad_() for values in inputs])


def test_members_are_words_in_the_order_of_their_groups():
    assert members((2, 3, 2)).tolist() == [[0, 1, -1], [2, 3, 4], [5, 6, -1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "best"}, "LocalGroups: pool=best is unknown; choose plan or mean"),
        ({"positions": "norm"}, "LocalGroups: positions=norm is unknown"),
        ({"tokens": "sure"}, "LocalGroups: tokens=sure is unknown"),
        ({"temperature": 0}, "LocalGroups: temperature=0 must be a number above 0"),
        ({"topic_weight": -1}, "LocalGroups: topic_weight=-1 must be a number, 0 or more"),
        (
            {"sizes": ()},
            "LocalGroups looks at words within their group, and the groups of 5 words are not known",
        ),
    ],
)
def test_options_that_will_not_do_are_refused(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        chosen(**options)
