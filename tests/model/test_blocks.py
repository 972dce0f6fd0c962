"""Blocks that are computed twice keep less, and change nothing."""

import copy
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from clip3dreid.loss.shares import gradients_sent
from clip3dreid.model.blocks import recompute, repeated_blocks
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.student import Student
from tests.conftest import STUDENT, student_config

SMALL = {
    "resnet18": {"width": 8},
    "vit_b16": {
        "config.num_hidden_layers": 3,
        "config.hidden_size": 24,
        "config.num_attention_heads": 2,
        "config.intermediate_size": 48,
        # Drawn in every pass: the second must draw what the first drew.
        "config.hidden_dropout_prob": 0.3,
    },
    "swin_t": {"config.embed_dim": 12, "config.depths": [1, 1], "config.num_heads": [2, 2]},
}


def pair(name: str) -> tuple[Student, Student]:
    """A small student, and the same one with blocks that are computed twice."""
    node = student_config(name).student
    OmegaConf.set_struct(node, False)
    for key, value in SMALL[name].items():
        place: Any = node.backbone
        *way, last = key.split(".")
        for part in way:
            place = place[part]
        place[last] = value
    torch.manual_seed(0)
    plain: Student = instantiate(node)
    twice = copy.deepcopy(plain)
    assert recompute(twice.backbone) > 1
    return plain, twice


def kept_bytes(student: Student, images: Tensor) -> tuple[Tensor, int]:
    """A loss of a student, and the bytes that are kept for its backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        seen = student(images)
        return seen.embedding.square().mean() + seen.map.square().mean(), sum(sizes)


@pytest.mark.parametrize("name", SMALL)
def test_loss_gradients_and_statistics_are_those_of_before_and_less_is_kept(name: str) -> None:
    plain, twice = pair(name)
    images = torch.rand(4, 3, 64, 64)
    (expected, much), (found, little) = kept_bytes(plain, images), kept_bytes(twice, images)
    assert little < 0.6 * much
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(plain.parameters(), twice.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-6)
    state = twice.state_dict()
    assert list(state) == list(plain.state_dict())
    for key, tensor in plain.state_dict().items():
        assert torch.equal(state[key], tensor), key


def test_the_gradient_of_each_term_can_be_measured_before_the_backward_pass() -> None:
    plain, twice = pair("resnet18")
    images = torch.rand(4, 3, 64, 32)
    sent = []
    for student in (plain, twice):
        seen = student(images)
        terms = {"identity": seen.embedding.square().mean(), "other": seen.map.mean()}
        sent.append(gradients_sent(terms, list(student.backbone.parameters())))
        sum(terms.values(), torch.zeros(())).backward()
    assert sent[0] == sent[1]
    norms = [student.backbone.get_submodule("bn1").num_batches_tracked for student in (plain, twice)]
    assert norms == [1, 1]


def test_nothing_is_computed_twice_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Student = instantiate(STUDENT)
    recompute(network.backbone)
    monkeypatch.setattr("clip3dreid.model.blocks.checkpoint", None)
    network.eval()(torch.rand(2, 3, 32, 16))
    with pytest.raises(TypeError):
        network.train()(torch.rand(2, 3, 32, 16))


def test_blocks_are_the_members_of_the_outermost_sequences_that_hold_something() -> None:
    backbone = ResNet(18, width=8)
    assert repeated_blocks(backbone) == [
        *backbone.layer1,
        *backbone.layer2,
        *backbone.layer3,
        *backbone.layer4,
    ]
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []
