"""Draw `docs/floor_plan.svg`: the packages of `clip3dreid` and who imports whom, from the code itself.

Floors and their order come from the import contract in `pyproject.toml`, rooms, their sizes and the arrows from the
import graph, the line in each box from the package's docstring. Nothing is drawn by hand, so the picture is right
or stale, and a test tells a stale one:

    python tools/floor_plan.py            draw it anew
    python tools/floor_plan.py --check    exit with status 1 if the picture that is there is another
"""

from __future__ import annotations

import argparse
import ast
import itertools
import math
import sys
import textwrap
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

PACKAGE = "clip3dreid"
WIDTH, MARGIN = 1280.0, 24.0
BOX_WIDTH, BOX_HEIGHT, BOX_GAP = 166.0, 106.0, 10.0
SLAB_HEIGHT, FLOOR_GAP, LANE = 50.0, 66.0, 16.0
TITLE_HEIGHT, LEGEND_HEIGHT = 54.0, 62.0
INK, GREY, PAPER, FLOOR, WRONG = "#1f2430", "#5c6470", "#ffffff", "#f3f4f7", "#d00000"
# They import, or are imported by, nearly everybody: arrows would hide all others, so their boxes say it in words.
IN_WORDS = {"train", "__main__", "cli", "config", "io", "types", "errors"}
# Colours that the colour-blind tell apart (Okabe and Ito, 2008), darkened for thin lines on white.
COLOURS = ("#0064a8", "#b34a00", "#00795a", "#a3357d", "#6a5acd", "#7a6a00", "#2a7f9e", "#555555")


@dataclass(frozen=True)
class Room:
    """A package or module right below the root, as it is drawn.

    Args:
        name: without the root's.
        floor: 0 is the top.
        is_package: a folder, not a module.
        modules: files in it but for `__init__`, those of subpackages too.
        purpose: first line of its docstring.
    """

    name: str
    floor: int
    is_package: bool
    modules: int
    purpose: str


@dataclass(frozen=True)
class Plan:
    """All that the picture shows.

    Args:
        floors: names of the rooms of each floor, the top one first.
        rooms: name -> room.
        imports: pairs (importer, imported) of rooms.
    """

    floors: list[list[str]]
    rooms: dict[str, Room]
    imports: set[tuple[str, str]]

    def imported_by(self, name: str) -> set[str]:
        """Return the rooms that a room imports."""
        return {low for high, low in self.imports if high == name}

    def importers_of(self, name: str) -> set[str]:
        """Return the rooms that import a room."""
        return {high for high, low in self.imports if low == name}


def read_plan(root: Path) -> Plan:
    """Read floors, rooms and imports of a checkout.

    Args:
        root: the folder of `pyproject.toml` and `src`.
    """
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    floors = [[name.strip() for name in layer.split("|")] for layer in layers]

    # The graph is of this checkout, whichever one is installed.
    sys.path.insert(0, str(root / "src"))
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    modules = defaultdict(list)
    imports = set()
    for module in sorted(graph.modules - {PACKAGE}):
        room = module.split(".")[1]
        file = root / "src" / Path(*module.split("."))
        modules[room].append(file)
        for imported in graph.find_modules_directly_imported_by(module) - {PACKAGE}:
            if (other := imported.split(".")[1]) != room:
                imports.add((room, other))
    rooms = {}
    for number, names in enumerate(floors):
        for name in names:
            place = root / "src" / PACKAGE / name
            init = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            purpose = (ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or "").split("\n")[0]
            files = sum(file.with_suffix(".py").is_file() for file in modules[name])
            rooms[name] = Room(name, number, place.is_dir(), files, purpose.replace("`", ""))
    return Plan(floors, rooms, {pair for pair in imports if set(pair) <= set(rooms)})


def in_words(names: set[str], whole: str, among: Sequence[str]) -> str:
    """Return names in words; where they are most of those they are among, `whole` and the missing ones instead."""
    missing = [name for name in among if name not in names]
    if len(missing) * 2 > len(among):
        return ", ".join(sorted(names))
    return f"{whole} but {', '.join(missing)}" if missing else whole


Lane = tuple[str, str, int]
"""(importer, imported, floor): where an arrow passes a floor on which neither of its ends stands."""


def arranged(plan: Plan, drawn: set[tuple[str, str]]) -> dict[str | Lane, float]:
    """Place boxes, and the lanes of arrows between them, so that arrows are short and cross little.

    The method of Sugiyama, Tagawa and Toda (1981): on each floor, boxes and lanes are ordered by the mean place of
    what they are joined to, down and up by turns, then moved apart.

    Args:
        plan: what to draw.
        drawn: the arrows, all of which go down.

    Returns:
        Horizontal middle of each box and lane.
    """
    rows: dict[int, list[str | Lane]] = {
        number: [name for name in names if name not in IN_WORDS] for number, names in enumerate(plan.floors)
    }
    joined: dict[str | Lane, list[str | Lane]] = defaultdict(list)
    for high, low in sorted(drawn):
        between: list[str | Lane] = [
            (high, low, floor) for floor in range(plan.rooms[high].floor + 1, plan.rooms[low].floor)
        ]
        way: list[str | Lane] = [high, *between, low]
        for lane in between:
            rows[lane[2]].append(lane)  # type: ignore[index]
        for one, other in itertools.pairwise(way):
            joined[one].append(other)
            joined[other].append(one)
    floors = [number for number in sorted(rows) if rows[number]]
    place: dict[str | Lane, float] = {}
    for number in floors:
        place |= dict(zip(rows[number], _apart(rows[number], [WIDTH / 2] * len(rows[number])), strict=True))
    for turn in range(24):
        for number in floors if turn % 2 else reversed(floors):
            wished = {
                item: round(math.fsum(place[other] for other in joined[item]) / len(joined[item]), 3)
                if joined[item]
                else place[item]
                for item in rows[number]
            }
            # Wishes are rounded, so that no bit of a sum decides on an order; equal ones stay in their order.
            rows[number].sort(key=wished.__getitem__)
            middles = _apart(rows[number], [wished[item] for item in rows[number]])
            place |= dict(zip(rows[number], middles, strict=True))
    return place


def _apart(row: Sequence[str | Lane], wished: Sequence[float]) -> list[float]:
    """Return the places nearest to the wished ones, in squares, at which a row's items do not overlap."""
    halves = [BOX_WIDTH / 2 if isinstance(item, str) else LANE / 2 for item in row]
    offsets = [0.0]
    for one, other in itertools.pairwise(halves):
        offsets.append(offsets[-1] + one + other + BOX_GAP)
    # Without the offsets it is isotonic regression: neighbours in the wrong order share their mean.
    blocks: list[list[float]] = []
    for wish, offset in zip(wished, offsets, strict=True):
        blocks.append([wish - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (one, weight), (other, more) = blocks[-2:]
            blocks[-2:] = [[(one * weight + other * more) / (weight + more), weight + more]]
    found = [mean for mean, weight in blocks for _ in range(int(weight))]
    low, high = MARGIN + halves[0], WIDTH - MARGIN - halves[-1] - offsets[-1]
    return [
        min(max(value, low), max(low, high)) + offset for value, offset in zip(found, offsets, strict=True)
    ]


def draw(plan: Plan) -> str:
    """Draw a plan as SVG."""
    shown = {(high, low) for high, low in plan.imports if not {high, low} & IN_WORDS}
    down = {(high, low) for high, low in shown if plan.rooms[high].floor < plan.rooms[low].floor}
    wrong = {(high, low) for high, low in plan.imports if plan.rooms[high].floor >= plan.rooms[low].floor}
    place = arranged(plan, down)
    tops, heights = {}, {}
    edge = TITLE_HEIGHT
    gap = 0.0
    for number, names in enumerate(plan.floors):
        edge += gap
        heights[number] = SLAB_HEIGHT if set(names) <= IN_WORDS else BOX_HEIGHT
        tops[number] = edge
        following = plan.floors[number + 1] if number + 1 < len(plan.floors) else []
        close = set(names) <= IN_WORDS and set(following) <= IN_WORDS
        edge += heights[number]
        gap = 12 if close else FLOOR_GAP
    height = edge + LEGEND_HEIGHT
    boxes: dict[str, tuple[float, float, float, float]] = {}
    for number, names in enumerate(plan.floors):
        slabs = [name for name in names if name in IN_WORDS]
        share = (WIDTH - 2 * MARGIN + BOX_GAP) / max(1, len(slabs))
        for index, name in enumerate(slabs):
            boxes[name] = (MARGIN + index * share, tops[number], share - BOX_GAP, heights[number])
        for name in (name for name in names if name not in IN_WORDS):
            boxes[name] = (place[name] - BOX_WIDTH / 2, tops[number], BOX_WIDTH, heights[number])
    importers = [name for floor in plan.floors for name in floor if any(high == name for high, _ in down)]
    colour = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(importers)}

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" '
        f'width="{WIDTH:.0f}" height="{height:.0f}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">',
        f"<title>Packages of {PACKAGE} and their imports</title>",
        "<!-- Drawn by tools/floor_plan.py from the import graph: change the code, not this file. -->",
        "<defs>",
        *(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0.8 L7.5 4 L0 7.2 z" fill="{shade}"/></marker>'
            for name, shade in [*colour.items(), ("wrong", WRONG)]
        ),
        "</defs>",
        f'<rect width="{WIDTH:.0f}" height="{height:.0f}" fill="{PAPER}"/>',
        _text(MARGIN, 32, f"src/{PACKAGE}: imports go down, never up and never sideways", 19, weight="bold"),
        _text(
            WIDTH - MARGIN,
            32,
            f"{len(wrong)} imports break the rule" if wrong else "",
            15,
            WRONG,
            anchor="end",
        ),
    ]
    for number, names in enumerate(plan.floors):
        if not set(names) <= IN_WORDS:
            lines.append(
                f'<rect x="{MARGIN - 12:.0f}" y="{tops[number] - 9:.0f}" width="{WIDTH - 2 * MARGIN + 24:.0f}" '
                f'height="{heights[number] + 18:.0f}" rx="10" fill="{FLOOR}"/>'
            )
    leaving = {name: _ports(name, down, place, plan, boxes, out=True) for name in boxes}
    arriving = {name: _ports(name, down, place, plan, boxes, out=False) for name in boxes}
    for high, low in sorted(down):
        points = [(leaving[high][low], boxes[high][1] + boxes[high][3])]
        for floor in range(plan.rooms[high].floor + 1, plan.rooms[low].floor):
            x = place[high, low, floor]
            points += [(x, tops[floor] - 9), (x, tops[floor] + heights[floor] + 9)]
        points.append((arriving[low][high], boxes[low][1] - 2))
        lines.append(
            f'<path d="{_curve(points)}" fill="none" stroke="{colour[high]}" stroke-width="1.7" '
            f'marker-end="url(#{high})"/>'
        )
    lines += [_box(plan, plan.rooms[name], boxes[name], colour.get(name, GREY)) for name in boxes]
    for high, low in sorted(wrong):
        (x, y, w, h), (to_x, to_y, to_w, to_h) = boxes[high], boxes[low]
        lines.append(
            f'<path d="M{x + w / 2:.1f} {y + h / 2:.1f} L{to_x + to_w / 2:.1f} {to_y + to_h / 2:.1f}" fill="none" '
            f'stroke="{WRONG}" stroke-width="2.5" stroke-dasharray="7 4" marker-end="url(#wrong)"/>'
        )
    notes = [
        "An arrow: a module of the upper package imports one of the lower. It has the colour of the importer. "
        "Packages of one floor stand side by side and do not import each other.",
        "Where arrows would go everywhere, the box says it in words. Drawn by tools/floor_plan.py from the import "
        "graph and the import contract of pyproject.toml, which import-linter checks.",
    ]
    lines += [
        _text(MARGIN, height - LEGEND_HEIGHT + 28 + 18 * row, note, 12.5, GREY)
        for row, note in enumerate(notes)
    ]
    return "\n".join([*lines, "</svg>", ""])


def _ports(
    name: str,
    down: set[tuple[str, str]],
    place: dict[str | Lane, float],
    plan: Plan,
    boxes: dict[str, tuple[float, float, float, float]],
    out: bool,
) -> dict[str, float]:
    """Return where on a box's edge each arrow begins (or ends), in the order in which the arrows fan out."""

    def towards(other: str) -> float:
        high, low = (name, other) if out else (other, name)
        floor = plan.rooms[name].floor + (1 if out else -1)
        return place.get((high, low, floor), place[other])

    others = sorted(
        (low if out else high for high, low in down if name == (high if out else low)), key=towards
    )
    left, _, width, _ = boxes[name]
    step = min(20.0, (width - 24) / max(1, len(others)))
    first = left + width / 2 - step * (len(others) - 1) / 2
    return {other: first + step * index for index, other in enumerate(others)}


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Return a path that leaves and reaches every point straight down."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        bend = (to_y - y) / 2
        path += f" C{x:.1f} {y + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"
    return path


def _box(plan: Plan, room: Room, box: tuple[float, float, float, float], colour: str) -> str:
    x, y, width, height = box
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" fill="{PAPER}" '
        f'stroke="{colour}" stroke-width="1.6"/>',
        _text(x + 10, y + 20, room.name, 14.5, INK, weight="bold"),
    ]
    if room.is_package:
        size = f"{room.modules} module{'s' * (room.modules != 1)}"
        parts.append(_text(x + width - 10, y + height - 8, size, 10.5, GREY, anchor="end"))
    if room.name not in IN_WORDS:
        lines = textwrap.wrap(room.purpose, 26, max_lines=4, placeholder=" …")
        return "\n".join(
            [*parts, *(_text(x + 10, y + 39 + 15 * n, line, 10.5, GREY) for n, line in enumerate(lines))]
        )
    purpose = textwrap.shorten(room.purpose, int((width - 160) / 6), placeholder=" …")
    parts.append(_text(x + 90, y + 20, purpose, 11.5, GREY))
    below = [name for name, other in plan.rooms.items() if other.floor > room.floor]
    above = [name for name, other in plan.rooms.items() if other.floor < room.floor]
    facts = []
    if targets := plan.imported_by(room.name):
        facts.append(f"imports {in_words(targets, 'everything below', below)}")
    if importers := plan.importers_of(room.name):
        facts.append(f"imported by {in_words(importers, 'everything above', above)}")
    parts.append(_text(x + 10, y + 39, "; ".join(facts), 11.5, INK))
    return "\n".join(parts)


def _text(
    x: float,
    y: float,
    text: str,
    size: float,
    colour: str = INK,
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def main() -> int:
    """Draw the picture of the checkout that this file lies in, or compare it with the one that is there."""
    parser = argparse.ArgumentParser(description="Draw docs/floor_plan.svg from the import graph.")
    parser.add_argument(
        "--check", action="store_true", help="compare with the picture that is there, write nothing"
    )
    arguments = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    target = root / "docs" / "floor_plan.svg"
    picture = draw(read_plan(root))
    if not arguments.check:
        target.write_text(picture, encoding="utf-8")
        print(f"{target.relative_to(root)} is drawn")
        return 0
    if not target.is_file() or target.read_text(encoding="utf-8") != picture:
        print(
            "docs/floor_plan.svg does not show the code as it is: draw it anew with python tools/floor_plan.py"
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
