"""Check what a user gave, and say what is wrong with it in one way.

Settings are dataclasses whose annotations say what may be in them; `check` in their `__post_init__` holds them to
that, whether they come from a command line or from Python.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from clip3dreid.errors import InputError


@dataclass(frozen=True)
class Range:
    """Bounds of a number, which may be reached; stands in an `Annotated`."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    """Whether the number must be above `least`."""

    def __contains__(self, value: float) -> bool:
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        if self.above:
            return f" above {self.least:g}" + ("" if self.most == math.inf else f", at most {self.most:g}")
        if self.most == math.inf:
            return "" if self.least == -math.inf else f", {self.least:g} or more"
        return f" from {self.least:g} to {self.most:.10g}"


Count = Annotated[int, Range(0)]
"""A whole number, 0 or more."""
Positive = Annotated[int, Range(1)]
"""A whole number, 1 or more."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""A whole number that every generator takes: NumPy's older ones have 32 bits."""
Fraction = Annotated[float, Range(0, 1)]
"""A number from 0 to 1."""
Seconds = Annotated[float, Range(0)]
"""A time, 0 or more."""


def check(settings: Any, prefix: str = "") -> None:
    """Check the values of a dataclass against its annotations.

    Understood are `bool`, `int`, `float`, `str`, `Path`, `Literal`, enums, `Range`, `tuple[X, ...]` and unions of
    them; anything else is left to whoever uses it.

    Args:
        settings: a dataclass.
        prefix: of the fields' names in messages, such as `bodies.`.

    Raises:
        InputError: naming the first field whose value is none of what its annotation allows.
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        _check(f"{prefix}{field.name}", getattr(settings, field.name), hints[field.name])


def allows(annotation: Any, value: Any) -> bool:
    """Return whether an annotation that `check` understands, or a plain class such as `list`, allows a value."""
    if isinstance(annotation, type) and not isinstance(value, annotation):
        return False
    try:
        _check("", value, annotation)
    except InputError:
        return False
    return True


def choose(key: str, value: Any, choices: Iterable[Any]) -> None:
    """Check that a value is one of those that there are.

    Args:
        key: what the value was given as.
        value: as given.
        choices: all that would do.

    Raises:
        InputError: `key=value is unknown; choose A, B or C; did you mean A?`
    """
    known = list(choices)
    if not any(value is one or (type(value) is type(one) and value == one) for one in known):
        raise InputError(
            f"{key}={_shown(value)} is unknown; choose {alternatives(known)}{hint(value, known)}"
        )


def check_number(key: str, value: Any, bounds: Range = Range(), *, whole: bool = False) -> None:
    """Check that a value is a finite number within bounds.

    Raises:
        InputError: `key=value must be a whole number, 1 or more`.
    """
    kinds = int if whole else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value not in bounds:
        raise InputError(f"{key}={_shown(value)} must be a {'whole ' if whole else ''}number{bounds}")


def check_weights(key: str, weights: Mapping[str, float], names: Iterable[str]) -> None:
    """Check how often each of some kinds is drawn, relative to the others.

    Args:
        key: what the weights were given as.
        weights: kind -> weight.
        names: of the kinds that there are.

    Raises:
        InputError: if a kind is unknown, a weight is no number from 0, or none is positive.
    """
    for name, weight in weights.items():
        choose(key, name, names)
        check_number(f"{key}.{name}", weight, Range(0))
    if not sum(weights.values()) > 0:
        raise InputError(f"{key}: no weight is positive; give one of {alternatives(names)} a weight above 0")


def alternatives(choices: Iterable[Any]) -> str:
    """Join choices for a sentence: `a`, `a or b`, `a, b or c`."""
    *rest, last = map(_shown, choices)
    return f"{', '.join(rest)} or {last}" if rest else last


def weighed(weights: Mapping[str, float]) -> str:
    """Join names with their weights for a sentence: `a + 0.5 b`; a weight of 1 is not said."""
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items())


def nearest(word: Any, words: Iterable[Any]) -> str | None:
    """Return the word that was probably meant, None where nothing is near."""
    shown = list(map(_shown, words))
    close = difflib.get_close_matches(_shown(word), shown, n=1, cutoff=0.6)
    if not close:
        # TRAIN is far from train letter by letter.
        folded = {one.casefold(): one for one in shown}
        close = [
            folded[one] for one in difflib.get_close_matches(_shown(word).casefold(), folded, n=1, cutoff=0.6)
        ]
    return close[0] if close else None


def hint(word: Any, words: Iterable[Any]) -> str:
    """Return `; did you mean NAME?`, empty where nothing is near."""
    near = nearest(word, words)
    return "" if near is None else f"; did you mean {near}?"


def some(names: Sequence[Any], most: int = 5, between: str = ", ", total: int | None = None) -> str:
    """Join the first few of many names: `a, b, c and 7 more`.

    Names may come out of a damaged file: each is cut, and what cannot be printed is escaped.

    Args:
        names: all of them, or the first ones.
        most: how many are shown.
        between: what stands between two.
        total: how many there are where `names` are only the first ones.
    """
    shown = names[:most]
    rest = (len(names) if total is None else total) - len(shown)
    line = between.join(map(_legible, shown))
    return f"{line} and {rest:,} more" if rest > 0 else line


_LONGEST = 160
"""Letters of a name that are shown where many names are; a path is cut in its middle."""


def _legible(name: Any) -> str:
    text = str(name)
    if not text.isprintable():
        text = ascii(text)[1:-1]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"


def _check(key: str, value: Any, hint_: Any) -> None:
    choices = _choices(hint_)
    if choices is not None:
        choose(key, value, choices)
        return
    origin, arguments = typing.get_origin(hint_), typing.get_args(hint_)
    if origin is Annotated:
        bounds = next((one for one in arguments[1:] if isinstance(one, Range)), Range())
        if arguments[0] in (int, float):
            check_number(key, value, bounds, whole=arguments[0] is int)
        else:
            _check(key, value, arguments[0])
    elif origin in (Union, types.UnionType):
        _check_union(key, value, arguments)
    elif origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        if not isinstance(value, tuple | list):
            raise InputError(f"{key}={_shown(value)} must be a list")
        for number, one in enumerate(value):
            _check(f"{key}[{number}]", one, arguments[0])
    elif hint_ in (int, float):
        check_number(key, value, whole=hint_ is int)
    elif hint_ is str and not isinstance(value, str):
        raise InputError(f"{key}={_shown(value)} must be a text")
    elif hint_ is Path and not isinstance(value, Path):
        raise InputError(f"{key}={_shown(value)} must be a path")


def _check_union(key: str, value: Any, members: Sequence[Any]) -> None:
    """Take a value that any member takes; otherwise say what the first one that is not None would have wanted."""
    if value is None and type(None) in members:
        return
    wrong: InputError | None = None
    for member in members:
        if member is not type(None):
            try:
                _check(key, value, member)
            except InputError as error:
                wrong = wrong or error
            else:
                return
    if wrong is not None:
        if type(None) in members:
            raise InputError(f"{wrong}, or null")
        raise wrong


def _choices(hint_: Any) -> tuple[Any, ...] | None:
    """Return the values that an annotation names one by one, None where it names a kind."""
    if hint_ is bool:
        return (True, False)
    if typing.get_origin(hint_) is Literal:
        return typing.get_args(hint_)
    if isinstance(hint_, type) and issubclass(hint_, enum.Enum):
        return tuple(hint_)
    return None


def _shown(value: Any) -> str:
    """Return a value as it is written on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value.value) if isinstance(value, enum.Enum) else str(value)
