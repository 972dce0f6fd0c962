"""Gradients against ones worked out by hand, and weights that make a term's gradient the share that was asked for."""

import logging
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.loss.pairwise import Contrastive
from clip3dreid.loss.shares import FALL, OUTLIER, Sent, Shares, gradients_sent
from clip3dreid.loss.term import Term
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.types import Batch, Features
from tests.processes import side_by_side

from .cases import batch, dimensions, features, random_embedding


class Linear(Term):
    """`slope` times the sum of the embedding: a gradient that does not change while the backbone does."""

    def __init__(self, dimensions, slope=1.0):
        super().__init__()
        self.slope = slope

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None):
        return {
            "a": 0.25 * self.slope * features.embedding.sum(),
            "b": 0.75 * self.slope * features.embedding.sum(),
        }


class HeadAlone(Term):
    """Sees the embedding, and tells the backbone nothing."""

    def __init__(self, dimensions):
        super().__init__()
        self.head = nn.Parameter(torch.ones(()))

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None):
        return self.head * features.embedding.detach().sum()


def entry(term, share=None, weight=1.0, start_epoch=0, warmup_epochs=0):
    return {
        "term": term, "weight": weight, "share": share, "start_epoch": start_epoch, "warmup_epochs": warmup_epochs,
    }  # fmt: skip


LABELS = batch([0, 0, 1, 1])
AT = dimensions(3, 2)


def backbone() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()


def losses(**terms) -> WeightedLosses:
    torch.manual_seed(4)
    return WeightedLosses(terms, AT).double()


def measured(total: WeightedLosses, student: nn.Module, epoch: int = 0, seed: int = 0):
    embedding = student(random_embedding(4, 5, seed=seed))
    return total(features(embedding), LABELS, epoch, measure=list(student.parameters()))


def length(term: Tensor, student: nn.Module) -> float:
    """The norm of a term's gradient, another way: by a backward pass into `.grad`."""
    student.zero_grad()
    term.backward(retain_graph=True)
    squares = sum(float(parameter.grad.square().sum()) for parameter in student.parameters())
    student.zero_grad()
    return math.sqrt(squares)


def test_gradients_of_two_layers_are_those_worked_out_by_hand():
    first = nn.Parameter(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    second = nn.Parameter(torch.tensor([3.0, 4.0]))
    head = nn.Parameter(torch.tensor(5.0))
    x = torch.tensor([1.0, 1.0])
    y = second @ (first @ x)  # the layers give (3, 1), then 13
    # d y / d first = second x', of length 5 * sqrt(2); d y / d second = (3, 1).
    norm = math.sqrt(50 + 10)
    terms = {
        "square": y * y / 2,
        "identity": y,
        "against": -2 * y,
        # Into the second layer (1, -3), orthogonal to (3, 1), and into the first nothing.
        "across": (first.detach() @ x) @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) @ second,
        "head": head * y.detach(),
        "constant": torch.tensor(1.0),
    }
    sent = gradients_sent(terms, [first, second])
    assert list(sent) == list(terms)
    assert sent["identity"].norm == pytest.approx(norm)
    assert (sent["square"].norm, sent["square"].aligned) == pytest.approx((13 * norm, 1))
    assert (sent["against"].norm, sent["against"].aligned) == pytest.approx((2 * norm, -1))
    assert (sent["across"].norm, sent["across"].aligned) == pytest.approx((math.sqrt(10), 0), abs=1e-6)
    for name in ("head", "constant"):
        assert sent[name][::2] == (0, False)
        assert math.isnan(sent[name].aligned)
    assert all(sent[name].reached for name in ("identity", "square", "against", "across"))
    assert first.grad is second.grad is head.grad is None


def test_a_gradient_too_small_for_half_precision_is_measured_with_the_loss_scaled_up():
    weight = nn.Parameter(torch.tensor(1.0))
    term = 1e-6 * (weight.half() * 0.01).float()
    (lost, kept) = (
        gradients_sent({"identity": term}, [weight], scale)["identity"].norm for scale in (1, 2**16)
    )
    assert lost == 0
    assert kept == pytest.approx(1e-8, rel=0.02)


@pytest.mark.parametrize("slope", [1e-3, 1.0, 500.0])
def test_a_share_is_reached_exactly_and_at_once_whatever_the_size_of_the_loss(slope):
    total = losses(
        identity=entry(Linear, weight=2.0), other=entry(partial(Linear, slope=slope), share=0.5, weight=77.0)
    )
    student = backbone()
    found = measured(total, student)
    assert total.weight("other", 0) == pytest.approx(0.5 * 2 / slope)
    assert length(found.terms["other"], student) == pytest.approx(
        0.5 * length(found.terms["identity"], student)
    )
    torch.testing.assert_close(found.total, sum(found.weighted.values()))
    # And stays there in steps that are not measured.
    later = total(features(student(random_embedding(4, 5, seed=1))), LABELS, epoch=3)
    assert later.sent == {}
    assert length(later.terms["other"], student) == pytest.approx(
        0.5 * length(later.terms["identity"], student)
    )


def test_what_is_measured_is_the_gradient_at_weight_one_of_terms_that_are_curved_too():
    total = losses(
        identity=entry(partial(CrossEntropy, smoothing=0.1)),
        pairs=entry(partial(Contrastive, scale=4.0), weight=3.0),
    )
    student = backbone()
    found = measured(total, student)
    for name, weight in (("identity", 1), ("pairs", 3)):
        assert found.weights[name] == weight
        assert found.sent[name].norm * weight == pytest.approx(length(found.terms[name], student))
    assert -1 < found.sent["pairs"].aligned < 1
    assert found.sent["identity"].aligned == pytest.approx(1)


def test_a_warm_up_and_identity_s_own_weight_scale_the_share():
    total = losses(
        identity=entry(Linear, weight=3.0, warmup_epochs=1),
        other=entry(partial(Linear, slope=2.0), share=0.5, warmup_epochs=3, start_epoch=1),
    )
    student = backbone()
    assert total.waiting(0)
    measured(total, student)
    assert not total.waiting(0)
    # A term is measured when it begins.
    assert total.waiting(1)
    measured(total, student, epoch=1)
    assert not total.waiting(1)
    by_hand = [0, *(0.5 * 3 / 2 * rise for rise in (0.25, 0.5, 0.75, 1, 1))]
    assert [total.weight("other", epoch) for epoch in range(6)] == pytest.approx(by_hand)


def test_until_identity_takes_part_the_weight_counts():
    total = losses(identity=entry(Linear, start_epoch=1), other=entry(Linear, share=0.5, weight=7.0))
    student = backbone()
    measured(total, student)
    assert total.weight("other", 0) == 7
    assert not total.waiting(0)
    assert total.waiting(1)
    measured(total, student, epoch=1)
    assert total.weight("other", 1) == pytest.approx(0.5)


def sent(**norms: float) -> dict[str, Sent]:
    return {name: Sent(norm, math.nan, True) for name, norm in norms.items()}


def weights(*steps: dict[str, Sent]) -> list[float]:
    """The weight of a term with a share of 1 after each measurement, 9 where nothing is known."""
    shares = Shares({"a": 1.0}).double()
    found = []
    for step in steps:
        shares.update(step)
        found.append(float(shares.weight("a", identity=1.0, otherwise=9.0)))
    return found


def test_norms_are_averaged_before_they_are_divided():
    # Exponential means with momentum a half, and their bias taken out: (x + 2 y) / 3, then (x + 2 y + 4 z) / 7.
    found = weights(sent(identity=6, a=2), sent(identity=6, a=10), sent(identity=3, a=1))
    assert found == pytest.approx([3, 6 / ((2 + 20) / 3), ((6 + 12 + 12) / 7) / ((2 + 20 + 4) / 7)])


def test_one_outlier_does_not_move_a_weight_by_more_than_a_bounded_factor():
    up, down = weights(sent(identity=1, a=1), sent(identity=1, a=1e9), sent(identity=1, a=1e-9))[1:]
    assert up == pytest.approx(3 / (1 + 2 * OUTLIER))
    mean = (1 + 2 * OUTLIER) / 3
    assert down == pytest.approx(7 / (1 + 2 * OUTLIER + 4 * mean / OUTLIER))


def test_a_gradient_that_vanishes_is_not_multiplied_for_ever_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.WARNING):
        found = weights(*(sent(identity=1, a=1e-3**number) for number in range(40)))
    assert found == sorted(found)
    assert found[-1] == pytest.approx(FALL)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "loss.a sends less than a 100th" in message


def test_what_is_nought_or_not_finite_says_nothing_of_a_term_s_size():
    found = weights(
        sent(identity=4, a=0),
        sent(identity=4, a=2),
        sent(identity=4, a=math.nan),
        sent(identity=math.inf, a=0),
    )
    assert found == [9, 2, 2, 2]


def test_a_share_waits_until_it_was_looked_at_and_not_until_it_was_not_nought():
    shares = Shares({"a": 1.0})
    assert shares.waiting(["identity", "a"])
    shares.update(sent(identity=1, a=math.nan))
    assert not shares.waiting(["identity"])
    assert shares.waiting(["identity", "a"])
    shares.update(sent(identity=1, a=0))
    assert not shares.waiting(["identity", "a", "b"])


def test_a_state_that_is_loaded_goes_on_to_the_same_bits():
    def made() -> WeightedLosses:
        return losses(
            identity=entry(partial(CrossEntropy, smoothing=0.1)),
            pairs=entry(partial(Contrastive, scale=4.0), share=0.3),
        )

    student, whole, resumed = backbone(), made(), made()
    for seed in range(3):
        measured(whole, student, seed=seed)
    resumed.load_state_dict(whole.state_dict())
    assert not resumed.waiting(0)
    for seed in range(3, 5):
        totals = [measured(one, student, seed=seed).total for one in (whole, resumed)]
        assert torch.equal(*totals)
    assert whole.weight("pairs", 0) == resumed.weight("pairs", 0) != 1


def test_without_shares_the_state_is_what_it_always_was_and_measuring_changes_nothing():
    total = losses(identity=entry(Linear), off=entry(Linear, share=0.5, weight=0))
    assert total.shares is None
    assert total.state_dict() == {}
    assert not total.waiting(0)
    student = backbone()
    with_, without = measured(total, student), total(features(student(random_embedding(4, 5))), LABELS, 0)
    assert torch.equal(with_.total, without.total)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            {"a": entry(Linear, share=0.5)},
            r"loss\.a\.share=0\.5 is a share of loss\.identity.*loss=\[identity,a",
        ),
        (
            {"identity": entry(Linear, weight=0), "a": entry(Linear, share=0.5)},
            r"loss\.identity, which does not take part",
        ),
        ({"identity": entry(Linear, share=1.0)}, r"loss\.identity\.share=1: identity is what"),
        (
            {"identity": entry(Linear), "a": entry(Linear, share=0)},
            r"loss\.a\.share=0 must be a number above 0",
        ),
        ({"identity": entry(Linear), "a": entry(Linear, share=-1)}, r"loss\.a\.share=-1 must"),
        ({"identity": entry(Linear), "a": entry(Linear, share="half")}, r"loss\.a\.share=half must"),
        ({"identity": entry(Linear), "a": entry(Linear, share=math.inf)}, r"loss\.a\.share=inf must"),
    ],
)
def test_a_share_that_cannot_be_is_refused_in_one_line(terms, message):
    with pytest.raises(InputError, match=message) as caught:
        WeightedLosses(terms, AT)
    assert "\n" not in str(caught.value)


def test_a_term_that_sends_nothing_into_the_backbone_is_told_when_it_is_measured():
    total = losses(identity=entry(Linear), head=entry(HeadAlone, share=0.5))
    with pytest.raises(
        InputError, match=r"loss\.head\.share=0\.5, but the term sends no gradient into the backbone"
    ):
        measured(total, backbone())
    total = losses(identity=entry(HeadAlone), other=entry(Linear, share=0.5))
    with pytest.raises(InputError, match=r"loss\.identity sends no gradient.*loss\.other\.weight"):
        measured(total, backbone())


class Lopsided(Linear):
    """Depends on the backbone in the second process alone."""

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None):
        there = not dist.is_initialized() or dist.get_rank() == 1
        return features.embedding.square().mean() * 0.1 if there else torch.tensor(1.0, dtype=torch.float64)


TERMS = {
    "identity": entry(partial(CrossEntropy, smoothing=0.1)),
    "pairs": entry(partial(Contrastive, scale=4.0), share=0.3),
}


def halves(rows: slice, **more):
    student, total = backbone(), losses(**TERMS, **more)
    people = batch([0, 0, 1, 1, 0, 1, 0, 1][rows])
    embedding = student(random_embedding(8, 5)[rows])
    found = total(features(embedding), people, 0, measure=list(student.parameters()))
    return {name: tuple(one) for name, one in found.sent.items()}, total.weight("pairs", 0)


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = halves(slice(4 * rank, 4 * rank + 4), lopsided=entry(Lopsided, share=0.1))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_the_gradient_and_find_the_weights_of_one(tmp_path: Path):
    side_by_side(process, 2, str(tmp_path))
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert two[0] == two[1]
    sent_, weight = halves(slice(0, 8))
    assert weight == pytest.approx(two[0][1], rel=1e-9)
    for name, one in sent_.items():
        assert two[0][0][name] == pytest.approx(one, rel=1e-9), name
    assert two[0][0]["lopsided"][2]
