"""Sentences from words: the prompt ensemble of a word, and the description of a person."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose, hint

Embed = Callable[[list[str]], npt.NDArray[np.floating[Any]]]
"""L sentences -> their (L, d) text embeddings."""

SEE = "see conf/language/body_words.yaml"
PHRASE = "a {person} with {word}"
"""Of a group that gives no phrase of its own."""
NEUTRAL = "neutral"
"""The variant of a person of whom nothing else is said."""
_TEMPLATES = ("a photo of {phrase}",)
_PEOPLE = {NEUTRAL: "person"}

_BRACES = re.compile(r"\{([^{}]*)\}")
_ARTICLE = re.compile(r"\ban?(?= +(\w[\w-]*))")
# Written with a vowel, spoken with a consonant ("a uniform figure", "a European"), and the reverse ("an hourglass").
_CONSONANT = re.compile(r"uni(?![nm])|u[st][aeiou]|eu|ew|one\b|once")
_SILENT_H = re.compile(r"hour|hono|heir|honest")


def with_articles(text: str) -> str:
    """Return the text with "a" or "an" as the sound after it asks for.

    Args:
        text: English, with either article in every place.
    """

    def article(match: re.Match[str]) -> str:
        word = match[1].lower()
        vowel = _SILENT_H.match(word) or (word[0] in "aeiou" and not _CONSONANT.match(word))
        return "an" if vowel else "a"

    return _ARTICLE.sub(article, text)


class Prompts:
    """What is said to the text encoder about each word.

    Attributes:
        words: all words, in the order they were given in.
        templates: what stands around a phrase.
        people: variant -> noun.
    """

    def __init__(
        self,
        phrases: Mapping[str, str],
        templates: Sequence[str] | None = None,
        people: Mapping[str, Any] | None = None,
        wordings: Mapping[str, Any] | None = None,
    ) -> None:
        """Check them, as `language.prompts` of `conf/language/body_words.yaml` writes them.

        Args:
            phrases: word -> phrase with `{word}` and `{person}`, such as "a {person} with {word}".
            templates: sentences with `{phrase}`; by default "a photo of {phrase}".
            people: variant -> noun, `neutral` among them; by default a person.
            wordings: word -> variant -> what the word is called of this variant; with `{person}` in it, the whole
                phrase.

        Raises:
            InputError: naming the node, if a name is unknown or a text lacks its place.
        """
        self._phrases = {word: phrase_of(text, f"the phrase of {word!r}") for word, text in phrases.items()}
        self.words = list(self._phrases)
        self.templates = _texts(_TEMPLATES if templates is None else templates)
        nouns: dict[str, Any] = dict(_PEOPLE if people is None else people)
        if not self.templates:
            raise InputError(f"language.prompts.templates must be a list of texts; {SEE}")
        for template in self.templates:
            if _fields(template) != ["phrase"]:
                raise InputError(f"language.prompts.templates: {template!r} must have {{phrase}} in it, once")
        if NEUTRAL not in nouns or not all(
            isinstance(noun, str) and noun and not _fields(noun) for noun in nouns.values()
        ):
            raise InputError(f"language.prompts.people must give each variant a noun, {NEUTRAL} among them")
        self.people: dict[str, str] = nouns
        self._wordings: dict[tuple[str, str], str] = {}
        for word, variants in ({} if wordings is None else wordings).items():
            where = f"language.prompts.wordings.{word}"
            if word not in self._phrases:
                raise InputError(f"{where}: no group has this word{hint(word, self._phrases)}")
            if not isinstance(variants, Mapping):
                raise InputError(f"{where} must be a mapping from a variant to its wording; {SEE}")
            for variant, text in variants.items():
                self._check_variant(variant, where)
                if not isinstance(text, str) or not text:
                    raise InputError(f"{where}.{variant} must be a text")
                if fields := _fields(text):
                    if fields != ["person"]:
                        raise InputError(f"{where}.{variant}: {text!r} must be a wording, or have {{person}}")
                    _split(text, f"{where}.{variant}")
                self._wordings[word, variant] = text

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that decides what is said, as plain values."""
        return {
            "phrases": self._phrases,
            "templates": self.templates,
            "people": self.people,
            "wordings": [[*key, text] for key, text in sorted(self._wordings.items())],
        }

    def ensemble(self, word: str) -> list[str]:
        """Return every way to say a word: each template with each variant, in this order, none twice.

        Raises:
            InputError: if the word is unknown.
        """
        phrases = [self._phrase(word, variant) for variant in self.people]
        said = [
            with_articles(template.replace("{phrase}", _fill(phrase, word, noun)))
            for template in self.templates
            for phrase, noun in zip(phrases, self.people.values(), strict=True)
        ]
        return list(dict.fromkeys(said))

    def sentence(self, words: Sequence[str], variant: str = NEUTRAL) -> str:
        """Return all words in one description: "a tall man of average weight with a wide waist and long legs".

        What phrases say before the person comes first, then what they say after, gathered by its first word
        ("with", "of"), each in the order of the words.

        Args:
            words: in the order of their groups.
            variant: of whom.

        Raises:
            InputError: if a word or the variant is unknown.
        """
        return compose([(self._phrase(word, variant), word) for word in words], self._noun(variant))

    def phrase(self, word: str, variant: str = NEUTRAL) -> str:
        """Return what is said of a word, such as "a {person} with broad shoulders"; the person stays open.

        Raises:
            InputError: if the word or the variant is unknown.
        """
        self._check_variant(variant, "language.prompts")
        return _fill(self._phrase(word, variant), word, "{person}")

    def _check_variant(self, variant: str, where: str) -> None:
        choose(f"{where}: variant", variant, self.people)

    def _noun(self, variant: str) -> str:
        self._check_variant(variant, "language.prompts")
        return self.people[variant]

    def _phrase(self, word: str, variant: str) -> str:
        """Return the phrase of a word, with the variant's wording in it."""
        if word not in self._phrases:
            raise InputError(f"the vocabulary has no word {word!r}{hint(word, self._phrases)}")
        wording = self._wordings.get((word, variant))
        if wording is None:
            return self._phrases[word]
        return wording if "{person}" in wording else self._phrases[word].replace("{word}", wording)


def compose(phrases: Sequence[tuple[str, str]], noun: str) -> str:
    """Return several phrases as one description.

    What phrases say before the person comes first, then what they say after, gathered by its first word ("with",
    "of"), each in the order given.

    Args:
        phrases: of the form "a … {person} …", each with the word that takes the place of its `{word}`, if it has one.
        noun: what the person is called.
    """
    before: list[str] = []
    after: dict[str, list[str]] = {}
    for phrase, word in phrases:
        front, back = _split(phrase, word)
        if front:
            before.append(_fill(front, word, ""))
        if back:
            link, _, rest = _fill(back, word, "").partition(" ")
            after.setdefault(link, []).append(rest)
    person = " ".join([part for part in (", ".join(before), noun) if part])
    return with_articles(" ".join([f"a {person}", *(f"{link} {_listed(of)}" for link, of in after.items())]))


def prompts_of(phrases: Mapping[str, str], node: Any) -> Prompts:
    """Return the prompts of a config node with `templates`, `people` and `wordings`, each of which may be missing.

    Raises:
        InputError: naming the key, if one is unknown.
    """
    known = ("templates", "people", "wordings")
    if not isinstance(node, Mapping):
        raise InputError(f"language.prompts must have {', '.join(known)}; {SEE}")
    for key in node:
        choose("language.prompts: key", key, known)
    for key in ("people", "wordings"):
        if node.get(key) is not None and not isinstance(node[key], Mapping):
            raise InputError(f"language.prompts.{key} must be a mapping; {SEE}")
    return Prompts(phrases, **node)


def phrase_of(text: Any, where: str) -> str:
    """Return the text, if it is a phrase.

    Raises:
        InputError: naming the place, if it is not of the form "a … {person} …" with one `{word}`.
    """
    if not isinstance(text, str) or sorted(_fields(text)) != ["person", "word"]:
        raise InputError(
            f"{where} must be a text with {{word}} and {{person}} in it, once each, not {text!r}"
        )
    _split(text, where)
    return text


def word_embeddings(prompts: Prompts, embed: Embed) -> npt.NDArray[np.float32]:
    """Return the embedding of each word: the L2-normalised mean of its L2-normalised prompt embeddings.

    This is the prompt ensemble of Radford et al., "Learning Transferable Visual Models From Natural Language
    Supervision", ICML 2021, section 3.1.4.

    Args:
        prompts: of W words.
        embed: a text encoder; called once, with all different prompts.

    Returns:
        (W, d), in the order of `prompts.words`, each of length 1.

    Raises:
        InputError: if an embedding is not finite or zero, as weights that are damaged give them.
    """
    ensembles = [prompts.ensemble(word) for word in prompts.words]
    place = {text: 0 for ensemble in ensembles for text in ensemble}
    texts = list(place)
    place = {text: index for index, text in enumerate(texts)}
    # In double precision, so that the mean does not depend on the number of prompts.
    found = np.asarray(embed(texts), np.float64)
    if found.ndim != 2 or len(found) != len(texts):
        raise ValueError(f"embed gave shape {found.shape} for {len(texts)} sentences, not (L, d)")
    units = _unit(found, texts)
    means = np.stack([units[[place[text] for text in ensemble]].mean(0) for ensemble in ensembles])
    return _unit(means, prompts.words).astype(np.float32)


def _unit(vectors: npt.NDArray[np.float64], names: Sequence[str]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    faulty = ~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0))
    if faulty.any():
        raise InputError(
            f"the text embedding of {names[int(faulty.argmax())]!r} is zero or not finite; "
            "check the teacher's weights"
        )
    units: npt.NDArray[np.float64] = vectors / lengths
    return units


def _texts(values: Any) -> list[str]:
    """Return a list of texts of the config; anything else as an empty one."""
    if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
        return []
    found = list(values)
    return found if all(isinstance(value, str) for value in found) else []


def _fields(text: str) -> list[str]:
    """Return what stands in braces; a brace without its partner is the field `?`, which nobody asks for."""
    rest = _BRACES.sub("", text)
    return [*_BRACES.findall(text), *("?" for sign in rest if sign in "{}")]


def _fill(phrase: str, word: str, noun: str) -> str:
    return phrase.replace("{word}", word).replace("{person}", noun)


def _split(phrase: str, where: str) -> tuple[str, str]:
    """Return what a phrase says between its article and the person, and what after the person."""
    front, _, back = phrase.partition("{person}")
    article, _, front = front.partition(" ")
    if article not in ("a", "an"):
        raise InputError(f'{where}: the phrase {phrase!r} must begin with "a "')
    return front.strip(), back.strip()


def _listed(parts: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    return " and ".join([part for part in (", ".join(parts[:-1]), parts[-1]) if part])
