from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import clip3dreid
from clip3dreid.loss.total import Total

from .cases import batch, dimensions, features, random_embedding

CONF = Path(clip3dreid.__file__).parents[2] / "conf"
LOSSES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))
ROOT = """
defaults: [_self_, {loss: []}, {method: ce}]
clothes_start_epoch: 25
"""


@pytest.fixture
def losses(tmp_path):
    """Composes `loss` under the given overrides, from the real groups and a root like that of training."""
    (tmp_path / "root.yaml").write_text(ROOT)

    def composed(*overrides: str, experiment: str | None = None):
        if experiment is not None:
            (tmp_path / "experiment").mkdir()
            (tmp_path / "experiment" / "x.yaml").write_text("# @package _global_\n" + experiment)
            overrides = ("+experiment=x", *overrides)
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("root", overrides=[f"hydra.searchpath=[file://{CONF}]", *overrides]).loss

    return composed


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_config_builds_a_term_of_its_own_name_that_trains(losses, name):
    node = losses(f"loss=[{name}]", f"loss.{name}.start_epoch=0")
    assert list(node) == [name]
    torch.manual_seed(0)
    total = Total(instantiate(node), dimensions(8, 3, [0, 0, 1, 2, 2]))
    points = random_embedding(6, 8).float().requires_grad_()
    found = total(features(points), batch([0, 0, 1, 1, 2, 2], [0, 1, 2, 2, 3, 4]), epoch=0)
    found.total.backward()
    assert found.total.item() > 0
    assert points.grad.abs().sum() > 0


def test_method_ce_is_identity_alone(losses):
    assert list(losses()) == ["identity"]


def test_method_cal_adds_the_adversarial_loss_with_the_values_of_the_paper(losses):
    node = losses("method=cal")
    assert list(node) == ["identity", "clothes_adversarial"]
    assert node.clothes_adversarial.start_epoch == 25
    assert node.identity.term.smoothing == 0.1
    assert node.clothes_adversarial.term.scale == 16
    assert node.clothes_adversarial.term.epsilon == 0.1


def test_command_line_overrides_the_method_of_an_experiment(losses):
    experiment = "defaults: [{override /method: cal}]\nclothes_start_epoch: 7\n"
    assert list(losses("method=ce", experiment=experiment)) == ["identity"]


def test_experiment_chooses_method_and_start_epoch(losses):
    experiment = "defaults: [{override /method: cal}]\nclothes_start_epoch: 7\n"
    assert losses(experiment=experiment).clothes_adversarial.start_epoch == 7


def test_experiment_adds_a_loss_to_whatever_method(losses):
    experiment = "defaults: [{/loss: triplet}, {override /method: cal}]\n"
    assert list(losses("method=ce", experiment=experiment)) == ["identity", "triplet"]


def test_command_line_adds_to_and_replaces_the_losses_of_a_method(losses):
    assert list(losses("+loss=triplet")) == ["identity", "triplet"]
    assert list(losses("loss=[arcface]")) == ["arcface"]
