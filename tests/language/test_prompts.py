from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.language.prompts import Prompts, prompts_of, with_articles, word_embeddings
from clip3dreid.language.vocabulary import Vocabulary

PHRASES = {
    "tall": "a {word} {person}",
    "heavyset": "a {word} {person}",
    "medium height": "a {person} of {word}",
    "average build": "a {person} of {word}",
    "broad shoulders": "a {person} with {word}",
    "large chest": "a {person} with a {word}",
    "short legs": "a {person} with {word}",
    "hourglass": "a {person} with a {word} figure",
}
PEOPLE = {"neutral": "person", "male": "man", "female": "woman"}
WORDINGS = {
    "large chest": {"female": "a {person} with large breasts"},
    "heavyset": {"male": "burly"},
}


@pytest.fixture
def prompts() -> Prompts:
    return Prompts(PHRASES, ["{phrase}", "an image of {phrase}"], PEOPLE, WORDINGS)


def shipped() -> Vocabulary:
    vocabulary = instantiate(OmegaConf.load(conf_dir() / "language" / "body_words.yaml"))
    assert isinstance(vocabulary, Vocabulary)
    return vocabulary


SHIPPED = shipped()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a hourglass figure", "an hourglass figure"),
        ("an wide waist", "a wide waist"),
        ("a average, an tall man", "an average, a tall man"),
        ("a inverted triangle", "an inverted triangle"),
        ("an uniform build, an unusual one", "a uniform build, an unusual one"),
        ("an useful a upper a European a heir", "a useful an upper a European an heir"),
        ("a uninteresting an u-shaped", "an uninteresting an u-shaped"),
        ("banana a", "banana a"),
    ],
)
def test_the_article_follows_the_sound_of_the_next_word(text: str, expected: str) -> None:
    assert with_articles(text) == expected


def test_an_ensemble_is_every_template_with_every_variant_in_order(prompts: Prompts) -> None:
    assert prompts.ensemble("tall") == [
        "a tall person",
        "a tall man",
        "a tall woman",
        "an image of a tall person",
        "an image of a tall man",
        "an image of a tall woman",
    ]


def test_a_prompt_stands_in_its_ensemble_once() -> None:
    twice = Prompts(PHRASES, ["{phrase}", "{phrase}"], {"neutral": "person", "any": "person"})
    assert twice.ensemble("hourglass") == ["a person with an hourglass figure"]


def test_wordings_hold_for_their_variant_alone(prompts: Prompts) -> None:
    assert prompts.ensemble("large chest")[:3] == [
        "a person with a large chest",
        "a man with a large chest",
        "a woman with large breasts",
    ]
    assert prompts.ensemble("heavyset")[:3] == ["a heavyset person", "a burly man", "a heavyset woman"]


def test_a_sentence_has_adjectives_first_then_what_phrases_share(prompts: Prompts) -> None:
    words = ["tall", "heavyset", "average build", "broad shoulders", "large chest", "short legs"]
    assert prompts.sentence(words) == (
        "a tall, heavyset person of average build with broad shoulders, a large chest and short legs"
    )
    assert prompts.sentence(words, "female") == (
        "a tall, heavyset woman of average build with broad shoulders, large breasts and short legs"
    )


def test_short_sentences_read_well(prompts: Prompts) -> None:
    assert prompts.sentence([]) == "a person"
    assert prompts.sentence(["hourglass"]) == "a person with an hourglass figure"
    assert prompts.sentence(["medium height", "average build"], "male") == (
        "a man of medium height and average build"
    )


def test_a_sentence_of_one_word_is_its_phrase_without_template(prompts: Prompts) -> None:
    assert [prompts.sentence([word], "male") for word in ("tall", "hourglass")] == [
        "a tall man",
        "a man with an hourglass figure",
    ]


@given(st.data())
def test_sentences_of_the_shipped_words_say_every_word_and_leave_no_place_open(data: st.DataObject) -> None:
    words = [data.draw(st.sampled_from(group)) for group in SHIPPED.groups.values()]
    sentence = SHIPPED.prompts.sentence(words)
    assert all(word in sentence for word in words)
    assert not set("{}") & set(sentence)
    assert sentence.count(" with ") <= 1
    assert sentence.count(" of ") <= 1


def test_every_shipped_word_has_as_many_prompts_as_templates_times_people() -> None:
    counts = {len(SHIPPED.prompts.ensemble(word)) for word in SHIPPED.prompts.words}
    assert counts == {len(SHIPPED.prompts.templates) * len(SHIPPED.prompts.people)}


FAULTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "template": (r"templates: 'a photo'", lambda: Prompts(PHRASES, ["a photo"])),
    "format": (r"templates: 'a \{phrase!r\}'", lambda: Prompts(PHRASES, ["a {phrase!r}"])),
    "brace": (r"templates: '\{phrase\} \{'", lambda: Prompts(PHRASES, ["{phrase} {"])),
    "text for a list": (r"templates must be a list", lambda: Prompts(PHRASES, "a {phrase}")),
    "nobody neutral": (r"people must give", lambda: Prompts(PHRASES, people={"male": "man"})),
    "noun": (r"people must give", lambda: Prompts(PHRASES, people={"neutral": 3})),
    "wording's word": (
        r"wordings\.tal: no group .* did you mean tall",
        lambda: Prompts(PHRASES, wordings={"tal": {"neutral": "big"}}),
    ),
    "wording's variant": (
        r"wordings\.tall: variant=femal is unknown; .* did you mean female",
        lambda: Prompts(PHRASES, people=PEOPLE, wordings={"tall": {"femal": "big"}}),
    ),
    "wording's place": (
        r"wordings\.tall\.neutral: 'big \{word\}'",
        lambda: Prompts(PHRASES, wordings={"tall": {"neutral": "big {word}"}}),
    ),
    "wording without text": (
        r"wordings\.tall\.neutral must be a text",
        lambda: Prompts(PHRASES, wordings={"tall": {"neutral": None}}),
    ),
    "wording without variant": (
        r"wordings\.tall must be a mapping",
        lambda: Prompts(PHRASES, wordings={"tall": "big"}),
    ),
    "key": (
        r"prompts: key=template is unknown; choose templates, people or wordings; did you mean templates",
        lambda: prompts_of(PHRASES, {"template": ["{phrase}"]}),
    ),
    "list for a mapping": (r"prompts\.people must be", lambda: prompts_of(PHRASES, {"people": ["man"]})),
    "no mapping": (r"language\.prompts must have", lambda: prompts_of(PHRASES, ["{phrase}"])),
    "phrase": (r"the phrase of 'tall' must", lambda: Prompts({"tall": "a {word}"})),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_prompts_are_refused_by_name(fault: str) -> None:
    message, make = FAULTS[fault]
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_unknown_words_and_variants_are_refused_by_name(prompts: Prompts) -> None:
    with pytest.raises(InputError, match="no word 'tal'; did you mean tall"):
        prompts.ensemble("tal")
    with pytest.raises(InputError, match="variant=old is unknown; choose neutral, male"):
        prompts.sentence(["tall"], "old")


def test_a_word_is_the_normalised_mean_of_its_normalised_prompts() -> None:
    two = Prompts(
        {"tall": "a {word} {person}", "short": "a {word} {person}"}, ["{phrase}", "photo of {phrase}"]
    )
    vectors = {
        "a tall person": [3.0, 0.0],
        "photo of a tall person": [0.0, 0.1],
        "a short person": [0.0, -2.0],
        "photo of a short person": [0.0, -5.0],
    }
    asked: list[list[str]] = []

    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        asked.append(texts)
        return np.array([vectors[text] for text in texts], np.float32)

    found = word_embeddings(two, embed)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [0, -1]], atol=1e-6)
    assert [sorted(texts) for texts in asked] == [sorted(vectors)]


def test_embeddings_that_are_no_directions_are_refused_with_their_prompt(prompts: Prompts) -> None:
    def embed(texts: list[str]) -> npt.NDArray[np.float64]:
        return np.array([[float("nan") if "hourglass" in text else 1.0] for text in texts])

    with pytest.raises(InputError, match="'a person with an hourglass figure' is zero or not finite"):
        word_embeddings(prompts, embed)
    with pytest.raises(ValueError, match="shape"):
        word_embeddings(prompts, lambda texts: np.ones((1, 2)))
