"""What people say for words of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

_SAID = {
    "masculine": ("man", "men", "male", "guy", "boy"),
    "feminine": ("woman", "women", "female", "girl", "lady"),
    "heavyset": ("fat", "overweight", "stout"),
    "skinny": ("thin", "slim", "slender"),
    "round belly": ("big belly",),
    "broad shoulders": ("wide shoulders", "broad-shouldered"),
    "narrow shoulders": ("narrow-shouldered",),
    "skinny legs": ("thin legs", "slim legs"),
    "skinny arms": ("thin arms", "slim arms"),
    "muscular": ("athletic", "well built"),
    "soft": ("flabby",),
    "slim waist": ("narrow waist",),
    "long legs": ("long-legged",),
}

SYNONYMS: Mapping[str, str] = {said: word for word, several in _SAID.items() for said in several}
"""What is said -> the word of `conf/language/body_words.yaml` that it stands for."""


def with_usual(own: Mapping[str, str | None] | None) -> dict[str, str]:
    """Add the usual synonyms to somebody's own.

    Args:
        own: what is said -> the word that it stands for, in the place of the usual one; None as a word takes the
            usual one out; None in the place of all: no synonyms.

    Example:
        >>> from clip3dreid.language.synonyms import with_usual
        >>> with_usual({"lanky": "tall"})["lanky"], with_usual({"lanky": "tall"})["man"]
        ('tall', 'masculine')
        >>> "man" in with_usual({"man": None}), with_usual(None)
        (False, {})
    """
    if own is None:
        return {}
    return {said: word for said, word in {**SYNONYMS, **own}.items() if word is not None}
