"""Show which part of a picture answers to which word: the plan that local guidance trains by, of a model in use.

Source: Liu et al., "Distilling CLIP with Dual Guidance for Learning Discriminative Human Body Shape Representation",
CVPR 2024 (CLIP3DReID); `loss.local`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.inference.features import joint_features
from clip3dreid.inference.model import ReidModel
from clip3dreid.inference.pictures import PictureLike, batches
from clip3dreid.loss.transport import Sinkhorn, Solver

SOLVER = Sinkhorn(eps=0.1, iterations=50, tolerance=1e-3)
"""As `conf/loss/local.yaml` has it."""
_BATCH = 64


class WordPlan(NamedTuple):
    """Where in a picture words come from."""

    words: tuple[tuple[str, str], ...]
    """(group, word), G of them."""
    mass: Tensor
    """(G, h, w) float32, 0 or more, on the CPU: how much of a word comes from a position; 1 is what an even plan
    takes from each, so that the mean over positions is 1."""


def word_plans(
    model: ReidModel, pictures: PictureLike | Sequence[PictureLike], *, solver: Solver = SOLVER
) -> list[WordPlan]:
    """Transport the positions of each picture's feature map to the words that describe it best, one of each group.

    As in training, with uniform masses: all positions are handed out, and every word gets as much. Which word gets
    which positions is the model's own doing; nobody told it where a word's part of the body is.

    Args:
        model: that has learnt words.
        pictures: N of them, one person each.
        solver: of the transport.

    Returns:
        N plans.

    Raises:
        InputError: if the model has not learnt words, or a picture cannot be read.

    Example:
        >>> from clip3dreid.inference.word_plan import word_plans
        >>> (plan,) = word_plans(model, "a.jpg")
        >>> plan.mass.shape[0] == len(plan.words) == len(model.groups)
        True
        >>> round(float(plan.mass.mean()), 3)
        1.0
    """
    check_words(model)
    with torch.no_grad():
        maps = (model.student(images).map for images in batches(pictures, _BATCH, model.view, model.device))
        return [plan for part in maps for plan in plans_of_maps(model, part, solver=solver)]


def check_words(model: ReidModel) -> None:
    """Check that a model has learnt words.

    Raises:
        InputError: if it has not.
    """
    if not model.groups or "joint" not in model.heads:
        raise InputError(f"{model.name} has not learnt words, so none of them has a place in a picture")


@torch.no_grad()
def plans_of_maps(model: ReidModel, maps: Tensor, *, solver: Solver = SOLVER) -> list[WordPlan]:
    """Transport positions to words as `word_plans`, for pictures that the model has looked at already.

    Args:
        model: that has learnt words.
        maps: (B, C, h, w) of `ReidModel.look(…, maps=True)`.
        solver: of the transport.

    Returns:
        B plans.
    """
    head = model.heads["joint"]
    maps = maps.to(model.device).float()
    flat = [(group, word) for group, members in model.groups.items() for word in members]
    row_of = {word: row for row, word in enumerate(flat)}
    tokens = F.normalize(head.get_buffer("words").float() - head.get_buffer("centre").float(), dim=1)
    best = [
        tuple(zip(model.groups, words, strict=True)) for words in model.best_words(joint_features(maps, head))
    ]
    chosen = torch.tensor([[row_of[word] for word in words] for words in best], device=tokens.device)
    positions = F.normalize(head(maps.flatten(2).mT), dim=2)  # (B, h * w, d)
    count, length = positions.shape[1], len(model.groups)
    uniform = [positions.new_full((len(maps), size), 1 / size) for size in (count, length)]
    plan = solver(positions, tokens[chosen].to(positions), *uniform).plan  # (B, h * w, G)
    mass = plan / plan.sum(1, keepdim=True).clamp(min=1e-12) * count
    shaped = mass.mT.reshape(len(maps), length, *maps.shape[2:]).cpu()
    return [WordPlan(words, own) for words, own in zip(best, shaped, strict=True)]
