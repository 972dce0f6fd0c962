"""Look through pickles before anything reads them: none of their instructions is carried out here."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from clip3dreid.errors import InputError
from clip3dreid.io.formats import decoding

MOST_NESTED = 500
"""Levels of a pickle's values: C code that looks into tuples has no guard of its own. Files of arrays need ten."""


def scan_pickle(stream: IO[bytes], instructions: Collection[str] | None = None) -> None:
    """Look through the instructions of one pickle, of which none is carried out.

    Even a reader that calls nothing of a file's choice can be ended by one: by values nested so deeply that the stack
    overflows, or by a number of an object that it makes room for.

    Args:
        stream: read to the pickle's end.
        instructions: those that are let through, by `pickletools`' names; None: all.

    Raises:
        InputError: if it does what no file of arrays needs.
        Exception: of any kind, if it is no pickle.
    """
    stack: list[int | None] = []  # how deeply each value is nested; None: a mark
    memo: dict[int, int] = {}
    for number, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        name = instruction.name
        if instructions is not None and name not in instructions:
            raise InputError(f"it has the instruction {name}, which no file of arrays needs")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memo) if argument is None else int(argument)
            if place > number:
                raise InputError(
                    f"it gives an object the number {place}, though it has no more than {number}"
                )
            memo[place] = stack[-1] or 0
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
            continue
        if name == "MARK":
            stack.append(None)
            continue
        taken = _taken(stack, instruction)
        depth = max((level + 1 for level in taken), default=0)
        if name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD") and taken:
            # The first of them is what the others are put into.
            depth = max([taken[0], *(level + 1 for level in taken[1:])])
        if depth > MOST_NESTED:
            raise InputError(f"its values are nested more than {MOST_NESTED} deep")
        stack += [taken[0] if name == "DUP" else depth] * len(instruction.stack_after)


def _taken(stack: list[int | None], instruction: pickletools.OpcodeInfo) -> list[int]:
    """Take what an instruction takes off the stack: so many values, or all down to the mark and some below it."""
    before = instruction.stack_before
    taken: list[int] = []
    if pickletools.markobject in before or (instruction.name == "POP" and stack[-1] is None):
        while (level := stack.pop()) is not None:
            taken.insert(0, level)
        count = before.index(pickletools.markobject) if pickletools.markobject in before else 0
    else:
        count = len(before)
    below = [level or 0 for level in stack[len(stack) - count :]]
    if len(below) < count:
        raise ValueError("it takes more than there is")
    del stack[len(stack) - count :]
    return below + taken


def scan_torch_file(path: Path) -> None:
    """Look through the pickles of a torch file, as `scan_pickle` does; `torch.load(weights_only=True)` can follow.

    Args:
        path: of either format of torch's, or anything else, for torch to refuse.

    Raises:
        InputError: if it is damaged, or nested more deeply than any file of weights.
    """
    with decoding(path, "a torch file", "get it again"):
        try:
            for pickled in _pickles(path):
                scan_pickle(pickled)
        except InputError as error:
            raise InputError(f"{path} is refused: {error}; get it again") from error


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Yield the pickles of a torch file, each as a stream that stands at its beginning."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] == "data.pkl":
                    yield io.BytesIO(archive.read(name))
        return
    with path.open("rb") as file:
        # Of the format before archives: magic number, version, system, content, names of the storages.
        for _ in range(5):
            if not file.peek(1):
                return
            yield file
