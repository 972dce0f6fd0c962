"""Say how a long command is doing: lines for people on the terminal and in its log, or objects for a program."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

from clip3dreid.io.checks import choose
from clip3dreid.io.launch import launch

Output = Literal["auto", "quiet", "json"]
"""What a command shows: lines, and bars on a terminal; its results alone; or an object a line."""

_EVENT, _PRINTED = "clip3dreid_event", "clip3dreid_printed"
# Of the process, as logging itself is: bars and lines come from everywhere.
_output: Output = "auto"


@contextmanager
def talking(output: str) -> Iterator[None]:
    """Have this process talk in a certain way while the block lasts.

    Args:
        output: one of `Output`.

    Raises:
        InputError: if it is none of them.
    """
    global _output
    choose("output", output, get_args(Output))
    before, _output = _output, cast(Output, output)
    # Else they go to stderr as they come, two lines each; so the log has them.
    logging.captureWarnings(output != "auto")
    try:
        yield
    finally:
        _output = before
        logging.captureWarnings(False)


def bars_wanted() -> bool:
    """Return whether a bar may be shown, where there is a terminal for it."""
    return _output == "auto"


def say(
    log: logging.Logger, text: str, event: Mapping[str, Any] | None = None, *, printed: bool = False
) -> None:
    """Say something that people read as a text, and a program as an object.

    It is a record of the log, which `TerminalHandler` and the log's file render. In a program that has not set up
    logging, such as a notebook, the text is printed.

    Args:
        log: of the module that speaks.
        text: one or more lines.
        event: the same as plain data, with what it is under `event`; None: it is nothing for programs.
        printed: the caller prints it by itself, more finely; here it goes to the log's file and to programs.
    """
    if not log.hasHandlers():
        if not printed:
            print(text, flush=True)  # noqa: T201
        return
    log.info("%s", text, extra={_EVENT: event, _PRINTED: printed})


class TerminalHandler(logging.Handler):
    """What a command's log shows on the terminal: the mere message, and of further processes of a run errors alone.

    `quiet` shows errors, and `json` the events of `say` as one object a line on stdout; with both, all else is on
    stderr, and only from errors, or for programs from warnings, on.

    Args:
        output: one of `Output`; what is none of them is refused elsewhere.
    """

    def __init__(self, output: str = "auto") -> None:
        super().__init__()
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if it is to be seen."""
        try:
            least = logging.NOTSET if launch().first else logging.ERROR
            if self.output == "quiet":
                least = logging.ERROR
            event = getattr(record, _EVENT, None)
            if self.output == "json" and event is not None and launch().first:
                # Looked up now: a bar puts a stream of its own in its place, which writes above it.
                print(json.dumps(_finite(event)), file=sys.stdout, flush=True)  # noqa: T201
            elif self.output == "json":
                if record.levelno >= max(least, logging.WARNING):
                    print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201
            elif record.levelno >= least and not getattr(record, _PRINTED, False):
                stream = sys.stderr if self.output == "quiet" else sys.stdout
                print(self.format(record), file=stream, flush=True)
        except Exception:  # as all of logging's handlers do: a full pipe ends no training
            self.handleError(record)


def _finite(value: Any) -> Any:
    """Return plain data with null where a number is NaN or infinite, for which JSON has no word."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
