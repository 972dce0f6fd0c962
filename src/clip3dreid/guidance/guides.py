"""What guides a training beside the people's pictures: words, the teacher's view of them, and textureless bodies."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clip3dreid.body.smpl import BodyModel, body_digest
from clip3dreid.config.hydra import conf_dir
from clip3dreid.data.bodies import read_bodies
from clip3dreid.data.datamodule import BodyStream, ReidDataModule
from clip3dreid.data.manifest import concatenate
from clip3dreid.data.sampling import exchanged
from clip3dreid.errors import InputError
from clip3dreid.guidance.embeddings import embed_pictures, text_targets
from clip3dreid.guidance.sources import plain
from clip3dreid.language.labels import Labels, aggregate, choose, load, tokens
from clip3dreid.language.prompts import word_embeddings
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.loss.term import Need
from clip3dreid.model.embedding_cache import Cache, TeacherEmbeddings
from clip3dreid.model.teacher import Teacher, load_teacher
from clip3dreid.types import ShapeSpace, TeacherSpace, TextTargets

log = logging.getLogger(__name__)

LABEL_OPTIONS = {
    "tokens": ("descriptor", "words"),
    "level": ("person", "image"),
    "calibration": ("zscore", "none"),
}
FRESH = ("off", "off_erased")
"""Values of `model.teacher.cache` with which the teacher looks at every augmented picture."""
ROWS = 8192
"""Embeddings read at a time."""


class Guides(NamedTuple):
    """The guides that the losses of a run need; None for those that no loss needs."""

    words: TextTargets | None = None
    teacher: TeacherSpace | None = None
    shape: ShapeSpace | None = None
    embeddings: TeacherEmbeddings | None = None
    """The teacher's embeddings of a training batch."""
    bodies: BodyStream | None = None
    labels: Labels | None = None
    """The labels that the words come from, before any shuffling."""
    facts: dict[str, Any] = {}  # noqa: RUF012 - never changed
    """What a checkpoint must say of its guides, as plain values."""


def guide(
    cfg: DictConfig,
    data: ReidDataModule,
    needs: frozenset[Need],
    *,
    labels: Path | None = None,
    shared: Path | None = None,
) -> Guides:
    """Reads, embeds and labels whatever the losses need.

    Args:
        cfg: `conf/train.yaml`, composed: `model.teacher`, `language`, `labels`, `bodies`, `body`.
        data: the training people.
        needs: of `loss.total.needs`.
        labels: those that the run has had before, or that another process of it has chosen; None: they are chosen, or
            read from `cfg.labels.path`.
        shared: folder for the teacher's embeddings where several processes of a run would else compute and hold them
            each; None: this is the only one.

    Raises:
        InputError: if teacher, labels or bodies are missing or do not fit each other.
    """
    guides = Guides()
    # First what is refused at once: the teacher's pass over all pictures may take minutes.
    if "bodies" in needs:
        guides = _body_side(cfg, guides)
    if needs & {"words", "teacher"}:
        guides = _teacher_side(cfg, data, needs, guides, labels, shared)
    return guides


def _teacher_side(
    cfg: DictConfig,
    data: ReidDataModule,
    needs: frozenset[Need],
    guides: Guides,
    chosen: Path | None,
    shared: Path | None,
) -> Guides:
    for key, options in LABEL_OPTIONS.items():
        if cfg.labels[key] not in options:
            raise InputError(f"labels.{key}={cfg.labels[key]} is unknown; choose {' or '.join(options)}")
    # A method may say how the teacher looks at pictures, and so have a node where there is no teacher.
    if "_target_" not in (cfg.model.get("teacher") or {}):
        names = ", ".join(sorted(path.stem for path in (conf_dir() / "model" / "teacher").glob("*.yaml")))
        raise InputError(f"this method needs a teacher: give model/teacher=NAME; NAME is one of {names}")
    teacher = load_teacher(cfg.model.teacher).to(_device(cfg))
    vocabulary: Vocabulary = instantiate(cfg.language, _convert_="all")
    cache = None
    chosen = chosen or (None if cfg.labels.path is None else Path(str(cfg.labels.path)).expanduser())
    if "teacher" in needs or chosen is None:
        cache = _embed(cfg, data, teacher, shared)
    words = labels = None
    if "words" in needs:
        labels = (
            _labels(cfg, data, teacher, vocabulary, cache) if chosen is None else load(chosen, vocabulary)
        )
        words = _targets(cfg, data, teacher, vocabulary, labels)
    space = embeddings = None
    if "teacher" in needs:
        assert cache is not None
        rows = torch.split(torch.arange(len(data.train_table)), ROWS)
        mean = torch.stack([cache.read(some).double().sum(0) for some in rows]).sum(0) / len(data.train_table)
        space = TeacherSpace(teacher.width, mean.float())
        if cfg.model.teacher.cache in FRESH:
            data.train_view.keep_view = cfg.model.teacher.cache == "off"
            embeddings = TeacherEmbeddings(teacher)
        else:
            embeddings = TeacherEmbeddings(cache=cache)
    facts: dict[str, Any] = {
        "teacher": {"name": teacher.name, "fingerprint": teacher.fingerprint, "width": teacher.width}
    }
    if words is not None:
        groups = {name: list(members) for name, members in vocabulary.groups.items()}
        facts["vocabulary"] = {"digest": vocabulary.digest, "groups": groups}
    return guides._replace(
        words=words, teacher=space, embeddings=embeddings, labels=labels, facts={**guides.facts, **facts}
    )


def _device(cfg: DictConfig) -> torch.device:
    """Where the teacher runs before there is a trainer to ask: where this process is going to train."""
    if OmegaConf.select(cfg, "trainer.accelerator") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Lightning's own launcher and torchrun set the first, SLURM the second.
    rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    devices = plain(OmegaConf.select(cfg, "trainer.devices"))
    return torch.device("cuda", devices[rank] if isinstance(devices, list) else rank)


def _embed(cfg: DictConfig, data: ReidDataModule, teacher: Teacher, shared: Path | None) -> Cache:
    """The training pictures through the teacher, as they are on disk."""
    node = cfg.model.teacher
    # Without a cache the teacher looks at every augmented picture; labels and mean still take one pass.
    cache = "memory" if node.cache in FRESH else str(node.cache)
    folder = Path(str(node.cache_dir))
    if cache == "memory" and shared is not None:
        cache, folder = "disk", shared / "teacher"
    joined = concatenate(data.manifests)
    if len(data.manifests) > 1:
        folder = folder.with_name(joined.name)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"{joined.name} through {teacher.name}", total=len(data.train_table))
        return embed_pictures(
            teacher,
            joined,
            data.train_table,
            cache=cache,
            folder=folder,
            batch=int(cfg.datamodule.evaluation_batch),
            workers=int(cfg.datamodule.workers),
            progress=lambda done: bar.update(task, completed=done),
        )


def _labels(
    cfg: DictConfig, data: ReidDataModule, teacher: Teacher, vocabulary: Vocabulary, cache: Cache | None
) -> Labels:
    """The labels that the teacher gives now."""
    assert cache is not None
    words = word_embeddings(vocabulary.prompts, lambda texts: teacher.embed_texts(texts).cpu().numpy())
    rows = torch.split(torch.arange(len(data.train_table)), ROWS)
    scores = np.concatenate([cache.read(some).numpy() @ words.T for some in rows])
    calibration, level = str(cfg.labels.calibration), str(cfg.labels.level)
    units, means = aggregate(scores, _parts(data), calibration=calibration, level=level)
    return Labels(
        table=choose(units, means, vocabulary),
        teacher=teacher.name,
        fingerprint=teacher.fingerprint,
        vocabulary=vocabulary.digest,
        calibration=calibration,
        level=level,
        data_sets=tuple(sorted(manifest.name for manifest in data.manifests)),
        pictures=len(data.train_table),
    )


def _targets(
    cfg: DictConfig, data: ReidDataModule, teacher: Teacher, vocabulary: Vocabulary, labels: Labels
) -> TextTargets:
    names = list(data.labels.people)
    if labels.level == "image":
        names = _parts(data).select(pl.concat_str("data_set", "path", separator="/")).to_series().to_list()
    try:
        chosen, margin = tokens(labels, names, vocabulary)
    except InputError as error:
        where = "" if cfg.labels.path is None else f"{cfg.labels.path}: "
        raise InputError(f"{where}{error}") from error
    if cfg.labels.shuffled:
        log.warning("control: every person has another's words (labels.shuffled=true)")
        order = exchanged(len(names), int(cfg.seed))
        chosen, margin = chosen[order], margin[order]
    return text_targets(
        teacher,
        vocabulary,
        chosen,
        margin,
        mode=str(cfg.labels.tokens),
        by="person" if labels.level == "person" else "row",
    )


def _parts(data: ReidDataModule) -> pl.DataFrame:
    """The training rows in their order, with paths within each set: those of joined sets are absolute."""
    return pl.concat([manifest.part("train") for manifest in data.manifests])


def _body_side(cfg: DictConfig, guides: Guides) -> Guides:
    table = read_bodies(Path(str(cfg.bodies.root)).expanduser())
    body: BodyModel = instantiate(plain(cfg.body))
    if table.betas.shape[1] != body.num_betas:
        raise InputError(
            f"the bodies in {cfg.bodies.root} have {table.betas.shape[1]} shape coefficients and body {body.name} "
            f"has {body.num_betas}; give the body they were made with (body=NAME), or make them anew"
        )
    if cfg.bodies.shuffled:
        log.warning("control: every textureless body has another's shape (bodies.shuffled=true)")
        table = table.shuffled(int(cfg.seed))
    _, first = np.unique(table.body, return_index=True)
    mean, deviation = _moments(table.betas[first])
    with torch.no_grad():
        # Linear in the coefficients, whichever body model it is: the rest pose of each unit says it all.
        template = body.rest(torch.zeros(1, body.num_betas)).vertices[0]
        directions = (body.rest(torch.eye(body.num_betas)).vertices - template).permute(1, 2, 0)
    shape = ShapeSpace(template, directions.contiguous(), mean, deviation, table.bodies)
    view = instantiate(cfg.bodies.view)
    if (view.height, view.width) != (int(cfg.datamodule.height), int(cfg.datamodule.width)):
        raise InputError(
            f"bodies.view makes {view.height}x{view.width} pictures, datamodule.height and datamodule.width say "
            f"{cfg.datamodule.height}x{cfg.datamodule.width}; both streams go through one student"
        )
    if view.square != cfg.datamodule.square:
        raise InputError(
            f"bodies.view has square={view.square}, datamodule.square says {cfg.datamodule.square}; both streams "
            "go through one student"
        )
    stream = BodyStream(table, int(cfg.bodies.batch), view)
    # A file by its name alone: where it lies is nobody's business but this machine's.
    name = Path(str(cfg.body.path)).name
    facts = {"name": name, "sha256": body_digest(str(cfg.body.path)), "num_betas": body.num_betas}
    shapes = {"count": table.bodies, "sha256": hashlib.sha256(table.betas.tobytes()).hexdigest()}
    return guides._replace(
        shape=shape, bodies=stream, facts={**guides.facts, "body": facts, "bodies": shapes}
    )


# What a resumed run must find again, and where its guides come from.
_SAME = {
    ("teacher", "fingerprint"): "model.teacher",
    ("vocabulary", "digest"): "language",
    ("body", "sha256"): "body",
    ("bodies", "sha256"): "bodies.root",
    ("training", "sha256"): "what is trained on (data.root, or labels, people or pictures in it)",
}


def check_same_training(card: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with other people or other guides than a run began with: it would be another training.

    Args:
        card: of the run's checkpoint.
        now: the card that the next one would have.

    Raises:
        InputError: naming what differs.
    """
    for (part, key), where in _SAME.items():
        before, here = (facts.get(part, {}).get(key) for facts in (card, now))
        # Checkpoints of before there was a checksum of the training pictures say nothing of them.
        if before != here and not (part == "training" and before is None):
            raise InputError(
                f"{where} is not what this run began with ({str(before)[:12]} then, {str(here)[:12]} now); "
                "restore it, or start a new run"
            )


def _moments(betas: npt.NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each coefficient; 1 for one that never varies."""
    mean, deviation = betas.mean(0, dtype=np.float64), betas.std(0, dtype=np.float64)
    varies = deviation > 1e-6
    return torch.from_numpy(mean).float(), torch.from_numpy(np.where(varies, deviation, 1.0)).float()
