"""Write the site's pages of docstrings, for what docs/api.md shows and for what that takes and returns.

There is no list to keep: a name that `docs/api.md` writes in full (`clip3dreid.training.run.train`), or imports in
one of its examples, has its docstring on the site, and so has each class in its signature. Nothing is imported or
run: griffe reads the source.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]
PACKAGE = "clip3dreid"
PAGE = ROOT / "docs/api.md"
FOLDER = "docs/reference"
FRONT = f"{FOLDER}/{PACKAGE}.md"
FENCED = re.compile(r"(^ *```.*?^ *```$)", flags=re.M | re.S)
NAMED = re.compile(rf"(?<!\[)`({PACKAGE}(?:\.\w+)+)`(?!\])")
IMPORTED = re.compile(rf"^from ({PACKAGE}[\w.]*) import (.+)$", flags=re.M)
Documented = griffe.Object | griffe.Alias


class Examples(griffe.Extension):
    """Take `Example:` for the section that griffe knows as `Examples:`, or its `>>>` would be quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the heading in the docstring of whatever was read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)


class Reference:
    """The pages of docstrings, and where each name stands on them.

    Args:
        page: text of the page that names what users call.

    Attributes:
        pages: path from the repository's root -> Markdown with mkdocstrings' `:::` lines.
        homes: name as users write it, and name where it is defined -> anchor on those pages.
    """

    def __init__(self, page: str) -> None:
        self.package = griffe.load(PACKAGE, search_paths=[str(ROOT / "src")], docstring_parser="google")
        front = self._all(f"{PACKAGE}.{name}" for name in _exports(self.package))
        self.homes: dict[str, str] = {}
        by_page: dict[str, list[str]] = defaultdict(list)
        for obj in self._with_types([*front, *self._all(_named(page))]):
            anchor = f"{PACKAGE}.{obj.name}" if obj in front else obj.canonical_path
            # Modules beside the packages, such as `errors`, have too little for pages of their own.
            home = self.package[obj.canonical_path.split(".")[1]]
            own = obj not in front and isinstance(home, griffe.Module) and home.is_init_module
            by_page[f"{FOLDER}/{home.name if own else PACKAGE}.md"].append(anchor)
            self.homes |= {anchor: anchor, obj.canonical_path: anchor}
        self.pages = {
            path: self._written(path, anchors)
            for path, anchors in sorted(by_page.items(), key=lambda item: (item[0] != FRONT, item[0]))
        }

    def _all(self, names: Iterable[str]) -> list[griffe.Object]:
        return [found for found in map(self._get, names) if found is not None]

    def linked(self, text: str) -> str:
        """Return a page of Markdown whose `clip3dreid.…` lead to the docstrings, where there are any."""

        def link(match: re.Match[str]) -> str:
            anchor = self.homes.get(match[1])
            return match[0] if anchor is None else f"[{match[0]}][{anchor}]"

        parts = FENCED.split(text)
        return "".join(part if number % 2 else NAMED.sub(link, part) for number, part in enumerate(parts))

    def _get(self, name: str) -> griffe.Object | None:
        """Return what a dotted name is; None where that is private, a whole package, or nothing."""
        try:
            found: Documented = self.package[name.removeprefix(f"{PACKAGE}.")]
            if isinstance(found, griffe.Alias):
                found = found.final_target
        except (KeyError, griffe.AliasResolutionError):
            return None
        package = isinstance(found, griffe.Module) and found.is_init_module
        private = any(part.startswith("_") for part in found.canonical_path.split("."))
        return None if package or private else found

    def _with_types(self, named: Iterable[griffe.Object]) -> list[griffe.Object]:
        """Return objects, in their order, and the classes of their signatures, each that has a docstring once."""
        found = {one.canonical_path: one for one in named}
        types: dict[str, griffe.Object] = {}
        for one in found.values():
            for member in one.members.values() if isinstance(one, griffe.Module) else [one]:
                if isinstance(member, griffe.Object):
                    types |= {other.canonical_path: other for other in self._types(_annotations(member))}
        found |= {path: one for path, one in sorted(types.items()) if path not in found}
        # A module's page shows what is in it.
        modules = {path for path, one in found.items() if isinstance(one, griffe.Module)}
        return [
            one
            for path, one in found.items()
            if one.docstring is not None and path.rpartition(".")[0] not in modules
        ]

    def _types(self, annotations: Iterable[griffe.Expr]) -> Iterator[griffe.Object]:
        """Yield the package's classes in annotations, its short names for several, and the classes behind those."""
        for annotation in annotations:
            for part in annotation.iterate(flat=True):
                found = self._get(part.canonical_path) if isinstance(part, griffe.ExprName) else None
                if isinstance(found, griffe.Class | griffe.Attribute):
                    yield found
                if isinstance(found, griffe.Attribute) and isinstance(found.value, griffe.Expr):
                    yield from self._types([found.value])

    def _written(self, path: str, anchors: list[str]) -> str:
        """Return the Markdown of one page."""
        name = PACKAGE if path == FRONT else f"{PACKAGE}.{Path(path).stem}"
        docstring = self.package.docstring if path == FRONT else self.package[Path(path).stem].docstring
        heading = f"# {name}\n\n{docstring.value if docstring else ''}\n"
        return "\n".join([heading, *(f"::: {anchor}\n" for anchor in anchors)])


def _exports(package: Documented) -> list[str]:
    """Return the names that `__all__` has."""
    return [name if isinstance(name, str) else name.name for name in package.exports or ()]


def _named(page: str) -> list[str]:
    """Return the dotted names that a page writes in full or imports."""
    text = "".join(FENCED.split(page)[::2])
    imported = [
        f"{module}.{name.strip()}" for module, names in IMPORTED.findall(page) for name in names.split(",")
    ]
    return [*NAMED.findall(text), *imported]


def _annotations(obj: Documented) -> Iterator[griffe.Expr]:
    """Yield the types in the signature of a function, or in those of a class's fields and public methods."""
    if isinstance(obj, griffe.Function):
        types = [*(one.annotation for one in obj.parameters), obj.returns]
    elif isinstance(obj, griffe.Attribute):
        types = [obj.annotation]
    else:
        types = []
    yield from (one for one in types if isinstance(one, griffe.Expr))
    if isinstance(obj, griffe.Class):
        for name, member in obj.members.items():
            if name == "__init__" or not name.startswith("_"):
                yield from _annotations(member)
