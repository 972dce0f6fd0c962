"""`clip3dreid` and `python -m clip3dreid`: list the commands, and start one by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from clip3dreid.config.commands import find_command, overview
from clip3dreid.errors import InputError


def main() -> None:
    """Start the command that the first argument names; without one, say which there are."""
    words = sys.argv[1:]
    try:
        if not words or words[0] in ("--help", "-h") or words == ["help"]:
            _print(overview(_version()))
        elif words[0] == "--version":
            _print(f"clip3dreid {_version()}")
        elif words[0] in ("--completion", "--complete"):
            _complete(words[0], words[1:])
        elif words[0].startswith("-"):
            raise InputError(f"{words[0]} is no option of clip3dreid; it is called as clip3dreid COMMAND …")
        elif words[0] == "help":
            _start(find_command(words[1]), ["--help"])
        else:
            _start(find_command(words[0]), words[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def _start(name: str, arguments: Sequence[str]) -> None:
    """Start a command, which reads its own arguments where any program's stand."""
    sys.argv[1:] = arguments
    import_module(f"clip3dreid.cli.{name}").main()


def _complete(option: str, words: Sequence[str]) -> None:
    from clip3dreid.config.completion import completions, script

    _print(script(words[0] if words else "") if option == "--completion" else "\n".join(completions(words)))


def _version() -> str:
    import clip3dreid

    return clip3dreid.__version__


def _print(text: str) -> None:
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
