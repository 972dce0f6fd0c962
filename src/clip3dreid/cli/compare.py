"""`clip3dreid compare`: what each method is worth against a baseline, from finished runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point, explained
from clip3dreid.errors import InputError

_TAKES_VALUE = {
    *(
        "--cfg",
        "-c",
        "--package",
        "-p",
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
        "--config-dir",
        "-cd",
    ),
    *("--info", "-i", "--experimental-rerun"),
}
"""Hydra's own options after which a word without a dash is no folder."""


def with_runs(arguments: Sequence[str]) -> list[str]:
    """A command line for Hydra: folders that stand alone become `runs=[…]`.

    Args:
        arguments: without the program's name. A word with `=` is a folder if there is one of that name, as
            sweeps make them.

    Returns:
        Overrides first, then Hydra's own options.

    Raises:
        InputError: if there are both bare folders and `runs=`.
    """
    paths: list[str] = []
    overrides: list[str] = []
    options: list[str] = []
    before = ""
    for word in arguments:
        if word.startswith("-") or before in _TAKES_VALUE:
            options.append(word)
        elif "=" in word and not Path(word).is_dir():
            overrides.append(word)
        else:
            paths.append(word)
        before = word
    if not paths:
        return [*overrides, *options]
    if any(word.startswith("runs=") for word in overrides):
        raise InputError(f"give the folders either bare, as {paths[0]}, or as runs=[…], not both ways")
    # Quoted for Hydra's grammar, and `${` for OmegaConf, which would look up a key.
    quoted = (QuotedString(path.replace("${", "\\${"), Quote.single).with_quotes() for path in paths)
    return [f"runs=[{','.join(quoted)}]", *overrides, *options]


@entry_point("compare")
def _main(cfg: DictConfig) -> None:
    # Imported here, so that --help and a mistyped key are answered before anything heavy is loaded.
    from clip3dreid.comparison.runs import compare

    compare(cfg)


def main() -> None:
    """Compares, prints the table, and says where everything is."""
    given = sys.argv
    with explained():
        sys.argv = [given[0], *with_runs(given[1:])]
    try:
        _main()
    finally:
        sys.argv = given


if __name__ == "__main__":
    main()
