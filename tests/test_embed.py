from pathlib import Path

import numpy as np
import pytest
import torch

from clip3dreid.embed import label_tokens
from clip3dreid.errors import InputError
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.model.small_clip import make_small_clip, save_small_clip, train_tokenizer
from clip3dreid.model.teacher import Teacher
from clip3dreid.model.teacher_view import Native
from tests.model.test_small_clip import CONFIG, MEAN, STD, TEXTS

VOCABULARY = Vocabulary(
    {
        "stature": {
            "measure": "stature",
            "words": ["short", "tall"],
            "cuts": [50],
            "phrase": "a {word} {person}",
        },
        "shoulders": {"measure": "shoulders", "words": ["broad shoulders", "narrow shoulders"], "cuts": [50]},
    },
    {"templates": ["{phrase}", "a photo of {phrase}"]},
)
CHOSEN = np.array([[1, 2], [0, 3], [1, 2]])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 300, 32)
    folder = tmp_path_factory.mktemp("teachers") / "t"
    save_small_clip(folder, make_small_clip(tokenizer, CONFIG), tokenizer, MEAN, STD, {})
    return Teacher(str(folder), Native(32, 16), name="t")


def test_descriptors_are_the_mean_of_a_words_prompts(teacher: Teacher) -> None:
    states, mask = label_tokens(teacher, VOCABULARY, CHOSEN, "descriptor")
    assert states.shape == (3, 2, teacher.width)
    assert mask.all()
    said = ["a person with broad shoulders", "a photo of a person with broad shoulders"]
    mean = torch.nn.functional.normalize(teacher.embed_texts(said).mean(0), dim=0)
    torch.testing.assert_close(states[0, 1], mean)
    torch.testing.assert_close(states[0], states[2])


def test_words_are_the_states_of_the_composed_sentence(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip3dreid.embed.TEXTS_AT_ONCE", 1)
    states, mask = label_tokens(teacher, VOCABULARY, CHOSEN, "words")
    sentences = ["a tall person with broad shoulders", "a short person with narrow shoulders"]
    for row, text in ((0, sentences[0]), (1, sentences[1]), (2, sentences[0])):
        alone = teacher.embed_tokens([text])
        torch.testing.assert_close(states[row][mask[row]], alone.states[0][alone.mask[0]])


def test_an_unknown_mode_is_refused(teacher: Teacher) -> None:
    with pytest.raises(InputError, match="token mode sentence is unknown; choose descriptor or words"):
        label_tokens(teacher, VOCABULARY, CHOSEN, "sentence")


def test_a_sentence_longer_than_the_teacher_reads_is_named(teacher: Teacher, tmp_path: Path) -> None:
    long = Vocabulary(
        {"stature": {"measure": "stature", "words": ["short" * 30, "tall"], "cuts": [50]}},
    )
    with pytest.raises(InputError, match="reads texts of at most 32 tokens"):
        label_tokens(teacher, long, np.array([[0]]), "words")
