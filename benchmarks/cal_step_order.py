"""What one joint step changes against the original order of the clothes-based adversarial loss (CAL).

Original: the clothes head is updated on detached features by an optimiser of its own; the adversarial loss
is then computed with the updated head and back-propagated into the backbone by the main optimiser.
Here: both parts share one backward pass and one optimiser, so the adversarial loss faces the head as it was.

The problem: observations are a fixed random non-linear mixture of three factors: the person, the outfit
(stronger) and noise; the student is a small network; test people are unseen and must be found in other
clothes. Batch, optimiser and schedule follow the base recipe (8 people x 8 pictures, Adam 3.5e-4, weight
decay 5e-4, times 0.1 at epochs 20 and 40 of 60, CAL from epoch 25, constant rate for the clothes head).

Run: OMP_NUM_THREADS=1 python benchmarks/cal_step_order.py --seeds 10

Measured (torch 2.13, CPU; rank 1 in other clothes, mean +- sd over seeds; chance 0.7 %):

    head's rate  seeds  ce            joint         head first    joint - head first
    3.5e-4       10     88.8 +- 3.0   80.5 +- 4.5   80.5 +- 4.5   -0.04 +- 0.03
    3.5e-3       5      88.4 +- 2.2   88.2 +- 2.1   88.3 +- 2.1   -0.10 +- 0.05

From the same state, the backbone's gradients of the two orders have a cosine of 0.99999 (1 % of steps below
0.99998) at the recipe's rate and 0.9994 (0.982) at ten times it; the CAL losses differ by 0.6 % and 2.3 %
in the median. The joint step costs a tenth of a point at most, less than a seed does. CAL itself does not
help on this problem in either order, and harms with a head that learns slowly: nothing here speaks for or
against CAL on pictures.
"""

import argparse
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip3dreid.loss.clothes import ClothesAdversarial
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.loss.weighted import WeightedLosses
from clip3dreid.types import Batch, Dimensions, Features

EPOCHS, MILESTONES, START = 60, (20, 40), 25
RATE, DECAY = 3.5e-4, 5e-4
TRAIN_PEOPLE, TEST_PEOPLE, OUTFITS, PICTURES = 80, 100, 3, 12
FACTOR, OBSERVED, WIDTH = 16, 128, 128


class World(NamedTuple):
    """Pictures (N, OBSERVED) with person and outfit indices (N,)."""

    pictures: Tensor
    person: Tensor
    clothes: Tensor


def world(people: int, mixture: nn.Module, generator: torch.Generator) -> World:
    clothes = torch.arange(people * OUTFITS).repeat_interleave(PICTURES)
    person = clothes // OUTFITS

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, FACTOR, generator=generator)

    factors = [draw(people)[person], 1.5 * draw(people * OUTFITS)[clothes], draw(len(clothes))]
    with torch.no_grad():
        return World(mixture(torch.cat(factors, dim=1)), person, clothes)


def worlds(seed: int) -> tuple[World, World]:
    generator = torch.Generator().manual_seed(seed)
    mixture = nn.Sequential(nn.Linear(3 * FACTOR, 2 * OBSERVED), nn.Tanh(), nn.Linear(2 * OBSERVED, OBSERVED))
    for parameter in mixture.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1])
    return world(TRAIN_PEOPLE, mixture, generator), world(TEST_PEOPLE, mixture, generator)


def batches(data: World, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of an epoch's batches: 8 people x 8 pictures, each person's pictures cut into chunks of 8."""
    chunks = []
    for who in range(TRAIN_PEOPLE):
        rows = (data.person == who).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        chunks += list(rows[: len(rows) // 8 * 8].split(8))
    order = torch.randperm(len(chunks), generator=generator).tolist()
    for start in range(0, len(order) - 7, 8):
        yield torch.cat([chunks[i] for i in order[start : start + 8]])


def student() -> nn.Module:
    return nn.Sequential(
        nn.Linear(OBSERVED, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, WIDTH),
        nn.BatchNorm1d(WIDTH),
    )


def as_features(embedding: Tensor) -> Features:
    return Features(map=embedding, pooled=embedding, embedding=embedding)


def flat_gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])


class Gap(NamedTuple):
    """How far apart the two orders are in one step, computed from the same state and batch."""

    cosine_total: float
    """Cosine of the backbone's gradients of identity + CAL."""
    cosine_cal: float
    """The same for CAL alone."""
    loss: float
    """Difference of the CAL losses, relative."""


def train(order: str, data: World, seed: int, head_rate: float) -> tuple[nn.Module, list[Gap]]:
    """Trains a student as `ce` (no clothes loss), `joint` (ours) or `head first` (original)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = student()
    dimensions = Dimensions(WIDTH, WIDTH, TRAIN_PEOPLE, torch.arange(TRAIN_PEOPLE * OUTFITS) // OUTFITS)
    identity = {
        "term": partial(CrossEntropy, smoothing=0.1),
        "weight": 1.0,
        "start_epoch": 0,
        "warmup_epochs": 0,
    }
    clothes = {
        "term": partial(ClothesAdversarial, scale=16.0, epsilon=0.1),
        "weight": float(order != "ce"),
        "start_epoch": START,
        "warmup_epochs": 0,
    }
    losses = WeightedLosses({"identity": identity, "clothes": clothes}, dimensions)
    constant = list(losses.unscheduled_parameters())
    held = {id(parameter) for parameter in constant}
    moving = [p for p in (*net.parameters(), *losses.parameters()) if id(p) not in held]
    adam = partial(torch.optim.Adam, lr=RATE, weight_decay=DECAY)
    if order == "head first":
        main, head = adam(moving), adam(constant, lr=head_rate)
    else:
        groups = [{"params": moving}, {"params": constant, "lr": head_rate}]
        main, head = adam(groups if constant else moving), None

    gaps: list[Gap] = []
    for epoch in range(EPOCHS):
        main.param_groups[0]["lr"] = RATE * 0.1 ** sum(epoch >= milestone for milestone in MILESTONES)
        for rows in batches(data, generator):
            features = as_features(net(data.pictures[rows]))
            labels = Batch(data.pictures[rows], data.person[rows], data.clothes[rows], rows, rows)
            if head is None or epoch < START:
                loss = losses(features, labels, epoch).total
            else:
                term = losses.terms["clothes"]
                own = losses.terms["identity"](features, labels)
                before = term(features, labels)
                head.zero_grad()
                before["classification"].backward()
                head.step()
                after = term(features, labels)
                loss = own + after["adversarial"]
                gaps.append(gap(own, before["adversarial"], after["adversarial"], list(net.parameters())))
            main.zero_grad()
            loss.backward()
            main.step()
    return net.eval(), gaps


def gap(own: Tensor, before: Tensor, after: Tensor, parameters: list[nn.Parameter]) -> Gap:
    identity, old, new = (flat_gradient(loss, parameters) for loss in (own, before, after))
    return Gap(
        F.cosine_similarity(identity + old, identity + new, dim=0).item(),
        F.cosine_similarity(old, new, dim=0).item(),
        ((after - before) / after).abs().item(),
    )


def rank_1_in_other_clothes(net: nn.Module, data: World) -> float:
    """Share of pictures whose nearest neighbour is the same person, pictures in the same clothes left out."""
    with torch.no_grad():
        embedding = F.normalize(net(data.pictures))
    cosine = (embedding @ embedding.T).masked_fill(data.clothes[:, None] == data.clothes, -2)
    return (data.person[cosine.argmax(1)] == data.person).float().mean().item()


def mean_sd(values: list[float]) -> str:
    numbers = torch.tensor(values, dtype=torch.float64)
    return f"{numbers.mean():.4f} +- {numbers.std():.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--head-rate", type=float, default=RATE, help="learning rate of the clothes head")
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)

    start = time.perf_counter()
    scores: dict[str, list[float]] = {"ce": [], "joint": [], "head first": []}
    gaps: list[Gap] = []
    for seed in seeds:
        train_world, test_world = worlds(seed)
        for order, found in scores.items():
            net, measured = train(order, train_world, seed, arguments.head_rate)
            found.append(rank_1_in_other_clothes(net, test_world))
            gaps += measured
        print(f"seed {seed}: " + ", ".join(f"{order} {found[-1]:.4f}" for order, found in scores.items()))

    print(f"\nrank 1 in other clothes, {TEST_PEOPLE} unseen people, {len(seeds)} seeds, mean +- sd")
    print(f"  chance      {(OUTFITS - 1) / (OUTFITS * TEST_PEOPLE - 1):.4f}")
    for order, found in scores.items():
        print(f"  {order:11} {mean_sd(found)}")
    pairs = list(zip(scores["joint"], scores["head first"], strict=True))
    print(f"  joint - head first, same seed: {mean_sd([joint - first for joint, first in pairs])}")
    print(f"\ntwo orders from the same state, {len(gaps)} steps of the runs `head first`")
    for name in Gap._fields:
        values = torch.tensor([getattr(one, name) for one in gaps], dtype=torch.float64)
        low, middle, high = values.quantile(torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)).tolist()
        print(f"  {name:12} median {middle:.5f}, 1 % {low:.5f}, 99 % {high:.5f}, first step {values[0]:.5f}")
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
