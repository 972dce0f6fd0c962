"""The contrastive loss between pictures and texts, which a small teacher is trained with."""

import torch
from torch import Tensor

from clip3dreid.loss.gather import gather


def image_text_contrastive(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Return symmetric cross-entropy between matching and other pairs of a batch.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, figure 3, for
    each of K texts a picture, averaged: texts cost little beside pictures, and other texts of a picture are no
    negatives of it. With several processes the global batch is compared.

    Args:
        images: (B, d) of length 1.
        texts: (B, K, d) of length 1: K that belong to each picture.
        scale: scalar factor on cosines, above 0.

    Returns:
        Scalar; log B where nothing is told apart.
    """
    images, texts = gather(images), gather(texts)
    logits = scale * torch.einsum("bd,ckd->kbc", images, texts)  # (K, B, B)
    pairs = torch.arange(len(images), device=images.device).expand(len(logits), -1)
    to_text = torch.nn.functional.cross_entropy(logits.transpose(1, 2), pairs)
    to_image = torch.nn.functional.cross_entropy(logits, pairs)
    return (to_text + to_image) / 2
