"""Take folders that stand alone on a command line for values of a key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

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
    # Quoted for Hydra's grammar, and `${` for OmegaConf, which would look up a key.
    quoted = (QuotedString(path.replace("${", "\\${"), Quote.single).with_quotes() for path in paths)
    return [f"{key}=[{','.join(quoted)}]", *overrides, *options]
