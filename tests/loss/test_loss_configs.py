from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import clip3dreid
from clip3dreid.loss.weighted import WeightedLosses, teaches

from .cases import guided, guided_batch, guided_bodies, random_embedding, seen

CONF = Path(clip3dreid.__file__).parents[2] / "conf"
LOSSES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))
VARIANTS = {
    "local_geomloss": "local",
    "local_unbalanced": "local",
    "local_release": "local",
    "local_contrastive": "local",
    "global_kl": "global",
    "global_kl_release": "global",
    "clothes_memory_base": "clothes_memory",
}
"""Files that take the place of another loss, and so its name."""
BESIDE = {"global_kl": ["identity"], "global_kl_release": []}
"""What a loss cannot do without."""
READS = {
    "local": {"map"},
    "local_geomloss": {"map"},
    "local_unbalanced": {"map"},
    "local_release": {"map"},
    "local_contrastive": {"map"},
    "body": {"bodies"},
    "body_identity": {"bodies"},
}
"""What a loss guides, if it is not the embedding of the people's pictures."""
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
@pytest.mark.parametrize("dressed", [True, False])
def test_every_parameter_of_a_loss_that_takes_part_has_a_gradient_whatever_the_batch(losses, name, dressed):
    """Distributed training looks for parameters without one where a loss starts late, and nowhere else."""
    own, beside = VARIANTS.get(name, name), BESIDE.get(name, [])
    node = losses(f"loss=[{','.join([*beside, name])}]", f"loss.{own}.start_epoch=0")
    at = guided(24, 3, [0, 0, 1, 2, 2])
    total = WeightedLosses(instantiate(node), at)
    pictures, bodies = seen(random_embedding(6, 24).float(), 24), guided_bodies(at)
    for part in (*pictures, *bodies):
        part.requires_grad_()
    clothes = [0, 1, 2, 2, 3, 4] if dressed else [-1] * 6
    labels = guided_batch(at, [0, 0, 1, 1, 2, 2], clothes)
    total(pictures, labels, epoch=0, bodies=bodies).total.backward()
    without = [key for key, one in total.named_parameters() if one.requires_grad and one.grad is None]
    assert without == []


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_config_builds_a_term_of_its_own_name_that_trains(losses, name):
    own, beside = VARIANTS.get(name, name), BESIDE.get(name, [])
    node = losses(f"loss=[{','.join([*beside, name])}]", f"loss.{own}.start_epoch=0")
    assert list(node) == [*beside, own]
    torch.manual_seed(0)
    at = guided(24, 3, [0, 0, 1, 2, 2])
    total = WeightedLosses(instantiate(node), at)
    pictures, bodies = seen(random_embedding(6, 24).float(), 24), guided_bodies(at)
    labels = guided_batch(at, [0, 0, 1, 1, 2, 2], [0, 1, 2, 2, 3, 4])
    places = {
        "map": pictures.map,
        "embedding": pictures.embedding,
        "bodies": bodies.embedding,
    }
    for place in places.values():
        place.requires_grad_()
    found = total(pictures, labels, epoch=0, bodies=bodies)
    assert found.total.item() > 0
    # What a term ships it has named before it was built.
    assert {head.partition(".")[0] for head in total.heads()} <= (teaches(instantiate(node)) or set())
    gradients = torch.autograd.grad(
        found.terms[own], list(places.values()), retain_graph=True, allow_unused=True
    )
    reached = {place for place, gradient in zip(places, gradients, strict=True) if gradient is not None}
    assert reached == READS.get(name, {"embedding"})
    assert all(gradient.abs().sum() > 0 for gradient in gradients if gradient is not None)
    found.total.backward()
    assert all(parameter.grad is not None for parameter in total.parameters())


def test_method_ce_is_identity_alone(losses):
    assert list(losses()) == ["identity"]


def test_method_cal_adds_the_adversarial_loss_with_the_values_of_the_paper(losses):
    node = losses("method=cal")
    assert list(node) == ["identity", "clothes_adversarial"]
    assert node.clothes_adversarial.start_epoch == 25
    assert node.identity.term.smoothing == 0.1
    assert node.clothes_adversarial.term.scale == 16
    assert node.clothes_adversarial.term.epsilon == 0.1


def test_method_cal_triplet_is_cal_with_the_triplet_of_the_base_recipe(losses):
    node = losses("method=cal_triplet")
    assert list(node) == ["identity", "clothes_adversarial", "triplet"]
    assert {name: node[name] for name in ("identity", "clothes_adversarial")} == losses("method=cal")
    triplet = node.triplet
    assert (triplet.weight, triplet.start_epoch) == (1.0, 0)
    assert (triplet.term.margin, triplet.term.distance) == (0.3, "cosine")


def test_the_memory_of_the_base_code_differs_from_ours_in_what_it_keeps_alone(losses):
    ours, theirs = (
        losses(f"loss=[{name}]").clothes_memory for name in ("clothes_memory", "clothes_memory_base")
    )
    assert (ours.term.keep, theirs.term.keep) == ("mean", "last")
    assert {**ours.term, "keep": "last"} == theirs.term
    assert theirs.term.momentum == 0


def test_method_clip3dreid_is_identity_with_its_three_guides(losses):
    node = losses("method=clip3dreid")
    assert list(node) == ["identity", "local", "global", "shape"]
    assert all(entry.start_epoch == entry.warmup_epochs == 0 for entry in node.values())
    assert node.local.term["_target_"].endswith(".LocalContrast")
    assert node.local.term.centre == "vocabulary"
    assert node["global"].term["_target_"].endswith(".GlobalAlignment")


def test_method_clip3dreid_paper_pulls_to_words_and_reconstructs_bodies(losses):
    node = losses("method=clip3dreid_paper")
    assert list(node) == ["identity", "local", "global", "body"]
    assert node.local.term["_target_"].endswith(".LocalAlignment")
    assert (node.local.term.projection, node.local.term.centre) == ("student", "vocabulary")


def test_method_clip3dreid_cal_adds_the_adversarial_loss(losses):
    node = losses("method=clip3dreid_cal")
    assert list(node) == ["identity", "local", "global", "shape", "clothes_adversarial"]
    assert node.clothes_adversarial.start_epoch == 25


def test_method_clip3dreid_release_has_the_values_of_the_release_and_no_bodies(losses):
    node = losses("method=clip3dreid_release")
    # No loss of the student's own: its classifier belongs to the distillation.
    assert list(node) == ["local", "global"]
    assert all(entry.start_epoch == entry.warmup_epochs == 0 for entry in node.values())
    local = node.local
    assert local.weight == 0.3
    assert (local.term.projection, local.term.centre) == ("text", "none")
    assert (local.term.positions, local.term.tokens) == ("uniform", "uniform")
    solver = local.term.solver
    assert (solver.eps, solver.iterations, solver.tolerance) == (0.1, 100, 0.01)
    release = node["global"]
    assert release.weight == 1.0
    assert {key: value for key, value in release.term.items() if not key.startswith("_")} == {
        "width": 512,
        "temperature": 2.0,
        "squared": False,
        "margin": 0.3,
        "distance": "unit_euclidean",
        "smoothing": 0.1,
        "detach": False,
        "classifier": None,
        "kl_weight": 1.0,
        "teacher_weight": 1.0,
    }


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
