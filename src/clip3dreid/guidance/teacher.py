"""Guide by the teacher's view of each picture as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from clip3dreid.guidance.embeddings import TrainingEmbeddings, row_blocks
from clip3dreid.guidance.guides import Given, Same
from clip3dreid.guidance.settings import FRESH
from clip3dreid.loss.term import Need
from clip3dreid.model.embedding_cache import TeacherEmbeddings
from clip3dreid.model.image_teacher import ImageTeacher
from clip3dreid.types import TeacherSpace


class TeacherGuide:
    """The teacher's embedding of every picture, for losses that need a `TeacherSpace`.

    Args:
        embeddings: of the training pictures. Where they are not to be kept, the teacher looks at the augmented
            picture at every step; their mean still takes one pass.
    """

    gives: ClassVar[Need] = TeacherSpace
    same: ClassVar[Same] = {("teacher", "fingerprint"): "model.teacher"}

    def __init__(self, embeddings: TrainingEmbeddings) -> None:
        self._embeddings = embeddings

    def prepare(self) -> Callable[[], Given]:
        """Read the teacher.

        Raises:
            InputError: as the teacher.
        """
        teacher, kept = self._embeddings.teacher, self._embeddings.use.cache not in FRESH

        def finish() -> Given:
            cache = self._embeddings.cache
            return Given(
                says=TeacherSpace(teacher.width, self._mean()),
                facts=teacher_facts(teacher),
                targets={"teacher": TeacherEmbeddings(cache=cache) if kept else TeacherEmbeddings(teacher)},
                keep_view=self._embeddings.use.cache == "off",
            )

        return finish

    def _mean(self) -> torch.Tensor:
        cache, count = self._embeddings.cache, len(self._embeddings.pictures.table)
        sums = [cache.read(rows).double().sum(0) for rows in row_blocks(count)]
        return (torch.stack(sums).sum(0) / count).float()


def teacher_facts(teacher: ImageTeacher) -> dict[str, Any]:
    """Return what a checkpoint says of the teacher that guided it."""
    return {"teacher": {"name": teacher.name, "fingerprint": teacher.fingerprint, "width": teacher.width}}
