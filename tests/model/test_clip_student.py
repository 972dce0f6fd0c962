import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.model.backbone import Backbone, BackboneOutput
from clip3dreid.model.clip_student import AttentionOverTime, ClipStudent
from clip3dreid.model.conversion import convert
from clip3dreid.model.pooling import Average, Maximum, MaximumAverage
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.student import Student
from clip3dreid.model.tiny_vit import TinyViT
from clip3dreid.model.video import ClipResNet
from clip3dreid.model.weights import load_pretrained, student_from_checkpoint
from tests.conftest import student_config
from tests.model.test_student import TINY_VIT
from tests.model.test_video import KINDS, RecordedNetwork, stirred

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def small(backbone: Backbone | None = None, pooling: nn.Module | None = None, **options: Any) -> ClipStudent:
    torch.manual_seed(0)
    return ClipStudent(backbone or ResNet(18, width=8), pooling or Maximum(), MEAN, STD, **options)


def clips(count: int = 2, length: int = 4, height: int = 64, width: int = 32) -> Tensor:
    return torch.rand(count, length, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_a_clip_is_the_mean_of_its_frames_before_the_neck() -> None:
    student = small().eval()
    stirred(student).float()
    images = clips()
    pictures = Student(student.backbone, student.pooling, MEAN, STD, neck=False).eval()
    one_by_one = torch.stack([pictures(clip).pooled for clip in images])
    found = student(images)
    torch.testing.assert_close(found.pooled, one_by_one.mean(1))
    torch.testing.assert_close(found.embedding, student.neck(one_by_one.mean(1)))
    torch.testing.assert_close(small(time="maximum").eval()(images).pooled.shape, found.pooled.shape)
    student._maximum = True
    torch.testing.assert_close(student(images).pooled, one_by_one.amax(1))


def test_a_picture_is_a_clip_of_one_frame() -> None:
    student = small(ClipResNet("i3d", width=4), time="attention").eval()
    images = clips(3, 1)
    as_pictures, as_clips = student(images[:, 0]), student(images)
    for there, here in zip(as_pictures, as_clips, strict=True):
        torch.testing.assert_close(there, here)


def test_attention_over_time_begins_as_the_mean_and_is_a_softmax_of_scores() -> None:
    attention = AttentionOverTime(3)
    frames = torch.randn(2, 4, 3)
    torch.testing.assert_close(attention(frames), frames.mean(1))
    nn.init.normal_(attention.score.weight)
    for clip, found in zip(frames, attention(frames), strict=True):
        scores = [float((attention.score.weight[0].detach() * frame).sum()) for frame in clip]
        shares = torch.tensor(scores).exp() / torch.tensor(scores).exp().sum()
        torch.testing.assert_close(
            found, sum(share * frame for share, frame in zip(shares, clip, strict=True))
        )


@pytest.mark.parametrize("length", [1, 3, 4])
def test_guides_see_the_middle_frames_map_or_all_maps_one_above_the_other(length: int) -> None:
    images = clips(2, length)
    student = small().eval()
    per_frame = [student.backbone((frame - student.mean) / student.std).map for frame in images.unbind(1)]
    torch.testing.assert_close(student(images).map, per_frame[length // 2])
    whole = small(guided="all").eval()(images).map
    assert whole.shape == (2, 64, length * 4, 2)
    torch.testing.assert_close(whole, torch.cat(per_frame, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_a_clip_meet_in_a_backbone_that_looks_across_them(kind: tuple[str, bool]) -> None:
    student = stirred(small(ClipResNet(kind[0], non_local=kind[1], width=4))).double()
    images = clips().double()
    frames = ((images - MEAN_T) / STD_T).flatten(0, 1)
    maps = student.backbone(frames, 4).map
    torch.testing.assert_close(student(images).pooled, maps.amax((2, 3)).view(2, 4, -1).mean(1))


MEAN_T, STD_T = (torch.tensor(one).view(3, 1, 1) for one in (MEAN, STD))


def test_groups_of_ghost_batch_norm_count_clips() -> None:
    torch.manual_seed(0)
    images = clips(8, 3)
    ghost, plain = small(ghost_group=4), small()
    together = ghost(images)
    apart = [plain(part) for part in images.split(4)]
    torch.testing.assert_close(together.embedding, torch.cat([part.embedding for part in apart]))
    # Pictures after clips, and another length, are grouped anew.
    pictures = ghost(images[:, 0]).embedding
    torch.testing.assert_close(pictures, torch.cat([plain(part).embedding for part in images[:, 0].split(4)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", ["average", "maximum", "attention"])
def test_gradients_reach_everything(kind: tuple[str, bool], time: str) -> None:
    student = small(ClipResNet(kind[0], non_local=kind[1], width=8), time=time).train()
    stirred(student).float().train()
    features = student(clips())
    (features.embedding.square().sum() + features.map.square().sum()).backward()
    for name, parameter in student.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name


@pytest.mark.parametrize("backbone", [lambda: ResNet(50, width=8), lambda: TinyViT(**TINY_VIT)])
def test_any_student_of_pictures_takes_frames_with_its_widths(backbone: Any) -> None:
    student = small(backbone(), MaximumAverage(), time="attention")
    features = student(clips())
    assert (student.channels, student.width) == (features.map.shape[1], features.embedding.shape[1])
    assert features.embedding.shape[0] == 2


def test_a_backbone_that_says_nothing_of_itself_is_tried_and_what_counts_for_nothing_is_frozen() -> None:
    class Silent(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.unused = nn.Conv2d(3, 5, 4, 4), nn.Linear(2, 2)

        def forward(self, images: Tensor) -> BackboneOutput:
            return BackboneOutput(self.layer(images), None)

    student = small(Silent(), Average())
    assert (student.channels, student.width) == (5, 5)
    assert not student.backbone.unused.weight.requires_grad
    assert student.backbone.layer.weight.requires_grad
    assert all(module.training for module in student.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_half_precision_is_the_networks_own(dtype: torch.dtype, kind: tuple[str, bool]) -> None:
    student = small(ClipResNet(kind[0], non_local=kind[1], width=4), time="attention").eval()
    images = clips()
    exact = student(images).embedding
    found = student.to(dtype)(images)
    assert {part.dtype for part in found} == {dtype}
    torch.testing.assert_close(found.embedding.float(), exact, atol=0.03 * float(exact.abs().max()), rtol=0)


@torch.no_grad()
def test_a_checkpoint_of_the_base_recipe_gives_its_features(tmp_path: Path) -> None:
    """All kinds: maximum over a frame, mean over frames, batch norm, as its forward says."""
    images = clips()
    normal = ((images - MEAN_T) / STD_T).transpose(1, 2)
    for kind in (("none", False), *KINDS):
        torch.manual_seed(3)
        there = stirred(RecordedNetwork(*kind, width=8)).float()
        file = tmp_path / "checkpoint.pth"
        torch.save({"model_state_dict": there.state_dict(), "rank1": 0.5}, file)
        backbone = ResNet(50, width=8) if kind == ("none", False) else ClipResNet(*kind, width=8)
        student = small(backbone).eval()
        named = load_pretrained(student, file)
        assert named == frozenset(student.state_dict())
        torch.testing.assert_close(student(images).embedding, there(normal), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_imagenets_file_of_pictures_starts_every_network_of_clips(tmp_path: Path) -> None:
    torch.manual_seed(4)
    pictures = stirred(ResNet(50, width=8)).float()
    state = dict(pictures.state_dict()) | {"fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "resnet50.pth")
    images = clips()
    plain = small(copy.deepcopy(pictures)).eval()
    for kind in KINDS:
        student = small(ClipResNet(*kind, width=8)).eval()
        load_pretrained(student, tmp_path / "resnet50.pth")
        torch.testing.assert_close(student(images).pooled, plain(images).pooled)


@torch.no_grad()
def test_a_checkpoint_of_the_base_recipe_is_converted_into_one_that_knows_its_student(tmp_path: Path) -> None:
    there = stirred(RecordedNetwork("ap3d", True, width=8)).float()
    torch.save({"model_state_dict": there.state_dict()}, tmp_path / "checkpoint.pth")
    node: Any = OmegaConf.to_container(student_config("ap3d_nl_resnet50").student)
    node["backbone"]["width"] = 8
    done = convert(tmp_path / "checkpoint.pth", tmp_path / "c.safetensors", node, height=64, width=32)
    assert done.complete
    student = student_from_checkpoint(tmp_path / "c.safetensors")
    assert isinstance(student, ClipStudent)
    images = clips()
    normal = ((images - MEAN_T) / STD_T).transpose(1, 2)
    torch.testing.assert_close(student(images).embedding, there(normal), rtol=1e-4, atol=1e-4)


def test_a_network_that_looks_across_frames_is_no_start_of_one_that_does_not(tmp_path: Path) -> None:
    torch.save(RecordedNetwork("i3d", False, width=8).state_dict(), tmp_path / "i3d.pth")
    with pytest.raises(InputError, match=r"of another architecture; .*conv2\.conv3d\.weight"):
        load_pretrained(small(ResNet(50, width=8)), tmp_path / "i3d.pth")
    with pytest.raises(InputError, match=r"of another architecture; .*time\.weight"):
        load_pretrained(small(ClipResNet("ap3d", width=8)), tmp_path / "i3d.pth")


@pytest.mark.parametrize(("key", "value"), [("time", "avarage"), ("guided", "first")])
def test_choices_that_there_are_not_are_refused_with_those_that_there_are(key: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"model\.student\.{key}={value} .*choose"):
        small(**{key: value})


def test_bytes_instead_of_floats_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="uint8"):
        small()(torch.zeros(2, 4, 3, 64, 32, dtype=torch.uint8))
