"""What people say for words, and what a user says beside."""

from pathlib import Path

import yaml

from clip3dreid.config.folder import conf_dir
from clip3dreid.language.query_parser import parse_query
from clip3dreid.language.synonyms import SYNONYMS, with_usual


def vocabulary() -> dict[str, list[str]]:
    text = Path(conf_dir() / "language" / "body_words.yaml").read_text(encoding="utf-8")
    groups = yaml.safe_load(text)["groups"]
    return {name: list(group.get("words") or group["prototypes"]) for name, group in groups.items()}


def test_every_synonym_stands_for_a_word_of_the_vocabulary_and_is_none_itself() -> None:
    words = {word for group in vocabulary().values() for word in group}
    assert set(SYNONYMS.values()) <= words
    assert not words & set(SYNONYMS)


def test_ones_own_come_first_and_none_takes_away() -> None:
    known = with_usual({"man": "tall", "fat": None, "lanky": "tall"})
    assert known == {
        **{said: word for said, word in SYNONYMS.items() if said != "fat"},
        "man": "tall",
        "lanky": "tall",
    }
    assert with_usual({}) == SYNONYMS
    assert with_usual(None) == {}


def test_people_are_described_as_people_do() -> None:
    found = parse_query("an athletic lady with thin legs, not fat", vocabulary(), with_usual({}))
    assert [word for _, word in found.words] == ["muscular", "feminine", "skinny legs"]
    assert found.denied == ("heavyset",)
