"""Sentences about people: what a small teacher reads beside their pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose, hint, some
from clip3dreid.language.prompts import compose, with_articles
from clip3dreid.language.vocabulary import Vocabulary

_SEE = "see conf/language/body_sentences.yaml"
_FIELD = re.compile(r"\{(\w*)\}")


class Sentences:
    """A small grammar: words of the vocabulary in, one of many sentences that say them out.

    Which words, in which order, with which adjectives, forms and frame is drawn by chance, so that a model that is to
    tell sentences apart has to read them. Some combinations are never drawn for training: `unseen` draws only those.
    All their tokens occur in training, for a model that starts from nothing cannot know a word it never met.

    Args:
        vocabulary: whose words they say; its own phrases are among the sayings.
        forms: name -> phrases with `{person}`, `{adjective}` and, perhaps, `{noun}`; the last form of each, with the
            last adjective of a word, is kept from training.
        groups: group -> its `form`, `noun` where the form has one, and `words`: word -> adjectives, two or more.
        nouns: word -> what people of that word may be called, besides a person.
        frames: sentences with `{phrase}`.
        unseen: frames that are kept from training.
        lengths: number of words in a sentence -> how often; longer ones than there are groups say all.

    Raises:
        InputError: naming the node, if a group or word is unknown or missing, or a text lacks its place.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        forms: Mapping[str, Sequence[str]],
        groups: Mapping[str, Mapping[str, Any]],
        nouns: Mapping[str, Sequence[str]],
        frames: Sequence[str],
        unseen: Sequence[str],
        lengths: Mapping[int, float],
    ) -> None:
        self.vocabulary = vocabulary
        self._seen: dict[str, list[str]] = {}
        self._unseen: dict[str, list[str]] = {}
        for group in vocabulary.groups:
            if group not in groups:
                raise InputError(f"sentences.groups lacks {group}; add it, {_SEE}")
        for group, node in groups.items():
            self._add(group, node, forms)
        for word in nouns:
            _known(word, self._seen, "sentences.nouns")
        for key, texts in (("frames", frames), ("unseen", unseen)):
            if not texts or any(_FIELD.findall(text) != ["phrase"] for text in texts):
                raise InputError(f"sentences.{key} must be sentences with {{phrase}} in each, once; {_SEE}")
        if not lengths or min(lengths) < 1 or min(lengths.values()) < 0 or sum(lengths.values()) <= 0:
            raise InputError(f"sentences.lengths must give numbers of words from 1 a weight; {_SEE}")
        self._nouns = {word: list(names) for word, names in nouns.items()}
        self._frames, self._unseen_frames = list(frames), list(unseen)
        self._lengths = np.array(list(lengths))
        weights = np.array(list(lengths.values()), float)
        self._weights = weights / weights.sum()

    def _add(self, group: str, node: Mapping[str, Any], forms: Mapping[str, Sequence[str]]) -> None:
        where = f"sentences.groups.{group}"
        if group not in self.vocabulary.groups:
            raise InputError(
                f"{where}: the vocabulary has no such group{hint(group, self.vocabulary.groups)}; correct it"
            )
        if extra := set(node) - {"form", "noun", "words"}:
            raise InputError(f"{where}: {some(sorted(extra))} is unknown; give form, noun and words")
        choose(f"{where}.form", node.get("form"), forms)
        words = node.get("words", {})
        if set(words) != set(self.vocabulary.groups[group]):
            raise InputError(
                f"{where}.words must be exactly {', '.join(self.vocabulary.groups[group])}; {_SEE}"
            )
        for word, adjectives in words.items():
            if len(adjectives) < 2:
                raise InputError(f"{where}.words.{word} must have two adjectives or more; {_SEE}")
            said = [
                form.replace("{adjective}", adjective).replace("{noun}", str(node.get("noun", "")))
                for adjective in adjectives
                for form in forms[node["form"]]
            ]
            for phrase in said:
                if _FIELD.findall(phrase) != ["person"]:
                    raise InputError(f"{where}: {phrase!r} must have {{person}} in it and no other; {_SEE}")
            own = [self.vocabulary.prompts.phrase(word, people) for people in self.vocabulary.prompts.people]
            self._seen[word] = list(dict.fromkeys([*own, *said[:-1]]))
            self._unseen[word] = said[-1:]

    def draw(self, words: Mapping[str, str], rng: np.random.Generator) -> str:
        """Return a sentence for training about somebody.

        Args:
            words: group -> the word that fits.
            rng: where choices come from.
        """
        count = int(rng.choice(self._lengths, p=self._weights))
        chosen = rng.permutation(list(words.values()))[:count].tolist()
        phrases = [_one(self._seen[word], rng) for word in chosen]
        return self._say(phrases, self._noun(words, rng), _one(self._frames, rng))

    def ensemble(self, word: str) -> list[str]:
        """Return every way of training to say a word alone of a person, in the frames of training."""
        return self._all(self._seen[_known(word, self._seen, "sentences")], self._frames)

    def unseen(self, word: str) -> list[str]:
        """Return ways to say a word that training never met: neither the phrase nor the frame."""
        return self._all(self._unseen[_known(word, self._unseen, "sentences")], self._unseen_frames)

    def _all(self, phrases: Sequence[str], frames: Sequence[str]) -> list[str]:
        return [self._say([phrase], "person", frame) for phrase in phrases for frame in frames]

    def _noun(self, words: Mapping[str, str], rng: np.random.Generator) -> str:
        fitting = [noun for word in words.values() for noun in self._nouns.get(word, ())]
        # Half of the sentences do not give away more than their words say.
        return _one(fitting, rng) if fitting and rng.random() < 0.5 else "person"

    @staticmethod
    def _say(phrases: Sequence[str], noun: str, frame: str) -> str:
        return with_articles(frame.replace("{phrase}", compose([(phrase, "") for phrase in phrases], noun)))


def _one(values: Sequence[str], rng: np.random.Generator) -> str:
    return values[int(rng.integers(len(values)))]


def _known(word: str, words: Mapping[str, Any], where: str) -> str:
    if word not in words:
        raise InputError(f"{where}: the vocabulary has no word {word!r}{hint(word, words)}; correct it")
    return word
