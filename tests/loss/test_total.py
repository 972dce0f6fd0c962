from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from clip3dreid.errors import InputError
from clip3dreid.loss.clothes import ClothesAdversarial
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.loss.pairwise import Contrastive
from clip3dreid.loss.term import Term
from clip3dreid.loss.total import NonFiniteLoss, Total
from clip3dreid.types import Batch, Features

from .cases import batch, dimensions, features, random_embedding

DIMENSIONS = dimensions(width=4, people=2, person_of_clothes=[0, 0, 1, 1])
LABELS = batch([0, 0, 1, 1], [0, 1, 2, 3])
IDENTITY = partial(CrossEntropy, smoothing=0.1)
CLOTHES = partial(ClothesAdversarial, scale=16.0, epsilon=0.1)


def entry(term, weight=1.0, start_epoch=0, warmup_epochs=0):
    return {"term": term, "weight": weight, "start_epoch": start_epoch, "warmup_epochs": warmup_epochs}


class Constant(Term):
    """Gives the values it is told to, whatever the batch."""

    def __init__(self, dimensions, value):
        super().__init__()
        self.value = value

    def forward(self, features: Features, batch: Batch):
        if isinstance(self.value, dict):
            return {name: torch.tensor(value) for name, value in self.value.items()}
        return torch.tensor(self.value)


def never_built(dimensions):
    raise AssertionError("a term of weight 0 was built")


def points() -> torch.Tensor:
    return random_embedding(4, 4).float()


def test_total_is_the_weighted_sum_and_every_part_is_named():
    total = Total(
        {
            "a": entry(partial(Constant, value=2.0), weight=0.5),
            "b": entry(partial(Constant, value={"x": 3.0, "y": 5.0}), weight=2.0),
        },
        DIMENSIONS,
    )
    losses = total(features(points()), LABELS, epoch=0)
    assert losses.total.item() == 0.5 * 2 + 2 * (3 + 5)
    assert {k: v.item() for k, v in losses.raw.items()} == {"a": 2, "b/x": 3, "b/y": 5}
    assert {k: v.item() for k, v in losses.weighted.items()} == {"a": 1, "b/x": 6, "b/y": 10}


def test_total_carries_the_gradient_and_the_parts_do_not():
    total = Total({"identity": entry(IDENTITY, weight=3.0)}, DIMENSIONS)
    losses = total(features(points()), LABELS, epoch=0)
    assert losses.total.requires_grad
    assert not any(part.requires_grad for part in (*losses.raw.values(), *losses.weighted.values()))
    losses.total.backward()
    tripled = total.terms["identity"].head.weight.grad
    alone = torch.autograd.grad(
        total.terms["identity"](features(points()), LABELS), total.terms["identity"].head.weight
    )[0]
    torch.testing.assert_close(tripled, 3 * alone)


def test_a_term_of_weight_zero_is_not_built_and_draws_no_random_number():
    torch.manual_seed(0)
    without = Total({"identity": entry(IDENTITY)}, DIMENSIONS)
    torch.manual_seed(0)
    switched_off = Total(
        {"clothes": entry(CLOTHES, weight=0), "x": entry(never_built, 0.0), "identity": entry(IDENTITY)},
        DIMENSIONS,
    )
    assert list(switched_off.terms) == ["identity"]
    assert torch.equal(without.terms["identity"].head.weight, switched_off.terms["identity"].head.weight)


def test_a_term_of_weight_zero_makes_no_demands_on_the_data():
    unlabelled = dimensions(width=4, people=2)
    assert list(Total({"c": entry(CLOTHES, 0), "i": entry(IDENTITY)}, unlabelled).terms) == ["i"]
    with pytest.raises(InputError, match="needs clothes labels"):
        Total({"c": entry(CLOTHES), "i": entry(IDENTITY)}, unlabelled)


def test_before_its_start_epoch_a_head_is_moved_by_nothing_not_even_weight_decay():
    total = Total({"identity": entry(IDENTITY), "clothes": entry(CLOTHES, start_epoch=2)}, DIMENSIONS)
    optimizer = torch.optim.Adam(total.parameters(), lr=0.1, weight_decay=0.5)
    head = total.terms["clothes"].head.weight
    start = head.detach().clone()
    for epoch in range(3):
        losses = total(features(points()), LABELS, epoch)
        assert any(name.startswith("clothes/") for name in losses.raw) == (epoch == 2)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        assert torch.equal(head, start) == (epoch < 2)


def test_unscheduled_parameters_are_those_the_terms_declare():
    total = Total({"identity": entry(IDENTITY), "clothes": entry(CLOTHES)}, DIMENSIONS)
    assert [id(p) for p in total.unscheduled_parameters()] == [id(total.terms["clothes"].head.weight)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_and_the_others_are_not(value):
    total = Total(
        {
            "identity": entry(IDENTITY),
            "odd": entry(partial(Constant, value={"good": 1.0, "bad": value})),
        },
        DIMENSIONS,
    )
    with pytest.raises(NonFiniteLoss, match=r"odd/bad") as caught:
        total(features(points()), LABELS, epoch=0)
    assert "identity" not in str(caught.value)
    assert "good" not in str(caught.value)


def test_a_sum_that_overflows_is_reported_though_every_part_is_finite():
    total = Total({"big": entry(partial(Constant, value=3e38), weight=10.0)}, DIMENSIONS)
    with pytest.raises(NonFiniteLoss, match="overflow"):
        total(features(points()), LABELS, epoch=0)


def test_losses_are_computed_in_float32_inside_autocast():
    # Cosines near 1, which bfloat16 holds to two digits: a softmax of scale 16 would be off by a tenth.
    embedding = (1 + 0.05 * points()).bfloat16()
    terms = {
        "identity": entry(IDENTITY),
        "clothes": entry(CLOTHES),
        "pairs": entry(partial(Contrastive, scale=16.0)),
    }
    total = Total(terms, DIMENSIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = total(features(embedding), LABELS, epoch=0)
    outside = total(features(embedding.float()), LABELS, epoch=0)
    assert inside.total.dtype == torch.float32
    assert inside.total.item() == outside.total.item()


def test_entries_may_come_as_hydra_config_nodes():
    node = OmegaConf.create({"identity": {"weight": 1, "start_epoch": 0}}, flags={"allow_objects": True})
    node.identity.term = IDENTITY
    total = Total(node, DIMENSIONS)
    assert total.weights == {"identity": 1.0}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "no loss has a weight above 0"),
        ({"i": entry(IDENTITY, weight=0)}, "no loss has a weight above 0"),
        ({"i": entry(IDENTITY, weight=-1)}, r"loss\.i\.weight is -1"),
        ({"i": entry(IDENTITY, weight=float("nan"))}, r"loss\.i\.weight is nan"),
        ({"i": entry(IDENTITY, weight="much")}, r"loss\.i\.weight is much"),
        ({"i": entry(IDENTITY, start_epoch=-1)}, r"loss\.i\.start_epoch is -1"),
        ({"i": entry(IDENTITY, start_epoch=1)}, "no loss takes part from epoch 0"),
        ({"i": entry(partial(IDENTITY, smothing=0.1))}, r"loss\.i\.term: .*smothing"),
        ({"i": entry(partial(CrossEntropy))}, r"loss\.i\.term: .*smoothing"),
        ({"i": {"weight": 1.0, "term": IDENTITY}}, r"loss\.i .*missing or unknown: start_epoch"),
        ({"i": {**entry(IDENTITY), "wieght": 2.0}}, r"loss\.i .*missing or unknown: wieght"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line_that_names_it(terms, message):
    with pytest.raises(InputError, match=message) as caught:
        Total(terms, DIMENSIONS)
    assert "\n" not in str(caught.value)


def test_heads_are_parameters_of_the_total():
    total = Total({"identity": entry(IDENTITY), "clothes": entry(CLOTHES)}, DIMENSIONS)
    assert sorted(name for name, _ in total.named_parameters()) == [
        "terms.clothes.head.weight",
        "terms.identity.head.bias",
        "terms.identity.head.weight",
    ]
    assert isinstance(total, nn.Module)
