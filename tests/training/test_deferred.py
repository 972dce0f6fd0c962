"""Means of losses that are read once, and the state before a step."""

import copy

import pytest
import torch
from torch import nn

from clip3dreid.training.deferred import KeptState, LossMeans


def test_means_weigh_batches_by_their_pictures_and_names_by_the_batches_they_are_in() -> None:
    means = LossMeans()
    means.add(("a", "b"), torch.tensor([1.0, 2.0]), 3)
    means.add(("a", "b"), torch.tensor([5.0, 4.0]), 1)
    means.add(("c",), torch.tensor([7.0]), 2)
    means.add(("a",), torch.tensor([0.0]), 4)
    assert means.read() == [({"a": (3 + 5) / 8}, 8), ({"b": (6 + 4) / 4}, 4), ({"c": 7}, 2)]
    assert means.read() == []


def test_means_are_kept_in_single_precision_whatever_comes() -> None:
    means = LossMeans()
    for _ in range(3):
        means.add(("a",), torch.tensor([1.001], dtype=torch.bfloat16), 1000)
    ((found, pictures),) = means.read()
    assert pictures == 3000
    assert found["a"] == pytest.approx(torch.tensor(1.001, dtype=torch.bfloat16).item(), rel=1e-6)


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return module, torch.optim.Adam(module.parameters(), lr=0.1)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    images = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    (scale * module(images).square().sum(0)[0]).backward()
    optimizer.step()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_state_before_a_step_comes_back_whole(steps: int) -> None:
    module, optimizer = network()
    kept = KeptState()
    for done in range(steps):
        kept.keep(module, module.buffers(), optimizer, done)
        step(module, optimizer)
    kept.keep(module, module.buffers(), optimizer, steps)
    before, settings = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict())
    step(module, optimizer, float("nan"))
    assert module.state_dict()["0.weight"].isnan().any()
    kept.restore(optimizer)
    assert kept.step == steps
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    step(module, optimizer)
    again, other = network()
    again.load_state_dict(before)
    other.load_state_dict(settings)
    step(again, other)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_buffers_are_kept_at_every_batch_and_parameters_where_the_optimiser_moved_them() -> None:
    module, optimizer = network()
    kept = KeptState()
    kept.keep(module, module.buffers(), optimizer, 0)
    module(torch.ones(5, 3))  # a batch whose gradients are accumulated
    kept.keep(module, module.buffers(), optimizer, 0)
    before = copy.deepcopy(module.state_dict())
    step(module, optimizer)
    kept.restore(optimizer)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
