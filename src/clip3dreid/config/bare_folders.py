"""Take words of a command line that are no `key=value` of it for values of a key: folders, another command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from clip3dreid.config.command_line import ready
from clip3dreid.config.words import VALUED
from clip3dreid.errors import InputError


def with_folders(key: str, arguments: Sequence[str]) -> list[str]:
    """Return a command line for Hydra: folders that stand alone become `key=[…]`.

    Args:
        key: what the folders are given as.
        arguments: without the program's name. A word with `=` is a folder if there is one of that name, as
            sweeps make them.

    Returns:
        Overrides first, then Hydra's own options.

    Raises:
        InputError: if there are both bare folders and `key=`.
    """
    paths: list[str] = []
    overrides: list[str] = []
    options: list[str] = []
    before = ""
    for word in arguments:
        if word.startswith("-") or before in VALUED:
            options.append(word)
        elif "=" in word and not Path(word).is_dir():
            overrides.append(word)
        else:
            paths.append(word)
        before = word
    if not paths:
        return [*overrides, *options]
    if any(word.startswith(f"{key}=") for word in overrides):
        raise InputError(f"give the folders either bare, as {paths[0]}, or as {key}=[…], not both ways")
    return [_listed(key, paths), *overrides, *options]


def behind_dashes(command: str, arguments: Sequence[str]) -> list[str]:
    """Return a command line for Hydra: what stands behind `--`, a line of another command, becomes `COMMAND=[…]`.

    Args:
        command: whose line it is; its words are held against its keys, and kept as they were typed.
        arguments: without the program's name.

    Raises:
        InputError: if there are both words behind `--` and `COMMAND=`, or a word cannot be meant.
    """
    if "--" not in arguments:
        return list(arguments)
    place = list(arguments).index("--")
    own, words = list(arguments[:place]), arguments[place + 1 :]
    if any(word.startswith(f"{command}=") for word in own):
        raise InputError(f"give the words either behind --, or as {command}=[…], not both ways")
    for word in words:
        if word.startswith("-") and not word.startswith("--config-dir="):
            raise InputError(f"{word} may not stand behind --: of options --config-dir=FOLDER alone")
    ready(command, words)
    options = next((place for place, word in enumerate(own) if word.startswith("-")), len(own))
    return [*own[:options], _listed(command, words), *own[options:]]


def _listed(key: str, words: Sequence[str]) -> str:
    # Quoted for Hydra's grammar, and `${` for OmegaConf, which would look up a key.
    quoted = (QuotedString(word.replace("${", "\\${"), Quote.single).with_quotes() for word in words)
    return f"{key}=[{','.join(quoted)}]"
