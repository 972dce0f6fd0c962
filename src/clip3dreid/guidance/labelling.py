"""`clip3dreid label`: the teacher says of every training person how the body is shaped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from clip3dreid.config.hydra import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.io.files import at_work, inside, together

if TYPE_CHECKING:
    import polars as pl

    from clip3dreid.data.manifest import Manifest
    from clip3dreid.language.vocabulary import Vocabulary
    from clip3dreid.model.teacher import Teacher

log = logging.getLogger(__name__)

PAGE = ("labels.md", "words.png", "scores.png", "certain.jpg", "uncertain.jpg")
"""Beside the labels."""
ROWS = 8192
"""Pictures whose scores are computed at a time."""


def _output(cfg: DictConfig) -> Path:
    """Where the labels go; what somebody may have edited, or is nobody knows whose, is not written over.

    Raises:
        InputError: if labels are there already, or something else of the same names, or the format is unknown.
    """
    from clip3dreid.language.labels import is_labels

    if cfg.format not in ("parquet", "csv"):
        raise InputError(f"format={cfg.format} is unknown; choose parquet or csv")
    folder = Path(str(cfg.out))
    path = inside(folder, f"labels.{cfg.format}")
    if path.exists() and not cfg.overwrite:
        raise InputError(f"{path} is there already, perhaps edited; give overwrite=true, or another out")
    earlier = any(is_labels(inside(folder, f"labels.{suffix}")) for suffix in ("parquet", "csv"))
    there = [name for name in (path.name, "labels.json", *PAGE) if inside(folder, name).exists()]
    if there and not earlier:
        raise InputError(
            f"{folder} holds {there[0]} and no labels of ours that it would belong to; give another out, or move it "
            "away"
        )
    return path


def _check_nobody_is_lost(cfg: DictConfig, sources: list[Manifest]) -> None:
    """Raises InputError if somebody has no picture left where unreadable ones were skipped."""
    from clip3dreid.guidance.sources import read_manifest

    nodes = [cfg.data, *cfg.data.also.values()]
    for node, manifest in zip(nodes, sources, strict=True):
        if node.on_error == "skip" and not node.val_people:
            before = set(read_manifest(node).part("train")["person"])
            if lost := sorted(before - set(manifest.part("train")["person"])):
                raise InputError(
                    f"no usable picture of {manifest.name}/{lost[0]} ({len(lost)} people in all); "
                    "repair the pictures, or remove all files of these people"
                )


def scores(
    cfg: DictConfig, teacher: Teacher, words: npt.NDArray[np.float32], sources: list[Manifest]
) -> tuple[pl.DataFrame, npt.NDArray[np.float32]]:
    """Similarity of every training picture with every word.

    Args:
        cfg: `datamodule.workers`, `batch`, `model.teacher`.
        teacher: on its device.
        words: (W, d) of length 1.
        sources: data sets.

    Returns:
        The N training rows, and (N, W) cosines, -1..1.
    """
    import polars as pl
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from clip3dreid.guidance.embeddings import embed_pictures

    tables, found = [], []
    node = cfg.model.teacher
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for number, manifest in enumerate(sources):
        table = manifest.part("train")
        if table.is_empty():
            raise InputError(f"{manifest.name} holds no training pictures; nobody is labelled")
        folder = Path(str(node.cache_dir))
        with Progress(*columns) as bar:
            task = bar.add_task(f"{manifest.name} through {teacher.name}", total=len(table))
            embeddings = embed_pictures(
                teacher,
                manifest,
                table,
                cache=str(node.cache),
                folder=folder if number == 0 else folder.with_name(manifest.name),
                batch=int(cfg.batch),
                workers=int(cfg.datamodule.workers),
                progress=lambda done: bar.update(task, completed=done),  # noqa: B023 - called within the loop
            )
        rows = torch.split(torch.arange(len(table)), ROWS)
        found += [embeddings.read(some).numpy() @ words.T for some in rows]
        tables.append(table)
    return pl.concat(tables), np.concatenate(found)


def _truth(sources: list[Manifest], vocabulary: Vocabulary, level: str) -> pl.DataFrame | None:
    """The true words of rendered worlds; None if one is real, or tells no word of this vocabulary."""
    import polars as pl

    from clip3dreid.data.truth_file import has_truth, read_truth
    from clip3dreid.language.agreement import true_words

    parts = []
    for manifest in sources:
        if not has_truth(manifest.root):
            return None
        table = read_truth(manifest.root, needs=("split", "person"))
        if not any(f"word_{group}" in table.columns for group in vocabulary.groups):
            return None
        table = table.filter(pl.col("split") == "train")
        parts.append(true_words(table, manifest.name, vocabulary, level))
    return pl.concat(parts)


def label(cfg: DictConfig) -> Path:
    """Labels the training people of a data set.

    Args:
        cfg: `conf/label.yaml`, composed.

    Returns:
        The file of labels.

    Raises:
        InputError: if data, teacher or vocabulary are missing or do not fit, or the folder holds labels, something
            else of the same names, or is in use.
    """
    from clip3dreid.guidance.sources import require_data

    require_data(cfg)
    if "model" not in cfg or "_target_" not in (cfg.model.get("teacher") or {}):
        names = ", ".join(sorted(path.stem for path in (conf_dir() / "model" / "teacher").glob("*.yaml")))
        raise InputError(f"no teacher: give model/teacher=NAME; NAME is one of {names}")
    path = _output(cfg)
    with at_work(path.parent, "labels people", tidy=True):
        _output(cfg)
        return _label(cfg, path)


def _label(cfg: DictConfig, path: Path) -> Path:
    # Here and not above, so that torch is loaded after `entry_point` has said how its threads wait.
    from hydra.utils import instantiate

    from clip3dreid.guidance.sources import data_sources
    from clip3dreid.language.agreement import agreement
    from clip3dreid.language.labels import Labels, aggregate, choose, save
    from clip3dreid.language.prompts import word_embeddings
    from clip3dreid.model.teacher import load_teacher
    from clip3dreid.report.label_page import write_page
    from clip3dreid.report.tables import print_table

    vocabulary = instantiate(cfg.language, _convert_="all")
    sources = [source.manifest for source in data_sources(cfg, int(cfg.seed))]
    _check_nobody_is_lost(cfg, sources)
    teacher = load_teacher(cfg.model.teacher).to(_device(str(cfg.device)))
    words = word_embeddings(vocabulary.prompts, lambda texts: teacher.embed_texts(texts).cpu().numpy())
    table, similarity = scores(cfg, teacher, words, sources)
    units, means = aggregate(similarity, table, calibration=str(cfg.calibration), level=str(cfg.level))
    labels = Labels(
        table=choose(units, means, vocabulary),
        teacher=teacher.name,
        fingerprint=teacher.fingerprint,
        vocabulary=vocabulary.digest,
        calibration=str(cfg.calibration),
        level=str(cfg.level),
        data_sets=tuple(sorted(manifest.name for manifest in sources)),
        pictures=len(table),
    )
    truth = _truth(sources, vocabulary, labels.level)
    agreed = None if truth is None else agreement(labels.table, truth, vocabulary)
    with together(path.parent, last=path.name) as made:
        write_page(
            made,
            labels.table,
            vocabulary.groups,
            labels.facts,
            units=units,
            scores=means,
            pictures=_pictures(sources, table),
            agreement=agreed,
        )
        save(labels, made / path.name)
    if agreed is not None:
        header = ["group", "Spearman", "right, %", "balanced, %", "chance, %"]
        rows: list[list[Any]] = [
            [
                row["group"],
                "" if row["spearman"] is None else f"{row['spearman']:.2f}",
                100 * row["accuracy"],
                100 * row["balanced_accuracy"],
                100 * row["chance"],
            ]
            for row in agreed.iter_rows(named=True)
        ]
        print_table("agreement with the truth of the rendered world", header, rows)
    log.info("%d people labelled by %s: %s", len(units), teacher.name, path)
    log.info(
        "read %s, look at words.png, scores.png, certain.jpg and uncertain.jpg", path.parent / "labels.md"
    )
    return path


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    # torch has an exception of its own for every reason.
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise InputError(f"device={name} cannot be used ({reason}); give auto, cpu or cuda") from error
    return torch.device(name)


def _pictures(sources: list[Manifest], table: pl.DataFrame) -> Any:
    """From a unit's name to its pictures: one of every outfit first."""
    import polars as pl

    roots = {manifest.name: manifest.root for manifest in sources}
    ordered = table.with_columns(turn=pl.int_range(pl.len()).over("data_set", "person", "clothes")).sort(
        "turn"
    )
    known: dict[str, list[Path]] = {}
    for data_set, person, path in ordered.select("data_set", "person", "path").iter_rows():
        known.setdefault(f"{data_set}/{person}", []).append(roots[data_set] / path)
        known[f"{data_set}/{path}"] = [roots[data_set] / path]
    return lambda name: known.get(name, [])
