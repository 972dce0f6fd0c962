"""`clip3dreid` and `python -m clip3dreid`: list the commands, and start one by name."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from clip3dreid.config.commands import find_command, overview
from clip3dreid.errors import InputError, one_line

_ALONE = {"--version": 1, "--help": 1, "-h": 1, "help": 2}
"""First word -> how many words there can be with it."""


def main() -> None:
    """Start the command that the first argument names; without one, say which there are."""
    words = sys.argv[1:]
    try:
        if (words[:1] in (["--version"], ["--help"], ["-h"]) and len(words) > 1) or (
            words[:1] == ["help"] and len(words) > 2
        ):
            raise InputError(
                f"{words[-1]} says nothing behind {words[0]}; leave it out, or give clip3dreid COMMAND --help"
            )
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
    except KeyboardInterrupt:
        # A training saves first and ends by itself; anything else has nothing to say but that it was stopped.
        print("stopped by Ctrl-C", file=sys.stderr)  # noqa: T201
        sys.exit(128 + signal.SIGINT)
    except (InputError, OSError) as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)  # noqa: T201
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
