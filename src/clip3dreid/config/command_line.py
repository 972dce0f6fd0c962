"""Make a command line ready for Hydra: every word is understood or refused, before anything heavy is loaded.

Hydra by itself takes any key that has a plus before it, reads `5_1` as 51 and a comma as several values, and answers
in its own words. Here keys are held against those that the command has, options against those that there are, and
texts are quoted, so that nobody has to quote twice. A line that was made ready before stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from clip3dreid.config.folder import is_group, options
from clip3dreid.config.groups import ADDED, groups_of
from clip3dreid.config.keys import NAMED, SHORT, Keys, Place, kind, meant
from clip3dreid.config.launchers import BASIC, GROUP, check_launcher
from clip3dreid.config.renamed import renamed_override
from clip3dreid.config.words import (
    COMPLETION,
    FLAGS,
    VALUED,
    CommandLine,
    Word,
    is_function,
    is_quoted,
    kept,
    parsed,
    read_line,
    read_word,
    split,
)
from clip3dreid.errors import InputError
from clip3dreid.io.checks import alternatives, choose, hint

_CFG = ("job", "hydra", "all")
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_LOOSE = ("trainer", "callbacks", "logger")
"""Nodes of Lightning's, where a word may stand for a number: `trainer.devices=auto`."""


_PATHS = (
    "root",
    "path",
    "pretrained",
    "checkpoint",
    "out",
    "resume",
    "init_from",
    "gallery",
    "pictures",
    "source",
)
"""Last parts of keys that hold paths in every command that has them."""
_COUNTS = ("seed", "epochs")
_NOTHING = ("", "null", "''", '""')


def ready(command: str, arguments: Sequence[str], *, thorough: bool = False) -> list[str]:
    """Return a command line as Hydra is to have it.

    To hold keys against those that there are takes a composition of its own, a quarter of a second. The commonest
    lines are spared it: Hydra reads their values as they are typed, and refuses their keys where these are wrong.

    Args:
        command: its name, which is that of its root in `conf`.
        arguments: without the program's name and the command's.
        thorough: spare no line; for what Hydra has refused, to say it better.

    Raises:
        InputError: for the first word that cannot be meant.
    """
    line = read_line(arguments)
    _check_options(command, line)
    if line.given("--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun"):
        return list(arguments)  # another root, whose keys are not ours to know
    folders = _folders(line)
    words = [_word(command, text, folders) for text in line.overrides]
    sweep = line.multirun
    choices = [word for word in words if is_group(word.key, folders)]
    values = [word for word in words if word not in choices and word.key.partition(".")[0] != "hydra"]
    for word in choices:
        _check_choice(command, word, folders, sweep)
    alone = all(word.package is None for word in choices)
    if alone and (not values or (not thorough and not sweep and all(map(_is_plain, values)))):
        return [*map(str, words), *line.words()]
    targets = {
        word.key.removesuffix("._target_"): word.value or ""
        for word in values
        if word.key.endswith("._target_")
    }
    search = [f"file://{folder}" for folder in folders]
    _check_packages(command, choices, search, sweep)
    chosen = [str(_first(word) if sweep else word) for word in choices]
    keys = Keys(command, chosen, search, targets)
    replaced: dict[int, Word] = {}
    for word in values:
        place, exact = _placed(keys, word)
        replaced[id(word)] = _value(keys, exact, place, values, sweep)
    return [*(str(replaced.get(id(word), word)) for word in words), *line.words()]


def _is_plain(word: Word) -> bool:
    """Return whether Hydra can be trusted with a word: a path or a count that it reads as it is typed."""
    value = word.value
    if word.sign or value is None:
        return False
    if word.key in _COUNTS:
        return value.isascii() and value.isdecimal() and not value.startswith("0")
    if word.key.rpartition(".")[2] not in _PATHS:
        return False
    try:
        return is_quoted(value) or (value not in _NOTHING and parsed(value) == value)
    except ValueError:
        return False


def _check_options(command: str, line: CommandLine) -> None:
    """Refuse options that there are not, with the key or group that was perhaps meant."""
    for name, value in line.strange:
        word = name.lstrip("-").replace("-", "_")
        shown = "VALUE" if value is None else value
        if name in COMPLETION:
            raise InputError(
                f"{name} is not used here: clip3dreid --completion bash|zsh|fish prints what shells need"
            )
        if word in ADDED.get(command, ()):
            raise InputError(f"{name} is no option; give {word} as +{word}={shown}")
        if (
            word in groups_of(command)
            or word in SHORT
            or (name.startswith("--") and word in Keys(command, []).cfg)
        ):
            raise InputError(f"{name} is no option; keys are given as {word}={shown}")
        known = [one for one in (*FLAGS, *VALUED) if one.startswith("--")]
        raise InputError(f"{name} is no option{hint(name, known)}; keys are given as key=value")
    for name, value in line.options:
        if name in VALUED and value is None and name not in ("--info", "-i"):
            raise InputError(f"{name} needs a value behind it")
        if name in ("--cfg", "-c"):
            choose(name, value, _CFG)
        if name in ("--info", "-i") and value is not None:
            choose(name, value, _INFO)
        if name in ("--config-dir", "-cd") and not Path(value or "").is_dir():
            raise InputError(
                f"{name}={value} is no folder; give one that holds YAML files in folders like data/"
            )


def _folders(line: CommandLine) -> tuple[Path, ...]:
    """Return the user's own folders of options."""
    found = [Path(folder).absolute() for folder in line.given("--config-dir", "-cd")]
    for text in line.overrides:
        key, _, value = text.partition("=")
        if key == "hydra.searchpath":
            places = split(value.removeprefix("[").removesuffix("]"))
            found += [
                Path(place.strip(" '\"").removeprefix("file://")) for place in places if "pkg://" not in place
            ]
    return tuple(found)


def _word(command: str, text: str, folders: tuple[Path, ...]) -> Word:
    """Return a word in its parts.

    Raises:
        InputError: if it is no override, or has a name of an earlier version.
    """
    word = read_word(text)
    if word is None:
        groups = [*(f"+{name}" for name in ADDED.get(command, ())), *groups_of(command)]
        holding = [group for group in groups if text in options(group.lstrip("+").partition("@")[0], folders)]
        near = [f"{group}={text}" for group in holding]
        shown = text or "an empty word"
        raise InputError(f"{shown} is no key=value{meant(near[:2])}")
    now = renamed_override(text)
    if now != text and not is_group(word.key, folders):
        raise InputError(f"{text.partition('=')[0]} has another name now; give {now}")
    if now != text:
        raise InputError(f"{text} has another name now; give {now}")
    return word


def _check_choice(command: str, word: Word, folders: tuple[Path, ...], sweep: bool) -> None:
    """Refuse an option that there is not, a group that the command does not have, and a sign that does not fit."""
    groups, added = groups_of(command), ADDED.get(command, ())
    own = is_group(word.key) or not folders
    if word.package is None and own:
        if word.sign == "+" and word.key in groups:
            raise InputError(f"{word} is chosen without a plus: {str(word)[1:]}")
        if word.sign in ("", "++") and word.key in added:
            raise InputError(f"{word} is added with a plus: +{str(word).lstrip('+')}")
        if word.key not in groups and word.key not in added:
            has = [*groups, *(f"+{name}" for name in added)]
            raise InputError(f"{command} has no {word.key} to choose{_which(has)}")
    if word.sign == "~" and isinstance(groups.get(word.key), list):
        raise InputError(f"{word}: give {word.key}=[] for none")
    if word.sign == "~" or word.value is None or is_function(word.value):
        return
    names = [*options(word.key, folders), *([BASIC] if word.key == GROUP else [])]
    value = word.value
    if value == "null":
        # Hydra takes a null of its own files alone.
        instead = (
            f"[] for none: {word.key}=[]" if isinstance(groups.get(word.key), list) else alternatives(names)
        )
        raise InputError(f"{word} names nothing; choose {instead}")
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    parts = [part.strip() for part in split(inner) if part.strip()]
    if inner is value and len(parts) > 1 and not sweep:
        raise InputError(
            f"{word} names several: add -m for a run with each, or give a list, {word.key}=[{value}]"
        )
    if not value.strip():
        raise InputError(f"{word} names nothing; choose {alternatives(names)}")
    for part in parts:
        if part != "null" and "$" not in part and not is_quoted(part):
            choose(f"{word.sign}{word.key}", part, names)
            if word.key == GROUP:
                check_launcher(part)
            _check_file(word.key, part, folders)


def _check_file(group: str, option: str, folders: tuple[Path, ...]) -> None:
    """Refuse a file of the user's own that holds no settings; one that is no YAML says so itself."""
    for folder in folders:
        path = folder / group / f"{option}.yaml"
        if path.is_file():
            # A file, not its text: the parser's own words name it.
            with path.open(encoding="utf-8") as stream:
                content = yaml.safe_load(stream)
            if not isinstance(content, dict | None):
                raise InputError(f"{path} holds no key: value pairs")


def _check_packages(command: str, choices: Sequence[Word], search: Sequence[str], sweep: bool) -> None:
    """Refuse an option that is to be put where nothing can stand."""
    placed = [word for word in choices if word.package and word.sign == "+"]
    unsure = [
        word for word in placed if not (word.package or "").startswith(tuple(f"{name}." for name in NAMED))
    ]
    if not unsure:
        return
    keys = Keys(
        command, [str(_first(word) if sweep else word) for word in choices if word not in placed], search
    )
    for word in unsure:
        place = keys.find(word.package or "")
        if not place.known:
            raise InputError(f"{word}: {word.package} is no place of {command}{meant(place.near)}")


def _which(groups: Sequence[str]) -> str:
    return f"; it has {alternatives(groups)}" if groups else ""


def _first(word: Word) -> Word:
    """Return a choice of a sweep as that of its first run."""
    value = word.value or ""
    if value.startswith("choice(") and value.endswith(")"):
        value = value[len("choice(") : -1]
    return word._replace(value=split(value)[0].strip() if word.value is not None else None)


def _placed(keys: Keys, word: Word) -> tuple[Place, Word]:
    """Return where a word's key leads to, and the word with the key and sign that Hydra takes there.

    Raises:
        InputError: if the command has no such key.
    """
    long = keys.short(word.key)
    if long is not None:
        if word.sign == "~":
            raise InputError(f"{word}: {word.key} is short for {long}, which cannot be left out")
        word = word._replace(
            sign="", key=long if word.key != "batch" or long != "datamodule.people" else "batch"
        )
        return keys.find(long), word
    place = keys.find(word.key)
    if word.sign == "~" and place.node is not None and "." not in word.key:
        raise InputError(f"{word}: {keys.command} needs {word.key}; give {word.key}=VALUE instead")
    if place.node is not None and not (word.sign == "+" and not place.known):
        # A plus before a key that is there says nothing more.
        return place, word._replace(sign="" if word.sign == "+" else word.sign)
    if word.sign == "~":
        raise InputError(f"{word}: there is no {word.key} to leave out{meant(place.near)}")
    if place.by_target or place.known:
        return place, word._replace(sign="++")
    if place.addable and word.sign:
        return place, word._replace(sign="++")
    if word.sign and word.key.rpartition(".")[0] in NAMED and (word.value or "").startswith(("{", "${")):
        return place, word._replace(sign="++")
    raise InputError(_unknown(keys, word, place))


def _unknown(keys: Keys, word: Word, place: Place) -> str:
    """Return what is said about a key that a command does not have."""
    root = word.key.partition(".")[0]
    absent = keys.cfg.get(root) is None if root in keys.cfg and not keys.cfg._is_missing() else True
    for group in groups_of(keys.command):
        name, _, package = group.partition("@")
        if (
            absent
            and "." in word.key
            and (package or name).partition("/")[0] == root
            and not word.key.startswith("hydra")
        ):
            names = options(name)
            return f"{word} needs {group}=NAME with it; NAME is {alternatives(names)}"
    if place.addable and not word.sign:
        return f"{word.key} is not there{meant(place.near)}; to add it: +{word}"
    end = "" if place.near else f"; clip3dreid {keys.command} --help lists the keys"
    return f"{word.key} is no key of {keys.command}{meant(place.near)}{end}"


def _value(keys: Keys, word: Word, place: Place, values: Sequence[Word], sweep: bool) -> Word:
    """Return a word with its value so that Hydra reads what was typed."""
    if word.value is None:
        return word
    if word.key == "batch" and keys.short("batch") is not None:
        return _batch(keys, word, values, sweep)
    _refuse_nothing(word, place)
    holds = kind(word.key, place)
    if holds == "unknown":
        if word.key.partition(".")[0] in ("where", "synonyms"):
            return word._replace(value=kept(word.value, text=False, sweep=sweep))
        return word
    if holds in ("whole", "number", "switch"):
        if word.key.partition(".")[0] not in _LOOSE:
            _check_value(word, holds, sweep, typed="." not in word.key)
        return word
    if holds == "node" and not (
        word.value == "null" or is_function(word.value) or word.value[:1] in ("{", "$")
    ):
        raise InputError(f"{word}: {word.key} holds keys of its own; give {word.key}.KEY=VALUE")
    if holds in ("numbers", "node"):
        return word
    return word._replace(value=kept(word.value, text=holds == "text", sweep=sweep))


def _refuse_nothing(word: Word, place: Place) -> None:
    """Refuse nothing where something must be given: `out=null` would make a folder called None.

    These are the keys that must be given, and the command's own whose default is a text. What a null below them
    means the owner says (`model.pretrained=null`).
    """
    value = (word.value or "").strip()
    if value not in _NOTHING:
        return
    if value != "null" and word.key in _PATHS:
        raise InputError(f"{word.key} is empty; give a path, or leave it out")
    if place.node is None or place.node._is_interpolation():
        return
    own = "." not in word.key and isinstance(place.node._value(), str)
    if place.node._is_missing() or own:
        wrong = "may not be null" if value == "null" else "is empty"
        raise InputError(f"{word.key} {wrong}; give a value: {word.key}=VALUE")


def _check_value(word: Word, holds: str, sweep: bool, typed: bool) -> None:
    """Refuse several values without a sweep, and a word where a number or a switch of the root stands."""
    value = word.value or ""
    if is_function(value) or "${" in value:
        return
    parts = split(value)
    if len(parts) > 1 and not sweep:
        raise InputError(f"{word} has several values: add -m for a run with each")
    for part in map(str.strip, parts):
        try:
            content = parsed(part)
        except ValueError:
            content = part
        if content is None:
            continue
        if holds == "switch":
            if not isinstance(content, bool) and (typed or isinstance(content, str)):
                choose(word.key, part, (True, False))
            continue
        # A key of the root has a type; of one below it the owner knows what else it takes.
        kinds = int if holds == "whole" else int | float
        wrong = isinstance(content, str | bool) or (typed and not isinstance(content, kinds))
        if wrong or (isinstance(content, float) and not math.isfinite(content)):
            raise InputError(f"{word.key}={part} must be a {'whole ' if holds == 'whole' else ''}number")


def _batch(keys: Keys, word: Word, values: Sequence[Word], sweep: bool) -> Word:
    """Return `batch=N`, pictures of a training's batch, as the people that make it."""
    pictures = int(keys.cfg.datamodule.pictures)
    for other in values:
        if other.key == "datamodule.pictures" and (other.value or "").isdecimal():
            pictures = int(other.value or 0)
    people = []
    for part in split(word.value or "") if sweep else [word.value or ""]:
        if not part.strip().isdecimal() or not int(part) or int(part) % pictures:
            raise InputError(
                f"batch={part} must be people times pictures of each, a multiple of datamodule.pictures={pictures}"
            )
        people.append(str(int(part) // pictures))
    return word._replace(key="datamodule.people", value=",".join(people))
