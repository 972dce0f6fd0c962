"""Two real processes under DistributedDataParallel against one process with the whole batch."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clip3dreid.loss.clothes import ClothesAdversarial, ClothesMemory
from clip3dreid.loss.gather import gather, part_of_mean, uneven
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.loss.margin_heads import ArcFace, Circle, CosFace
from clip3dreid.loss.orthogonal import ClothesOrthogonal
from clip3dreid.loss.pairwise import Contrastive, PairwiseCircle, PairwiseCosFace, Triplet
from clip3dreid.loss.weighted import WeightedLosses
from tests.processes import side_by_side

from .cases import batch, dimensions, features, random_embedding

OWNERS = [0, 0, 1, 1, 2, 2]
TERMS = {
    "identity": partial(CrossEntropy, smoothing=0.1),
    "arcface": partial(ArcFace, scale=8.0, margin=0.1),
    "cosface": partial(CosFace, scale=8.0, margin=0.1),
    "circle": partial(Circle, scale=8.0, margin=0.3),
    "triplet": partial(Triplet, margin=0.3, distance="cosine"),
    "soft": partial(Triplet, margin=None, distance="euclidean"),
    "contrastive": partial(Contrastive, scale=4.0),
    "pairwise_cosface": partial(PairwiseCosFace, scale=4.0, margin=0.1),
    "pairwise_circle": partial(PairwiseCircle, scale=4.0, margin=0.35),
    "clothes_adversarial": partial(ClothesAdversarial, scale=8.0, epsilon=0.1),
    "clothes_memory": partial(ClothesMemory, scale=8.0, epsilon=0.1, momentum=0.5),
    "clothes_memory_last": partial(ClothesMemory, scale=8.0, epsilon=0.1, momentum=0.5, keep="last"),
    "clothes_orthogonal": partial(ClothesOrthogonal, clothes="outfits", rank=3, momentum=0.5),
    "colours_orthogonal": partial(ClothesOrthogonal, clothes="colours", rank=3, momentum=0.5),
}
AT_ONCE = {"weight": 1.0, "start_epoch": 0, "warmup_epochs": 0}
LATE = {"late": {"term": TERMS["arcface"], **AT_ONCE, "start_epoch": 5}}

# People and outfits are spread over the halves, one person has a single picture, and unknown outfits lie
# unevenly: what a process can see of the batch alone gives another loss.
PERSON = [0, 1, 0, 2, 1, 0, 1, 0]
CLOTHES = [0, 2, 1, 4, 2, -1, 3, -1]
INPUTS = random_embedding(8, 5, seed=2)
IMAGES = random_embedding(8, 3 * 8 * 4, seed=3).view(8, 3, 8, 4)


class Network(nn.Module):
    """A linear student with all losses at its end."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(5, 6)
        entries = {name: {"term": term, **AT_ONCE} for name, term in TERMS.items()}
        self.losses = WeightedLosses({**entries, **LATE}, dimensions(6, 3, OWNERS))

    def forward(self, rows: slice):
        embedding = self.student(INPUTS[rows])
        labels = batch(PERSON[rows], CLOTHES[rows])._replace(images=IMAGES[rows])
        losses = self.losses(features(embedding), labels, epoch=0)
        return losses.total, losses.raw


THIRDS = [2, 2, 4]
"""Rows of three processes of which one has more than the others."""


def step(network: nn.Module, rows: slice, part: float = 1.0):
    """Losses, gradients and buffers after two backward passes (the second sees a memory that is filled)."""
    for _ in range(2):
        network.zero_grad()
        total, raw = network(rows)
        (part * total).backward()
    inner = network.module if isinstance(network, DistributedDataParallel) else network
    return {
        "raw": {name: value.detach().clone() for name, value in raw.items()},
        "gradients": {name: parameter.grad for name, parameter in inner.named_parameters()},
        "buffers": {name: buffer.clone() for name, buffer in inner.named_buffers()},
    }


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network = DistributedDataParallel(Network().double(), find_unused_parameters=True)
    torch.save(step(network, slice(4 * rank, 4 * rank + 4)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def uneven_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3)
    network = DistributedDataParallel(Network().double(), find_unused_parameters=True)
    start = sum(THIRDS[:rank])
    with uneven(THIRDS):
        done = step(network, slice(start, start + THIRDS[rank]), part_of_mean(THIRDS, rank))
    torch.save(done, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    side_by_side(uneven_process, 3, str(folder))
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.fixture(scope="module")
def one():
    return step(Network().double(), slice(0, 8))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    side_by_side(process, 2, str(folder))
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def halves():
    """What each half gives where nothing is gathered."""
    return [step(Network().double(), slice(start, start + 4)) for start in (0, 4)]


def test_two_processes_give_the_losses_of_one(one, two):
    for name, value in one["raw"].items():
        mean = (two[0]["raw"][name] + two[1]["raw"][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-10, atol=1e-12, msg=name)


def test_two_processes_give_the_gradients_of_one(one, two):
    for name, gradient in one["gradients"].items():
        for process_ in two:
            torch.testing.assert_close(process_["gradients"][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_three_processes_of_which_one_has_more_give_losses_gradients_and_memory_of_one(one, three):
    for name, value in one["raw"].items():
        parts = [rows * there["raw"][name] / 8 for rows, there in zip(THIRDS, three, strict=True)]
        torch.testing.assert_close(sum(parts), value, rtol=1e-10, atol=1e-12, msg=name)
    for process_ in three:
        for kind in ("gradients", "buffers"):
            for name, value in one[kind].items():
                torch.testing.assert_close(process_[kind][name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_parts_of_the_mean_are_those_of_the_rows():
    assert [part_of_mean(THIRDS, rank) for rank in range(3)] == [0.75, 0.75, 1.5]
    assert part_of_mean([5, 5], 1) == 1


def test_two_processes_remember_the_same_outfits_as_one(one, two):
    for name, buffer in one["buffers"].items():
        for process_ in two:
            torch.testing.assert_close(process_["buffers"][name], buffer, msg=name)


def test_the_whole_batch_is_needed(one, halves):
    # Guards the tests above: on this batch, losses of halves alone do not average to the loss of the whole.
    pairwise = ("triplet", "soft", "contrastive", "pairwise_cosface", "pairwise_circle")
    for name in (*pairwise, "clothes_memory", "clothes_orthogonal", "colours_orthogonal"):
        mean = (halves[0]["raw"][name] + halves[1]["raw"][name]) / 2
        assert (mean - one["raw"][name]).abs() > 1e-3, name


def test_a_head_before_its_start_epoch_has_no_gradient_under_distributed_training(two):
    for process_ in two:
        without = {name for name, gradient in process_["gradients"].items() if gradient is None}
        assert without == {"losses.terms.late.head.weight"}


def test_a_single_process_gathers_its_own_rows_untouched():
    rows = torch.ones(2, 3)
    assert gather(rows) is rows
