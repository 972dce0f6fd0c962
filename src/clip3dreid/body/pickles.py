"""Reads the pickles that SMPL's files are, without running anything in them and without chumpy.

A pickle is a program. Of its instructions those are let through that files of arrays need, and what they call are
functions and classes of this module: stand-ins that keep what the file says. Only when all is read are arrays made of
them, from bytes that have been measured. So no numpy or scipy object ever has its state set by a file: a type whose
flags a file may choose turns its bytes into addresses, and indices that leave their bounds lead out of an array.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from clip3dreid.errors import InputError
from clip3dreid.io.formats import decoding
from clip3dreid.io.pickle_scan import scan_pickle

MOST_BYTES = 2**31
"""Of a file: eight times the largest of SMPL's."""
MOST_NUMBERS = 2**27
"""That a sparse array may have when it is written out: a gigabyte, where SMPL's have some hundred thousand."""
_ADVICE = "get it again from its publisher"

Array = npt.NDArray[Any]

# Booleans, and numbers of 1, 2, 4 or 8 bytes.
_KIND = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class _InertValue:
    """Stands for an object of the file and keeps its state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Chumpy(_InertValue):
    """Any chumpy object."""


class _Sparse(_InertValue):
    """A sparse matrix of scipy; its layout is the class's."""

    by = ""


class _Columns(_Sparse):
    by = "columns"


class _Rows(_Sparse):
    by = "rows"


class _Places(_Sparse):
    by = "places"


_SPARSE = {
    f"{layout}_{kind}": stand_in
    for layout, stand_in in (("csc", _Columns), ("csr", _Rows), ("coo", _Places))
    for kind in ("matrix", "array")
}


class _Type(_InertValue):
    """A type of numpy's: the name that it is made with, and the byte order that its state adds."""

    def made(self) -> np.dtype[Any]:
        """Return the type, if it is one of plain numbers."""
        name, order, plain = str(self.arguments[0]), "", True
        if isinstance(self.state, tuple):
            # Version, byte order, then what only types of several fields, of objects or of times have.
            _, order, *rest = tuple(self.state)
            plain = rest[:3] == [None, None, None]
        if order not in ("", "<", ">", "|", "=") or not plain or not _KIND.fullmatch(name):
            raise InputError(f"it holds an array of type {name[:40]}, which is none of plain numbers")
        return np.dtype(order + name.lstrip("<>|="))


class _Array(_InertValue):
    """An array of numpy's, as its state or as the arguments of `_frombuffer` say."""

    def made(self) -> Array:
        """Return the array, if its bytes are as many as type and shape ask for."""
        if isinstance(self.state, tuple):
            _, shape, kind, fortran, data = self.state
        else:
            data, kind, shape, order = self.arguments
            fortran = order == "F"
        if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray | str):
            raise InputError("it holds an array of Python objects")
        return _filled(kind.made(), shape, data, "F" if fortran else "C")


class _Scalar(_InertValue):
    """A number of numpy's."""

    def made(self) -> Array:
        """Return an array of no dimension."""
        kind, data = self.arguments
        if not isinstance(kind, _Type) or not isinstance(data, bytes | str):
            raise InputError("it holds a number of Python objects")
        return _filled(kind.made(), (), data, "C")


def _filled(kind: np.dtype[Any], shape: Any, data: Any, order: str) -> Array:
    # Python 2's strings are bytes.
    content = data.encode("latin1") if isinstance(data, str) else bytes(data)
    sizes = [int(size) for size in shape]
    if min(sizes, default=0) < 0 or math.prod(sizes) * kind.itemsize != len(content):
        raise InputError(f"it holds an array of shape {tuple(sizes)} with {len(content)} bytes")
    array: Array = np.frombuffer(content, kind).reshape(sizes, order="F" if order == "F" else "C").copy()
    return array


def _dense(matrix: _Sparse) -> Array:
    """Return a sparse matrix written out, after its indices have been looked at."""
    state: dict[str, Any] = dict(matrix.state or {})
    rows, columns = (int(size) for size in state.get("_shape", state.get("shape", ())))
    if rows < 0 or columns < 0 or rows * columns > MOST_NUMBERS:
        raise InputError(f"it holds a sparse matrix of {rows} x {columns}")
    values = _numbers(state["data"])
    if matrix.by == "places":
        places = state["coords"] if "coords" in state else (state["row"], state["col"])
        row, column = (_numbers(place) for place in places)
    else:
        other, starts = _numbers(state["indices"]), _numbers(state["indptr"])
        lines = columns if matrix.by == "columns" else rows
        counts = np.diff(starts)
        if (
            starts.shape != (lines + 1,)
            or starts.dtype.kind not in "iu"
            or int(starts[0]) != 0
            or (starts[1:] < starts[:-1]).any()
            or int(starts[-1]) != len(other)
        ):
            raise InputError("it holds a sparse matrix whose lines do not add up")
        line = np.repeat(np.arange(lines), counts)
        row, column = (other, line) if matrix.by == "columns" else (line, other)
    for index, size in ((row, rows), (column, columns)):
        fits = index.ndim == 1 and index.dtype.kind in "iu" and len(index) == len(values)
        if not fits or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < size):
            raise InputError("it holds a sparse matrix whose indices leave it")
    if values.ndim != 1:
        raise InputError("it holds a sparse matrix whose values are no list")
    dense = np.zeros((rows, columns), values.dtype)
    np.add.at(dense, (row, column), values)  # what stands twice counts twice
    return dense


def _numbers(value: Any) -> Array:
    """Return anything of the file that is an array, as one."""
    if isinstance(value, _Array | _Scalar):
        return value.made()
    if isinstance(value, _Sparse):
        return _dense(value)
    if not isinstance(value, _Chumpy):
        raise InputError(f"it has a {type(value).__name__} where an array is wanted")
    state = value.state
    if state is None:
        state = {}
    elif not isinstance(state, dict):
        return _numbers(state)
    if "x" in state:
        return _numbers(state["x"])
    if "a" in state and "idxs" in state:
        # chumpy's Select: some entries of another array.
        chosen = _numbers(state["a"]).ravel()[_numbers(state["idxs"])]
        shape = state.get("preferred_shape")
        return chosen if shape is None else chosen.reshape([int(size) for size in shape])
    raise InputError(
        f"a chumpy object of it holds no array (it has {', '.join(map(str, state)) or 'nothing'})"
    )


class _Function:
    """A function for the file to call; it has no attributes that the file could set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, _: object) -> None:
        raise InputError("it sets the state of a function")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Return bytes as protocol 2 pickles them."""
    return text.encode("latin1" if encoding not in ("latin1", "ascii", "utf-8") else encoding)


def _empty(*_: object) -> bytes:
    """Return no bytes, as protocol 2 makes them: by their class."""
    return b""


def _reconstruct(*_: object) -> _Array:
    """Return an array of numpy's before it has its state."""
    return _Array()


def _plain_object(cls: object, *_: object) -> _InertValue:
    """Return an old-style object of an allowed class, without running a constructor of the file's choice."""
    if not isinstance(cls, type) or not issubclass(cls, _InertValue):
        raise InputError("it builds an object of no allowed class")
    return cls()


_CALLS: tuple[tuple[tuple[str, ...], str, Callable[..., Any]], ...] = (
    (("numpy",), "dtype", _Type),
    (("_codecs",), "encode", _encode),
    (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", _reconstruct),
    (("numpy.core.multiarray", "numpy._core.multiarray"), "scalar", _Scalar),
    (("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", _Array),
    (("copy_reg", "copyreg"), "_reconstructor", _plain_object),
    (("__builtin__", "builtins"), "bytes", _empty),
    # Named by others, never called.
    (("__builtin__", "builtins"), "object", _InertValue),
    (("numpy",), "ndarray", _reconstruct),
)
_FUNCTIONS = {(module, name): call for modules, name, call in _CALLS for module in modules}


class _Restricted(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "chumpy":
            return _Chumpy
        if module.startswith("scipy.sparse") and name in _SPARSE:
            return _SPARSE[name]
        if (module, name) in _FUNCTIONS:
            # Anew for every file, so that none can leave anything behind for the next.
            return _Function(_FUNCTIONS[module, name])
        raise InputError(
            f"{self.path} holds {module}.{name}, which is no plain array: not loaded, since unpickling it could run "
            "code; get the file from its publisher"
        )


# What pickles of arrays are written with, in every protocol; no classes by number, no objects from elsewhere.
_NEEDED = """
ADDITEMS APPEND APPENDS BINBYTES BINBYTES8 BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINSTRING BINUNICODE
BINUNICODE8 BUILD BYTEARRAY8 DICT EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE FLOAT FRAME FROZENSET GET GLOBAL
INT LIST LONG LONG1 LONG4 LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWOBJ NEWTRUE NONE POP POP_MARK PROTO
PUT REDUCE SETITEM SETITEMS SHORT_BINBYTES SHORT_BINSTRING SHORT_BINUNICODE STACK_GLOBAL STOP STRING TUPLE
TUPLE1 TUPLE2 TUPLE3 UNICODE
"""
_INSTRUCTIONS = frozenset(_NEEDED.split())


@contextmanager
def _of(path: Path) -> Iterator[None]:
    """Put the file's name to a refusal that does not know it."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path} is refused: {error}; {_ADVICE}") from error


def read_pickle(path: Path, keys: Collection[str]) -> dict[str, Array]:
    """Read an official SMPL `.pkl`: arrays of numpy, scipy.sparse and chumpy, and nothing else.

    Args:
        path: the file; chumpy need not be installed.
        keys: of the arrays wanted; of the others (names, notes on the training) nothing is made.

    Returns:
        Those of them that its dictionary has, as numpy's.

    Raises:
        InputError: naming the class, if the file holds any other; or if it is damaged.
    """
    with decoding(path, "a pickle of arrays", _ADVICE):
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(
                f"{path} has {size / 1e9:.1f} GB, and files of SMPL a fraction of one; give an SMPL file"
            )
        data = path.read_bytes()
        with _of(path):
            scan_pickle(io.BytesIO(data), _INSTRUCTIONS)
            content = _Restricted(io.BytesIO(data), path).load()
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__} and no dictionary of arrays; give an SMPL file"
        )
    with decoding(path, "a pickle of arrays", _ADVICE), _of(path):
        return {key: _numbers(content[key]) for key in keys if key in content}
