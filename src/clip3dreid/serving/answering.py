"""Answer a page's questions with a model and a gallery; nothing of a browser, and all that is heavy."""

from __future__ import annotations

import io
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from clip3dreid.body.gltf import glb
from clip3dreid.body.poses import at_ease
from clip3dreid.data.datasets import ltcc
from clip3dreid.errors import InputError
from clip3dreid.inference.heads import Description
from clip3dreid.inference.model import ReidModel, load
from clip3dreid.inference.word_plan import plans_of_maps
from clip3dreid.io.pictures import Pixels, open_picture, unreadable, upright_rgb
from clip3dreid.io.table_files import BOX
from clip3dreid.language.query_parser import parse_query
from clip3dreid.language.synonyms import with_usual
from clip3dreid.model.card import clip_size
from clip3dreid.report.overlays import overlay, scaled
from clip3dreid.report.parts import readable, short
from clip3dreid.search.filters import read_values
from clip3dreid.search.gallery import Gallery
from clip3dreid.search.query import MakeTeacher
from clip3dreid.search.search import Engine, SearchResult
from clip3dreid.serving.question import Upload
from clip3dreid.serving.settings import ServeSettings
from clip3dreid.serving.source import Source

LONGEST_TEXT = 500
"""Letters of a description."""
MOST_VALUES = 1000
"""Values of a label that are offered for choice."""
_CONDITION = re.compile(r"\s*([^\s=]+)\s*=\s*(\[[^\]]*\]|[^\s,\[\]]+)\s*,?")
_THUMBNAIL = (110, 200)
"""Width and height at most, in pixels."""
_TALL, _MUCH = 192, 4.0
"""Pixels of a picture of where a word comes from; times an even plan's mass that are drawn as the most."""
_SMALL_WORLD = (
    *("layout=ltcc", "seed=7", "train_people=1", "test_people=24"),
    *("layout.outfits=2", "layout.seen=2", "layout.test_pictures=2"),
)
"""Of `clip3dreid synthesize`: two dozen people, two outfits each, under two cameras."""


class Hit(NamedTuple):
    """Somebody who was found."""

    picture: Image.Image | None
    """None where the file is gone."""
    score: float
    labels: Mapping[str, str]
    """What the gallery knows of the picture: person, camera, clothes and what else is a plain value."""
    path: str


class Answer(NamedTuple):
    """What a page shows of a question."""

    hits: Sequence[Hit]
    score: str
    """What the scores of hits are: `cosine` or `fit`."""
    understood: Sequence[str] = ()
    """Words of a description."""
    notes: Sequence[str] = ()
    """What else is to be said, a sentence each."""
    words: Description | None = None
    """Of the person in the pictures; None where the model has not learnt words."""
    body: bytes | None = None
    """Their body, a GLB file; None likewise."""
    places: Sequence[tuple[str, str, Image.Image]] = ()
    """(group, word, picture of where it comes from)."""


class Answering:
    """A model and a gallery that answer.

    Args:
        gallery: with its model.
        settings: how many hits, how large uploads may be.
        teacher: reads texts without a word that the model knows, as of `Gallery.search`.

    Attributes:
        model: the gallery's.
        gallery: the same.
    """

    def __init__(
        self, gallery: Gallery, settings: ServeSettings | None = None, teacher: MakeTeacher | None = None
    ) -> None:
        self.model, self.gallery = gallery.model, gallery
        self._settings, self._teacher = settings or ServeSettings(), teacher

    def __str__(self) -> str:
        """Return what there is, for the page."""
        return f"{len(self.gallery):,} pictures; model {short(self.model.name)}"

    def values(self, label: str) -> list[str]:
        """Return the values of a label in the gallery, for a choice; empty where there is none or too many."""
        table = self.gallery.labels
        if label not in table.columns or table.schema[label].is_nested():
            return []
        values = table[label].drop_nulls().unique().cast(pl.String).to_list()
        return sorted(values, key=_in_order) if 1 < len(values) <= MOST_VALUES else []

    def words(self) -> Mapping[str, Sequence[str]]:
        """Return the words that the model knows, by groups."""
        return self.model.groups if "joint" in self.model.heads else {}

    def where(self, chosen: Mapping[str, Any], typed: str) -> dict[str, Any]:
        """Return the filter that a page's fields ask for.

        Args:
            chosen: label -> values that were chosen, or none.
            typed: further conditions, such as `person=[3,7] frame=[100,900]`.

        Raises:
            InputError: if what is typed is no condition.
        """
        where = {label: values for label, values in chosen.items() if values}
        rest = typed.strip()
        while rest:
            condition = _CONDITION.match(rest)
            if condition is None:
                raise InputError(
                    f"other labels: {rest[:60]!r} is no condition; write person=[3,7] or frame=[100,900]"
                )
            label = condition[1].removeprefix("where.")
            where[label] = read_values(label, condition[2])
            rest = rest[condition.end() :].strip()
        return where

    def people(self, count: int, seed: int) -> list[tuple[int, Hit]]:
        """Return some pictures of the gallery to choose from, of different people where that is known.

        Args:
            count: at most.
            seed: another one, others.

        Returns:
            Row of the gallery, and the picture.
        """
        table = self.gallery.labels.with_row_index("row")
        rng = random.Random(seed)
        if "person" in table.columns and table["person"].null_count() < len(table):
            groups = table.drop_nulls("person").group_by("person", maintain_order=True).agg("row")["row"]
            rows = [rng.choice(group) for group in rng.sample(groups.to_list(), min(count, len(groups)))]
        else:
            rows = rng.sample(range(len(table)), min(count, len(table)))
        return [(row, _hit(table.row(row, named=True), 1.0)) for row in rows]

    def picture(self, row: int) -> Upload:
        """Return a picture of the gallery as if it had been uploaded.

        Raises:
            InputError: if there is no such row, or its file is gone.
        """
        table = self.gallery.labels
        if not 0 <= row < len(table):
            raise InputError("the gallery has no such picture; choose another")
        facts = table.row(row, named=True)
        found = readable([Path(facts["path"])], 1, 512, 1024, _box(facts))
        if not found:
            raise InputError(f"{facts['path']} is not there any more; choose another")
        written = io.BytesIO()
        found[0].save(written, "PNG")
        return Upload(Path(facts["path"]).name, written.getvalue(), facts["path"])

    def ask_pictures(self, uploads: Sequence[Upload], where: Mapping[str, Any]) -> Answer:
        """Look for the person in some pictures, and say what the model sees in them.

        Args:
            uploads: at least one, all of one person.
            where: as of `Gallery.search`.

        Raises:
            InputError: if there is none or too much, one cannot be read, or the filter leaves nobody.
        """
        self._check(uploads)
        model = self.model
        # One after another: what is kept of each is what the model sees of it.
        views = [torch.from_numpy(model.view(_decoded(upload))) for upload in uploads]
        own = {upload.path for upload in uploads} - {None}
        seen = model.look(views, flip=self.gallery.flip, maps=True)
        result = self.gallery.search(seen, person=True, top=self._settings.top + len(own), where=where)
        words, body, places, notes = None, None, [], []
        clips = clip_size(model.card, model.name)
        if clips is not None and clips[0] > 1:
            notes.append(
                f"This model was trained on clips of {clips[0]} frames; each picture is taken for a clip of one."
            )
        if seen.joint is None or not model.groups:
            notes.append("This model has not learnt words (loss.local).")
        else:
            joint = F.normalize(seen.joint.mean(0, keepdim=True), dim=1)
            words = model.describe_joint(joint)[0]
            assert seen.map is not None
            places = _places(model, views[0], seen.map[:1])
        if seen.betas is None:
            notes.append("This model has not learnt bodies (loss.shape).")
        else:
            body, note = _body(model, seen.betas)
            notes += [note] if note else []
        return Answer(_hits(result, own)[: self._settings.top], result.score, (), notes, words, body, places)

    def ask_text(self, text: str, where: Mapping[str, Any]) -> Answer:
        """Look for people by a description.

        Args:
            text: at most `LONGEST_TEXT` letters.
            where: as of `Gallery.search`.

        Raises:
            InputError: if the text is empty or too long, or has no word that is known and there is no teacher.
        """
        said = " ".join(text.split())
        if not said:
            raise InputError("the text is empty; say what the person looks like, as in: a tall, heavyset man")
        if len(said) > LONGEST_TEXT:
            raise InputError(
                f"the text has {len(said):,} letters, and at most {LONGEST_TEXT} are read; say it in a sentence"
            )
        synonyms = self._settings.synonyms
        result = self.gallery.search_text(
            said, top=self._settings.top, where=where, synonyms=synonyms, teacher=self._teacher
        )
        understood = [word for _, word in result.answers[0].query.understood]
        notes = [] if understood else ["No word of it is known: the sentence is compared as a whole."]
        if denied := parse_query(said, self.model.groups, with_usual(synonyms)).denied:
            notes.append(f"What is denied is left out: {', '.join(denied)}.")
        return Answer(_hits(result, set()), result.score, understood, notes)

    def _check(self, uploads: Sequence[Upload]) -> None:
        if not uploads:
            raise InputError("there is no picture yet; give one or more of one person")
        if len(uploads) > self._settings.pictures:
            raise InputError(
                f"{len(uploads)} pictures are too many; give up to {self._settings.pictures} of one person"
            )
        if (size := sum(len(upload.content) for upload in uploads)) > self._settings.most_bytes:
            raise InputError(
                f"the pictures hold {size / 1e6:.1f} MB, and up to {self._settings.megabytes:g} MB are taken; give "
                "fewer or smaller ones"
            )


def load_answering(
    source: Source,
    settings: ServeSettings,
    *,
    options: Mapping[str, Any],
    engine: Engine | None,
    teacher: MakeTeacher | None,
    tell: Callable[[str], None],
) -> Answering:
    """Load a model and a gallery.

    Args:
        source: where they are.
        settings: as of `Answering`, like `teacher`.
        options: further arguments of `clip3dreid.load`.
        engine: searches shards, as of `Gallery`.
        teacher: as of `Answering`.
        tell: gets what is being done, in a few words.

    Raises:
        InputError: if one of them is not there, damaged, or they do not fit.
    """
    if source.is_world:
        tell(f"People are rendered into {source.gallery}, which takes half a minute once")
        _render(source.gallery)
    tell("The model is loaded")
    model = load(source.checkpoint, **options)
    if source.holds_shards:
        tell(f"{source.gallery} is read")
        return Answering(Gallery.open(source.gallery, model, engine=engine), settings, teacher)
    tell(f"The pictures of {source.gallery} are looked at; the terminal shows how far")
    gallery = Gallery(model)
    if source.is_world:
        gallery.add(*_test_people(source.gallery), progress=True)
    else:
        gallery.add(source.gallery, progress=True)
    return Answering(gallery, settings, teacher)


def _decoded(upload: Upload) -> Pixels:
    """Return (H, W, 3) RGB of an upload; its header is looked at before anything is decoded.

    Raises:
        InputError: if it is no picture, too large, or ends early.
    """
    try:
        with open_picture(io.BytesIO(upload.content)) as image:
            return upright_rgb(image, own=True)
    except Exception as error:  # decoders raise a dozen types on broken data
        raise unreadable(upload.name, error, "give a JPEG or PNG of one person") from error


def _places(model: ReidModel, view: Tensor, map_: Tensor) -> list[tuple[str, str, Image.Image]]:
    (plan,) = plans_of_maps(model, map_)
    crop = scaled(Image.fromarray(np.ascontiguousarray(view.permute(1, 2, 0).numpy())), _TALL)
    return [
        (group, word, overlay(crop, mass.numpy(), _MUCH))
        for (group, word), mass in zip(plan.words, plan.mass, strict=True)
    ]


def _body(model: ReidModel, betas: Tensor) -> tuple[bytes | None, str]:
    """Return the body of one person's pictures as a GLB file; or None, and why there is none."""
    try:
        shape = model.bodies(betas.mean(0, keepdim=True), pose=torch.from_numpy(at_ease()))
    except InputError as error:  # a body of others, whose file is not here
        return None, f"{error}."
    return glb(shape.vertices[0], shape.faces), ""


def _hits(result: SearchResult, own: set[str | None]) -> list[Hit]:
    return [
        _hit(facts, facts["score"])
        for facts in result.answers[0].hits.iter_rows(named=True)
        if facts["path"] not in own
    ]


def _hit(facts: Mapping[str, Any], score: float) -> Hit:
    found = readable([Path(facts["path"])], 1, *_THUMBNAIL, _box(facts))
    labels = {
        name: str(value)
        for name, value in facts.items()
        if value is not None
        and not isinstance(value, list)
        and name not in ("path", "rank", "score", "row", *BOX)
    }
    return Hit(ImageOps.contain(found[0], _THUMBNAIL) if found else None, score, labels, facts["path"])


def _box(facts: Mapping[str, Any]) -> tuple[int, ...] | None:
    box = tuple(facts.get(side) for side in BOX)
    return None if None in box else box  # type: ignore[return-value]


def _in_order(value: str) -> tuple[int, str]:
    return (int(value), "") if value.isdecimal() else (sys.maxsize, value)


def _render(folder: Path) -> None:
    """Render a small world, in a process of its own, as a user would.

    Raises:
        InputError: if that fails; it has said why.
    """
    command = ["synthesize", *_SMALL_WORLD, f"out={folder}", "workers=2"]
    if subprocess.run([sys.executable, "-m", "clip3dreid", *command], check=False).returncode:
        raise InputError(
            f"no people could be rendered into {folder} (see above); give gallery=FOLDER of your own pictures"
        )


def _test_people(folder: Path) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the test people's pictures of a world in LTCC's layout, with their labels."""
    manifest = ltcc.read(folder)
    table = manifest.part("test")
    labels = {name: table[name].to_list() for name in ("person", "clothes", "camera", "role")}
    return list(map(str, manifest.files(table))), labels
