"""Reads the pickles that SMPL's files are, without running anything in them and without chumpy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from clip3dreid.errors import InputError


class _Chumpy:
    """Stands for any chumpy object: keeps its state, runs none of its code."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"x": state}


def _to_array(value: Any) -> Any:
    """A chumpy array as numpy; anything else as it is."""
    if not isinstance(value, _Chumpy):
        return value
    state = value.state
    if "x" in state:
        return np.asarray(_to_array(state["x"]))
    if "a" in state and "idxs" in state:
        # chumpy's Select: some entries of another array.
        chosen = np.asarray(_to_array(state["a"])).ravel()[np.asarray(state["idxs"])]
        shape = state.get("preferred_shape")
        return chosen if shape is None else chosen.reshape(shape)
    raise InputError(
        f"a chumpy object of the file holds no array (it has {', '.join(map(str, state)) or 'nothing'})"
    )


def _reconstruct() -> Callable[..., Any]:
    return np.zeros(0).__reduce__()[0]  # type: ignore[return-value]


_NUMPY = {"ndarray": np.ndarray, "dtype": np.dtype}
# What files of SMPL hold, and what they need to be put together; everything else is refused.
_SPARSE = {"csc_matrix", "csr_matrix", "coo_matrix"}
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")


class _Restricted(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "chumpy":
            return _Chumpy
        if module == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if module in _MULTIARRAY and name == "_reconstruct":
            return _reconstruct()
        if module in _MULTIARRAY and name == "scalar":
            return np.float64(0).__reduce__()[0]
        if module in ("_codecs",) and name == "encode":
            return _encode
        if module in ("copy_reg", "copyreg") and name == "_reconstructor":
            return _plain_object
        if (module, name) in (("__builtin__", "object"), ("builtins", "object")):
            return object
        if module.startswith("scipy.sparse.") and name in _SPARSE:
            import scipy.sparse

            return getattr(scipy.sparse, name)
        raise InputError(
            f"{self.path} holds {module}.{name}, which is no plain array: not loaded, since unpickling it could run "
            "code; get the file from its publisher"
        )


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes as protocol 2 pickles them."""
    return text.encode("latin1" if encoding not in ("latin1", "ascii", "utf-8") else encoding)


def _plain_object(cls: type, base: type, state: Any) -> Any:
    """An old-style object of an allowed class, without running a constructor of the file's choice."""
    if cls is not _Chumpy:
        import scipy.sparse

        if not issubclass(cls, scipy.sparse.spmatrix):
            raise InputError(f"the file builds an object of {cls!r}, which is no array")
    made: Any = object.__new__(cls)
    return made


def read_pickle(path: Path) -> dict[str, Any]:
    """Reads an official SMPL `.pkl`: numpy, scipy.sparse and chumpy arrays and plain values, nothing else.

    Args:
        path: the file; chumpy need not be installed.

    Returns:
        Its dictionary, chumpy arrays turned into numpy ones.

    Raises:
        InputError: naming the class, if the file holds any other; or if it is damaged.
    """
    try:
        with path.open("rb") as file:
            found = _Restricted(file, path).load()
    except InputError:
        raise
    except Exception as error:
        # A damaged pickle can fail in any way.
        raise InputError(
            f"{path} is no readable pickle ({type(error).__name__}: {error}); get it again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{path} holds a {type(found).__name__} and no dictionary of arrays; give an SMPL file"
        )
    try:
        return {str(key): _to_array(value) for key, value in found.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}; give an SMPL file") from error
