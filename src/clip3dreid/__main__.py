"""`clip3dreid` and `python -m clip3dreid`: start a command by name."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Starts the command that the first argument names."""
    name = sys.argv[1]
    del sys.argv[1]
    import_module(f"clip3dreid.cli.{name}").main()


if __name__ == "__main__":
    main()
