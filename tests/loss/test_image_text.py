import math

import pytest
import torch
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from clip3dreid.loss.image_text import image_text_contrastive


def rows(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_with_one_text_a_picture_it_is_clips_own_loss() -> None:
    images, texts = rows(9, 6, seed=0), rows(9, 1, 6, seed=1)
    scale = torch.tensor(14.0, dtype=torch.float64)
    expected = image_text_contrastive_loss(scale * texts[:, 0] @ images.T)
    assert image_text_contrastive(images, texts, scale).item() == pytest.approx(expected.item(), abs=1e-12)


def test_several_texts_a_picture_are_averaged() -> None:
    images, texts, scale = rows(5, 4, seed=0), rows(5, 3, 4, seed=1), torch.tensor(3.0)
    each = [image_text_contrastive(images, texts[:, k : k + 1], scale) for k in range(3)]
    assert image_text_contrastive(images, texts, scale).item() == pytest.approx(
        torch.stack(each).mean().item(), abs=1e-12
    )


def test_where_nothing_is_told_apart_it_is_the_logarithm_of_the_batch() -> None:
    images = torch.ones(7, 4) / 2
    assert image_text_contrastive(images, images[:, None], torch.tensor(9.0)).item() == pytest.approx(
        math.log(7)
    )


def test_gradients_are_those_of_finite_differences() -> None:
    def loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return image_text_contrastive(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)

    inputs = (rows(4, 3, seed=0), rows(4, 2, 3, seed=1), torch.tensor(2.0, dtype=torch.float64))
    assert torch.autograd.gradcheck(loss, tuple(value.requires_grad_() for value in inputs))
