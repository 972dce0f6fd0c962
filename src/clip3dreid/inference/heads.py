"""Read what a model has learnt beside retrieval: words and bodies, in its card and in its heads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import exp
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import some

if TYPE_CHECKING:
    from clip3dreid.model.network_file import AnyStudent

# Shape coefficients; SMPL's files have 300.
_MOST_BETAS = 1000


CONFIDENCE_TEMPERATURE = 2.0
"""What margins are divided by before they become confidences: with it, words of two development worlds were as likely
right as they said (`benchmarks/description_confidence.py`)."""


class ScoredWord(NamedTuple):
    """One word of a description."""

    word: str
    score: float
    """Comparable within a group: as `ReidModel.describe` says."""


class Description(dict[str, list[ScoredWord]]):
    """Say a person in words: group of words -> its words, the best first. Prints as one line.

    Attributes:
        calibrated: whether scores are standard deviations, so that margins say how sure a word is.
    """

    def __init__(self, words: Mapping[str, list[ScoredWord]], *, calibrated: bool = False) -> None:
        super().__init__(words)
        self.calibrated = calibrated

    def confidences(self) -> dict[str, float]:
        """Return group -> how likely its best word is right, 1/n..1 of n words; empty where margins say nothing.

        The softmax of the group's scores by `CONFIDENCE_TEMPERATURE`: of two words, the logistic function of half
        their margin.
        """
        if not self.calibrated:
            return {}
        found = {}
        for group, words in self.items():
            behind = (exp((word.score - words[0].score) / CONFIDENCE_TEMPERATURE) for word in words)
            found[group] = 1 / sum(behind)
        return found

    def __str__(self) -> str:
        """Say the best words, the surest first, each with its confidence in per cent."""
        sure = self.confidences()
        said = sorted(self, key=lambda group: -sure.get(group, 0.0))
        return ", ".join(
            f"{self[group][0].word} ({sure[group]:.0%})" if sure else self[group][0].word for group in said
        )


class Head(nn.Module):
    """Hold the tensors of a linear layer and what goes with it, fixed, which move with the model."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            # A copy: the file that they are mapped from may be written anew.
            self.register_buffer(name, tensor.detach().clone().float())

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def tensor(self, name: str) -> Tensor:
        """Return one of the tensors, float32 whatever the model's precision."""
        return self.get_buffer(name).float()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in) to (N, out), float32."""
        return F.linear(features.float(), self.tensor("weight"), self.tensor("bias"))

    def scores(self, joint: Tensor) -> Tensor:
        """Return how well words fit, (N, W), of features (N, d) of length 1 on any device; of the head `joint`.

        Words are looked at from the centre of the vocabulary, where their differences are.
        """
        words = F.normalize(self.tensor("words") - self.tensor("centre"), dim=1)
        scores = joint @ words.to(joint.device).T
        if "usual" in self:
            # A model favours some words whatever it is shown.
            usual, spread = (self.tensor(name).to(joint.device) for name in ("usual", "spread"))
            scores = (scores - usual) / spread
        return scores


def describe(
    scores: Tensor, groups: Mapping[str, Sequence[str]], *, calibrated: bool = False
) -> list[Description]:
    """Return N descriptions of scores (N, W), whose words are those of the groups in order."""
    sizes = [len(words) for words in groups.values()]
    return [
        Description(
            {
                group: sorted(map(ScoredWord, words, part.tolist()), key=lambda word: -word.score)
                for (group, words), part in zip(groups.items(), row.split(sizes), strict=True)
            },
            calibrated=calibrated,
        )
        for row in scores
    ]


def flag_of(card: Mapping[str, Any], key: str, name: str, *, absent: bool = False) -> bool:
    """Return what a card says, `absent` where it says nothing: those of older releases have no flags."""
    value = card.get(key, absent)
    if not isinstance(value, bool):
        raise InputError(f"{name}: its {key} is {value}, but must be true or false")
    return value


def groups_of(card: Mapping[str, Any], name: str) -> dict[str, list[str]]:
    """Return the vocabulary of a card, group -> words; empty where there is none."""
    vocabulary = card.get("vocabulary")
    if vocabulary is None:
        return {}
    groups = vocabulary.get("groups") if isinstance(vocabulary, dict) else None
    if not isinstance(groups, dict) or not all(
        isinstance(words, list) and words and all(isinstance(word, str) for word in words)
        for words in groups.values()
    ):
        raise InputError(f"{name}: its vocabulary must give each group a list of words")
    if any(len(set(words)) < len(words) for words in groups.values()):
        raise InputError(f"{name}: its vocabulary has a word twice in a group")
    return groups


def body_of(card: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return what a card says of the body, None where it says nothing."""
    body = card.get("body")
    if body is None:
        return None
    kinds = {"name": str, "sha256": str, "num_betas": int}
    if not isinstance(body, dict) or not all(isinstance(body.get(key), kind) for key, kind in kinds.items()):
        raise InputError(f"{name}: its body must have name, sha256 and num_betas")
    if not 1 <= body["num_betas"] <= _MOST_BETAS or not re.fullmatch("[0-9a-f]{64}", body["sha256"]):
        raise InputError(f"{name}: its body must have 1 to {_MOST_BETAS} num_betas and a SHA-256 as sha256")
    return body


def check_heads(
    heads: Mapping[str, Tensor], student: AnyStudent, words: int, body: Mapping[str, Any] | None, name: str
) -> None:
    """Check that the heads are known, complete, and of the shapes that student and card ask for."""
    wanted: dict[str, tuple[int, ...]] = {}
    if "joint.weight" in heads:
        space = heads["joint.weight"].shape[:1]
        wanted |= {"joint.weight": (*space, student.channels), "joint.bias": (*space,)}
        if "joint.words" in heads:
            wanted |= {"joint.centre": (*space,), "joint.words": (words, *space)}
        if "joint.usual" in heads or "joint.spread" in heads:
            wanted |= {"joint.usual": (words,), "joint.spread": (words,)}
    if "shape.weight" in heads:
        betas = int(body["num_betas"]) if body is not None else 0
        wanted |= {"shape.weight": (betas, student.width), "shape.bias": (betas,)}
        if "shape.usual" in heads or "shape.spread" in heads:
            wanted |= {"shape.usual": (betas,), "shape.spread": (betas,)}
    if "teacher.weight" in heads:
        space = heads["teacher.weight"].shape[:1]
        wanted |= {"teacher.weight": (*space, student.width), "teacher.bias": (*space,)}
    for key, shape in wanted.items():
        if key not in heads or heads[key].shape != shape:
            found = tuple(heads[key].shape) if key in heads else "missing"
            raise InputError(f"{name} does not fit together: its {key} is {found}, but must be {shape}")
    if unknown := sorted(heads.keys() - wanted.keys() - {"joint.centre"}):
        raise InputError(
            f"{name} has heads that this program does not know ({some(unknown)}); load it with the release "
            "that wrote it"
        )
    spread = heads.get("shape.spread")
    if spread is not None and not bool((torch.isfinite(spread) & (spread >= 0)).all()):
        raise InputError(f"{name}: its shape.spread has a value that is no deviation; get the file again")
