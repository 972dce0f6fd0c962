import copy

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.model.pooling import Average, ClassToken, GeneralisedMean, Maximum, MaximumAverage
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.student import Student
from clip3dreid.model.tiny_vit import TinyViT
from tests.conftest import STUDENT, student_config

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NAMES = sorted(path.stem for path in (conf_dir() / "model" / "student").glob("*.yaml"))


def small(**options) -> Student:
    torch.manual_seed(0)
    return Student(ResNet(18, width=8), options.pop("pooling", MaximumAverage()), MEAN, STD, **options)


def test_pictures_are_normalised_exactly_once():
    student = small().eval()
    images = torch.rand(2, 3, 64, 32)
    by_hand = torch.stack(
        [(images[:, i] - MEAN[i]) / STD[i] for i in range(3)], 1
    )  # written out channel by channel
    features = student(images)
    torch.testing.assert_close(features.map, student.backbone(by_hand).map)
    torch.testing.assert_close(features.pooled, student.pooling(student.backbone(by_hand)))


def test_the_embedding_is_the_batch_norm_of_the_pooled_feature():
    student = small()
    features = student(torch.rand(6, 3, 64, 32))
    pooled = features.pooled
    normal = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(features.embedding, normal * student.neck.weight + student.neck.bias)


def test_the_neck_starts_as_the_base_recipe_says():
    neck = small().neck
    assert torch.equal(neck.bias, torch.zeros(128))
    assert neck.weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert neck.weight.std().item() == pytest.approx(0.02, abs=0.005)
    assert neck.bias.requires_grad
    assert not small(neck_bias=False).neck.bias.requires_grad


def test_without_a_neck_the_embedding_is_the_pooled_feature_in_training_and_after():
    student = small(neck=False, ghost_group=4)
    for mode in (True, False):
        features = student.train(mode)(torch.rand(2, 3, 64, 32))
        assert features.embedding is features.pooled
    assert {name.split(".")[0] for name in student.state_dict()} == {"backbone"}
    assert not any(isinstance(module, nn.BatchNorm1d) for module in student.modules())


@pytest.mark.parametrize(
    ("pooling", "width"), [(Average(), 64), (MaximumAverage(), 128), (GeneralisedMean(), 64)]
)
def test_widths_are_those_of_the_outputs(pooling, width):
    student = small(pooling=pooling)
    features = student(torch.rand(2, 3, 64, 32))
    assert (student.channels, student.width) == (64, width)
    assert features.map.shape == (2, 64, 4, 2)
    assert features.pooled.shape == features.embedding.shape == (2, width)


def test_mean_and_std_are_config_and_not_state():
    student = small()
    assert not {"mean", "std"} & set(student.state_dict())
    assert {name.split(".")[0] for name in student.state_dict()} == {"backbone", "neck"}


def test_building_draws_nothing_and_leaves_training_on():
    torch.manual_seed(3)
    backbone = ResNet(18, width=8)
    before = copy.deepcopy(backbone.state_dict())
    student = Student(backbone, Average(), MEAN, STD)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(module.training for module in student.modules())


def test_bytes_instead_of_floats_are_a_type_error():
    with pytest.raises(TypeError, match="uint8"):
        small()(torch.zeros(2, 3, 64, 32, dtype=torch.uint8))


def test_a_class_token_pooling_without_a_class_token_is_an_input_error():
    with pytest.raises(InputError, match="class token"):
        small(pooling=ClassToken())


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.5]), (MEAN, [0.2, 0.0, 0.2])])
def test_impossible_normalisation_is_an_input_error(mean, std):
    with pytest.raises(InputError, match="three numbers"):
        Student(ResNet(18, width=8), Average(), mean, std)


def test_ghost_groups_reach_backbone_and_neck_alike():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 64, 32)
    ghost, plain = small(ghost_group=4), small()
    together = ghost(images)
    apart = [plain(part) for part in images.split(4)]
    torch.testing.assert_close(together.embedding, torch.cat([part.embedding for part in apart]))
    together.embedding.square().sum().backward()
    sum(part.embedding.square().sum() for part in apart).backward()
    for (name, a), (_, b) in zip(ghost.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_frozen_batch_norm_keeps_the_backbones_and_trains_the_neck():
    student = small(freeze_batch_norm=True, ghost_group=4)
    before = copy.deepcopy(student.state_dict())
    student.train()
    student(torch.rand(8, 3, 64, 32)).embedding.pow(2).sum().backward()
    after = student.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"neck.running_mean", "neck.running_var", "neck.num_batches_tracked"}
    norms = [module for module in student.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert not any(norm.weight.requires_grad or norm.bias.requires_grad for norm in norms)
    assert student.neck.weight.requires_grad


TINY_VIT = {"widths": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "heads": [1, 2, 2, 4], "windows": [7, 7, 7, 7]}


@pytest.mark.parametrize("pooling", [Average, Maximum, MaximumAverage, GeneralisedMean])
@pytest.mark.parametrize(
    "backbone", [lambda: ResNet(18, width=8), lambda: ResNet(50, width=8), lambda: TinyViT(**TINY_VIT)]
)
def test_what_backbone_and_pooling_say_of_themselves_is_what_a_run_finds(backbone, pooling):
    student = Student(backbone(), pooling(), MEAN, STD)
    assert student._said() == (student.channels, student.width) == student._measure()
    # A run would have frozen parameters that count for nothing.
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_student_that_goes_another_way_is_measured_by_a_run():
    class Twice(Student):
        def forward(self, images):
            features = super().forward(images)
            return features._replace(pooled=torch.cat([features.pooled] * 2, 1))

    assert Twice(ResNet(18, width=8), Average(), MEAN, STD, neck=False).width == 128


@pytest.mark.parametrize("name", NAMES)
def test_every_configured_student_is_built_with_the_width_its_header_names(name):
    with torch.device("meta"):
        student = instantiate(student_config(name).student)
    text = (conf_dir() / "model" / "student" / f"{name}.yaml").read_text()
    assert f"D = {student.width}" in text
    # A linear layer between map and feature is one of the pooling.
    network = *student.backbone.parameters(), *student.pooling.parameters()
    assert f"{sum(p.numel() for p in network if p.requires_grad) / 1e6:.1f} M" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_configured_student_says_how_to_get_the_very_file_it_expects(name):
    text = (conf_dir() / "model" / "student" / f"{name}.yaml").read_text()
    package, header, *_ = text.splitlines()
    assert package == "# @package model"
    assert "\n# Weights: " in text or "from scratch" in header
    node = student_config(name, weights_dir="some/where")
    assert (node.pretrained is None) == ("from scratch" in header)
    if node.pretrained is None:
        return
    assert node.pretrained.startswith("some/where/")
    assert node.pretrained in node.fetch.split()
    if node.sha256 is not None:
        # torchvision puts the first eight digits of the checksum into the name.
        assert node.pretrained.endswith(f"-{node.sha256[:8]}.pth")
        assert len(node.sha256) == 64


@pytest.mark.parametrize("neck_dim", [None, 12])
@torch.no_grad()
def test_mixed_precision_does_not_round_what_is_ranked(neck_dim: int | None) -> None:
    student = small(neck_dim=neck_dim).eval()
    images = torch.rand(4, 3, 64, 32)
    exact = student(images).embedding
    with torch.autocast("cpu", torch.bfloat16):
        found = student(images)
        pooled = student.pooling(student.backbone((images - student.mean) / student.std)).float()
        assert found.map.dtype == torch.bfloat16
    assert found.embedding.dtype == torch.float32
    # Nothing but what the layers before have rounded differs: the last step is that of float32.
    torch.testing.assert_close(found.embedding, student.neck(student.reduction(pooled)))
    torch.testing.assert_close(found.embedding, exact, atol=0.05 * float(exact.abs().max()), rtol=0)
    assert not torch.equal(found.embedding.bfloat16().float(), found.embedding)


@pytest.mark.parametrize("neck", [True, False])
def test_a_reduction_gives_the_embedding_another_width(neck: bool) -> None:
    student = small(neck_dim=12, neck=neck, ghost_group=4)
    features = student(torch.rand(6, 3, 64, 32))
    assert student.width == 12
    assert features.pooled.shape == features.embedding.shape == (6, 12)
    assert student.reduction.weight.shape == (12, 128)
    assert small().reduction.state_dict() == {}
    features.embedding.square().sum().backward()
    assert student.reduction.weight.grad is not None


def test_a_reduction_to_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="neck_dim=0"):
        small(neck_dim=0)


@pytest.mark.parametrize("pooling", ["Average", "Maximum", "MaximumAverage", "GeneralisedMean"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_pictures_of_any_precision_go_through_a_network_of_any(pooling: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    node = STUDENT | {"pooling": {"_target_": f"clip3dreid.model.pooling.{pooling}"}}
    network = instantiate(node).eval()
    # Not smaller: on CPUs with AMX for float16 oneDNN (torch 2.13) reads beyond maps of 4x2 at stride 2.
    images = torch.rand(2, 3, 128, 64)
    exact = network(images).embedding
    network.to(dtype)
    for given in (images, images.to(dtype), images.double()):
        found = network(given)
        assert {part.dtype for part in found} == {dtype}
        torch.testing.assert_close(
            found.embedding.float(), exact, atol=0.02 * float(exact.abs().max()), rtol=0
        )
