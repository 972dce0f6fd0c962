"""How guides are put together, and what a kind of one's own takes."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.guidance.guides import Given, Guides, check_same_training, guide
from clip3dreid.loss.term import Term
from clip3dreid.loss.weighted import WeightedLosses, needs
from clip3dreid.types import Batch, Dimensions, Features, TeacherSpace
from tests.loss.cases import batch, dimensions, features


class Sides(NamedTuple):
    """What a guide of one's own says of the whole training."""

    count: int


class Side(nn.Module):
    """What it says of each picture."""

    def forward(self, shown: Batch) -> Tensor:
        return shown.person % 2


class SideGuide:
    gives = Sides
    same = {("sides", "count"): "guides.sides"}  # noqa: RUF012

    def __init__(self, count: int = 2, said: list[str] | None = None, broken: bool = False) -> None:
        self.count, self.said, self.broken = count, [] if said is None else said, broken

    def prepare(self) -> Callable[[], Given]:
        self.said.append("prepared")
        if self.broken:
            raise InputError("there are no sides")

        def finish() -> Given:
            self.said.append("finished")
            return Given(Sides(self.count), {"sides": {"count": self.count}}, targets={"side": Side()})

        return finish


class Long(SideGuide):
    gives = TeacherSpace
    same = {("teacher", "fingerprint"): "model.teacher"}  # noqa: RUF012


class SideLoss(Term):
    needs = frozenset({Sides})

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()
        self.head = nn.Linear(dimensions.width, dimensions.guide(Sides).count)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        return nn.functional.cross_entropy(self.head(features.embedding), batch.targets["side"])


TERMS = {"side": {"term": SideLoss, "weight": 1.0, "start_epoch": 0, "warmup_epochs": 0}}


def test_a_kind_of_guide_of_one_s_own_reaches_a_loss_of_one_s_own() -> None:
    guides = guide(needs(TERMS), [SideGuide()])
    losses = WeightedLosses(TERMS, dimensions(3, 4)._replace(guides=guides.says))
    shown = batch([0, 1, 2, 3])
    shown = shown._replace(targets={name: make(shown) for name, make in guides.targets.items()})
    total = losses(features(torch.randn(4, 3)), shown, 0).total
    total.backward()
    assert total > 0
    assert guides.facts == {"sides": {"count": 2}}


def test_what_no_loss_needs_is_left_alone_and_a_resumed_run_looks_for_it_all_the_same() -> None:
    other = SideGuide(broken=True)
    guides = guide(frozenset(), [other])
    assert guides == Guides(same=SideGuide.same)
    assert other.said == []
    before, now = {"sides": {"count": 2}}, {"training": {"sha256": "a"}}
    with pytest.raises(
        InputError, match=r"guides\.sides is not what this run began with \(2 then, None now\)"
    ):
        check_same_training(before, now, guides.same)


def test_what_is_refused_at_once_is_refused_before_anybody_works() -> None:
    long = Long()
    with pytest.raises(InputError, match="there are no sides"):
        guide(frozenset({Sides, TeacherSpace}), [long, SideGuide(broken=True)])
    assert long.said == ["prepared"]


def test_a_need_that_nobody_serves_is_named() -> None:
    with pytest.raises(InputError, match="no guide gives the Sides that a loss needs"):
        guide(frozenset({Sides}), [Long()])


def test_other_pictures_are_refused_unless_the_checkpoint_is_of_before_they_were_counted() -> None:
    now = {"training": {"sha256": "b"}}
    with pytest.raises(
        InputError, match=r"what is trained on .* is not what this run began with \(a then, b"
    ):
        check_same_training({"training": {"sha256": "a"}}, now, {})
    check_same_training({}, now, {})
    check_same_training(now, now, {})
