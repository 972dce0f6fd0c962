"""Guide by words: the text tokens of people's labels, which the teacher chooses or a file holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl

from clip3dreid.data.sampling import exchanged
from clip3dreid.errors import InputError
from clip3dreid.guidance.embeddings import TrainingEmbeddings, text_targets
from clip3dreid.guidance.guides import Given, Same
from clip3dreid.guidance.labelling import label_pictures
from clip3dreid.guidance.settings import LabelSettings
from clip3dreid.guidance.teacher import teacher_facts
from clip3dreid.io.run_folder import LABELS
from clip3dreid.language.labels import WordLabels, load, save, tokens
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.loss.term import Need
from clip3dreid.model.teacher import text_tower
from clip3dreid.types import TextTargets

log = logging.getLogger(__name__)

Chosen = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Words of each unit, and their margins, as `language.labels.tokens` gives them."""


class WordGuide:
    """The words that say how people's bodies are shaped, for losses that need `TextTargets`.

    Args:
        settings: which words.
        vocabulary: makes the words that there are.
        embeddings: of the training pictures, from which the teacher chooses where no file says what it chose.
        known: labels that this run has had before, or that another process of it has chosen; they come before those
            of `settings.path`.
        seed: of the exchange of words, where `settings.shuffled` asks for it.
    """

    gives: ClassVar[Need] = TextTargets
    same: ClassVar[Same] = {
        ("teacher", "fingerprint"): "model.teacher",
        ("vocabulary", "digest"): "language",
    }

    def __init__(
        self,
        settings: LabelSettings,
        vocabulary: Callable[[], Vocabulary],
        embeddings: TrainingEmbeddings,
        *,
        known: Path | None = None,
        seed: int = 1,
    ) -> None:
        self._settings, self._vocabulary, self._embeddings = settings, vocabulary, embeddings
        self._known = known or settings.path
        self._seed = seed

    def prepare(self) -> Callable[[], Given]:
        """Read teacher and vocabulary, and the labels where they are in a file.

        Raises:
            InputError: as `Teacher`, `Vocabulary` and `language.labels.load`, if people have no labels, and if
                the teacher embeds pictures alone.
        """
        teacher, vocabulary = text_tower(self._embeddings.teacher), self._vocabulary()
        read = None if self._known is None else load(self._known, vocabulary)
        chosen = None if read is None else self._chosen(read, vocabulary)

        def finish() -> Given:
            labels = self._labelled(vocabulary) if read is None else read
            groups = {name: list(members) for name, members in vocabulary.groups.items()}
            whose = "person" if labels.level == "person" else "picture"
            return Given(
                says=self._targets(labels, chosen or self._chosen(labels, vocabulary), vocabulary),
                facts=teacher_facts(teacher)
                | {"vocabulary": {"digest": vocabulary.digest, "groups": groups}},
                labels=labels,
                lines=(f"{len(groups)} words a {whose} by {labels.teacher}", *self._embeddings.lines),
            )

        return finish

    def _labelled(self, vocabulary: Vocabulary) -> WordLabels:
        """Return the labels that the teacher gives now; all processes embed, and the first one chooses."""
        settings, ranks = self._settings, self._embeddings.ranks
        _ = self._embeddings.cache  # made by all together
        labels = None
        if ranks.first:
            labels = label_pictures(
                self._embeddings, vocabulary, calibration=settings.calibration, level=settings.level
            ).labels
            if ranks.size > 1:
                save(labels, ranks.folder / LABELS)
        ranks.wait("labels")
        return load(ranks.folder / LABELS, vocabulary) if labels is None else labels

    def _chosen(self, labels: WordLabels, vocabulary: Vocabulary) -> Chosen:
        pictures = self._embeddings.pictures
        names = list(pictures.labels.people)
        if labels.level == "image":
            paths = pictures.parts.select(pl.concat_str("data_set", "path", separator="/"))
            names = paths.to_series().to_list()
        try:
            return tokens(labels, names, vocabulary)
        except InputError as error:
            where = "" if self._settings.path is None else f"{self._settings.path}: "
            raise InputError(f"{where}{error}") from error

    def _targets(self, labels: WordLabels, chosen: Chosen, vocabulary: Vocabulary) -> TextTargets:
        words, margins = chosen
        if self._settings.shuffled:
            log.warning("control: every person has another's words (labels.shuffled=true)")
            order = exchanged(len(words), self._seed)
            words, margins = words[order], margins[order]
        return text_targets(
            text_tower(self._embeddings.teacher),
            vocabulary,
            words,
            margins,
            mode=self._settings.tokens,
            by="person" if labels.level == "person" else "row",
        )
