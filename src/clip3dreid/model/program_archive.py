"""Look through a `.pt2` of `torch.export` before torch reads it: it may name functions, and hold pickles and code.

torch's own reader resolves whatever name a node bears, evaluates the texts of symbolic sizes, unpickles what is no
plain tensor, and loads compiled libraries. So a file from outside is read only when it has known members alone, names
mathematics alone, and its tensors are plain. What torch is given is written anew from the bytes that were looked at:
two readers of one archive may disagree about what is in it.
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
_MODELS, _CONFIG, _CONTRACT = "models/", "_config.json", "clip3dreid.json"
_TENSOR = re.compile(r"(weight|tensor)_\d+")
_MEMBER = re.compile(
    rf"models/\w+\.json|data/(weights|constants)/(\w+{re.escape(_CONFIG)}|{_TENSOR.pattern})|data/sample_inputs/\w+\.pt"
    r"|extra/[\w.-]+|archive_format|archive_version|byteorder|version|\.data/\w+"
)
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
    with decoding(path, "a program of torch.export", _ADVICE):
        members = _members(path)
        for name, content in members.items():
            if name.startswith(_MODELS):
                _check_graph(path, json.loads(content))
            elif name.endswith(_CONFIG):
                _check_tensors(path, json.loads(content))
            elif name.endswith(".pt"):
                # What fails here, torch would unpickle.
                torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        clean = io.BytesIO()
        with zipfile.ZipFile(clean, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"program/{name}", content)
        clean.seek(0)
        extra = {_CONTRACT: ""}
        program = torch.export.load(clean, extra_files=extra)
        contract = json.loads(extra[_CONTRACT]) if extra[_CONTRACT] else None
    return program, contract


def _members(path: Path) -> dict[str, bytes]:
    """Return the archive's members without the folder that all of them are in, once all are known ones."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.partition("/")[2]
            # torch stores; what is compressed may be a thousand times larger than the file.
            if not _MEMBER.fullmatch(name) or name in found or member.compress_type != zipfile.ZIP_STORED:
                raise InputError(
                    f"{path} holds {member.filename[:60]!r}, which is no part of a program of one network, or is "
                    f"there twice or compressed; {_ADVICE}"
                )
            found[name] = archive.read(member)
    if sum(name.startswith(_MODELS) for name in found) != 1:
        raise InputError(f"{path} does not hold one program of torch.export; {_ADVICE}")
    return found


def _check_graph(path: Path, model: Any) -> None:
    for key, value in _entries(model):
        if key == "target" and isinstance(value, str):
            harmless = _OPERATORS.fullmatch(value) or value in _FUNCTIONS
            if not harmless and ("." in value or value.startswith("#")):
                raise InputError(f"{path} calls {value[:60]!r}, which is no operator of torch's; {_ADVICE}")
        elif key in ("expr_str", "symbol") and not _is_arithmetic(value):
            raise InputError(f"{path} has the size {str(value)[:60]!r}, which is no arithmetic; {_ADVICE}")


def _check_tensors(path: Path, config: Any) -> None:
    for key, value in _entries(config):
        # How an object is read goes by its file's name, and not by the flag alone.
        if (key == "use_pickle" and value) or (key == "path_name" and not _TENSOR.fullmatch(str(value))):
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
