"""Make vectors of what is searched for: pictures, a person in several pictures, descriptions in words."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.data.listing import list_pictures
from clip3dreid.errors import InputError
from clip3dreid.inference.looking import is_named_like_a_picture, look_at
from clip3dreid.inference.model import Outputs, ReidModel
from clip3dreid.inference.pictures import Pictures
from clip3dreid.inference.tracklets import TrackletLike, TrackletLikes, look_at_tracklets
from clip3dreid.model.card import ClipSize
from clip3dreid.search.settings import PersonQuery, PictureQueries

if TYPE_CHECKING:  # only a text that the model does not know wants it, and it loads transformers
    from clip3dreid.model.teacher import Teacher

log = logging.getLogger(__name__)

MakeTeacher = Callable[[], "Teacher"]


class Query(NamedTuple):
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


def picture_queries(
    model: ReidModel, asked: PictureQueries | PersonQuery, *, flip: bool, clips: ClipSize | None = None
) -> list[Query]:
    """Embed pictures: each by itself, or one person by several.

    Args:
        model: that made the gallery.
        asked: the pictures.
        flip: look at the mirror image too, as the gallery does.
        clips: of a gallery of tracklets, how these were cut: a person's pictures are then looked at as tracklets, one
            a folder, and one of all that are no folder, in their order.

    Returns:
        Queries for `embedding`.

    Raises:
        InputError: if a picture cannot be read, there is none, or the model is broken.
    """
    if clips is not None and isinstance(asked, PersonQuery):
        return [person_tracklets(model, asked.pictures, clips, flip=flip)]
    each = queries_of(model, [file for path in asked.pictures for file in _files(path)], flip=flip)
    return each if isinstance(asked, PictureQueries) else [person_query(each)]


def queries_of(model: ReidModel, pictures: Pictures, *, flip: bool) -> list[Query]:
    """Embed pictures, each a query of its own.

    Args:
        model: that made the gallery.
        pictures: as of `inference.looking.look_at`.
        flip: look at the mirror image too, as the gallery does.

    Raises:
        InputError: if a picture cannot be read, there is none, or the model is broken.
    """
    seen = look_at(model, pictures, flip=flip)
    if not seen.batches:
        raise InputError("there is no picture to look for; give one or more")
    return _queries(
        model, torch.cat([batch.embedding for batch in seen.batches]), seen.table["path"].to_list()
    )


def tracklet_queries(
    model: ReidModel, tracklets: TrackletLikes, clips: ClipSize | None = None, *, flip: bool
) -> list[Query]:
    """Embed tracklets, each a query of its own, shown by its middle frame.

    Args:
        model: that made the gallery.
        tracklets: as of `inference.tracklets.look_at_tracklets`.
        clips: how they are cut; None: as the model was trained.
        flip: look at the mirror image too, as the gallery does.

    Raises:
        InputError: as `queries_of`, and if a tracklet is none.
    """
    seen = look_at_tracklets(model, tracklets, clips, flip=flip)
    if not seen.names:
        raise InputError("there is no tracklet to look for; give one or more")
    queries = _queries(model, seen.vectors["embedding"], seen.names)
    return [
        query._replace(pictures=() if middle is None else (middle,))
        for query, middle in zip(queries, seen.middle, strict=True)
    ]


def person_tracklets(model: ReidModel, pictures: Any, clips: ClipSize, *, flip: bool) -> Query:
    """Make one query of what there is of a person: tracklets, one a folder, and one of all that is no folder.

    Args:
        model: that made the gallery.
        pictures: folders of frames, or of such folders; files in order of time, or such pictures in memory.
        clips: as of `tracklet_queries`.
        flip: likewise.

    Raises:
        InputError: likewise.
    """
    listed = [pictures] if isinstance(pictures, str | Path) else list(pictures)
    places = [Path(one).expanduser() if isinstance(one, str | Path) else one for one in listed]
    folders: list[TrackletLike] = []
    for place in places:
        if isinstance(place, Path) and place.is_dir():
            listing = list_pictures(place)
            folders += sorted({listing.root / Path(name).parent for name in listing.table["path"]})
    others = [one for one in places if not (isinstance(one, Path) and one.is_dir())]
    walks = tracklet_queries(model, [*folders, *([others] if others else [])], clips, flip=flip)
    if len(walks) == 1:
        return walks[0]
    return person_query(walks)._replace(name=f"{len(walks)} tracklets of a person")


def seen_queries(model: ReidModel, seen: Outputs) -> list[Query]:
    """Make queries of pictures that were looked at already, each by itself.

    Args:
        model: that made the gallery.
        seen: what it says of them, as of `ReidModel.look` with the gallery's `flip`.

    Raises:
        InputError: if there is none, they are another model's, or the model is broken.
    """
    if not len(seen.embedding):
        raise InputError("there is no picture to look for; give one or more")
    if seen.embedding.shape[1] != (width := model.widths["embedding"]):
        raise InputError(
            f"features have {seen.embedding.shape[1]} columns, and those of {model.name} have {width}; look with it"
        )
    return _queries(model, seen.embedding, [None] * len(seen.embedding))


def _queries(model: ReidModel, embedding: Tensor, paths: Sequence[str | None]) -> list[Query]:
    features = F.normalize(embedding, dim=1)
    if not bool(torch.isfinite(features).all()):
        raise InputError(f"{model.name} gives features that are NaN or infinite; the model is broken")
    return [
        Query(path or f"picture {row}", vector, () if path is None else (Path(path),), (), (1.0, 0.0))
        for row, (path, vector) in enumerate(zip(paths, features, strict=True))
    ]


def person_query(each: Sequence[Query]) -> Query:
    """Make one query of several pictures of a person.

    Directions are averaged, so that no picture counts for more than another.
    """
    mean = F.normalize(torch.stack([query.vector for query in each]).mean(0), dim=0)
    files = tuple(file for query in each for file in query.pictures)
    return Query(f"{len(each)} pictures of a person", mean, files, (), (1.0, 0.0))


def text_queries(
    model: ReidModel,
    texts: Sequence[str],
    synonyms: Mapping[str, str | None] | None,
    teacher: MakeTeacher | None = None,
) -> list[Query]:
    """Read descriptions for the words that a model knows.

    Args:
        model: that made the gallery.
        texts: descriptions; empty ones are left out.
        synonyms: what people say -> the word that it stands for, as of `language.synonyms.with_usual`.
        teacher: loads the model's teacher, whose text encoder takes a text without any known word.

    Returns:
        Queries for `joint`.

    Raises:
        InputError: if the model knows no words, a text says only what does not fit, or has no known word and there
            is no teacher, or another than the model's.
    """
    # Not needed to search by pictures.
    from clip3dreid.language.query_parser import parse_query
    from clip3dreid.language.synonyms import with_usual

    if not model.groups:
        raise InputError(
            f"{model.name} has not learnt words, which the loss term loss.local teaches; search by picture"
        )
    queries, known = [], with_usual(synonyms)
    for text in filter(None, map(str.strip, texts)):
        reading = parse_query(text, model.groups, known)
        if reading.denied:
            log.warning("%r: what is denied (%s) is left out", text, ", ".join(reading.denied))
        if reading.denied and not reading.words:
            raise InputError(
                f"{text!r} says only what does not fit ({', '.join(reading.denied)}); say what does"
            )
        if reading.words:
            queries.append(words_query(model, text, reading.words))
        else:
            queries.append(_sentence_query(model, text, teacher))
    return queries


def words_query(model: ReidModel, text: str, words: Sequence[tuple[str, str]]) -> Query:
    """Make a query for how well words fit, on average.

    The mean of the words' scores is linear in a picture's vector, so it is a cosine, stretched and shifted: any
    engine can look for it.

    Args:
        model: knows the words.
        text: that they were said in.
        words: (group, word), at least one.

    Returns:
        A query in the teacher's space; its scores are means of `ReidModel.word_scores`.
    """
    flat = [(group, word) for group, members in model.groups.items() for word in members]
    chosen = [flat.index(pair) for pair in words]
    width = model.widths["joint"]
    # Scores of the unit vectors and of nothing: the rows of the linear map, and its offset.
    offset = model.word_scores(torch.zeros(1, width))[0, chosen].mean()
    direction = model.word_scores(torch.eye(width))[:, chosen].mean(1) - offset
    length = float(direction.norm())
    return Query(text, direction / length, (), tuple(words), (length, float(offset)))


def _sentence_query(model: ReidModel, text: str, make_teacher: MakeTeacher | None) -> Query:
    """Make a query of a sentence as the teacher's text encoder has it, seen from the centre of the vocabulary."""
    expected = model.card.get("teacher") or {}
    if make_teacher is None:
        raise InputError(
            f"{text!r} has no word that this model knows ({_examples(model)}); for other words give its teacher: "
            f"model/teacher={expected.get('name', 'NAME')}"
        )
    teacher = make_teacher()
    if teacher.fingerprint != expected.get("fingerprint"):
        raise InputError(
            f"model/teacher={teacher.name} is not the teacher of {model.name}; give {expected.get('name')}"
        )
    log.warning(
        "%r has no word that this model knows (%s): it is searched for as a whole, by the teacher's text encoder",
        text,
        _examples(model),
    )
    centre = model.heads["joint"].get_buffer("centre")
    vector = F.normalize(teacher.embed_texts([text])[0].cpu().float() - centre, dim=0)
    return Query(text, vector, (), (), (1.0, 0.0))


def _examples(model: ReidModel) -> str:
    return ", ".join(words[-1] for words in list(model.groups.values())[:4]) + ", …"


def is_text(query: Any) -> bool:
    """Return whether a query is a description: a text that is no file's name."""
    if not isinstance(query, str):
        return False
    # Not of pathlib, which raises where a name is too long or a home is unknown.
    path = os.path.expanduser(query)  # noqa: PTH111
    return not is_named_like_a_picture(Path(path)) and not os.path.exists(path)  # noqa: PTH110


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        listing = list_pictures(path)
        return [listing.root / name for name in listing.table["path"]]
    return [path]
