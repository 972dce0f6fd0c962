import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from clip3dreid.inference.heads import ScoredWord
from clip3dreid.serving import markup
from clip3dreid.serving.answering import Answer, Hit

EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"
PICTURE = Image.new("RGB", (4, 8), "red")
WORDS = {
    "leg_length": [ScoredWord("long legs", 0.81), ScoredWord("short legs", -0.4)],
    EVIL: [ScoredWord(EVIL, 1)],
}


class Tags(HTMLParser):
    """Names of tags and attributes; whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(name for name, _ in attributes)}
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HITS = Answer(
    [Hit(PICTURE, 0.5, {"person": EVIL, "camera": "2"}, EVIL), Hit(None, -0.25, {}, "folder/b.jpg")], "cosine"
)


@pytest.mark.parametrize(
    "text",
    [
        markup.title(EVIL),
        markup.message(EVIL, wrong=True),
        markup.understood(HITS._replace(understood=[EVIL], notes=[EVIL])),
        markup.hits(HITS),
        markup.words(WORDS),
        markup.places([(EVIL, EVIL, PICTURE)], WORDS),
        markup.people([(0, HITS.hits[0])]),
        markup.vocabulary({EVIL: [EVIL]}),
    ],
)
def test_nothing_that_is_shown_is_markup_of_somebody_else(text: str) -> None:
    names = Tags(text).names
    assert "script" not in names
    assert "onerror" not in names
    assert "&lt;script&gt;" in text


def test_hits_are_numbered_and_named_by_what_is_known_of_them() -> None:
    text = markup.hits(HITS._replace(hits=[HITS.hits[0]._replace(labels={"camera": "2", "person": "7"})] * 2))
    assert re.findall(r"<b>(.*?)</b>(.*?)</figcaption>", text) == [
        ("1. 0.500", "<br>person 7<br>camera 2"),
        ("2. 0.500", "<br>person 7<br>camera 2"),
    ]
    assert 'alt="hit 1: person 7, camera 2"' in text
    alone = markup.hits(HITS._replace(hits=HITS.hits[1:]))
    assert "b.jpg</figcaption>" in alone
    assert "not there" in alone


def test_words_have_scores_and_so_have_those_they_were_chosen_over() -> None:
    text = markup.words(WORDS)
    assert '<th scope="row">leg length</th><td>long legs</td><td class="score">+0.8</td>' in text
    assert "short legs -0.4" in text


def test_what_there_is_nothing_of_takes_no_room() -> None:
    assert markup.message("") == markup.words(None) == markup.places([], None) == ""
    assert markup.understood(Answer([], "cosine")) == ""
