"""Label people by a teacher: the one way from pictures to words, for a training and for `clip3dreid label`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from clip3dreid.data.manifest import Manifest
from clip3dreid.data.sources import DataSpec, read_manifest, read_source
from clip3dreid.data.training_set import TrainingSet, training_set
from clip3dreid.data.truth_file import has_truth, read_truth
from clip3dreid.errors import InputError
from clip3dreid.guidance.embeddings import TrainingEmbeddings, row_blocks
from clip3dreid.guidance.settings import Calibration, LabelRun, Level, TeacherUse, check_kept
from clip3dreid.io.files import inside
from clip3dreid.io.locks import at_work
from clip3dreid.io.staging import together
from clip3dreid.language.agreement import agreement, true_words
from clip3dreid.language.labels import WordLabels, aggregate, choose, is_labels, save
from clip3dreid.language.prompts import word_embeddings
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.model.image_teacher import ImageTeacher
from clip3dreid.model.teacher import text_tower
from clip3dreid.report.label_page import write_page

PAGE = ("labels.md", "words.png", "scores.png", "certain.jpg", "uncertain.jpg")
"""Beside the labels."""


class Labelled(NamedTuple):
    """Labels, and the scores that they were chosen by."""

    labels: WordLabels
    units: pl.DataFrame
    """(U rows) who was labelled, as `language.labels.aggregate` has them."""
    scores: npt.NDArray[np.float32]
    """(U, W) calibrated scores of all words."""


class LabelFiles(NamedTuple):
    """What `label` has made."""

    labels: WordLabels
    path: Path
    """The file of labels; its folder holds the page and its figures."""
    units: int
    """How many people, or pictures, were labelled."""
    agreement: pl.DataFrame | None
    """Group by group, how far the labels agree with the truth of a rendered world; None of real people."""


def label_pictures(
    embeddings: TrainingEmbeddings, vocabulary: Vocabulary, *, calibration: Calibration, level: Level
) -> Labelled:
    """Let a teacher choose the words that fit each training person, or each picture.

    Args:
        embeddings: of the training pictures.
        vocabulary: the words.
        calibration: of the scores.
        level: whose words.

    Raises:
        InputError: as `TrainingEmbeddings` and `language.labels.aggregate`, and if the teacher embeds pictures alone.
    """
    teacher, pictures = text_tower(embeddings.teacher), embeddings.pictures
    words = word_embeddings(vocabulary.prompts, lambda texts: teacher.embed_texts(texts).cpu().numpy())
    cache = embeddings.cache
    scores = np.concatenate([cache.read(rows).numpy() @ words.T for rows in row_blocks(len(pictures.table))])
    units, means = aggregate(scores, pictures.parts, calibration=calibration, level=level)
    labels = WordLabels(
        table=choose(units, means, vocabulary),
        teacher=teacher.name,
        fingerprint=teacher.fingerprint,
        vocabulary=vocabulary.digest,
        calibration=calibration,
        level=level,
        data_sets=tuple(sorted(manifest.name for manifest in pictures.manifests)),
        pictures=len(pictures.table),
    )
    return Labelled(labels, units, means)


def label(
    specs: Sequence[DataSpec],
    teacher: Callable[[], ImageTeacher],
    vocabulary: Callable[[], Vocabulary],
    use: TeacherUse,
    settings: LabelRun,
) -> LabelFiles:
    """Label the training people of data sets, and write labels, a page to read and its figures.

    Args:
        specs: the data sets.
        teacher: makes the teacher.
        vocabulary: makes the words.
        use: where the teacher's embeddings are kept.
        settings: the rest.

    Returns:
        What was made.

    Raises:
        InputError: if data, teacher or vocabulary are missing or do not fit, or the folder holds labels, something
            else of the same names, or is in use.
    """
    check_kept(use.cache)
    path = _output(settings)
    # Before any folder is made: a teacher may be without words.
    reader = text_tower(teacher())
    with at_work(path.parent, "labels people", tidy=True):
        _output(settings)
        words = vocabulary()
        pictures = _pictures(specs, settings)
        embeddings = TrainingEmbeddings(
            lambda: reader,
            pictures,
            use,
            device=_device(settings.device),
            batch=settings.batch,
            workers=settings.workers,
        )
        labelled = label_pictures(embeddings, words, calibration=settings.calibration, level=settings.level)
        return _write(labelled, pictures, words, path)


def _output(settings: LabelRun) -> Path:
    """Return where the labels go; what somebody may have edited, or is nobody knows whose, is not written over.

    Raises:
        InputError: if labels are there already, or something else of the same names.
    """
    folder = settings.out
    path = inside(folder, f"labels.{settings.format}")
    if path.exists() and not settings.overwrite:
        raise InputError(f"{path} is there already, perhaps edited; give overwrite=true, or another out")
    earlier = any(is_labels(inside(folder, f"labels.{suffix}")) for suffix in ("parquet", "csv"))
    there = [name for name in (path.name, "labels.json", *PAGE) if inside(folder, name).exists()]
    if there and not earlier:
        raise InputError(
            f"{folder} holds {there[0]} and no labels of ours that it would belong to; give another out, or move it "
            "away"
        )
    return path


def _pictures(specs: Sequence[DataSpec], settings: LabelRun) -> TrainingSet:
    """Return the pictures to label; every data set must have some, and everybody one that can be read."""
    manifests = [read_source(spec, settings.seed, settings.workers) for spec in specs]
    for spec, manifest in zip(specs, manifests, strict=True):
        people = set(manifest.part("train")["person"])
        if spec.on_error == "skip" and not spec.val_people:
            lost = sorted(set(read_manifest(spec).part("train")["person"]) - people)
            if lost:
                raise InputError(
                    f"no usable picture of {manifest.name}/{lost[0]} ({len(lost)} people in all); "
                    "repair the pictures, or remove all files of these people"
                )
        if not people:
            raise InputError(f"{manifest.name} holds no training pictures; nobody is labelled")
    return training_set(manifests)


def _write(labelled: Labelled, pictures: TrainingSet, vocabulary: Vocabulary, path: Path) -> LabelFiles:
    labels = labelled.labels
    truth = _truth(pictures.manifests, vocabulary, labels.level)
    agreed = None if truth is None else agreement(labels.table, truth, vocabulary)
    with together(path.parent, last=path.name) as made:
        write_page(
            made,
            labels.table,
            vocabulary.groups,
            labels.facts,
            units=labelled.units,
            scores=labelled.scores,
            pictures=_pictures_of(pictures),
            agreement=agreed,
        )
        save(labels, made / path.name)
    return LabelFiles(labels, path, len(labelled.units), agreed)


def _truth(manifests: Sequence[Manifest], vocabulary: Vocabulary, level: str) -> pl.DataFrame | None:
    """Return the true words of rendered worlds; None if one is real, or tells no word of this vocabulary."""
    parts = []
    for manifest in manifests:
        if not has_truth(manifest.root):
            return None
        table = read_truth(manifest.root, needs=("split", "person"))
        if not any(f"word_{group}" in table.columns for group in vocabulary.groups):
            return None
        table = table.filter(pl.col("split") == "train")
        parts.append(true_words(table, manifest.name, vocabulary, level))
    return pl.concat(parts)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    # torch has an exception of its own for every reason.
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise InputError(f"device={name} cannot be used ({reason}); give auto, cpu or cuda") from error
    return torch.device(name)


def _pictures_of(pictures: TrainingSet) -> Callable[[str], list[Path]]:
    """Return what gives the pictures of a unit by its name: one of every outfit first."""
    roots = {manifest.name: manifest.root for manifest in pictures.manifests}
    turn = pl.int_range(pl.len()).over("data_set", "person", "clothes")
    ordered = pictures.parts.with_columns(turn=turn).sort("turn")
    known: dict[str, list[Path]] = {}
    for data_set, person, path in ordered.select("data_set", "person", "path").iter_rows():
        known.setdefault(f"{data_set}/{person}", []).append(roots[data_set] / path)
        known[f"{data_set}/{path}"] = [roots[data_set] / path]
    return lambda name: known.get(name, [])
