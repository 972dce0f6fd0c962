import pytest

from clip3dreid.language.query_parser import parse_query

GROUPS = {
    "stature": ["short", "medium height", "tall"],
    "weight": ["skinny", "heavyset"],
    "shoulders": ["narrow shoulders", "broad shoulders"],
    "arms": ["short arms", "long arms"],
    "gender": ["masculine", "feminine"],
}
SYNONYMS = {"man": "masculine", "broad-shouldered": "broad shoulders", "elderly": "grey hair"}


@pytest.mark.parametrize(
    ("text", "words", "denied"),
    [
        (
            "a tall, heavyset man with broad shoulders",
            ["tall", "heavyset", "masculine", "broad shoulders"],
            [],
        ),
        ("TALL; Heavyset!", ["tall", "heavyset"], []),
        ("short arms", ["short arms"], []),  # the longest, and not "short" too
        ("a short person with long arms", ["short", "long arms"], []),
        ("broad-shouldered, of medium height", ["broad shoulders", "medium height"], []),
        ("not tall, no broad shoulders, not very heavyset", [], ["tall", "broad shoulders", "heavyset"]),
        ("not tall, muscular or not", [], ["tall"]),
        ("he isn\u2019t tall", [], ["tall"]),
        ("doesn't look tall and is heavyset", ["heavyset"], ["tall"]),
        ("a man with no beard, tall", ["masculine", "tall"], []),
        ("without glasses. Tall.", ["tall"], []),
        ("neither tall nor heavyset", [], ["tall", "heavyset"]),
        ("tall and tall again", ["tall"], []),
        ("a red hat", [], []),
        ("broad, tall shoulders", ["tall"], []),
        ("an elderly person", [], []),  # stands for a word that this vocabulary lacks
        ("many smaller mantles", [], []),
        ("", [], []),
    ],
)
def test_what_a_text_says(text, words, denied):
    reading = parse_query(text, GROUPS, SYNONYMS)
    assert [word for _, word in reading.words] == words
    assert list(reading.denied) == denied
    assert all(word in GROUPS[group] for group, word in reading.words)


def test_no_vocabulary_no_words():
    assert parse_query("tall", {}, {"man": "masculine"}).words == ()
