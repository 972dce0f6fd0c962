"""Answer one search after another: objects of JSON, a line each, from a pipe, or what is typed at a prompt."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from clip3dreid.errors import InputError, one_line
from clip3dreid.io.checks import hint
from clip3dreid.io.formats import decoding
from clip3dreid.report.search_sheet import check_sheet
from clip3dreid.report.tables import print_hits
from clip3dreid.search.filters import Filter, read_values
from clip3dreid.search.query import is_text
from clip3dreid.search.search import Searcher, SearchResult
from clip3dreid.search.settings import PersonQuery, PictureQueries, Queries, SearchSettings, TextQueries

_KEYS = ("query", "top", "where", "id")
_EXAMPLE = 'give an object, such as {"query": "a.jpg", "top": 5}'
_SETTING = re.compile(r"(top|sheet|where\.\S+?)\s*=\s*(.*)")
_HELP = """\
  a.jpg                people like the one in this picture
  [a.jpg,b.jpg]        several pictures of one person; or their folder
  tall, heavyset       people of this description
  top=5                hits of a query
  where.camera=[1,2]   only among these; where.camera=null among all
  sheet=found.jpg      draw what was found last
  quit                 or the end of input"""


def answer_input(searcher: Searcher, settings: SearchSettings) -> None:
    """Answer what comes on standard input, until it ends: typed, where it is a terminal, or lines of JSON.

    Args:
        searcher: a gallery that is open.
        settings: `top` and `where` of searches that do not say another, and all `synonyms`.

    Raises:
        InputError: if standard input is closed.
    """
    if sys.stdin is None:
        raise InputError("queries are read from standard input, which is closed; give a file or a pipe")
    if sys.stdin.isatty():
        with suppress(ImportError):  # lines can be edited and are remembered where there is such a library
            import readline  # noqa: F401
        converse(searcher, settings)
    else:
        answer_lines(searcher, settings, sys.stdin.buffer, sys.stdout)


def answer_lines(searcher: Searcher, settings: SearchSettings, lines: Iterable[bytes], out: TextIO) -> None:
    """Answer lines of JSON in order, each before the next is read; empty ones have no answer.

    A line is an object with `query`: a picture's path, a list or a folder of pictures of one person, or a
    description in words, which is a text that is no file's name. It may have `top`, `where` (beside that of the
    settings, null for all), and an `id`, a text or a number, which comes back. An answer has `query`, `score` (what
    the scores are), `words` that were understood, and `hits`, best first; or else `error`, one line.

    Args:
        searcher: a gallery that is open.
        settings: as of `answer_input`.
        lines: in UTF-8.
        out: gets the answers, a line each, at once. Whoever reads them may go; the rest is not answered then.
    """
    try:
        for line in lines:
            if line.strip():
                out.write(f"{json.dumps(_answer(searcher, settings, line), allow_nan=False)}\n")
                out.flush()
    except BrokenPipeError:
        # What was not taken would be offered again as the program ends.
        nobody = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nobody, out.fileno())
        os.close(nobody)


def _answer(searcher: Searcher, settings: SearchSettings, line: bytes) -> dict[str, Any]:
    mark: dict[str, Any] = {}
    try:
        with decoding("the line", "JSON", _EXAMPLE):
            asked = json.loads(line)
        if not isinstance(asked, dict):
            raise InputError(f"the line is no object; {_EXAMPLE}")
        mark = _mark(asked)
        result = searcher.search(_queries(asked.get("query")), _settings(settings, asked))
    except Exception as error:
        if (told := one_line(error)) is None:
            raise
        return {**mark, "error": told}
    facts = result.as_json()
    return {**mark, "score": facts["score"], **facts["queries"][0]}


def _mark(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the id of what is asked, if it has one that can be given back."""
    if "id" not in asked:
        return {}
    mark = asked["id"]
    if not isinstance(mark, str | int | float | None) or (
        isinstance(mark, float) and not math.isfinite(mark)
    ):
        raise InputError("id must be a text or a number")
    return {"id": mark}


def _settings(settings: SearchSettings, asked: Mapping[str, Any]) -> SearchSettings:
    """Return how an object wants its search.

    Raises:
        InputError: if it has a key that there is not, or a value does not fit.
    """
    for key in asked:
        if key not in _KEYS:
            raise InputError(f"{key} is unknown; the keys are {', '.join(_KEYS)}{hint(key, _KEYS)}")
    where = asked.get("where")
    if not isinstance(where, dict | None):
        raise InputError('where must be an object, such as {"camera": [1, 2]}')
    top = settings.top if asked.get("top") is None else asked["top"]
    return replace(settings, top=top, where={**(settings.where or {}), **(where or {})})


def _queries(asked: Any) -> Queries:
    """Return what is looked for, as one query.

    Raises:
        InputError: if it is neither a text nor a list of paths.
    """
    if isinstance(asked, str) and is_text(asked):
        return TextQueries((asked,))
    several = [asked] if isinstance(asked, str) else asked
    if not isinstance(several, list) or not all(isinstance(one, str) and one for one in several):
        raise InputError("query must be a picture's path, a list of them, or a description")
    paths = tuple(map(_path, several))
    return PictureQueries(paths) if len(paths) == 1 and not paths[0].is_dir() else PersonQuery(paths)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text}: there is no such home; give the whole path") from error


def converse(searcher: Searcher, settings: SearchSettings, read: Callable[[str], str] = input) -> None:
    """Answer what is typed, until the input ends or `quit`.

    Args:
        searcher: a gallery that is open.
        settings: as of `answer_input`, to begin with.
        read: shows a prompt and returns a line.
    """
    found: SearchResult | None = None
    _say(f"{len(searcher):,} pictures; a picture's path, a description, or help")
    while True:
        try:
            line = _unquoted(read("> ").strip())
        except EOFError:
            return
        try:
            if line in ("quit", "exit"):
                return
            if line == "help":
                _say(_HELP)
            elif setting := _SETTING.fullmatch(line):
                if setting[1] == "sheet":
                    _draw(found, setting[2])
                else:
                    settings = _set(searcher, settings, setting[1], setting[2])
            elif line:
                asked = _list(line) if line.startswith("[") else line
                found = searcher.search(_queries(asked), settings)
                for query, hits in found.answers:
                    print_hits(query.name, found.score, hits, [word for _, word in query.understood])
        except Exception as error:
            if (told := one_line(error)) is None:
                raise
            _say(f"error: {told}")


def _set(searcher: Searcher, settings: SearchSettings, key: str, text: str) -> SearchSettings:
    """Return settings with another value, as a command line would write it."""
    if key == "top":
        top: Any = int(text) if text.isdecimal() else text
        return replace(settings, top=top)
    column = key.removeprefix("where.")
    where = {**(settings.where or {}), column: read_values(column, text)}
    # What is wrong with it is said now.
    searcher.check(Filter(**{name: value for name, value in where.items() if value is not None}))
    return replace(settings, where=where)


def _draw(found: SearchResult | None, name: str) -> None:
    if found is None:
        raise InputError("nothing was searched for yet; what was found last is drawn")
    check_sheet(place := _path(name))
    found.draw(place)


def _list(text: str) -> Sequence[str]:
    return [one.strip() for one in text.removeprefix("[").removesuffix("]").split(",")]


def _unquoted(line: str) -> str:
    """Return a line without the quotes that a terminal puts around a file that is dropped on it."""
    return line[1:-1] if len(line) > 1 and line[0] == line[-1] and line[0] in "'\"" else line


def _say(text: str) -> None:
    print(text)  # noqa: T201
