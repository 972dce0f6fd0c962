import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.language.sentences import Sentences
from clip3dreid.language.vocabulary import Vocabulary

LANGUAGE = conf_dir() / "language"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    found: Vocabulary = instantiate(OmegaConf.load(LANGUAGE / "body_words.yaml"), _convert_="all")
    return found


@pytest.fixture(scope="module")
def sentences(vocabulary: Vocabulary) -> Sentences:
    node = OmegaConf.load(LANGUAGE / "body_sentences.yaml")
    found: Sentences = instantiate(node, vocabulary=vocabulary, _convert_="all")
    return found


def somebody(vocabulary: Vocabulary, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {group: words[int(rng.integers(len(words)))] for group, words in vocabulary.groups.items()}


SMALL = {
    "forms": {"whole": ["a {adjective} {person}", "a {person} who is {adjective}"]},
    "groups": {"stature": {"form": "whole", "words": {"short": ["short", "small"], "tall": ["tall", "big"]}}},
    "nouns": {},
    "frames": ["{phrase}", "a photo of {phrase}"],
    "unseen": ["this is {phrase}"],
    "lengths": {1: 1},
}
TWO = Vocabulary(
    {
        "stature": {
            "measure": "stature",
            "words": ["short", "tall"],
            "cuts": [50],
            "phrase": "a {word} {person}",
        }
    }
)


def test_a_grammar_written_out_by_hand() -> None:
    grammar = Sentences(TWO, **SMALL)
    said = ["a tall person", "a person who is tall", "a big person"]
    assert grammar.ensemble("tall") == [frame + one for one in said for frame in ("", "a photo of ")]
    assert grammar.unseen("tall") == ["this is a person who is big"]


def test_sentences_are_drawn_by_the_seed_alone(sentences: Sentences, vocabulary: Vocabulary) -> None:
    words = somebody(vocabulary, 1)
    twice = [[sentences.draw(words, np.random.default_rng(seed)) for seed in range(50)] for _ in range(2)]
    assert twice[0] == twice[1]
    assert len(set(twice[0])) > 45


def test_no_sentence_of_training_has_a_phrase_or_frame_kept_for_later(
    sentences: Sentences, vocabulary: Vocabulary
) -> None:
    rng = np.random.default_rng(0)
    drawn = [sentences.draw(somebody(vocabulary, seed), rng) for seed in range(3000)]
    for _, word in vocabulary.flat:
        assert not set(sentences.unseen(word)) & set(sentences.ensemble(word))
        assert not set(sentences.unseen(word)) & set(drawn)
    assert not any(text.startswith("this photo shows") for text in drawn)


def test_every_word_of_an_unseen_sentence_occurs_in_training(
    sentences: Sentences, vocabulary: Vocabulary
) -> None:
    known = {
        part for _, word in vocabulary.flat for text in sentences.ensemble(word) for part in text.split()
    }
    for _, word in vocabulary.flat:
        for text in sentences.unseen(word):
            assert set(text.split()) <= known, text


def test_a_sentence_says_only_words_of_its_person(vocabulary: Vocabulary) -> None:
    grammar = Sentences(TWO, **SMALL)
    rng = np.random.default_rng(0)
    drawn = {grammar.draw({"stature": "tall"}, rng) for _ in range(100)}
    assert drawn == set(grammar.ensemble("tall"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {}}, r"sentences\.groups lacks stature"),
        ({"groups": SMALL["groups"] | {"statur": {}}}, "did you mean stature"),
        ({"groups": {"stature": {"form": "hole", "words": {}}}}, r"form=hole is unknown; choose whole"),
        ({"groups": {"stature": {"form": "whole", "words": {"short": ["a", "b"]}}}}, "exactly short, tall"),
        (
            {"groups": {"stature": {"form": "whole", "words": {"short": ["a"], "tall": ["b", "c"]}}}},
            "two adjectives or more",
        ),
        ({"groups": {"stature": {**SMALL["groups"]["stature"], "nuon": "x"}}}, "nuon is unknown"),
        ({"forms": {"whole": ["a {adjective} {man}"]}}, r"must have \{person\}"),
        ({"frames": ["no place"]}, r"sentences\.frames"),
        ({"unseen": []}, r"sentences\.unseen"),
        ({"lengths": {0: 1}}, r"sentences\.lengths"),
        ({"nouns": {"tal": ["giant"]}}, "did you mean tall"),
    ],
)
def test_a_faulty_grammar_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sentences(TWO, **{**SMALL, **change})
