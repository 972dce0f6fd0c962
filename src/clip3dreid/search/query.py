"""People found in shards: by picture, by several pictures of one person, or by words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.config.hydra import at_least
from clip3dreid.data.listing import list_pictures
from clip3dreid.errors import InputError
from clip3dreid.guidance.sources import plain
from clip3dreid.inference.model import ReidModel, load
from clip3dreid.io.files import write_json
from clip3dreid.io.formats import read_text
from clip3dreid.io.table_files import BOX
from clip3dreid.language.query_parser import parse_query
from clip3dreid.model.teacher import load_teacher
from clip3dreid.report.search_sheet import SUFFIXES, Picture, Row, draw_search
from clip3dreid.report.tables import print_table
from clip3dreid.search.filters import Filter
from clip3dreid.search.nearest import Nearest
from clip3dreid.search.shards import Shards

log = logging.getLogger(__name__)

RESULTS_VERSION = 1
_KINDS = ("picture", "person", "text", "text_file")
_SHOWN = ("path", "person", "camera", "clothes", "frame")


class Question(NamedTuple):
    """One query."""

    name: str
    """A path, or the text."""
    vector: Tensor
    """(D,) or (d,) float32 of length 1."""
    pictures: tuple[Path, ...]
    """That were asked with."""
    understood: tuple[tuple[str, str], ...]
    """(group, word) of a text, in order; empty where a sentence is searched for as a whole."""
    scale: tuple[float, float]
    """What turns a cosine into the score that is shown: factor and offset."""


class Questions(NamedTuple):
    """All queries of a search, which are of one kind."""

    column: str
    """The shards' vector that they are compared with: `embedding`, or `joint` for words."""
    score: str
    """What the scores are."""
    items: list[Question]


def search(cfg: DictConfig) -> dict[str, Any]:
    """Searches, prints what was found, and writes it where that is asked for.

    Args:
        cfg: `conf/search.yaml`, composed.

    Returns:
        What the JSON file says.

    Raises:
        InputError: if gallery, model or query are missing or do not fit.
    """
    shards = Shards(_folder(cfg))
    chosen = [kind for kind in _KINDS if cfg[kind] is not None]
    if len(chosen) != 1:
        raise InputError(
            "what to look for? Give one of picture=FILE, person=[FILE,…], text='…' or text_file=FILE"
            + (f", not {' and '.join(chosen)}" if chosen else "")
        )
    top = min(int(at_least(cfg, "top", 1)), len(shards))
    sheet = None if cfg.sheet is None else Path(str(cfg.sheet)).expanduser()
    if sheet is not None and sheet.suffix.lower() not in SUFFIXES:
        raise InputError(f"sheet={sheet} must end in {', '.join(SUFFIXES)}")
    model = _model(cfg, shards)
    questions = _words(cfg, model) if chosen[0].startswith("text") else _pictures(cfg, model, shards)
    where: Filter = Filter() if cfg.where is None else instantiate(cfg.where, _convert_="all")
    queries = torch.stack([question.vector for question in questions.items])
    engine = instantiate(cfg.engine)
    found: Nearest = engine(shards, questions.column).search(queries, top, where)
    results = [
        _hits(shards, question, rows, scores)
        for question, rows, scores in zip(questions.items, found.rows, found.scores, strict=True)
    ]
    facts = {
        "version": RESULTS_VERSION,
        "gallery": str(shards.folder),
        "model": str(cfg.checkpoint),
        "score": questions.score,
        "where": {
            key: value
            for key, value in (plain(cfg.where) or {}).items()
            if key != "_target_" and value is not None
        },
        "searched": len(shards),
        "queries": [
            {
                "query": question.name,
                "words": [word for _, word in question.understood],
                "hits": hits.to_dicts(),
            }
            for question, hits in zip(questions.items, results, strict=True)
        ],
    }
    if cfg.out is not None:
        write_json(Path(str(cfg.out)).expanduser(), facts)
    if sheet is not None:
        _draw(sheet, shards, questions, results)
    for question, hits in zip(questions.items, results, strict=True):
        _print(question, questions.score, hits)
    return facts


def _folder(cfg: DictConfig) -> Path:
    if cfg.gallery is None:
        raise InputError("where to look? Give gallery=FOLDER, which clip3dreid extract has filled")
    return Path(str(cfg.gallery)).expanduser()


def _model(cfg: DictConfig, shards: Shards) -> ReidModel:
    """The model that made the shards."""
    if cfg.checkpoint is None:
        raise InputError(
            f"checkpoint is not set; give the model that made {shards.folder}: {shards.facts['model']}"
        )
    model = load(str(cfg.checkpoint))
    if model.fingerprint != shards.facts["fingerprint"]:
        theirs, ours = shards.facts["fingerprint"][:12], model.fingerprint[:12]
        raise InputError(
            f"{shards.folder} was made by another model ({shards.facts['model']}, {theirs}…) than {cfg.checkpoint} "
            f"({ours}…), and their features cannot be compared; give that model, or extract anew"
        )
    return model


def _pictures(cfg: DictConfig, model: ReidModel, shards: Shards) -> Questions:
    """Each picture by itself, or one person by several."""
    values = cfg.picture if cfg.picture is not None else cfg.person
    listed = [values] if isinstance(values, str | int | float) else list(values)
    if "" in listed:
        raise InputError("the picture to look for is empty; give a file or a folder")
    given = [Path(str(value)).expanduser() for value in listed]
    files = [file for path in given for file in _files(path)]
    if not files:
        raise InputError("there is no picture to look for; give one or more")
    features = F.normalize(model.embed(files, flip=bool(shards.facts["flip"])), dim=1)
    if not bool(torch.isfinite(features).all()):
        raise InputError(f"{cfg.checkpoint} gives features that are NaN or infinite; the model is broken")
    if cfg.picture is not None:
        asked = [
            Question(str(file), vector, (file,), (), (1.0, 0.0))
            for file, vector in zip(files, features, strict=True)
        ]
    else:
        # Directions are averaged, so that no picture counts for more than another.
        mean = F.normalize(features.mean(0), dim=0)
        asked = [Question(f"{len(files)} pictures of a person", mean, tuple(files), (), (1.0, 0.0))]
    return Questions("embedding", "cosine", asked)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        listing = list_pictures(path)
        return [listing.root / name for name in listing.table["path"]]
    return [path]


def _words(cfg: DictConfig, model: ReidModel) -> Questions:
    texts = [str(cfg.text)] if cfg.text is not None else _lines(Path(str(cfg.text_file)).expanduser())
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise InputError(
            "the text is empty; say what the person looks like, as in text='a tall, heavyset man'"
        )
    if not model.groups:
        raise InputError(
            f"{cfg.checkpoint} has not learnt words, which the loss term loss.local teaches; search by picture"
        )
    synonyms = {str(said): str(word) for said, word in (cfg.synonyms or {}).items()}
    asked = []
    for text in texts:
        reading = parse_query(text, model.groups, synonyms)
        if reading.denied:
            log.warning("%r: what is denied (%s) is left out", text, ", ".join(reading.denied))
        if reading.denied and not reading.words:
            raise InputError(
                f"{text!r} says only what does not fit ({', '.join(reading.denied)}); say what does"
            )
        if reading.words:
            asked.append(ask_for_words(model, text, reading.words))
        else:
            asked.append(_ask_for_sentence(cfg, model, text))
    return Questions("joint", "fit", asked)


def ask_for_words(model: ReidModel, text: str, words: Sequence[tuple[str, str]]) -> Question:
    """A query for how well words fit, on average.

    The mean of the words' scores is linear in a picture's vector, so it is a cosine, stretched and shifted: any
    engine can look for it.

    Args:
        model: knows the words.
        text: that they were said in.
        words: (group, word), at least one.

    Returns:
        A query in the teacher's space; its scores are means of `ReidModel.word_scores`.
    """
    flat = [(group, word) for group, own in model.groups.items() for word in own]
    chosen = [flat.index(pair) for pair in words]
    width = model.widths["joint"]
    # Scores of the unit vectors and of nothing: the rows of the linear map, and its offset.
    offset = model.word_scores(torch.zeros(1, width))[0, chosen].mean()
    direction = model.word_scores(torch.eye(width))[:, chosen].mean(1) - offset
    length = float(direction.norm())
    return Question(text, direction / length, (), tuple(words), (length, float(offset)))


def _ask_for_sentence(cfg: DictConfig, model: ReidModel, text: str) -> Question:
    """The sentence as the teacher's text encoder has it, seen from the centre of the vocabulary."""
    told = model.card.get("teacher") or {}
    node = cfg.get("model", {}).get("teacher")
    if node is None:
        raise InputError(
            f"{text!r} has no word that this model knows ({_some(model)}); for other words give its teacher: "
            f"model/teacher={told.get('name', 'NAME')}"
        )
    teacher = load_teacher(node)
    if teacher.fingerprint != told.get("fingerprint"):
        raise InputError(
            f"model/teacher={node.name} is not the teacher of {cfg.checkpoint}; give {told.get('name')}"
        )
    log.warning(
        "%r has no word that this model knows (%s): it is searched for as a whole, by the teacher's text encoder",
        text,
        _some(model),
    )
    centre = model.heads["joint"].get_buffer("centre")
    vector = F.normalize(teacher.embed_texts([text])[0].cpu().float() - centre, dim=0)
    return Question(text, vector, (), (), (1.0, 0.0))


def _some(model: ReidModel) -> str:
    return ", ".join(words[-1] for words in list(model.groups.values())[:4]) + ", …"


def _lines(path: Path) -> list[str]:
    return read_text(path, f"text_file={path}", "give a UTF-8 text, a query a line").splitlines()


def _hits(shards: Shards, question: Question, rows: Tensor, scores: Tensor) -> pl.DataFrame:
    """What was found for a query: `rank`, `score`, and the shards' labels."""
    known = rows >= 0
    factor, offset = question.scale
    values = (scores[known].double() * factor + offset).tolist()
    labels = shards.labels[rows[known].tolist()]
    return labels.with_columns(
        rank=pl.int_range(1, pl.len() + 1), score=pl.Series(values, dtype=pl.Float64)
    ).select("rank", "score", *labels.columns)


def _print(question: Question, score: str, hits: pl.DataFrame) -> None:
    shown = [name for name in _SHOWN if name in hits.columns and hits[name].null_count() < max(1, len(hits))]
    print_table(
        question.name,
        ["rank", score, *shown],
        [[row["rank"], f"{row['score']:.3f}", *(row[name] for name in shown)] for row in hits.to_dicts()],
    )
    if question.understood:
        print(f"  understood: {', '.join(word for _, word in question.understood)}")  # noqa: T201


def _draw(path: Path, shards: Shards, questions: Questions, results: Sequence[pl.DataFrame]) -> None:
    root = Path(str(shards.facts["root"]))
    rows = []
    for question, hits in zip(questions.items, results, strict=True):
        asked = [Picture(file) for file in question.pictures]
        rows.append(Row(question.name, asked, [_picture(root, hit) for hit in hits.to_dicts()]))
    if (drawn := draw_search(path, rows)) < len(rows):
        log.warning("%s has room for the first %d of %d queries", path, drawn, len(rows))


def _picture(root: Path, hit: Mapping[str, Any]) -> Picture:
    box = tuple(hit[side] for side in BOX) if BOX[0] in hit else None
    who = f"person {hit['person']}" if hit.get("person") is not None else Path(hit["path"]).name
    where = f"camera {hit['camera']}" if hit.get("camera") is not None else ""
    return Picture(
        root / hit["path"], box, (f"{hit['rank']}. {hit['score']:.3f}", who, *([where] if where else []))
    )
