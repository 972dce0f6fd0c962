"""Guide by a shape teacher: what a frozen network says of the bodies under people's clothes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ClassVar, cast

import torch
from torch import Tensor

from clip3dreid.data.sampling import exchanged, exchanged_rows
from clip3dreid.guidance.embeddings import TrainingEmbeddings, row_blocks
from clip3dreid.guidance.guides import Given, Same
from clip3dreid.guidance.settings import ShapeSettings
from clip3dreid.loss.term import Need
from clip3dreid.model.shape_teacher import ShapeAnswers, ShapeTeacher, answers_of
from clip3dreid.types import ShapeTargets

log = logging.getLogger(__name__)


class ShapeGuide:
    """A shape teacher's answers about the training people, for losses that need `ShapeTargets`.

    Args:
        settings: whose shapes.
        embeddings: answers of a `ShapeTeacher` about the training pictures, as they are on disk.
        seed: of the exchange of shapes, where `settings.shuffled` asks for it.
    """

    gives: ClassVar[Need] = ShapeTargets
    same: ClassVar[Same] = {("shape_teacher", "fingerprint"): "model.shape_teacher"}

    def __init__(self, settings: ShapeSettings, embeddings: TrainingEmbeddings, *, seed: int = 1) -> None:
        self._settings, self._embeddings, self._seed = settings, embeddings, seed

    def prepare(self) -> Callable[[], Given]:
        """Read the shape teacher.

        Raises:
            InputError: as `ShapeTeacher`.
        """
        teacher = cast(ShapeTeacher, self._embeddings.teacher)

        def finish() -> Given:
            facts = {
                "shape_teacher": {"name": teacher.name, "fingerprint": teacher.fingerprint},
                **({"body": dict(teacher.card.body)} if teacher.card.coefficients else {}),
            }
            says = self._targets(teacher)
            whose = "person" if self._settings.level == "person" else "picture"
            lines = (f"{teacher.name}'s shape of each {whose}", *self._embeddings.lines)
            return Given(says=says, facts=facts, lines=lines)

        return finish

    def _targets(self, teacher: ShapeTeacher) -> ShapeTargets:
        said = answers_of(self._read())
        person = self._embeddings.pictures.labels.person
        by_person = self._settings.level == "person"
        if by_person:
            said = of_people(said, torch.tensor(person))
        if self._settings.shuffled:
            log.warning("control: everybody has somebody else's shape (shapes.shuffled=true)")
            people = len(said.value)
            order = exchanged(people, self._seed) if by_person else exchanged_rows(person, self._seed)
            said = ShapeAnswers(*(part[order] for part in said))
        answers, mean, deviation = standardised(said.value)
        certainty = (-said.log_variance).exp()
        card = teacher.card
        usual, spread = torch.tensor(card.rest), torch.zeros(len(card.rest))
        if card.coefficients:
            index, own = list(card.coefficients), torch.tensor(card.deviation)
            usual[index] = torch.tensor(card.mean) + own * mean
            spread[index] = own * deviation
        return ShapeTargets(
            answers,
            certainty / certainty.mean(0),
            "person" if by_person else "row",
            card.coefficients,
            usual,
            spread,
        )

    def _read(self) -> Tensor:
        cache, count = self._embeddings.cache, len(self._embeddings.pictures.table)
        return torch.cat([cache.read(rows) for rows in row_blocks(count)])


def of_people(said: ShapeAnswers, person: Tensor) -> ShapeAnswers:
    """Return what pictures say of people together: their mean, each weighted by the inverse of its variance.

    Args:
        said: of N pictures.
        person: (N,) int64, 0..P-1.

    Returns:
        Of P people. The variance is that of a picture as good as the mean one of the person: pictures of one person
        err together, so that more of them do not make it smaller.
    """
    weight = (-said.log_variance).exp()
    people = int(person.max()) + 1

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(people, values.shape[1]).index_add_(0, person, values)

    weights, counts = sums(weight), torch.bincount(person, minlength=people)[:, None]
    return ShapeAnswers(sums(weight * said.value) / weights, (counts / weights).log())


def standardised(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return values (U, A) less their mean, by their deviation, and these two (A,); 1 for what never varies."""
    mean, deviation = values.mean(0), values.std(0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    return (values - mean) / deviation, mean, deviation
