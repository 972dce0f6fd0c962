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
from clip3dreid.loss.weighted import Losses, WeightedLosses, needs, not_finite
from clip3dreid.types import Batch, BodyBatch, BodySpace, Features, TeacherSpace, TextTargets

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

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None):
        if isinstance(self.value, dict):
            return {name: torch.tensor(value) for name, value in self.value.items()}
        return torch.tensor(self.value)


class Guided(Constant):
    """Needs something, ships a tensor and measures another on the way."""

    needs = frozenset({TeacherSpace, BodySpace})

    def __init__(self, dimensions, value=1.0, name="joint.weight"):
        super().__init__(dimensions, value)
        self.head = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.name = name
        self.connected = []

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None):
        self.observed["spread"] = 7 * self.head.sum()
        return super().forward(features, batch)

    def connect(self, others):
        self.connected.append(dict(others))

    def heads(self):
        return {self.name: self.head}


class Worded(Guided):
    needs = frozenset({TextTargets, TeacherSpace})


def never_built(dimensions):
    raise AssertionError("a term of weight 0 was built")


def points() -> torch.Tensor:
    return random_embedding(4, 4).float()


def test_total_is_the_weighted_sum_and_every_part_is_named():
    total = WeightedLosses(
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
    total = WeightedLosses({"identity": entry(IDENTITY, weight=3.0)}, DIMENSIONS)
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
    without = WeightedLosses({"identity": entry(IDENTITY)}, DIMENSIONS)
    torch.manual_seed(0)
    switched_off = WeightedLosses(
        {"clothes": entry(CLOTHES, weight=0), "x": entry(never_built, 0.0), "identity": entry(IDENTITY)},
        DIMENSIONS,
    )
    assert list(switched_off.terms) == ["identity"]
    assert torch.equal(without.terms["identity"].head.weight, switched_off.terms["identity"].head.weight)


def test_a_term_of_weight_zero_makes_no_demands_on_the_data():
    unlabelled = dimensions(width=4, people=2)
    assert list(WeightedLosses({"c": entry(CLOTHES, 0), "i": entry(IDENTITY)}, unlabelled).terms) == ["i"]
    with pytest.raises(InputError, match="needs clothes labels"):
        WeightedLosses({"c": entry(CLOTHES), "i": entry(IDENTITY)}, unlabelled)


def test_before_its_start_epoch_a_head_is_moved_by_nothing_not_even_weight_decay():
    total = WeightedLosses(
        {"identity": entry(IDENTITY), "clothes": entry(CLOTHES, start_epoch=2)}, DIMENSIONS
    )
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


def test_weight_rises_in_equal_steps_over_the_warm_up():
    terms = {
        "identity": entry(IDENTITY, weight=0.5),
        "slow": entry(partial(Constant, value=8.0), weight=2.0, start_epoch=2, warmup_epochs=3),
        "early": entry(partial(Constant, value=1.0), warmup_epochs=1),
    }
    total = WeightedLosses(terms, DIMENSIONS)
    by_hand = [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [total.weight("slow", epoch) for epoch in range(8)] == [2 * share for share in by_hand]
    assert [total.weight("identity", epoch) for epoch in range(3)] == [0.5] * 3
    assert [total.weight("early", epoch) for epoch in range(3)] == [0.5, 1, 1]
    for epoch, share in enumerate(by_hand):
        losses = total(features(points()), LABELS, epoch)
        assert ("slow" in losses.raw) == (share > 0)
        if share:
            assert losses.raw["slow"].item() == 8
            assert losses.weighted["slow"].item() == 2 * share * 8


def test_without_a_warm_up_a_term_has_its_weight_from_its_start_epoch_on():
    terms = {"i": entry(IDENTITY), "x": entry(partial(Constant, value=1.0), weight=3.0, start_epoch=2)}
    total = WeightedLosses(terms, DIMENSIONS)
    assert [total.weight("x", epoch) for epoch in range(4)] == [0, 0, 3, 3]


def test_needs_are_those_of_all_terms_that_have_a_weight_and_nothing_is_built_to_know_them():
    class Unbuildable(Guided):
        def __init__(self, dimensions):
            never_built(dimensions)

    terms = {"i": entry(IDENTITY), "w": entry(partial(partial(Worded), value=1.0)), "b": entry(Unbuildable)}
    assert needs(terms) == {TextTargets, TeacherSpace, BodySpace}
    terms["w"]["weight"] = 0
    assert needs(terms) == {TeacherSpace, BodySpace}
    terms["b"]["weight"] = 0.0
    assert needs(terms) == frozenset()


def test_needs_are_refused_for_an_entry_that_the_total_refuses():
    with pytest.raises(InputError, match=r"loss\.w\.weight=-1 must be a number, 0 or more"):
        needs({"w": entry(Worded, weight=-1)})


def test_what_terms_observe_comes_through_under_their_names_and_without_gradient():
    total = WeightedLosses({"identity": entry(IDENTITY), "a": entry(Guided, weight=0.1)}, DIMENSIONS)
    losses = total(features(points()), LABELS, epoch=0)
    assert {name: value.item() for name, value in losses.observed.items()} == {"a/spread": 35}
    assert not losses.observed["a/spread"].requires_grad
    assert "a/spread" not in losses.raw


def test_a_term_before_its_start_observes_nothing():
    total = WeightedLosses({"identity": entry(IDENTITY), "a": entry(Guided, start_epoch=1)}, DIMENSIONS)
    assert total(features(points()), LABELS, epoch=0).observed == {}


def test_heads_are_those_of_all_terms_and_copies_without_gradient():
    terms = {
        "identity": entry(IDENTITY),
        "a": entry(Guided),
        "b": entry(partial(Guided, name="shape.weight")),
    }
    total = WeightedLosses(terms, DIMENSIONS)
    shipped = total.heads()
    assert {name: tensor.tolist() for name, tensor in shipped.items()} == {
        "joint.weight": [2, 3],
        "shape.weight": [2, 3],
    }
    assert not any(tensor.requires_grad for tensor in shipped.values())
    shipped["joint.weight"].zero_()
    assert total.terms["a"].head.tolist() == [2, 3]


def test_single_terms_add_up_to_the_total_and_carry_gradient():
    terms = {
        "identity": entry(IDENTITY, weight=0.5),
        "clothes": entry(CLOTHES, weight=2.0),
        "off": entry(IDENTITY, weight=0),
    }
    total = WeightedLosses(terms, DIMENSIONS)
    losses = total(features(points()), LABELS, epoch=0)
    assert list(losses.terms) == ["identity", "clothes"]
    torch.testing.assert_close(sum(losses.terms.values()), losses.total)
    parts = [value for name, value in losses.weighted.items() if name.startswith("clothes/")]
    assert len(parts) > 1
    torch.testing.assert_close(losses.terms["clothes"].detach(), torch.stack(parts).sum())
    head = total.terms["identity"].head.weight
    (alone,) = torch.autograd.grad(losses.terms["identity"], head, retain_graph=True)
    (whole,) = torch.autograd.grad(losses.total, head)
    torch.testing.assert_close(alone, whole)
    assert alone.abs().sum() > 0


def test_every_term_is_connected_once_with_all_terms_that_were_built():
    terms = {"a": entry(Guided), "x": entry(never_built, weight=0), "identity": entry(IDENTITY)}
    total = WeightedLosses(terms, DIMENSIONS)
    (others,) = total.terms["a"].connected
    assert list(others) == ["a", "identity"]
    assert others["identity"] is total.terms["identity"]


def test_features_of_bodies_are_widened_too():
    class Reads(Term):
        def __init__(self, dimensions):
            super().__init__()

        def forward(self, features: Features, batch: Batch, bodies: Features | None = None):
            seen.append(bodies)
            return features.embedding.sum()

    seen: list[Features] = []
    half = features(points().bfloat16())
    shown = LABELS._replace(bodies=BodyBatch(torch.empty(0), torch.zeros(4, 1), torch.arange(4)))
    WeightedLosses({"r": entry(Reads)}, DIMENSIONS)(half, shown, epoch=0, bodies=half)
    assert seen[0].embedding.dtype == seen[0].pooled.dtype == torch.float32


def test_unscheduled_parameters_are_those_the_terms_declare():
    total = WeightedLosses({"identity": entry(IDENTITY), "clothes": entry(CLOTHES)}, DIMENSIONS)
    assert [id(p) for p in total.unscheduled_parameters()] == [id(total.terms["clothes"].head.weight)]


def said(losses: Losses) -> str | None:
    return not_finite(losses.total.item(), {name: value.item() for name, value in losses.raw.items()})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_and_the_others_are_not(value):
    total = WeightedLosses(
        {
            "identity": entry(IDENTITY),
            "odd": entry(partial(Constant, value={"good": 1.0, "bad": value})),
        },
        DIMENSIONS,
    )
    assert said(total(features(points()), LABELS, epoch=0)) == f"loss not finite (odd/bad = {value})"


def test_a_finite_loss_says_nothing():
    total = WeightedLosses({"identity": entry(IDENTITY)}, DIMENSIONS)
    assert said(total(features(points()), LABELS, epoch=0)) is None


def test_a_sum_that_overflows_is_reported_though_every_part_is_finite():
    total = WeightedLosses({"big": entry(partial(Constant, value=3e38), weight=10.0)}, DIMENSIONS)
    assert "overflow" in (said(total(features(points()), LABELS, epoch=0)) or "")


def test_losses_are_computed_in_float32_inside_autocast():
    # Cosines near 1, which bfloat16 holds to two digits: a softmax of scale 16 would be off by a tenth.
    embedding = (1 + 0.05 * points()).bfloat16()
    terms = {
        "identity": entry(IDENTITY),
        "clothes": entry(CLOTHES),
        "pairs": entry(partial(Contrastive, scale=16.0)),
    }
    total = WeightedLosses(terms, DIMENSIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = total(features(embedding), LABELS, epoch=0)
    outside = total(features(embedding.float()), LABELS, epoch=0)
    assert inside.total.dtype == torch.float32
    assert inside.total.item() == outside.total.item()


def test_entries_may_come_as_hydra_config_nodes():
    node = OmegaConf.create(
        {"identity": {"weight": 1, "start_epoch": 0, "warmup_epochs": 0}}, flags={"allow_objects": True}
    )
    node.identity.term = IDENTITY
    total = WeightedLosses(node, DIMENSIONS)
    assert total.weight("identity", 0) == 1.0


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "no loss has a weight above 0"),
        ({"i": entry(IDENTITY, weight=0)}, "no loss has a weight above 0"),
        ({"i": entry(IDENTITY, weight=-1)}, r"loss\.i\.weight=-1"),
        ({"i": entry(IDENTITY, weight=float("nan"))}, r"loss\.i\.weight=nan"),
        ({"i": entry(IDENTITY, weight="much")}, r"loss\.i\.weight=much"),
        ({"i": entry(IDENTITY, start_epoch=-1)}, r"loss\.i\.start_epoch=-1"),
        ({"i": entry(IDENTITY, start_epoch=0.5)}, r"loss\.i\.start_epoch=0\.5"),
        ({"i": entry(IDENTITY, warmup_epochs=-1)}, r"loss\.i\.warmup_epochs=-1 must be a whole number"),
        ({"i": entry(IDENTITY, warmup_epochs=1.5)}, r"loss\.i\.warmup_epochs=1\.5"),
        ({"i": entry(IDENTITY, warmup_epochs="two")}, r"loss\.i\.warmup_epochs=two"),
        ({"i": entry(IDENTITY, warmup_epochs=None)}, r"loss\.i\.warmup_epochs=null"),
        ({"i": entry(IDENTITY, start_epoch=1)}, "no loss takes part from epoch 0"),
        ({"i": entry(partial(IDENTITY, smothing=0.1))}, r"loss\.i\.term: .*smothing"),
        ({"i": entry(partial(CrossEntropy))}, r"loss\.i\.term: .*smoothing"),
        (
            {"i": {"weight": 1.0, "term": IDENTITY}},
            r"loss\.i .*missing or unknown: start_epoch, warmup_epochs",
        ),
        ({"i": {**entry(IDENTITY), "wieght": 2.0}}, r"loss\.i .*missing or unknown: wieght"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line_that_names_it(terms, message):
    with pytest.raises(InputError, match=message) as caught:
        WeightedLosses(terms, DIMENSIONS)
    assert "\n" not in str(caught.value)


def test_heads_are_parameters_of_the_total():
    total = WeightedLosses({"identity": entry(IDENTITY), "clothes": entry(CLOTHES)}, DIMENSIONS)
    assert sorted(name for name, _ in total.named_parameters()) == [
        "terms.clothes.head.weight",
        "terms.identity.head.bias",
        "terms.identity.head.weight",
    ]
    assert isinstance(total, nn.Module)
