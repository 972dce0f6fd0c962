"""Whether words go to their places in the body: the plans of local guidance on a rendered world's test people.

    python benchmarks/transport_plans.py WORLD RUN [RUN ...] [--out FOLDER] [--people 10] [--pictures 960]

WORLD is a folder of `synthesize layout=ltcc`, RUN a training with `loss.local`. Each test picture's map is
transported as in that training to the true words of its person, one of each group. Nobody told the run
where a word's part of the body is.

Printed, for each run and group: the mean height of the plan's mass over pictures, 0 the top of the crop and 1 the
bottom, beside 0.5 of a plan that spreads everything evenly, with a 95 % interval by resampling people; the spread of
the mass (the standard deviation of height; an even plan's is printed too); and the share of it in the middle half of
the crop's width, where the body is, beside 0.5. Then Spearman's rank
correlation of these heights with the order of the parts in a standing body (neck and shoulders, chest, waist and
belly, hips, legs; groups without one place, and arms, are left out), and the share of all orders of the groups whose
correlation is as high. Last, how much of the plans is the same whatever the picture shows: the squared distance of
their mean from an even plan, over the mean squared distance of each; and whether the length of a position, before it
is projected, tells body from background: how often one amid the crop is longer than one at its sides.

Drawn, for each run, FOLDER/RUN.png: ten people, the crop, and for some words where their mass comes from, in
multiples of an even plan's.
"""

import argparse
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image
from scipy.stats import rankdata

import clip3dreid
from clip3dreid.config.hydra import register
from clip3dreid.data.images import TestView
from clip3dreid.guidance.embeddings import text_targets
from clip3dreid.inference.pictures import batches
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.loss.word_term import WordTerm
from clip3dreid.model.teacher import load_teacher
from clip3dreid.report.tables import print_table
from clip3dreid.types import Batch, Dimensions

ORDER = {
    "neck_length": 0,
    "shoulders": 0,
    "chest": 1,
    "waist": 2,
    "belly": 2,
    "hips": 3,
    "leg_length": 4,
    "leg_girth": 4,
}
"""Where a group's part of the body lies, from the top."""
MOST = 4
"""Times an even plan's mass that are drawn in full colour."""
SHOWN = ("neck_length", "shoulders", "chest", "waist", "hips", "leg_length", "leg_girth", "arm_length")


def test_pictures(world: Path, count: int) -> pl.DataFrame:
    """Return the truth of about `count` test pictures, the same number of each person, spread over their pictures."""
    table = pl.read_parquet(world / "truth.parquet")
    table = table.filter((pl.col("split") == "test") & (pl.col("role") != "left_out"))
    each = max(1, count // table["person"].n_unique())
    groups = table.sort("path").partition_by("person", maintain_order=True)
    return pl.concat([group[np.linspace(0, len(group) - 1, each).round().astype(int)] for group in groups])


def built_term(run: Path, truth: pl.DataFrame, model: Any) -> tuple[WordTerm, list[str]]:
    """Return the run's own term with what it has learnt, told the true words of each picture, and its groups."""
    cfg = OmegaConf.load(run / "config.yaml")
    vocabulary: Vocabulary = instantiate(cfg.language, _convert_="all")
    numbers = {word: number for number, (_, word) in enumerate(vocabulary.flat)}
    groups = list(vocabulary.groups)
    chosen = np.array(
        [[numbers[row[f"word_{group}"]] for group in groups] for row in truth.iter_rows(named=True)]
    )
    words = text_targets(
        load_teacher(cfg.model.teacher),
        vocabulary,
        chosen,
        np.ones(chosen.shape, np.float32),
        mode="descriptor",
        by="row",
    )
    at = Dimensions(model.student.channels, model.student.width, 1, torch.empty(0), (words,))
    term = instantiate(cfg.loss.local.term)(at).eval()
    learnt = model.heads["joint"]
    with torch.no_grad():
        term.head.weight.copy_(learnt.get_buffer("weight")[:, :, None, None])
        term.head.bias.copy_(learnt.get_buffer("bias"))
    return term, groups


@torch.no_grad()
def plans(run: Path, world: Path, truth: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return each group's mass (N, h, w, G), 1 over all positions, lengths of positions (N, h, w), and groups."""
    model = clip3dreid.load(run)
    term, groups = built_term(run, truth, model)
    view = TestView(model.height, model.width, model.square)
    files, found, lengths, start = [world / path for path in truth["path"]], [], [], 0
    for images in batches(files, 64, view, model.device):
        rows = torch.arange(start, start + len(images))
        labels = Batch(images, rows, rows, rows, rows)
        features = model.student(images)
        found.append(term.plan(features, labels))
        lengths.append(features.map.norm(dim=1))
        start += len(images)
    mass = torch.cat(found).double().numpy()
    return mass / mass.sum((1, 2), keepdims=True), torch.cat(lengths).numpy(), groups


def heights(plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the height of each group's mass, (N, G) each, 0 top and 1 bottom."""
    rows = (np.arange(plan.shape[1]) + 0.5) / plan.shape[1]
    by_row = plan.sum(2)  # (N, h, G)
    mean = np.einsum("nhg,h->ng", by_row, rows)
    return mean, np.sqrt(np.einsum("nhg,h->ng", by_row, rows**2) - mean**2)


def middle(plan: np.ndarray) -> np.ndarray:
    """Return the share of each group's mass in the middle half of the width, (N, G); maps have 4 columns or more."""
    width = plan.shape[2]
    return plan[:, :, width // 4 : width - width // 4].sum((1, 2))


def spearman(values: np.ndarray, order: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(values), rankdata(order))[0, 1])


def order_test(mean: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """Return the rank correlation of heights (G,) with the body's order, and the share of orders that do as well."""
    values = rankdata([mean[groups.index(group)] for group in ORDER])
    order = np.array(list(ORDER.values()))
    all_orders = np.array(list(permutations(values)))
    centred = rankdata(order) - rankdata(order).mean()
    reached = all_orders @ centred
    return spearman(values, order), float((reached >= values @ centred - 1e-9).mean())


def by_person(values: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Return means (P, G) over people of values (N, G)."""
    return np.stack([values[person == one].mean(0) for one in np.unique(person)])


def longer(length: np.ndarray) -> float:
    """Return how often a position of the middle half of the width is longer than one beside it; not at head and feet.

    1 if the length of a position (N, h, w) told body from background, 0.5 if it says nothing.
    """
    rows, quarter = length[:, 1:-1], length.shape[2] // 4
    inner = rows[:, :, quarter:-quarter].reshape(len(length), -1)
    outer = np.delete(rows, np.s_[quarter:-quarter], axis=2).reshape(len(length), -1)
    return float((inner[:, :, None] > outer[:, None]).mean())


def report(name: str, plan: np.ndarray, groups: list[str], person: np.ndarray) -> None:
    mean, spread = heights(plan)
    people = by_person(mean, person)
    drawn = np.random.default_rng(1).integers(len(people), size=(2000, len(people)))
    low, high = np.percentile(people[drawn].mean(1), [2.5, 97.5], axis=0)
    even = heights(np.full((1, *plan.shape[1:3], 1), 1 / np.prod(plan.shape[1:3])))[1][0, 0]
    inside = middle(plan)
    lines = [
        [
            group,
            *(f"{values[:, g].mean():.3f}" for values in (people, spread, inside)),
            f"{low[g]:.3f} to {high[g]:.3f}",
        ]
        for g, group in sorted(enumerate(groups), key=lambda pair: people[:, pair[0]].mean())
    ]
    seen = f"{len(plan)} pictures of {len(people)} people"
    print_table(
        f"{name}: where each group's mass is, {seen} (even: height 0.500, spread {even:.3f}, middle 0.500)",
        ["group", "height", "spread", "middle", "height, 95 % over people"],
        lines,
    )
    rho, share = order_test(people.mean(0), groups)
    places = [groups.index(group) for group in ORDER]
    own = [spearman(row[places], np.array(list(ORDER.values()))) for row in people]
    print(f"rank correlation with the body's order {rho:+.2f}; {100 * share:.1f} % of all orders reach it;")
    print(
        f"person by person {np.mean(own):+.2f} (above 0 for {100 * np.mean(np.array(own) > 0):.0f} % of people)"
    )
    print(f"{100 * sameness(plan):.0f} % of the plans is the same in all pictures")


def sameness(plan: np.ndarray) -> float:
    """Return the share of plans (N, h, w, G) that does not depend on the picture, 0..1."""
    excess = plan - 1 / np.prod(plan.shape[1:3])
    return float((excess.mean(0) ** 2).sum() / (excess**2).sum((1, 2, 3)).mean())


def draw(
    path: Path, plan: np.ndarray, groups: list[str], truth: pl.DataFrame, world: Path, people: int
) -> None:
    """Draw a picture each of some people: the crop, and the mass of some words on it."""
    rows = np.linspace(0, len(truth) - 1, people).round().astype(int)
    shown = [group for group in SHOWN if group in groups]
    figure = Figure(figsize=(1.1 * (len(shown) + 1), 2.3 * people + 0.6), dpi=100)
    grid = figure.subplots(people, len(shown) + 1, squeeze=False)
    figure.subplots_adjust(0.01, 0.03, 0.99, 0.98, 0.08, 0.12)
    positions = plan.shape[1] * plan.shape[2]
    for line, row in zip(grid, rows, strict=True):
        facts = truth.row(int(row), named=True)
        with Image.open(world / facts["path"]) as opened:
            picture = opened.convert("RGB").resize((128, 256))
        line[0].imshow(picture)
        line[0].set_title(f"person {facts['person']}", fontsize=8)
        for axes, group in zip(line[1:], shown, strict=True):
            mass = positions * plan[row, :, :, groups.index(group)] / MOST
            axes.imshow(np.asarray(picture.convert("L")) // 2 + 120, cmap="gray", vmin=0, vmax=255)
            axes.imshow(
                np.ones_like(mass), cmap="Reds", vmin=0, vmax=1.3, alpha=0.85 * mass.clip(0, 1),
                extent=(0, 128, 256, 0), interpolation="nearest",
            )  # fmt: skip
            axes.set_title(facts[f"word_{group}"], fontsize=7)
    for axes in grid.flat:
        axes.set_axis_off()
    figure.text(0.01, 0.005, f"white: no mass; red: {MOST} times an even plan's, or more", fontsize=9)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=960)
    arguments = parser.parse_args()
    register()
    truth = test_pictures(arguments.world, arguments.pictures)
    for run in arguments.runs:
        plan, length, groups = plans(run, arguments.world, truth)
        report(run.name, plan, groups, truth["person"].to_numpy())
        print(
            f"a position amid the crop is longer than one at its sides in {100 * longer(length):.0f} % of pairs\n"
        )
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            draw(arguments.out / f"{run.name}.png", plan, groups, truth, arguments.world, arguments.people)


if __name__ == "__main__":
    main()
