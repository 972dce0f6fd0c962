"""Guide by the teacher's view of each picture as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from clip3dreid.data.sampling import exchanged_rows
from clip3dreid.guidance.embeddings import TrainingEmbeddings, row_blocks
from clip3dreid.guidance.guides import Given, Same
from clip3dreid.guidance.settings import FRESH, check_kept
from clip3dreid.loss.term import Need
from clip3dreid.model.embedding_cache import Cache, TeacherEmbeddings
from clip3dreid.model.frozen import FrozenNetwork
from clip3dreid.types import TeacherSpace

log = logging.getLogger(__name__)


class TeacherGuide:
    """The teacher's embedding of every picture, for losses that need a `TeacherSpace`.

    Args:
        embeddings: of the training pictures. Where they are not to be kept, the teacher looks at the augmented
            picture at every step; their mean still takes one pass.
        shuffled: a control: every picture gets the embedding of somebody else's, all of a person's pictures those of
            one and the same other person. Only where embeddings are kept.
        seed: of that exchange.
    """

    gives: ClassVar[Need] = TeacherSpace
    same: ClassVar[Same] = {("teacher", "fingerprint"): "model.teacher"}

    def __init__(self, embeddings: TrainingEmbeddings, *, shuffled: bool = False, seed: int = 1) -> None:
        self._embeddings, self._shuffled, self._seed = embeddings, shuffled, seed

    def prepare(self) -> Callable[[], Given]:
        """Read the teacher.

        Raises:
            InputError: as the teacher, and if embeddings that are not kept are to be exchanged.
        """
        teacher, kept = self._embeddings.teacher, self._embeddings.use.cache not in FRESH
        if self._shuffled:
            check_kept(self._embeddings.use.cache)
            log.warning(
                "control: every picture has the teacher's view of somebody else (teacher_shuffled=true)"
            )

        def finish() -> Given:
            cache = self._embeddings.cache
            if self._shuffled:
                person = self._embeddings.pictures.labels.person
                cache = ExchangedCache(cache, torch.from_numpy(exchanged_rows(person, self._seed)))
            return Given(
                says=TeacherSpace(teacher.width, self._mean()),
                facts=teacher_facts(teacher),
                targets={"teacher": TeacherEmbeddings(cache=cache) if kept else TeacherEmbeddings(teacher)},
                keep_view=self._embeddings.use.cache == "off",
                lines=(f"{teacher.name}'s view of each picture", *self._embeddings.lines),
            )

        return finish

    def _mean(self) -> torch.Tensor:
        cache, count = self._embeddings.cache, len(self._embeddings.pictures.table)
        sums = [cache.read(rows).double().sum(0) for rows in row_blocks(count)]
        return (torch.stack(sums).sum(0) / count).float()


class ExchangedCache:
    """Embeddings where each row has another's.

    Args:
        cache: embeddings by row.
        order: (N,) int64, whose embedding each row gets.
    """

    def __init__(self, cache: Cache, order: torch.Tensor) -> None:
        self.width = cache.width
        self._cache, self._order = cache, order

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (B,) int64 to embeddings (B, d) float32, on the device of the rows."""
        return self._cache.read(self._order.to(rows.device)[rows])


def teacher_facts(teacher: FrozenNetwork) -> dict[str, Any]:
    """Return what a checkpoint says of the teacher that guided it."""
    return {"teacher": {"name": teacher.name, "fingerprint": teacher.fingerprint, "width": teacher.width}}
