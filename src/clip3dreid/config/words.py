"""Read the words of a command line: options, and overrides with their values as they were typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse as parse_interpolation

_WORD = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=@]+)(@(?P<package>[^=]*))?(=(?P<value>.*))?", re.DOTALL)
_FUNCTION = re.compile(
    r"(choice|range|interval|glob|shuffle|sort|tag|extend_list|int|float|str|bool|json_str)\(.*\)", re.DOTALL
)
_CLOSING = {"[": "]", "{": "}", "(": ")"}


class Word(NamedTuple):
    """One override of a command line."""

    sign: str
    """`+`, `++`, `~` or nothing."""
    key: str
    """A key, or a config group."""
    package: str | None
    """Behind an `@`: where an option of a group is put."""
    value: str | None
    """As it was typed; None where there is no `=`."""

    def __str__(self) -> str:
        at = "" if self.package is None else f"@{self.package}"
        return f"{self.sign}{self.key}{at}" + ("" if self.value is None else f"={self.value}")


def read_word(text: str) -> Word | None:
    """Return an override in its parts, None for what is none."""
    match = _WORD.fullmatch(text)
    if match is None or (match["value"] is None and match["sign"] != "~"):
        return None
    return Word(match["sign"] or "", match["key"].strip(), match["package"], match["value"])


def parsed(value: str) -> object:
    """Return what Hydra makes of a value.

    Raises:
        ValueError: if it can make nothing of it, or several values.
    """
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except HydraException as error:
        raise ValueError(str(error)) from error
    if override.is_sweep_override():
        raise ValueError("several values")
    return override.value()


def is_function(value: str) -> bool:
    """Return whether a value is a call in Hydra's grammar, such as `range(1,4)`."""
    return _FUNCTION.fullmatch(value) is not None


def is_quoted(value: str) -> bool:
    """Return whether a value is quoted for Hydra already."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return False
    try:
        # Its value() drops the quotes.
        return isinstance(OverridesParser.create().parse_override(f"key={value}")._value, QuotedString)
    except HydraException:
        return False


def quoted(text: str) -> str:
    """Return a text as Hydra and OmegaConf read it back, whatever it holds."""
    try:
        parse_interpolation(text)
    except GrammarParseError:
        # No reference to another key, so that `${` stands for itself.
        text = text.replace("${", "\\${")
    return str(QuotedString(text, Quote.single).with_quotes())


def split(text: str) -> list[str]:
    """Return the parts of a text between commas that stand in no brackets and no quotes."""
    parts, closing, quote = [""], "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and not parts[-1].strip():
            quote = letter
        elif closing and letter == closing[-1]:
            closing = closing[:-1]
        elif letter in _CLOSING:
            closing += _CLOSING[letter]
        elif letter == "," and not closing:
            parts.append("")
            continue
        parts[-1] += letter
    return parts


def kept(value: str, *, text: bool, sweep: bool) -> str:
    """Return a value so that Hydra reads what was typed.

    `null` stays null, a list a list, a quoted value what it is. Anything else that Hydra would read as something else
    is quoted: `5_1` (51 to it), a comma, `=`, a quotation mark, an accent.

    Args:
        value: as typed.
        text: whether nothing but a text will do; otherwise a number stays one where Hydra would write it so.
        sweep: whether several values, between commas, are wanted.
    """
    if value in ("", "null") or is_quoted(value) or is_function(value) or _is_in(value, "{}"):
        return value
    if _is_in(value, "[]"):
        inner = value[1:-1]
        parts = [kept(part.strip(), text=text, sweep=False) for part in split(inner)] if inner.strip() else []
        return f"[{','.join(parts)}]"
    parts = split(value)
    if sweep and len(parts) > 1:
        return ",".join(kept(part.strip(), text=text, sweep=False) for part in parts)
    try:
        found = parsed(value)
    except ValueError:
        return quoted(value)
    if isinstance(found, str) or not text:
        return value if str(found) == value else quoted(value)
    return quoted(value)


def _is_in(value: str, brackets: str) -> bool:
    return value.startswith(brackets[0]) and value.endswith(brackets[1])


FLAGS = ("--multirun", "-m", "--run", "-r", "--resolve", "--hydra-help", "--version", "--help", "-h")
VALUED = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun", "--info", "-i",
)  # fmt: skip
COMPLETION = ("--shell-completion", "-sc")


class CommandLine(NamedTuple):
    """A command line in its parts."""

    overrides: list[str]
    options: list[tuple[str, str | None]]
    """Options of Hydra's, with their values."""
    strange: list[tuple[str, str | None]]
    """Words that begin like options and are none, with what stands behind them."""

    @property
    def multirun(self) -> bool:
        """Return whether a run for each value is wanted."""
        return any(name in ("-m", "--multirun") for name, _ in self.options)

    def given(self, *names: str) -> list[str]:
        """Return the values of an option by its names."""
        return [value or "" for name, value in self.options if name in names]

    def words(self) -> list[str]:
        """Return the options as words again."""
        return [word for option in self.options for word in option if word is not None]


def read_line(arguments: Sequence[str]) -> CommandLine:
    """Return a command line in its parts; whatever begins with a dash is taken for an option."""
    line = CommandLine([], [], [])
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            line.overrides.append(word)
        elif name in FLAGS and not equals:
            line.options.append((name, None))
        elif name in VALUED:
            follows = not equals and rest and not rest[0].startswith("-") and _can_follow(name, rest[0])
            line.options.append((name, value if equals else rest.pop(0) if follows else None))
        else:
            follows = not equals and rest and "=" not in rest[0] and rest[0][:1] not in ("-", "+", "~")
            behind = rest.pop(0) if follows else None
            line.strange.append((name, value if equals else behind))
    return line


def _can_follow(option: str, word: str) -> bool:
    """Return whether a word is an option's value: `--info` alone means all."""
    return option not in ("--info", "-i") or "=" not in word
