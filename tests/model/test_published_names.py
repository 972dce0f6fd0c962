"""Checkpoints of the field's programs give the features that those programs test with; what cannot be is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.model.backbone import Backbone
from clip3dreid.model.conversion import convert
from clip3dreid.model.osnet import OSNet
from clip3dreid.model.pooling import (
    Average,
    ClassToken,
    FullyConnected,
    GeneralisedMean,
    MaximumAverage,
    ProjectedToken,
)
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.student import Student
from clip3dreid.model.vision_transformer import VisionTransformer
from clip3dreid.model.weights import load_pretrained
from tests.model.published_files import File, clip_reid, osnet, transreid

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
VIT: dict[str, Any] = {"channels": 8, "depth": 2, "heads": 2, "patch": 4}
IMAGES = torch.rand(3, 3, 32, 16, generator=torch.Generator().manual_seed(9))


def student(backbone: Backbone, pooling: torch.nn.Module, **changes: Any) -> Student:
    torch.manual_seed(1)
    return Student(backbone, pooling, MEAN, STD, **{"neck": False, **changes}).eval()


def normalised(images: Tensor = IMAGES) -> Tensor:
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def save(path: Path, state: dict[str, Tensor], inside: str | None = None, prefix: str = "") -> Path:
    state = {prefix + name: tensor for name, tensor in state.items()}
    torch.save(state if inside is None else {inside: state, "epoch": 60}, path)
    return path


def same(found: Tensor, expected: Tensor) -> None:
    """Asserts equality within 1e-5 of the greatest value."""
    scale = float(expected.abs().max())
    assert scale > 0.1
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("adaptive", [False, True], ids=["OSNet", "OSNet-AIN"])
@pytest.mark.parametrize(("inside", "prefix"), [(None, ""), ("state_dict", "module.")])
@torch.no_grad()
def test_an_osnet_of_torchreid_gives_torchreids_feature(
    tmp_path: Path, adaptive: bool, inside: str | None, prefix: str
) -> None:
    file, images = File(), torch.rand(2, 3, 64, 32)
    expected = osnet(file, normalised(images), 16, adaptive)
    assert ("conv2.0.conv2.3.layers.3.conv2.weight" in file.state) is adaptive
    file.state |= {"classifier.weight": torch.zeros(751, 12), "classifier.bias": torch.zeros(751)}
    ours = student(OSNet(16, adaptive), FullyConnected(128, 12))
    loaded = load_pretrained(ours, save(tmp_path / "a.pth", file.state, inside, prefix))
    assert loaded == ours.state_dict().keys()
    same(ours(images).embedding, expected)
    assert ours(images).embedding.min() == 0


@pytest.mark.parametrize("neck", [False, True], ids=["before", "behind"])
@torch.no_grad()
def test_a_baseline_of_transreid_gives_its_feature_before_or_behind_its_neck(
    tmp_path: Path, neck: bool
) -> None:
    file = File()
    expected = transreid(file, normalised())
    behind = file.batch_norm(expected, "bottleneck")
    file.state |= {"classifier.weight": torch.zeros(751, 8), "base.fc.weight": torch.zeros(1000, 8)}
    ours = student(VisionTransformer(32, 16, **VIT, stride=4), ClassToken(), neck=neck)
    loaded = load_pretrained(ours, save(tmp_path / "a.pth", file.state, prefix="module."))
    assert loaded == ours.state_dict().keys()
    same(ours(IMAGES).embedding, behind if neck else expected)


@pytest.mark.parametrize("neck", [False, True], ids=["before", "behind"])
@torch.no_grad()
def test_clip_reid_gives_its_two_features_side_by_side(tmp_path: Path, neck: bool) -> None:
    file = File()
    parts = clip_reid(file, normalised())
    behind = [
        file.batch_norm(x, name) for x, name in zip(parts, ("bottleneck", "bottleneck_proj"), strict=True)
    ]
    file.state |= {
        "classifier.weight": torch.zeros(751, 8),
        "classifier_proj.weight": torch.zeros(751, 6),
        "prompt_learner.cls_ctx": torch.zeros(751, 4, 6),
        "text_encoder.transformer.resblocks.0.ln_1.weight": torch.zeros(6),
    }
    backbone = VisionTransformer(32, 16, **VIT, stride=3, eps=1e-5, clip=True)
    ours = student(backbone, ProjectedToken(8, 6), neck=neck)
    loaded = load_pretrained(ours, save(tmp_path / "a.pth", file.state))
    assert loaded == ours.state_dict().keys()
    same(ours(IMAGES).embedding, torch.cat(behind if neck else parts, 1))


def fast_reid(version: str, ibn: bool = False, p: float | None = None) -> tuple[dict[str, Tensor], Student]:
    """A file of a small ResNet, and the student that it describes, with other weights."""
    pooling: Callable[[], torch.nn.Module] = Average if p is None else GeneralisedMean
    new = version == "new"
    torch.manual_seed(7)
    there = Student(ResNet(18, 1, 8, ibn, new), pooling(), MEAN, STD, neck_bias=False)
    there(torch.rand(8, 3, 64, 32))
    if p is not None:
        torch.nn.init.constant_(there.get_parameter("pooling.p"), p)
    names = {"neck": "heads.bottleneck.0" if new else "heads.bnneck", "pooling": "heads.pool_layer"}
    state = {}
    for name, tensor in there.state_dict().items():
        part, _, rest = name.partition(".")
        state[f"{names.get(part, part)}.{rest}"] = tensor
    state |= {"heads.weight" if new else "heads.classifier.weight": torch.zeros(751, 64)}
    if not new:
        state |= {
            "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1),
            "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1),
        }
    return state, there.eval()


@pytest.mark.parametrize("version", ["old", "new"])
@pytest.mark.parametrize("ibn", [False, True])
@pytest.mark.parametrize("p", [None, 2.5], ids=["average", "GeM"])
@torch.no_grad()
def test_a_baseline_of_fast_reid_gives_the_feature_behind_its_neck(
    tmp_path: Path, version: str, ibn: bool, p: float | None
) -> None:
    state, there = fast_reid(version, ibn, p)
    assert ("backbone.layer3.1.bn1.IN.weight" in state) is ibn
    pooling = Average() if p is None else GeneralisedMean()
    ours = student(ResNet(18, 1, 8, ibn, version == "new"), pooling, neck=True)
    loaded = load_pretrained(ours, save(tmp_path / "a.pth", state, "model"))
    assert loaded == ours.state_dict().keys()
    x = there.backbone(normalised()).map
    x = x.mean((2, 3)) if p is None else x.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)
    scale = there.neck.weight / (there.neck.running_var + 1e-5).sqrt()
    same(ours(IMAGES).embedding, (x - there.neck.running_mean) * scale + there.neck.bias)


@torch.no_grad()
def test_a_resnet_of_torchreid_gives_its_average_or_its_layer_of_512(tmp_path: Path) -> None:
    torch.manual_seed(3)
    there = ResNet(18, last_stride=2, width=8).eval()
    state = there.state_dict() | {
        "classifier.weight": torch.zeros(751, 64),
        "classifier.bias": torch.zeros(751),
    }
    expected = there(normalised()).map.mean((2, 3))
    ours = student(ResNet(18, last_stride=2, width=8), Average())
    load_pretrained(ours, save(tmp_path / "a.pth", state, "state_dict"))
    same(ours(IMAGES).embedding, expected)
    file = File()
    expected = file.batch_norm(file.linear(expected, "fc.0.weight", "fc.0.bias", 12), "fc.1").relu()
    ours = student(ResNet(18, last_stride=2, width=8), FullyConnected(64, 12))
    load_pretrained(ours, save(tmp_path / "b.pth", state | file.state))
    same(ours(IMAGES).embedding, expected)


def osnet_file() -> tuple[dict[str, Tensor], Student]:
    file = File()
    osnet(file, torch.rand(1, 3, 32, 32), 16, False)
    return file.state, student(OSNet(16), FullyConnected(128, 12))


def transreid_file() -> tuple[dict[str, Tensor], Student]:
    file = File()
    file.batch_norm(transreid(file, IMAGES), "bottleneck")
    return file.state, student(VisionTransformer(32, 16, **VIT, stride=4), ClassToken())


def clip_reid_file() -> tuple[dict[str, Tensor], Student]:
    file = File()
    for x, name in zip(clip_reid(file, IMAGES), ("bottleneck", "bottleneck_proj"), strict=True):
        file.batch_norm(x, name)
    backbone = VisionTransformer(32, 16, **VIT, stride=3, eps=1e-5, clip=True)
    return file.state, student(backbone, ProjectedToken(8, 6))


FILES: dict[str, Callable[[], tuple[dict[str, Tensor], Student]]] = {
    "OSNet": osnet_file,
    "fast-reid": lambda: (fast_reid("old")[0], student(ResNet(18, width=8), Average(), neck=True)),
    "TransReID": transreid_file,
    "CLIP-ReID": clip_reid_file,
}
"""Program -> a file of its, and a student that it fits."""


@pytest.mark.parametrize("program", FILES)
def test_a_name_that_no_table_knows_is_named_with_what_to_do(tmp_path: Path, program: str) -> None:
    state, ours = FILES[program]()
    load_pretrained(ours, save(tmp_path / "a.pth", state))
    path = save(tmp_path / "b.pth", state | {"attribute_head.weight": torch.zeros(2)})
    with pytest.raises(
        InputError, match=r"left over: attribute_head\.weight; choose .* with model/student=NAME"
    ):
        load_pretrained(ours, path)


@pytest.mark.parametrize(
    ("program", "name", "said"),
    [
        (
            "fast-reid",
            "backbone.NL_2.0.g.weight",
            r"has non-local blocks \(AGW, SBS\); convert a BoT baseline",
        ),
        ("fast-reid", "backbone.layer1.0.se.fc.0.weight", "has squeeze-and-excitation"),
        (
            "fast-reid",
            "heads.bottleneck.1.weight",
            "has the names of fast-reid before 0.3 and fast-reid since 0.3",
        ),
        (
            "TransReID",
            "base.sie_embed",
            r"has an embedding of the camera \(SIE\).*convert a baseline without it",
        ),
        ("TransReID", "b1.0.norm1.weight", r"branches of its jigsaw patches \(JPM\)"),
        ("CLIP-ReID", "cv_embed", r"CLIP-ReID's file has an embedding of the camera"),
        ("CLIP-ReID", "image_encoder.attnpool.q_proj.weight", "is of RN50, which no student is"),
        (
            "CLIP-ReID",
            "base.cls_token",
            "of CLIP-ReID, are of another architecture; left over: base.cls_token",
        ),
    ],
)
def test_what_no_student_is_is_refused_in_a_line_that_says_why(
    tmp_path: Path, program: str, name: str, said: str
) -> None:
    state, ours = FILES[program]()
    before = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    with pytest.raises(InputError, match=said) as caught:
        load_pretrained(ours, save(tmp_path / "a.pth", state | {name: torch.zeros(1)}))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in ours.state_dict().items())


def test_a_file_with_two_programs_networks_is_refused(tmp_path: Path) -> None:
    both = {**osnet_file()[0], **transreid_file()[0]}
    with pytest.raises(
        InputError, match=r"has the names of torchreid's OSNet and TransReID; save the state dict of one"
    ):
        load_pretrained(osnet_file()[1], save(tmp_path / "a.pth", both))


@pytest.mark.parametrize(
    ("version", "ceil", "said"),
    [
        ("old", True, r"fast-reid before 0\.3; set model\.student\.backbone\.ceil_pool=false"),
        ("new", False, r"fast-reid since 0\.3; set model\.student\.backbone\.ceil_pool=true"),
    ],
)
def test_the_pooling_that_no_tensor_shows_is_asked_for(
    tmp_path: Path, version: str, ceil: bool, said: str
) -> None:
    ours = student(ResNet(18, width=8, ceil_pool=ceil), Average(), neck=True)
    with pytest.raises(InputError, match=said):
        load_pretrained(ours, save(tmp_path / "a.pth", fast_reid(version)[0]))


def test_other_means_of_the_pictures_are_refused_with_those_of_the_file(tmp_path: Path) -> None:
    state, _ = fast_reid("old")
    state["pixel_mean"] = torch.tensor([127.5, 127.5, 127.5])
    ours = student(ResNet(18, width=8), Average(), neck=True)
    with pytest.raises(InputError, match=r"another mean; set 'model\.student\.mean=\[0\.5,0\.5,0\.5\]'"):
        load_pretrained(ours, save(tmp_path / "a.pth", state))
    state["pixel_mean"] = torch.tensor([123.675])
    with pytest.raises(InputError, match="another mean"):
        load_pretrained(ours, save(tmp_path / "a.pth", state))


def test_a_pooling_of_another_width_is_refused(tmp_path: Path) -> None:
    ours = student(ResNet(18, width=8), MaximumAverage(), neck=True)
    with pytest.raises(InputError, match=r"of another shape: neck\.bias \(there \(64,\), here \(128,\)\)"):
        load_pretrained(ours, save(tmp_path / "a.pth", fast_reid("old")[0]))


@pytest.mark.parametrize("shape", [(), (0,), (2, 3, 4, 5)])
@pytest.mark.parametrize("name", ["class_embedding", "positional_embedding"])
def test_a_hostile_shape_is_refused_by_name(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    state, ours = clip_reid_file()
    state |= {f"image_encoder.{name}": torch.zeros(shape), "bottleneck_proj.weight": torch.zeros(shape)}
    with pytest.raises(InputError, match="of another shape: backbone"):
        load_pretrained(ours, save(tmp_path / "a.pth", state))


def test_what_is_converted_without_a_neck_is_whole(tmp_path: Path) -> None:
    config = {
        "_target_": "clip3dreid.model.student.Student",
        "backbone": {
            "_target_": "clip3dreid.model.vision_transformer.VisionTransformer",
            "height": 32,
            "width": 16,
            "stride": 4,
            **VIT,
        },
        "pooling": {"_target_": "clip3dreid.model.pooling.ClassToken"},
        "mean": MEAN,
        "std": STD,
        "neck": False,
    }
    path = save(tmp_path / "a.pth", transreid_file()[0])
    assert convert(path, tmp_path / "a.safetensors", config, height=32, width=16).complete
