"""Parse what a free text says into words of the vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_NOT = frozenset({"not", "no", "without", "never", "neither", "nor", "cannot"})
_REACH = 3
"""Words after a "not" that it denies."""
# Where a "not" ends.
_BREAKS = frozenset({"and", "but", "with", ",", ".", ";", ":", "!", "?"})
_WORD = re.compile(r"[\w']+|[,.;:!?]")


class ParsedQuery(NamedTuple):
    """What was understood of a text."""

    words: tuple[tuple[str, str], ...]
    """(group, word), in the order of the text, each once."""
    denied: tuple[str, ...]
    """Words that the text says do not fit; nothing is made of them."""


def parse_query(text: str, groups: Mapping[str, Sequence[str]], synonyms: Mapping[str, str]) -> ParsedQuery:
    """Find words and their synonyms in a text, the longest first: "broad shoulders" before "broad".

    Case, punctuation and hyphens do not matter. A word within three words after "not", "no", "without" or "doesn't"
    is denied, up to the next punctuation, "and", "but" or "with". Words are found wherever they stand: a thin jacket
    makes a thin person.

    Args:
        text: in the language of the vocabulary.
        groups: name -> words that exclude each other.
        synonyms: what people say -> the word that it stands for; those of words in no group are of no use here.
    """
    owner = {word: group for group, words in groups.items() for word in words}
    phrases = {word: word for word in owner} | {
        said: word for said, word in synonyms.items() if word in owner
    }
    spelled = {tuple(_WORD.findall(said.lower())): word for said, word in phrases.items()}
    longest = max(map(len, spelled), default=0)
    said = _WORD.findall(text.lower().replace("\u2019", "'"))
    found: dict[tuple[str, str], None] = {}
    denied: list[str] = []
    place = 0
    while place < len(said):
        for length in range(min(longest, len(said) - place), 0, -1):
            word = spelled.get(tuple(said[place : place + length]))
            if word is not None:
                if _denied(said[max(0, place - _REACH) : place]):
                    denied.append(word)
                else:
                    found[owner[word], word] = None
                place += length
                break
        else:
            place += 1
    return ParsedQuery(tuple(found), tuple(denied))


def _denied(before: Sequence[str]) -> bool:
    """Return whether the words before one deny it."""
    for word in reversed(before):
        if word in _BREAKS:
            return False
        if word in _NOT or word.endswith("n't"):
            return True
    return False
