"""One formula of what people are compared by."""

import pytest
import torch
from hydra.utils import instantiate
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.inference.features import feature_width, joint_features, part_layers, retrieval_features
from clip3dreid.inference.parts import EMBEDDING, as_feature
from clip3dreid.types import Features
from tests.conftest import STUDENT


def halves(images: torch.Tensor) -> Features:
    """Embeds a picture as the means of its left and of its right half, in half precision."""
    left, right = images.half().chunk(2, dim=3)
    embedding = torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1)
    return Features(images, embedding, embedding)


def test_the_mirror_images_embedding_is_added_by_hand() -> None:
    picture = torch.zeros(1, 3, 2, 4)
    picture[..., :2] = 1.0  # the left half is white
    assert retrieval_features(halves, picture, flip=False).embedding.tolist() == [[1, 0]]
    found = retrieval_features(halves, picture, flip=True)
    assert found.embedding.tolist() == [[1, 1]]
    assert found.embedding.dtype == torch.float32
    assert found.upright.embedding.tolist() == [[1, 0]]


@pytest.mark.parametrize("flip", [True, False])
@torch.no_grad()
def test_both_at_once_are_the_same_as_one_after_the_other(flip: bool) -> None:
    torch.manual_seed(1)
    student = instantiate(STUDENT).eval()
    images = torch.rand(3, 3, 32, 16)
    apart, at_once = (retrieval_features(student, images, flip=flip, at_once=one) for one in (False, True))
    torch.testing.assert_close(at_once.embedding, apart.embedding)
    for ours, theirs in zip(at_once.upright, apart.upright, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_projected_mean_is_the_mean_of_projected_positions_made_as_long_as_one() -> None:
    torch.manual_seed(1)
    maps, projection = torch.randn(2, 5, 3, 2), torch.nn.Linear(5, 4)
    places = projection(maps.permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(joint_features(maps, projection), F.normalize(places, dim=1))


# Features of several parts.

D, C, JOINT, TEACHER, BETAS = 7, 4, 5, 6, 3
SEED = torch.Generator().manual_seed(3)
HEADS = {
    "joint.weight": torch.randn(JOINT, C, generator=SEED),
    "joint.bias": torch.randn(JOINT, generator=SEED),
    "teacher.weight": torch.randn(TEACHER, D, generator=SEED),
    "teacher.bias": torch.randn(TEACHER, generator=SEED),
    "shape.weight": torch.randn(BETAS, D, generator=SEED),
    "shape.bias": torch.randn(BETAS, generator=SEED),
}
STANDARD = {"shape.usual": torch.tensor([0.5, -1, 2]), "shape.spread": torch.tensor([2.0, 0, 0.25])}
WEIGHTS = {"embedding": 1.0, "teacher": 0.5, "joint": 0.25, "betas": 2.0}


def looked(images: torch.Tensor) -> Features:
    """A student that sees left and right, so that mirror images differ."""
    flat = images.flatten(1)
    mixing = torch.randn(flat.shape[1], D, generator=torch.Generator().manual_seed(4))
    maps = torch.stack([images[:, 0], images[:, 1] ** 2, images.sum(1), images[:, 2] * torch.arange(4)], 1)
    return Features(maps, flat @ mixing, (flat**2) @ mixing)


def pictures(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 2, 4, generator=torch.Generator().manual_seed(5))


def parts_by_hand(images: torch.Tensor, flip: bool) -> dict[str, torch.Tensor]:
    """Each part as its definition has it, view by view."""
    views = [looked(view) for view in ((images, images.flip(-1)) if flip else (images,))]
    mean = sum(view.embedding for view in views) / len(views)
    betas = mean @ HEADS["shape.weight"].T + HEADS["shape.bias"]
    at = [view.map.flatten(2).mT @ HEADS["joint.weight"].T + HEADS["joint.bias"] for view in views]
    return {
        "embedding": mean,
        "teacher": mean @ HEADS["teacher.weight"].T + HEADS["teacher.bias"],
        "joint": sum(positions.mean(1) for positions in at) / len(views),
        # The second component was not learnt.
        "betas": torch.stack([(betas[:, 0] - 0.5) / 2, (betas[:, 2] - 2) / 0.25], 1),
    }


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    return F.normalize(vectors, dim=1) @ F.normalize(vectors, dim=1).T


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_the_cosine_of_a_feature_is_the_weighted_mean_of_its_parts_cosines(flip: bool, at_once: bool) -> None:
    wanted = as_feature(WEIGHTS)
    layers = part_layers(wanted, HEADS | STANDARD)
    seen = retrieval_features(looked, pictures(), flip=flip, at_once=at_once, feature=wanted, layers=layers)
    parts = parts_by_hand(pictures(), flip)
    expected = sum(weight * cosines(parts[name]) for name, weight in WEIGHTS.items()) / sum(WEIGHTS.values())
    torch.testing.assert_close(seen.feature @ seen.feature.T, expected)
    torch.testing.assert_close(seen.feature.norm(dim=1), torch.ones(6))
    assert seen.feature.shape[1] == feature_width(wanted, D, layers) == D + TEACHER + JOINT + 2


@pytest.mark.parametrize("part", ["embedding", "teacher", "joint", "betas"])
@pytest.mark.parametrize("flip", [True, False])
def test_each_part_beside_the_embedding_is_its_formula_of_length_1(part: str, flip: bool) -> None:
    wanted = as_feature([part] if part != "embedding" else {"embedding": 3, "teacher": 1})
    layers = part_layers(wanted, HEADS | STANDARD)
    found = retrieval_features(looked, pictures(), flip=flip, feature=wanted, layers=layers).feature
    expected = F.normalize(parts_by_hand(pictures(), flip)[part], dim=1)
    if part == "embedding":
        found, expected = found[:, :D], (3 / 4) ** 0.5 * expected
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("flip", [True, False])
def test_the_embedding_alone_is_what_it_was_to_the_bit(flip: bool) -> None:
    images = pictures()
    before = looked(images).embedding.float()
    if flip:
        before = before + looked(images.flip(-1)).embedding.float()
    for feature in (EMBEDDING, as_feature({"embedding": 0.5, "betas": 0})):
        seen = retrieval_features(looked, images, flip=flip, feature=feature)
        assert torch.equal(seen.feature, before)
        assert torch.equal(seen.embedding, before)


def test_shape_coefficients_of_older_models_are_compared_as_they_are_and_unlearnt_ones_are_refused() -> None:
    betas = as_feature("betas")
    found = retrieval_features(
        looked, pictures(), flip=False, feature=betas, layers=part_layers(betas, HEADS)
    )
    embedding = looked(pictures()).embedding
    expected = embedding @ HEADS["shape.weight"].T + HEADS["shape.bias"]
    torch.testing.assert_close(found.feature, F.normalize(expected, dim=1))
    nothing = HEADS | {"shape.usual": torch.zeros(3), "shape.spread": torch.zeros(3)}
    with pytest.raises(InputError, match="has learnt no component of the shape; leave betas out"):
        part_layers(betas, nothing)


def test_heads_are_applied_in_single_precision_under_autocast() -> None:
    layer = part_layers(as_feature("teacher"), HEADS)["teacher"]
    embedding = torch.randn(3, D, generator=torch.Generator().manual_seed(6))
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(embedding)
    assert torch.equal(found, layer(embedding))
    assert found.dtype == torch.float32
