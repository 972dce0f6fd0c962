"""Look through a `.pt2` of `torch.export` before torch reads it: it may name functions, and hold pickles and code.

torch's own reader resolves whatever name a node bears, evaluates the texts of symbolic sizes and unpickles what is no
plain tensor. So a file from outside is read only when it names mathematics alone and its tensors are plain.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from clip3dreid.errors import InputError
from clip3dreid.io.formats import decoding

_ADVICE = "export it anew, or give it as ONNX"
# Operators of torch's own libraries, none of which reads files or runs code, but the one that maps files into memory.
_OPERATORS = re.compile(r"torch\.ops\.(aten|prims)\.(?!from_file)\w+(\.\w+)?")
_FUNCTIONS = frozenset(
    f"{module}.{name}"
    for module, names in {
        "_operator": "getitem add sub mul floordiv truediv mod neg pow eq ne lt le gt ge and_ or_ not_",
        "math": "ceil floor trunc sqrt",
        "torch": "sym_int sym_float sym_max sym_min sym_not sym_ite sym_sum",
    }.items()
    for name in names.split()
)
_SYMBOL = re.compile(r"[suz]\d+")
_SYMBOLIC = """
Abs Add And CeilDiv CeilToInt CleanDiv Eq Float FloatPow FloatTrueDiv FloorDiv FloorToInt Ge Gt IntTrueDiv Integer Le
Lt Max Min Mod ModularIndexing Mul Ne Not Or Pow PowByNatural PythonMod Rational RoundToInt ToFloat TruncToInt
"""
_SIZES = frozenset(_SYMBOLIC.split())
_ARITHMETIC = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp)


def read_program(path: Path) -> tuple[ExportedProgram, dict[str, Any] | None]:
    """Read a program, once nothing in it can be anything but arithmetic on tensors.

    Args:
        path: the file.

    Returns:
        The program, and what this project's export says of it; None where another wrote the file.

    Raises:
        InputError: if there is none, it is damaged, or it holds what would be run or unpickled.
    """
    with decoding(path, "a program of torch.export", _ADVICE), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        models = [name for name in names if "/models/" in name and name.endswith(".json")]
        if len(models) != 1:
            raise InputError(f"{path} holds {len(models)} programs of torch.export, not one; {_ADVICE}")
        _check_graph(path, json.loads(archive.read(models[0])))
        for name in names:
            if "/data/" in name and name.endswith("_config.json"):
                _check_tensors(path, json.loads(archive.read(name)))
            elif "/data/" in name and name.endswith(".pt"):
                # What fails here, torch would unpickle.
                torch.load(io.BytesIO(archive.read(name)), weights_only=True, map_location="cpu")
        extra = {"clip3dreid.json": ""}
        program = torch.export.load(path, extra_files=extra)
        contract = json.loads(extra["clip3dreid.json"]) if extra["clip3dreid.json"] else None
    return program, contract


def _check_graph(path: Path, model: Any) -> None:
    for key, value in _entries(model):
        if key == "target" and isinstance(value, str):
            harmless = _OPERATORS.fullmatch(value) or value in _FUNCTIONS
            if not harmless and ("." in value or value.startswith("#")):
                raise InputError(f"{path} calls {value[:60]!r}, which is no operator of torch's; {_ADVICE}")
        elif key in ("expr_str", "symbol") and not _is_arithmetic(value):
            raise InputError(f"{path} has the size {str(value)[:60]!r}, which is no arithmetic; {_ADVICE}")


def _check_tensors(path: Path, config: Any) -> None:
    if any(key == "use_pickle" and value for key, value in _entries(config)):
        raise InputError(f"{path} holds pickled tensors or objects, which are not read; {_ADVICE}")


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield all entries of nested dictionaries and lists."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _is_arithmetic(text: Any) -> bool:
    """Return whether a text is arithmetic on numbers and symbols of sizes, by torch's functions of them."""
    if not isinstance(text, str) or len(text) > 10_000:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_plain(tree.body)


def _is_plain(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name):
            return False
        if node.func.id == "Symbol":
            return _is_symbol(node)
        return node.func.id in _SIZES and not node.keywords and all(map(_is_plain, node.args))
    if isinstance(node, ast.Name):
        return _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    parts = [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.expr)]
    return isinstance(node, _ARITHMETIC) and all(map(_is_plain, parts))


def _is_symbol(call: ast.Call) -> bool:
    """Return whether a call is `Symbol('s0', positive=True, …)`."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    constants = [one.value for one in values if isinstance(one, ast.Constant)]
    return (
        len(call.args) == 1
        and len(constants) == len(values)
        and isinstance(constants[0], str)
        and _SYMBOL.fullmatch(constants[0]) is not None
        and all(isinstance(one, bool) for one in constants[1:])
    )
