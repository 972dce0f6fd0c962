"""Report what a run's pictures and checkpoint show: ranked lists, distances, plans, maps, bodies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from clip3dreid.body.gltf import glb
from clip3dreid.body.measure import measure
from clip3dreid.errors import InputError
from clip3dreid.report.document import Block, Bodies, Drawing, RankedLists, Sheet, Table, Text, TurnableBody
from clip3dreid.report.figures import draw_distances, draw_map
from clip3dreid.report.overlays import overlay, plan_sheet, scaled, tile_sheet
from clip3dreid.report.search_sheet import Row, ShownPicture
from clip3dreid.retrieval.protocol import Protocol
from clip3dreid.review.pictures import Ranked, TestPictures, outfits
from clip3dreid.review.run import ReviewedRun
from clip3dreid.review.settings import ReportSettings

_FAILURES = 12
"""Failures that are shown in pictures."""
_LISTED = 500
"""Failures in the table."""
_PLANS = 6
_BODIES = 4
"""People whose bodies are shown, each in two outfits where there are."""
_TRACKLETS = (
    "Tracklets are compared by the mean over all clips of each; each is shown by its middle frame, a query by its "
    "first and last too."
)
_CHANGING = "same_camera_or_clothes"
"""Rule of the protocols under which only other clothes count."""


class Looked(NamedTuple):
    """A run, and its test pictures as its model sees them."""

    run: ReviewedRun
    test: TestPictures
    settings: ReportSettings

    def protocol(self, name: str) -> Protocol:
        """Return a protocol of the run.

        Raises:
            InputError: if its data set has it no more.
        """
        if name not in self.test.protocols.protocols:
            raise InputError(f"the data set of the run has no protocol {name}")
        return self.test.protocols.protocols[name]

    def rows(self) -> dict[str, int]:
        """Return the row of each query by its path."""
        return {path: row for row, path in enumerate(self.test.found.query["path"])}

    def chosen(self, protocol: str) -> dict[str, pl.DataFrame]:
        """Return the best, the median and the worst queries under a protocol, no person twice among each.

        Raises:
            InputError: if the pictures are not those that the run was tested on.
        """
        table = self.run.queries(protocol)
        known = self.rows()
        if missing := [path for path in table["query"] if path not in known]:
            raise InputError(
                f"{len(missing)} of {len(table)} queries of the run are not in the data, first {missing[0]}; the "
                "pictures are others"
            )
        ordered = table.sort("ap", descending=True, maintain_order=True)
        middle = (ordered["ap"] - ordered["ap"].median()).abs()
        count = self.settings.queries
        return {
            "best": _people_once(ordered, count),
            "median": _people_once(ordered.with_columns(far=middle).sort("far", maintain_order=True), count),
            "worst": _people_once(ordered.reverse(), count),
        }

    def query(self, row: int, *more: str) -> ShownPicture:
        """Return a query with what is known of it."""
        return self._shown("query", row, None, more)

    def strip(self, row: int, *more: str) -> list[ShownPicture]:
        """Return a query with what is known of it; of a tracklet its middle frame, then its first and last."""
        tracklets = self.test.tracklets
        if tracklets is None:
            return [self.query(row, *more)]
        count = int(self.test.found.query["frames"][row])
        middle = self.query(row, *more, f"frame {count // 2 + 1} of {count}")
        ends = [ShownPicture(file, caption=(f"frame {number}",)) for file, number in tracklets.ends(row)]
        return [middle, *ends]

    def hit(self, row: int, right: bool, *more: str) -> ShownPicture:
        """Return a gallery picture with what is known of it."""
        return self._shown("gallery", row, right, more)

    def _shown(self, side: str, row: int, right: bool | None, more: Iterable[str]) -> ShownPicture:
        table = self.test.found.query if side == "query" else self.test.found.gallery
        return ShownPicture(self.file(side, row), caption=(*more, *_named(table, row)), right=right)

    def file(self, side: str, row: int) -> Path:
        """Return the file of a query or of a gallery picture."""
        return self.test.found.files[row + (0 if side == "query" else len(self.test.found.query))]


def ranked_lists(looked: Looked) -> list[Block]:
    """Return the best, median and worst queries under the headline, with what each found."""
    name = looked.run.evaluation.headline
    protocol, known = looked.protocol(name), looked.rows()
    ranked = looked.test.ranker(protocol)
    blocks: list[Block] = []
    agreeing, compared = 0, 0
    for which, table in looked.chosen(name).items():
        rows = []
        for query in table.iter_rows(named=True):
            found = ranked(known[query["query"]])
            compared += 1
            agreeing += found.first_hit == query["first_hit"]
            rows.append(_list(looked, known[query["query"]], found, f"AP {100 * query['ap']:.1f} %"))
        blocks.append(RankedLists(f"ranked-{which}", f"The {which} queries under {name}, by AP", rows))
    how = "cosine" if looked.test.metric == "cosine" else "Euclidean distance"
    lines = [
        f"Nearest first, by {how}; junk of the protocol is left out. A right picture has an unbroken frame and says "
        "✓ right, a wrong one a dashed frame and ✗ wrong.",
    ]
    if looked.test.tracklets is not None:
        lines.append(_TRACKLETS)
    if protocol.draws:
        lines.append("The protocol draws galleries; the lists here are of the whole gallery.")
    else:
        lines.append(
            f"Features were computed anew for this report: the first right picture has the recorded rank in "
            f"{agreeing} of {compared} of these queries."
        )
    return [Text(lines), *blocks]


def _list(looked: Looked, row: int, found: Ranked, *more: str) -> Row:
    top = looked.settings.top
    hits = [
        looked.hit(int(column), bool(right), f"{rank}. at {distance:.3f}")
        for rank, (column, right, distance) in enumerate(
            zip(found.rows[:top], found.right[:top], found.distance[:top], strict=True), 1
        )
    ]
    first = found.first_hit
    if first is not None and first > top:
        place = first - 1
        hits.append(
            looked.hit(
                int(found.rows[place]), True, f"{first}. at {found.distance[place]:.3f}", "first right"
            )
        )
    person = looked.test.found.query["person"][row]
    text = f"query of person {person}, first right at rank {first}, {', '.join(more)}"
    return Row(text, looked.strip(row, *more), hits)


def clothes_failures(looked: Looked) -> list[Block]:
    """Return the queries that are lost when clothes change: others are nearer than the person in other clothes."""
    results = looked.run.evaluation.results
    name = next(
        (
            name
            for name, found in results.items()
            if found.get("drop") == _CHANGING or "clothes_changing" in name
        ),
        None,
    )
    if name is None:
        raise InputError(f"{looked.run.evaluation.data} has no protocol in which clothes change")
    ranked, known = looked.test.ranker(looked.protocol(name)), looked.rows()
    table = looked.run.queries(name)
    lost = table.filter(pl.col("first_hit") > 1).sort("ap", "query")
    same = next((one for one in results if "same_clothes" in one), None)
    if same is not None:
        kept = looked.run.queries(same).select("query", same_rank="first_hit")
        lost = lost.join(kept, on="query", how="left", maintain_order="left")
    else:
        lost = lost.with_columns(same_rank=pl.lit(None, pl.Float64))
    pairs, rows, listed = [], [], []
    shown = set(_people_once(lost, _FAILURES)["query"])
    for query in lost.head(max(_LISTED, _FAILURES)).iter_rows(named=True):
        row = known.get(query["query"])
        if row is None:
            raise InputError(f"query {query['query']} of the run is not in the data; the pictures are others")
        found = ranked(row)
        if found.first_hit is None:
            continue
        wrong, right = int(found.rows[0]), int(found.rows[found.first_hit - 1])
        gallery = looked.test.found.gallery
        pairs.append((query["person"], gallery["person"][wrong]))
        listed.append(
            [
                query["query"],
                query["person"],
                f"{query['first_hit']:g}",
                f"{100 * query['ap']:.1f}",
                "" if query["same_rank"] is None else f"{query['same_rank']:g}",
                "" if found.right[0] else gallery["person"][wrong],
            ]
        )
        if query["query"] in shown:
            hits = [
                looked.hit(right, True, f"{found.first_hit}. at {found.distance[found.first_hit - 1]:.3f}")
            ]
            if not found.right[0]:
                hits.insert(0, looked.hit(wrong, False, f"1. at {found.distance[0]:.3f}"))
            text = f"person {query['person']}: first right at rank {found.first_hit}"
            rows.append(Row(text, [looked.query(row, f"AP {100 * query['ap']:.1f} %")], hits))
    if not listed:
        return [Text([f"Under {name} every query found a right picture first."])]
    only = lost.filter(pl.col("same_rank") == 1)
    lines = [
        f"Under {name} {len(lost)} of {len(table)} queries ({100 * len(lost) / len(table):.1f} %) have somebody else "
        "nearer than the person in other clothes."
    ]
    if same is not None:
        lines.append(
            f"{len(only)} of these found the person first under {same}: it was the clothes by which they were found."
        )
    confused = pl.DataFrame(pairs, schema=["person", "taken for"], orient="row", infer_schema_length=None)
    often = (
        confused.group_by("person", "taken for")
        .len()
        .sort("len", "person", descending=[True, False])
        .head(10)
    )
    count = f"the {len(listed)} worst of {len(lost)}" if len(listed) < len(lost) else f"all {len(lost)}"
    header = (
        "query",
        "person",
        "first right at rank",
        "AP, %",
        "rank in the same clothes",
        "first, wrongly, person",
    )
    return [
        Text(lines),
        RankedLists(
            "clothes-failures", "The worst, one of each person: query, who came first, the person", rows
        ),
        Table(
            "Taken for somebody else most often",
            ("person", "taken for", "queries"),
            [[*map(str, one)] for one in often.iter_rows()],
        ),
        Table(f"Failures: {count}", header, listed),
    ]


def distances(looked: Looked) -> list[Block]:
    """Return how distances of pairs are spread."""
    found = looked.test.pair_distances(looked.settings.seed)
    middles = (found.edges[1:] + found.edges[:-1]) / 2
    means = [
        f"{kind}: {count @ middles / count.sum():.3f}" for kind, count in found.counts.items() if count.sum()
    ]
    total = len(looked.test.found.query)
    drawn = f"{found.queries} queries drawn of {total}" if found.queries < total else f"all {total} queries"
    caption = (
        f"Distances of {drawn} to the gallery, pairs of one person by one camera left out; means: "
        f"{', '.join(means)}"
    )
    return [Drawing("distances", draw_distances(found.counts, found.edges, found.what), caption)]


def plans(looked: Looked) -> list[Block]:
    """Return which part of a picture answers to which of the model's words for it."""
    rows = _examples(looked)[:_PLANS]
    files = [looked.file("query", row) for row in rows]
    blocks: list[Block] = [
        Text(
            [
                "Transport from the positions of the feature map to the word that the model itself finds best in "
                "each group, uniform masses on both sides, entropy weight 0.1. Yellow: where the word gets most, "
                "relative to an even spread; a white box marks a word's strongest position.",
                *_middle(looked),
            ]
        )
    ]
    for row, file, plan in zip(rows, files, looked.test.plans(rows), strict=True):
        words = [word for _, word in plan.words]
        sheet = plan_sheet(looked.test.crop(file), plan.mass.numpy(), words)
        strongest = float(plan.mass.max())
        caption = (
            f"{looked_name(looked, row)}; words: {', '.join(words)}; strongest: {strongest:.2f} times even"
        )
        blocks.append(Sheet(f"plan-{len(blocks)}", sheet, caption))
    return blocks


def maps(looked: Looked) -> list[Block]:
    """Return where the network answers most strongly."""
    blocks: list[Block] = []
    name, known = looked.run.evaluation.headline, looked.rows()
    for which, table in looked.chosen(name).items():
        rows = [known[path] for path in table["query"]]
        files = [looked.file("query", row) for row in rows]
        tiles = []
        for row, file, values in zip(rows, files, looked.test.activations(rows), strict=True):
            crop = scaled(looked.test.crop(file), 150)
            above = values - values.min()
            tiles += [
                (crop, f"person {looked.test.found.query['person'][row]}"),
                (overlay(crop, above), "activation"),
            ]
        people = ", ".join(looked.test.found.query["person"][row] for row in rows)
        caption = f"The {which} queries, of persons {people}, each beside the length of its feature at every position"
        blocks.append(Sheet(f"maps-{which}", tile_sheet(tiles, columns=8), caption))
    return [
        Text(
            [
                "Yellow: the longest feature of the picture, blue: the shortest; a white box marks the longest.",
                *_middle(looked),
            ]
        ),
        *blocks,
    ]


def bodies(looked: Looked) -> list[Block]:
    """Return bodies that the model reads out of crops, of a few people in two outfits each."""
    table = looked.test.found.query
    if "betas" not in looked.test.model.widths:
        raise InputError("the model knows no body shapes: no loss taught it any")
    pairs = outfits(table) if table["clothes"].null_count() < len(table) else {}
    rows = [row for firsts in list(pairs.values())[:_BODIES] for row in firsts[:2]] or _examples(looked)[
        :_BODIES
    ]
    shape = looked.test.shape(rows)
    model = looked.test.model
    with torch.no_grad():
        measures = measure(model.body, shape.betas.to(model.device))
    one = "one crop" if looked.test.tracklets is None else "the mean over the clips of one tracklet"
    shown = []
    for place, row in enumerate(rows):
        name = looked_name(looked, row)
        facts = [
            ", ".join(
                f"{word} {100 * float(measures[key][place]):.0f} cm"
                for word, key in (("stature", "stature"), ("waist", "waist_girth"), ("hips", "hip_girth"))
            ),
            f"betas {', '.join(f'{value:+.2f}' for value in shape.betas[place].tolist())}",
        ]
        mesh = glb(shape.vertices[place], shape.faces, name=name)
        crop = scaled(looked.test.crop(looked.file("query", row)), 240)
        shown.append(TurnableBody(f"body-{place + 1}", name, crop, mesh, facts))
    return [
        Text(
            [
                f"What the student takes people's figures to be, in the rest pose; {one} each, and a person's two "
                "outfits side by side where clothes are labelled. A crop says little of absolute size."
            ]
        ),
        Bodies(shown),
    ]


def _middle(looked: Looked) -> list[str]:
    """Return what a picture of positions is of, where that is not the picture alone."""
    if looked.test.tracklets is None:
        return []
    frames = looked.test.tracklets.size.frames
    return [
        f"Each is the middle frame of a tracklet, which the network sees in a clip of {frames} frames around it."
    ]


def embedding_map(looked: Looked) -> list[Block]:
    """Return a map of the embeddings of some people."""
    names = looked.test.found.gallery["person"]
    people = looked.test.found.query["person"].unique().sort().to_list()
    count = min(looked.settings.people, len(people))
    drawn = sorted(np.random.default_rng(looked.settings.seed).choice(len(people), count, replace=False))
    shown = {people[index] for index in drawn}
    start = len(looked.test.found.query)
    rows = [start + row for row, name in enumerate(names) if name in shown]
    if len(rows) < 3:
        raise InputError(f"there are fewer than three gallery {looked.test.noun} to map")
    points, explained = looked.test.components(rows)
    figure = draw_map(points, [names[row - start] for row in rows], explained)
    caption = (
        f"Gallery {looked.test.noun} of {count} of {len(people)} people, drawn by lot, along the first two principal "
        "components of their features; a number stands at the median of its person"
    )
    return [Drawing("embedding-map", figure, caption)]


def looked_name(looked: Looked, row: int) -> str:
    """Return what a query is called in a line."""
    return ", ".join(_named(looked.test.found.query, row))


def _examples(looked: Looked) -> list[int]:
    """Return rows of the best, median and worst queries, in turns, none twice."""
    chosen = looked.chosen(looked.run.evaluation.headline).values()
    turns = [
        path for group in zip(*(table["query"].to_list() for table in chosen), strict=False) for path in group
    ]
    known = looked.rows()
    return [known[path] for path in dict.fromkeys(turns)]


def _people_once(table: pl.DataFrame, count: int) -> pl.DataFrame:
    return table.unique("person", keep="first", maintain_order=True).head(count)


def _named(table: pl.DataFrame, row: int) -> tuple[str, ...]:
    """Return what is known of a picture: person, clothes, camera."""
    facts = table.row(row, named=True)
    lines = [f"person {facts['person']}"]
    if facts.get("clothes") is not None:
        lines.append(f"clothes {facts['clothes']}")
    if facts.get("camera") is not None:
        lines.append(f"camera {facts['camera']}")
    return tuple(lines)
