"""The vocabulary of body shape, and the words that fit measured people."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose, hint
from clip3dreid.language.prompts import PHRASE, SEE, phrase_of, prompts_of

log = logging.getLogger(__name__)

Column = npt.NDArray[np.floating[Any]]


class Vocabulary:
    """Groups of words that exclude each other, and the measures that decide between them.

    Attributes:
        groups: name -> the words of the group; in ascending order of the measure where the group is ordered.
        measures: name -> the measures or ratios of two that the group looks at.
        ordered: names of the groups that are ordered, so that a rank correlation makes sense.
        prompts: what is said of each word; its words are in the order of `flat`.
    """

    def __init__(self, groups: Mapping[str, Any], prompts: Mapping[str, Any] | None = None) -> None:
        """Check the groups, as `conf/language/body_words.yaml` writes them.

        Args:
            groups: name -> either `measure` (a name or a ratio such as `leg_length / stature`), `words` and `cuts`
                (ascending percentiles, one fewer than words); or `prototypes`: word -> measure -> percentile, of
                which the nearest fits. Either may have a `phrase` with `{word}` and `{person}`, or one for each
                word and a `default`; without it, "a {person} with {word}".
            prompts: `templates`, `people` and `wordings`, as `Prompts` takes them.

        Raises:
            InputError: naming the group, if it is neither or does not fit together, or what is wrong in the prompts.
        """
        if not groups:
            raise InputError(f"language.groups is empty; {SEE}")
        self.groups: dict[str, list[str]] = {}
        self.measures: dict[str, list[str]] = {}
        self._cuts: dict[str, Column] = {}
        self._places: dict[str, Column] = {}
        taken: dict[str, str] = {}
        phrases: dict[str, str] = {}
        for name, group in groups.items():
            where = f"language.groups.{name}"
            keys = set(group) - {"phrase"} if isinstance(group, Mapping) else set()
            if keys == {"prototypes"}:
                self._add_prototypes(name, group["prototypes"], where)
            elif keys == {"measure", "words", "cuts"}:
                self._add_ordered(name, group, where)
            else:
                raise InputError(
                    f"{where} must have measure, words and cuts, or prototypes, beside its phrase and nothing else; "
                    f"{SEE}"
                )
            for word in self.groups[name]:
                if word in taken:
                    raise InputError(f"{where}: {word!r} is in group {taken[word]} too; rename one")
                taken[word] = name
            phrases |= _phrases(group.get("phrase", PHRASE), self.groups[name], f"{where}.phrase")
        self.ordered = list(self._cuts)
        self.prompts = prompts_of(phrases, {} if prompts is None else prompts)

    @property
    def flat(self) -> list[tuple[str, str]]:
        """Return all W words as (group, word), in the order in which scores, embeddings and tokens count them."""
        return [(group, word) for group, words in self.groups.items() for word in words]

    @property
    def digest(self) -> str:
        """Return 16 hex digits that change with any group, word, phrase or prompt, and with the order of words."""
        content = json.dumps([list(self.groups.items()), self.prompts.facts], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _add_ordered(self, name: str, group: Mapping[str, Any], where: str) -> None:
        words, cuts = _list(group["words"]), _list(group["cuts"])
        if (
            len(words) < 2
            or len(set(words)) != len(words)
            or not all(isinstance(word, str) for word in words)
        ):
            raise InputError(f"{where}.words must be a list of two or more different words")
        numbers = [cut for cut in cuts if isinstance(cut, int | float) and 0 < cut < 100]
        if len(numbers) != len(cuts) or len(cuts) != len(words) - 1 or sorted(set(cuts)) != cuts:
            raise InputError(f"{where}.cuts must be {len(words) - 1} ascending percentiles between 0 and 100")
        self.groups[name], self._cuts[name] = words, np.array(cuts, float)
        self.measures[name] = [_expression(group["measure"], where)]

    def _add_prototypes(self, name: str, prototypes: Any, where: str) -> None:
        if not isinstance(prototypes, Mapping) or len(prototypes) < 2:
            raise InputError(f"{where}.prototypes must give two or more words their percentiles; {SEE}")
        spots = list(prototypes.values())
        if not all(isinstance(spot, Mapping) and spot and set(spot) == set(spots[0]) for spot in spots):
            raise InputError(f"{where}: every prototype must have the same measures")
        if not all(
            isinstance(place, int | float) and 0 <= place <= 100 for spot in spots for place in spot.values()
        ):
            raise InputError(f"{where}: prototypes are places from 0 to 100")
        self.groups[name] = [str(word) for word in prototypes]
        self.measures[name] = [_expression(measure, where) for measure in spots[0]]
        self._places[name] = np.array([[spot[key] for key in spots[0]] for spot in spots], float)

    def check(self, known: Collection[str]) -> None:
        """Raise InputError if a group looks at a measure that is not among the `known` names."""
        for name, expressions in self.measures.items():
            for part in (part for expression in expressions for part in expression.split(" / ")):
                choose(f"language.groups.{name}: measure", part, sorted(known))

    def columns(self, measures: Mapping[str, Column]) -> dict[str, Column]:
        """Return the quantities that the groups look at, such as `leg_length / stature`.

        Args:
            measures: name -> (N,).

        Returns:
            expression -> (N,); those whose measure is missing are left out.

        Raises:
            InputError: if a measure is not finite.
        """
        found: dict[str, Column] = {}
        for expression in (expression for group in self.measures.values() for expression in group):
            value, _, over = expression.partition(" / ")
            if value in measures and (not over or over in measures):
                with np.errstate(divide="ignore", invalid="ignore"):
                    column = measures[value] / measures[over] if over else measures[value]
                if not np.isfinite(column).all():
                    person = int((~np.isfinite(column)).argmax())
                    raise InputError(f"measure {expression} of person {person} is not finite")
                found[expression] = column
        return found

    def words(
        self, measures: Mapping[str, Column], population: Mapping[str, Column]
    ) -> tuple[dict[str, list[str]], dict[str, Column]]:
        """Return which words fit.

        Args:
            measures: name -> (N,) of the people to describe.
            population: name -> (M,), M > 0, of the people among whom they are tall or short.

        Returns:
            group -> N words, and expression -> (N,) percentiles 0..100. Groups whose measure is missing are left
            out, with a word in the log.

        Raises:
            InputError: if a measure is not finite or the population is empty.
        """
        reference = self.columns(population)
        if any(not len(column) for column in reference.values()):
            raise InputError("the population is empty: nobody to be tall or short among")
        quantities = self.columns(measures)
        percentiles = {
            name: _percentiles(quantities[name], reference[name]) for name in quantities if name in reference
        }
        chosen_words = {}
        for name, expressions in self.measures.items():
            if missing := [expression for expression in expressions if expression not in percentiles]:
                log.info("words of %s are left out: this body does not tell %s", name, ", ".join(missing))
                continue
            places = np.stack([percentiles[expression] for expression in expressions], -1)
            if name in self._cuts:
                chosen = np.searchsorted(self._cuts[name], places[:, 0], side="right")
            else:
                chosen = ((places[:, None] - self._places[name]) ** 2).sum(-1).argmin(1)
            chosen_words[name] = [self.groups[name][index] for index in chosen]
        return chosen_words, percentiles


def _list(value: Any) -> list[Any]:
    """Return a list of the config as a list; anything else, text above all, as an empty one."""
    return [] if isinstance(value, str | Mapping) or not hasattr(value, "__iter__") else list(value)


def _phrases(value: Any, words: list[str], where: str) -> dict[str, str]:
    """Return the phrase of each word, from one for all of them or a mapping with a default for the rest."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(words, phrase_of(value, where))
    for key in value:
        if key not in (*words, "default"):
            raise InputError(f"{where}.{key} is not a word of the group{hint(key, words)}")
    found = {word: value.get(word, value.get("default")) for word in words}
    for word, phrase in found.items():
        if phrase is None:
            raise InputError(f"{where} has neither {word!r} nor a default; give one")
    return {word: phrase_of(phrase, f"{where}.{word}") for word, phrase in found.items()}


def _expression(value: Any, where: str) -> str:
    """Return `a` or `a / b`, spaces in order."""
    parts = [part.strip() for part in str(value).split("/")]
    if not isinstance(value, str) or len(parts) > 2 or not all(part.isidentifier() for part in parts):
        raise InputError(
            f"{where}: measure {value} must be a name or a ratio of two, such as leg_length / stature"
        )
    return " / ".join(parts)


def _percentiles(values: Column, population: Column) -> Column:
    """Return (N,) 0..100: the share of the population below, and half of that which is equal."""
    ordered = np.sort(population)
    below = np.searchsorted(ordered, values, side="left")
    return 50.0 * (below + np.searchsorted(ordered, values, side="right")) / len(ordered)
