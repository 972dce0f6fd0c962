"""Global guidance: the student's feature is drawn to the teacher's view of the whole picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number, choose
from clip3dreid.loss.identity import CrossEntropy, linear_classifier
from clip3dreid.loss.pairwise import Triplet
from clip3dreid.loss.term import Need, Term, between_person_variance, not_negative, positive
from clip3dreid.types import Batch, Dimensions, Features, TeacherSpace


def _embeddings(batch: Batch) -> Tensor:
    """Return the teacher's embeddings (B, d), which carry no gradient."""
    if "teacher" not in batch.targets:
        raise ValueError('this term needs Batch.targets["teacher"]')
    return batch.targets["teacher"].detach()


class GlobalAlignment(Term):
    """Squared distance between the projected feature and the teacher's image embedding, both of length 1.

    Summed over the d dimensions, and so equal to 2 - 2 cos: between 0 and 4 whatever the teacher's width (a mean over
    dimensions would shrink with it).

    Source: Liu et al., CVPR 2024 (CLIP3DReID), which aligns global features by mean squared error. That the
    embeddings are first centred by the mean of the training pictures is ours: CLIP's lie in a narrow cone, so that
    without it almost all of the distance is common to all pictures and says nothing of anybody.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({TeacherSpace})
    teaches: ClassVar[frozenset[str]] = frozenset({"teacher"})

    def __init__(
        self, dimensions: Dimensions, *, source: Literal["embedding", "pooled"], centre: bool
    ) -> None:
        """Build the head.

        Args:
            dimensions: width of the feature, and the teacher's space.
            source: which of the student's features is projected.
            centre: take the training pictures' mean from the teacher's embeddings before they are normalised.

        Raises:
            InputError: if `source` is unknown.
        """
        super().__init__()
        choose("GlobalAlignment: source", source, ("embedding", "pooled"))
        space = dimensions.guide(TeacherSpace)
        self.source = source
        self.head = nn.Linear(dimensions.width, space.width)
        centre_of = space.mean if centre else torch.zeros_like(space.mean)
        # Found anew from the pictures by every run, and no part of what was learnt.
        self.register_buffer("centre", centre_of.clone(), persistent=False)

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> Tensor:
        """Return the mean over the batch, 0..4, a scalar."""
        projected = self.head(getattr(features, self.source))
        target = _embeddings(batch) - cast(Tensor, self.centre)
        self.observed["between_person_variance"] = between_person_variance(projected, batch.person)
        difference = F.normalize(projected, dim=-1) - F.normalize(target, dim=-1).to(projected.dtype)
        return difference.square().sum(-1).mean()

    def heads(self) -> dict[str, Tensor]:
        """Return `teacher.weight` and `teacher.bias`; none where the head reads a feature that no model gives out."""
        if self.source != "embedding":
            return {}
        return {"teacher.weight": self.head.weight, "teacher.bias": self.head.bias}


class LogitDistillation(Term):
    """The student's identity logits are drawn to those of a head that is trained on the frozen teacher.

    Two parts: `teacher`, the cross-entropy of that head (linear, batch norm, classifier) and, with a margin, the
    batch-hard triplet of its features, times `teacher_weight`; `kl`, Kullback-Leibler divergence of the student's
    distribution over people from the head's, both at a temperature, times `kl_weight` and, with `squared`, the square
    of the temperature.

    Source: the partial release of Liu et al., CVPR 2024, which takes the divergence as it is, measures the triplet
    between features of length 1, lets the divergence move the head too, and whose student has a classifier that
    nothing else trains; `method=clip3dreid_release` has its values. Hinton et al., "Distilling the Knowledge in a
    Neural Network", 2015, section 2, for the square, without which the temperature scales the gradient down. The
    head's batch norm takes its statistics from each process's own pictures.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({TeacherSpace})

    def __init__(
        self,
        dimensions: Dimensions,
        *,
        width: int,
        temperature: float,
        margin: float | None,
        smoothing: float,
        classifier: str | None = "identity",
        distance: str = "cosine",
        squared: bool = True,
        detach: bool = True,
        kl_weight: float = 1.0,
        teacher_weight: float = 1.0,
    ) -> None:
        """Build the teacher's head, and the student's where it has none.

        Args:
            dimensions: number of people, width of the embedding, and the teacher's space.
            width: of the head's feature.
            temperature: above 0.
            margin: of the head's triplet, in units of `distance`; null: no triplet.
            smoothing: of the labels in the head's cross-entropy, 0..1.
            classifier: the loss term whose logits are the student's: a `CrossEntropy`; null: a classifier of this
                term's own, which the divergence alone trains.
            distance: of the head's triplet, one of `Triplet`'s.
            squared: the divergence counts times the square of the temperature.
            detach: the divergence teaches the student alone; false: it moves the head as well.
            kl_weight: of the divergence within this term, 0 or more.
            teacher_weight: of the head's own loss within this term, above 0: what it does not train knows nobody.

        Raises:
            InputError: if a value is out of its range.
        """
        super().__init__()
        space = dimensions.guide(TeacherSpace)
        check_number("LogitDistillation: width", width, Range(1), whole=True)
        self.temperature = positive("LogitDistillation: temperature", temperature)
        self.kl_weight = not_negative("LogitDistillation: kl_weight", kl_weight)
        self.teacher_weight = positive("LogitDistillation: teacher_weight", teacher_weight)
        self.squared = squared
        self.detach = detach
        norm = nn.BatchNorm1d(width)
        nn.init.normal_(norm.weight, 1.0, 0.02)
        self.reduce = nn.Sequential(nn.Linear(space.width, width), norm)
        head = dimensions._replace(width=width)
        self.identity = CrossEntropy(head, smoothing=smoothing)
        self.triplet = None if margin is None else Triplet(head, margin=margin, distance=distance)
        self.classifier = classifier
        self.student = linear_classifier(dimensions.width, dimensions.people) if classifier is None else None
        # In a list, so that the other term's head is not part of this one too.
        self._student: list[nn.Linear] = [] if self.student is None else [self.student]

    def connect(self, others: Mapping[str, Term]) -> None:
        """Find the term whose logits are the student's, unless this one has a classifier of its own.

        Raises:
            InputError: if there is no such term, or it is no cross-entropy.
        """
        if self.classifier is None:
            return
        other = others.get(self.classifier)
        if not isinstance(other, CrossEntropy):
            raise InputError(
                f"LogitDistillation reads the logits of loss.{self.classifier}, which is "
                f"{'not there' if other is None else 'no CrossEntropy'}; add loss=[identity,…], set classifier, or "
                "give it a classifier of its own (classifier: null)"
            )
        self._student = [other.head]

    def forward(self, features: Features, batch: Batch, bodies: Features | None = None) -> dict[str, Tensor]:
        """Return `teacher` and `kl`, means over the batch."""
        reduced = self.reduce(_embeddings(batch).to(features.embedding.dtype))
        of_head = Features(map=features.map, pooled=reduced, embedding=reduced)
        taught = self.identity(of_head, batch)
        if self.triplet is not None:
            taught = taught + self.triplet(of_head, batch)
        target = self.identity.head(reduced) / self.temperature
        logits = self._student[0](features.embedding) / self.temperature
        divergence = F.kl_div(
            F.log_softmax(logits, dim=1),
            F.log_softmax(target.detach() if self.detach else target, dim=1),
            log_target=True,
            reduction="batchmean",
        )
        scale = self.kl_weight * (self.temperature**2 if self.squared else 1.0)
        return {"teacher": self.teacher_weight * taught, "kl": scale * divergence}
