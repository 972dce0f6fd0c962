"""What is refused of a training's losses before it begins."""

import logging
from functools import partial

import pytest
import torch
from torch import nn

from clip3dreid.errors import InputError
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.loss.pairwise import Contrastive
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.training.checks import check_shares
from clip3dreid.types import Dimensions

DIMENSIONS = Dimensions(3, 3, 2, torch.empty(0, dtype=torch.int64))
AT_ONCE = {"weight": 2.0, "start_epoch": 0, "warmup_epochs": 0}


def losses(share: float | None) -> WeightedLosses:
    identity, pairs = partial(CrossEntropy, smoothing=0.1), partial(Contrastive, scale=4.0)
    return WeightedLosses(
        {"identity": {"term": identity, **AT_ONCE}, "pairs": {"term": pairs, "share": share, **AT_ONCE}},  # type: ignore[typeddict-item]
        DIMENSIONS,
    )


def test_a_share_needs_a_backbone_that_is_trained_and_measurements(caplog: pytest.LogCaptureFixture) -> None:
    trained, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(InputError, match=r"loss\.pairs\.share=0\.5 .*which has nothing to train"):
        check_shares(losses(0.5), frozen, 200)
    with pytest.raises(InputError, match=r"loss\.pairs\.share=0\.5 .*set gradient_norms_every"):
        check_shares(losses(0.5), trained, 0)
    # A plain weight needs neither.
    check_shares(losses(None), frozen, 0)
    with caplog.at_level(logging.INFO):
        check_shares(losses(0.5), trained, 200)
    assert caplog.messages == [
        "loss.pairs has a share of 0.5 of identity's gradient; its weight of 2 counts until that is measured"
    ]
