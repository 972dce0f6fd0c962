"""Read what a class or function takes out of its source, without importing it.

A mistyped key is answered before torch is loaded, so what `_target_: torch.optim.Adam` takes is looked up in the file
that defines it. Where that cannot be found out, nothing is claimed.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_DEEPEST = 12
"""How many re-exports and base classes are followed."""
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Signature(NamedTuple):
    """What can be given to a target by name."""

    names: tuple[str, ...]
    """In the order of its definition."""
    open: bool
    """Whether it takes any other name too (`**kwargs`)."""


@cache
def signature(target: str) -> Signature | None:
    """Return what a target takes.

    Args:
        target: dotted name of a class, a function, or a class's method.

    Returns:
        None where its source does not say.
    """
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        file = _file(".".join(parts[:length]))
        if file is not None:
            return _found(file, ".".join(parts[:length]), parts[length:], _DEEPEST)
    return None


@cache
def class_names(target: str, attribute: str) -> frozenset[str] | None:
    """Return the names in an attribute of a class, such as `{"A", "B"}` of `needs = frozenset({A, B})`.

    Args:
        target: dotted name of a class.
        attribute: assigned in its body, or in that of a class that it is made from.

    Returns:
        None where its source does not say, or says it in another way.
    """
    module, _, name = target.rpartition(".")
    file = _file(module)
    return None if file is None else _assigned(file, module, name, attribute, _DEEPEST)


def _assigned(file: Path, module: str, name: str, attribute: str, deeper: int) -> frozenset[str] | None:
    for node in _statements(_tree(file)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            for one in node.body:
                targets = one.targets if isinstance(one, ast.Assign) else [getattr(one, "target", None)]
                if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
                    names = ast.walk(one.value)  # type: ignore[attr-defined]
                    return frozenset(inner.id for inner in names if isinstance(inner, ast.Name)) - {
                        "frozenset"
                    }
            bases = [ast.unparse(base) for base in node.bases]
            found = [_assigned(file, module, base, attribute, deeper - 1) for base in bases if deeper]
            return next((names for names in found if names is not None), None)
        if isinstance(node, ast.ImportFrom) and deeper:
            source = _source(node, file, module)
            for alias in node.names:
                if (alias.asname or alias.name) == name and (place := _file(source)) is not None:
                    return _assigned(place, source, alias.name, attribute, deeper - 1)
    return None


def _file(module: str) -> Path | None:
    """Return the source of a module; `find_spec` of a dotted name would import what holds it."""
    head, *rest = module.split(".")
    try:
        spec = find_spec(head)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        single = Path(spec.origin or "")
        return single if not rest and single.suffix == ".py" and single.is_file() else None
    for root in spec.submodule_search_locations:
        place = Path(root).joinpath(*rest)
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
    return None


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _found(file: Path, module: str, names: list[str], deeper: int) -> Signature | None:
    """Return the signature of a name in a module, through its imports."""
    name = names[0]
    starred: list[str] = []
    for node in _statements(_tree(file)):
        if isinstance(node, _Definition) and node.name == name:
            return _of(node, file, module, names[1:], deeper)
        if isinstance(node, ast.ImportFrom):
            source = _source(node, file, module)
            for alias in node.names:
                if alias.name == "*":
                    starred.append(source)
                elif (alias.asname or alias.name) == name:
                    return _follow(source, [alias.name, *names[1:]], deeper)
    for source in starred:
        if (found := _follow(source, names, deeper)) is not None:
            return found
    return None


def _statements(tree: ast.Module) -> list[ast.stmt]:
    """Return a module's statements, those inside `if` and `try` too."""
    found: list[ast.stmt] = []
    for node in tree.body:
        inner = [*node.body, *node.orelse] if isinstance(node, ast.If | ast.Try) else [node]
        found += inner
    return found


def _source(node: ast.ImportFrom, file: Path, module: str) -> str:
    """Return the full name of the module that `from … import` reads."""
    if not node.level:
        return node.module or ""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _follow(module: str, names: list[str], deeper: int) -> Signature | None:
    if not deeper:
        return None
    if (file := _file(f"{module}.{names[0]}")) is not None and len(names) > 1:
        return _found(file, f"{module}.{names[0]}", names[1:], deeper - 1)
    file = _file(module)
    return None if file is None else _found(file, module, names, deeper - 1)


def _of(node: _Definition, file: Path, module: str, rest: list[str], deeper: int) -> Signature | None:
    """Return what a definition takes; `rest` leads into a class."""
    if not isinstance(node, ast.ClassDef):
        return None if rest else _arguments(node, bound=False)
    methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
    if rest:
        static = {"staticmethod"} & {getattr(one, "id", "") for one in _decorators(methods.get(rest[0]))}
        return _arguments(methods[rest[0]], bound=not static) if rest[0] in methods else None
    if "__init__" in methods:
        return _arguments(methods["__init__"], bound=True)
    fields = _fields(node)
    if fields is None and not node.bases:
        return Signature((), False)
    if fields is None and "__new__" in methods:
        return None
    # Of what it is made from; the fields of a dataclass add up.
    inherited: list[str] = []
    taken = False
    for base in node.bases:
        found = _base(base, file, module, deeper)
        if found is None:
            if fields is None or ast.unparse(base) not in ("NamedTuple", "typing.NamedTuple"):
                return None
            continue
        inherited += [name for name in found.names if name not in inherited]
        taken = taken or found.open
        if fields is None:
            break
    return Signature((*inherited, *(name for name in fields or () if name not in inherited)), taken)


def _base(base: ast.expr, file: Path, module: str, deeper: int) -> Signature | None:
    name = ast.unparse(base)
    return _found(file, module, [name], deeper - 1) if deeper and name.isidentifier() else None


def _decorators(node: ast.FunctionDef | None) -> list[ast.expr]:
    return [] if node is None else node.decorator_list


def _fields(node: ast.ClassDef) -> list[str] | None:
    """Return the fields of a dataclass or a named tuple, None for another class."""
    marks = [ast.unparse(one).partition("(")[0].rpartition(".")[2] for one in node.decorator_list]
    if "dataclass" not in marks and "NamedTuple" not in [
        ast.unparse(base).rpartition(".")[2] for base in node.bases
    ]:
        return None
    return [
        one.target.id
        for one in node.body
        if isinstance(one, ast.AnnAssign)
        and isinstance(one.target, ast.Name)
        and "ClassVar" not in ast.unparse(one.annotation)
        and "init=False" not in ast.unparse(one)
    ]


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> Signature:
    arguments = [*node.args.posonlyargs, *node.args.args][1 if bound else 0 :]
    names = tuple(one.arg for one in (*arguments, *node.args.kwonlyargs))
    return Signature(names, node.args.kwarg is not None)
