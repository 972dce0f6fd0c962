"""Show which part of a picture answers to which word: the plan that local guidance trains by, of a model in use.

Source: Liu et al., "Distilling CLIP with Dual Guidance for Learning Discriminative Human Body Shape Representation",
CVPR 2024 (CLIP3DReID); `loss.local`.
"""

from __future__ import annotations

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


class WordPlan(NamedTuple):
    """Where in a picture words come from."""

    words: tuple[tuple[str, str], ...]
    """(group, word), G of them."""
    mass: Tensor
    """(G, h, w) float32, 0 or more, on the CPU: how much of a word comes from a position; 1 is what an even plan
    takes from each, so that the mean over positions is 1."""


@torch.no_grad()
def word_plan(model: ReidModel, picture: PictureLike, *, solver: Solver = SOLVER) -> WordPlan:
    """Transport the positions of a picture's feature map to the words that describe it best, one of each group.

    As in training, with uniform masses: all positions are handed out, and every word gets as much. Which word gets
    which positions is the model's own doing; nobody told it where a word's part of the body is.

    Args:
        model: that has learnt words.
        picture: one person.
        solver: of the transport.

    Raises:
        InputError: if the model has not learnt words, or the picture cannot be read.

    Example:
        >>> from clip3dreid.inference.word_plan import word_plan
        >>> plan = word_plan(model, "a.jpg")
        >>> plan.mass.shape[0] == len(plan.words) == len(model.groups)
        True
        >>> round(float(plan.mass.mean()), 3)
        1.0
    """
    if not model.groups or "joint" not in model.heads:
        raise InputError(f"{model.name} has not learnt words, so none of them has a place in a picture")
    (images,) = batches([picture], 1, model.view, model.device)
    maps = model.student(images).map.float()
    head = model.heads["joint"]
    best = model.best_words(joint_features(maps, head))[0]
    words = tuple(zip(model.groups, best, strict=True))
    flat = [(group, word) for group, members in model.groups.items() for word in members]
    chosen = [flat.index(pair) for pair in words]
    centre = head.get_buffer("centre").float()
    tokens = F.normalize(head.get_buffer("words").float()[chosen] - centre, dim=1)
    positions = F.normalize(head(maps.flatten(2).mT), dim=2)  # (1, h * w, d)
    count, words_count = positions.shape[1], len(words)
    uniform = [positions.new_full((1, size), 1 / size) for size in (count, words_count)]
    plan = solver(positions, tokens[None].to(positions), *uniform).plan[0]  # (h * w, G)
    mass = plan / plan.sum(0).clamp(min=1e-12) * count
    return WordPlan(words, mass.T.reshape(words_count, *maps.shape[2:]).cpu())
