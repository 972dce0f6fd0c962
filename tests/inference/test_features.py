"""One formula of what people are compared by."""

import pytest
import torch
from hydra.utils import instantiate
from torch.nn import functional as F

from clip3dreid.inference.features import joint_features, retrieval_features
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
