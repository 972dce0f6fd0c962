import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.serving.answering import Answering
from clip3dreid.serving.question import Upload, uploads_of
from clip3dreid.serving.settings import ServeSettings
from tests.export.models import FRAMES, OF_CLIPS, made
from tests.serving.conftest import Rendered


@pytest.fixture(scope="module")
def model(saved_model: Path) -> clip3dreid.ReidModel:
    return clip3dreid.load(saved_model)


@pytest.fixture(scope="module")
def gallery(model: clip3dreid.ReidModel, rendered: Rendered) -> clip3dreid.Gallery:
    return clip3dreid.Gallery.open(rendered.gallery, model)


@pytest.fixture(scope="module")
def answering(gallery: clip3dreid.Gallery) -> Answering:
    return Answering(gallery, ServeSettings(top=6, pictures=3, megabytes=1))


def uploads(*paths: Path) -> list[Upload]:
    return [Upload(path.name, path.read_bytes()) for path in paths]


def test_hits_are_those_of_the_gallery_and_so_are_words_and_bodies(
    answering: Answering, gallery: clip3dreid.Gallery, model: clip3dreid.ReidModel, rendered: Rendered
) -> None:
    files = rendered.queries[:2]
    answer = answering.ask_pictures(uploads(*files), {})
    wanted = gallery.search(files, person=True, top=6).answers[0].hits
    assert [hit.path for hit in answer.hits] == wanted["path"].to_list()
    assert [hit.score for hit in answer.hits] == pytest.approx(wanted["score"].to_list(), abs=1e-5)
    assert answer.hits[0].labels["person"] == wanted["person"][0]
    described = model.describe_person(files)
    assert answer.words is not None
    assert {group: words[0].word for group, words in answer.words.items()} == {
        group: words[0].word for group, words in described.items()
    }
    assert [word for _, word, _ in answer.places] == [
        words[0].word for words in model.describe(files[0])[0].values()
    ]
    assert answer.body is not None
    # The mean of both pictures' bodies, arms at the sides: narrower than the T of the rest pose.
    rest = model.bodies(model.look(files).betas.mean(0, keepdim=True)).vertices[0]
    bounds = io.BytesIO(answer.body).read()[20:].partition(b'"max":[')[2].partition(b",")[0]
    assert 0 < float(bounds) < float(rest[:, 0].max()) - 0.1


def test_a_crop_goes_through_the_network_once(answering: Answering, rendered: Rendered) -> None:
    model = answering.model
    passes: list[int] = []
    hook = model.student.register_forward_hook(lambda *call: passes.append(len(call[1][0])))
    try:
        answer = answering.ask_pictures(uploads(*rendered.queries[:2]), {})
    finally:
        hook.remove()
    assert answer.words
    assert answer.places
    # The mirror images are of the gallery's feature.
    assert passes == ([2, 2] if answering.gallery.flip else [2])


def test_a_filter_holds(answering: Answering, rendered: Rendered) -> None:
    answer = answering.ask_pictures(uploads(rendered.queries[0]), {"camera": ["2"]})
    assert {hit.labels["camera"] for hit in answer.hits} == {"2"}
    with pytest.raises(InputError, match=r"where\.camera=\[9\] leaves no picture"):
        answering.ask_text("tall", {"camera": [9]})


def test_somebody_of_the_gallery_is_asked_with_and_left_out_of_the_answer(answering: Answering) -> None:
    chosen = answering.people(4, seed=1)
    assert len({hit.labels["person"] for _, hit in chosen}) == 4
    assert [row for row, _ in chosen] != [row for row, _ in answering.people(4, seed=2)]
    row, hit = chosen[0]
    picture = answering.picture(row)
    answer = answering.ask_pictures([picture], {})
    assert picture.path == hit.path
    assert hit.path not in [found.path for found in answer.hits]
    assert len(answer.hits) == 6
    for beyond in (-1, 10**9):
        with pytest.raises(InputError, match="no such picture"):
            answering.picture(beyond)


def test_a_picture_whose_file_is_gone_is_found_all_the_same(
    model: clip3dreid.ReidModel, rendered: Rendered, tmp_path: Path
) -> None:
    copies = [tmp_path / path.name for path in rendered.queries[:3]]
    for copy, path in zip(copies, rendered.queries, strict=False):
        copy.write_bytes(path.read_bytes())
    gone = Answering(clip3dreid.Gallery.from_pictures(model, [str(copy) for copy in copies]))
    copies[0].unlink()
    answer = gone.ask_pictures(uploads(rendered.queries[0]), {})
    assert (answer.hits[0].path, answer.hits[0].picture) == (str(copies[0]), None)
    assert answer.hits[1].picture is not None
    with pytest.raises(InputError, match="is not there any more"):
        gone.picture(0)


def test_what_the_model_has_not_learnt_is_said(model: clip3dreid.ReidModel, rendered: Rendered) -> None:
    plain = {key: model.card[key] for key in ("version", "student", "height", "width", "data")}
    mute = clip3dreid.ReidModel(model.student, plain, {}, name="mute")
    answering = Answering(clip3dreid.Gallery.from_pictures(mute, [str(path) for path in rendered.queries]))
    answer = answering.ask_pictures(uploads(rendered.queries[0]), {})
    assert (answer.words, answer.body, answer.places) == (None, None, [])
    assert len(answer.notes) == 2
    assert answer.hits[0].score == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="mute"):
        answering.ask_text("tall", {})
    assert answering.words() == {}


def test_texts_are_read_and_what_is_left_out_is_said(answering: Answering, rendered: Rendered) -> None:
    answer = answering.ask_text("  a tall man,\nnot heavyset ", {})
    assert answer.understood == ["tall", "masculine"]
    assert answer.notes == ["What is denied is left out: heavyset."]
    assert answer.score == "fit"
    for text, why in (
        ("", "the text is empty"),
        ("x" * 501, "the text has 501 letters, and at most 500 are read"),
        (str(rendered.queries[0]), "has no word that this model knows"),
    ):
        with pytest.raises(InputError, match=why):
            answering.ask_text(text, {})


def test_uploads_are_limited_in_number_and_size_and_must_be_pictures(
    answering: Answering, rendered: Rendered
) -> None:
    good = uploads(rendered.queries[0])[0]
    cut = good._replace(content=good.content[:200])
    for given, why in (
        ([], "there is no picture yet"),
        ([good] * 4, "4 pictures are too many; give up to 3"),
        ([good._replace(content=b"x" * 1_000_001)], "hold 1.0 MB, and up to 1 MB"),
        ([good, Upload("notes.txt", b"text")], "cannot read the picture notes.txt: not a picture"),
        ([cut], f"cannot read the picture {good.name}"),
    ):
        with pytest.raises(InputError, match=why):
            answering.ask_pictures(given, {})


def test_a_picture_in_any_form_is_what_its_file_is(answering: Answering) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
    (upload,) = uploads_of({"pictures": [{"name": "a.png", "data": url}]})
    assert upload == Upload("a.png", written.getvalue(), None)
    assert len(answering.ask_pictures([upload], {}).hits) == 6


def test_labels_with_a_few_values_are_offered_in_order(answering: Answering) -> None:
    assert answering.values("camera") == ["1", "2", "3"]
    assert answering.values("mood") == answering.values("words") == []


@pytest.mark.parametrize(
    ("chosen", "typed", "where"),
    [
        ({"camera": [], "clothes": None}, "", {}),
        (
            {"camera": ["2"]},
            " where.person=[3, 7],frame=[100,null] ",
            {"camera": ["2"], "person": ["3", "7"], "frame": [100, None]},
        ),
        ({}, "camera=null", {"camera": None}),
        ({}, "a=b c = d", {"a": ["b"], "c": ["d"]}),
    ],
)
def test_what_is_chosen_and_typed_is_one_filter(
    answering: Answering, chosen: dict[str, object], typed: str, where: dict[str, object]
) -> None:
    assert answering.where(chosen, typed) == where


@pytest.mark.parametrize("typed", ["whatever", "camera=", "=3", "camera=[1,2", "camera=1 and more"])
def test_what_is_no_condition_is_refused(answering: Answering, typed: str) -> None:
    with pytest.raises(InputError, match="is no condition; write person="):
        answering.where({}, typed)


def test_to_a_model_of_clips_a_picture_is_a_clip_of_one_frame(rendered: Rendered) -> None:
    model = made(OF_CLIPS)
    of_clips = clip3dreid.Gallery(model)
    of_clips.add(list(map(str, rendered.queries)), workers=0)
    answer = Answering(of_clips).ask_pictures(uploads(rendered.queries[1]), {})
    assert (answer.hits[0].path, answer.hits[0].score) == (str(rendered.queries[1]), pytest.approx(1))
    assert answer.notes[0] == (
        f"This model was trained on clips of {FRAMES} frames; each picture is taken for a clip of one."
    )
