"""How hard is the embedded world: chance, colour, skin and hair, `ce`, and a network that is told the shapes.

    python benchmarks/world_difficulty.py --seed 101 --out worlds/difficulty [--set world.people.shape_spread=3 …]

For one seed it writes the demo's world (150 people to train on, 40 to test) and a second world of other people whose
shapes a probe may look at, and prints R1 and mAP on the test people under same clothes and clothes changing:

- `colour`: the colour histogram of benchmarks/colour_histogram.py, nothing trained.
- `skin and hair`: what knowing nothing but a person's complexion gives, expected over ties, from the truth.
- `ce`: `clip3dreid train +experiment=demo`, trained on the 150.
- `probe`: the same network, trained on the second world to regress shape coefficients from clothed crops, components
  beyond stature standardised; its predictions are compared by distance. It says that shape can be learned, and
  is no method: it needs the shapes.

Difficulty was set with calibration seeds (101, 102, 103) and `ce` alone, and then frozen (docs/world.md).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from colour_histogram import histogram
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.io.pictures import read_rgb
from clip3dreid.model.student import Student
from clip3dreid.report.tables import print_table
from clip3dreid.retrieval.evaluation import evaluate

PROTOCOLS = ("same_clothes", "clothes_changing")
SIZE = (128, 64)


def synthesize(out: Path, seed: int, train: int, test: int, settings: list[str]) -> float:
    """Seconds that writing the world took; 0 where it was there."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "clip3dreid", "synthesize", "layout=ltcc", f"out={out}", f"seed={seed}"]
    command += [f"train_people={train}", f"test_people={test}", "workers=2", *settings]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return 0.0 if "complete already" in done.stdout else time.perf_counter() - start


def pixels(root: Path, table: pl.DataFrame) -> torch.Tensor:
    """(N, 3, H, W) uint8."""
    from PIL import Image

    shape = (SIZE[1], SIZE[0])
    pictures = [np.asarray(Image.fromarray(read_rgb(root / path)).resize(shape)) for path in table["path"]]
    return torch.as_tensor(np.stack(pictures)).permute(0, 3, 1, 2)


def scores(
    query: torch.Tensor, gallery: torch.Tensor, tables: list[pl.DataFrame], metric: str
) -> dict[str, dict]:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("inspect_data", [f"protocol=[{','.join(PROTOCOLS)}]", "data=ltcc"])
    protocols = {name: instantiate(node) for name, node in cfg.protocol.items()}
    found = evaluate(query, tables[0], gallery, tables[1], protocols, metric=metric)
    return {name: evaluation.result() for name, evaluation in found.items()}


def skin_and_hair(query: pl.DataFrame, gallery: pl.DataFrame) -> dict[str, float]:
    """Return the expected R1 of a ranking that knows complexions alone and is random among equals."""
    rows = {}
    for name, same_outfit in (("same_clothes", True), ("clothes_changing", False)):
        chances = []
        for row in query.iter_rows(named=True):
            own = pl.col("person") == row["person"]
            outfit = (pl.col("clothes") == row["clothes"]) == same_outfit
            kept = gallery.filter(~own | ((pl.col("camera") != row["camera"]) & outfit))
            alike = kept.filter(pl.col("identity_complexion") == row["identity_complexion"])
            positives = alike.filter(own)
            if len(kept.filter(own)):
                chances.append(len(positives) / max(1, len(alike)))
        rows[name] = float(np.mean(chances))
    return rows


class Probe(torch.nn.Module):
    """The demo's student with a linear head for the shape coefficients beyond stature."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            cfg = compose("train", ["+experiment=demo", "data.root=x"])
        self.student: Student = instantiate(cfg.model.student)
        self.head = torch.nn.Linear(self.student.width, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 to (B, outputs)."""
        out: torch.Tensor = self.head(self.student(images.float() / 255).embedding)
        return out


def varied(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirrored, shifted by up to 3 pixels, brighter or darker, colour channels exchanged: shapes stay as they are."""
    draw = torch.rand(4, generator=generator)
    if draw[0] < 0.5:
        images = images.flip(-1)
    gain = 0.7 + 0.6 * torch.rand(len(images), 3, 1, 1, generator=generator)
    coloured = (images.float() * gain).clamp(0, 255)[:, torch.randperm(3, generator=generator)]
    down, right = (int(7 * value) - 3 for value in draw[1:3])
    return torch.roll(coloured, (down, right), (2, 3))


def train_probe(images: torch.Tensor, targets: torch.Tensor, epochs: int) -> Probe:
    torch.manual_seed(0)
    probe = Probe(targets.shape[1]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=5e-2)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for batch in order.split(64):
            if len(batch) < 64:
                continue
            loss = torch.nn.functional.mse_loss(probe(varied(images[batch], generator)), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe.eval()


@torch.no_grad()
def predictions(probe: Probe, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([probe(part) for part in images.split(128)])


def main() -> None:
    register()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--probe-people", type=int, default=1000)
    parser.add_argument("--probe-epochs", type=int, default=20)
    parser.add_argument("--set", nargs="*", default=[], help="keys of the world, as for synthesize")
    parser.add_argument("--train", nargs="*", default=[], help="keys of the training, as for train")
    parser.add_argument("--without", nargs="*", default=[], choices=["ce", "probe"])
    arguments = parser.parse_args()
    world = arguments.out / f"world_{arguments.seed}"
    seconds = synthesize(world, arguments.seed, 150, 40, arguments.set)
    truth = pl.read_parquet(world / "truth.parquet")
    print(f"{len(truth)} pictures in {seconds:.0f} s")
    tables = [truth.filter((pl.col("split") == "test") & (pl.col("role") == r)) for r in ("query", "gallery")]
    rows: dict[str, dict[str, dict]] = {}
    colour = [
        torch.as_tensor(np.stack([histogram(world / path) for path in table["path"]])) for table in tables
    ]
    rows["colour"] = scores(*colour, tables, "cosine")
    chance = {name: {"r1": rows["colour"][name]["chance_r1"], "map": float("nan")} for name in PROTOCOLS}
    complexion = {n: {"r1": r1, "map": float("nan")} for n, r1 in skin_and_hair(*tables).items()}
    rows = {"chance": chance, "skin and hair": complexion} | rows
    if "ce" not in arguments.without:
        run = arguments.out / f"ce_{arguments.seed}"
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "clip3dreid.train",
            "+experiment=demo",
            f"data.root={world}",
            "seed=1",
        ]
        command += [f"hydra.run.dir={run}", *arguments.train]
        subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"ce: {time.perf_counter() - start:.0f} s")
        results = json.loads((run / "results.json").read_text())
        rows["ce"] = results["evaluations"][0]["results"]
    if "probe" not in arguments.without:
        other = arguments.out / f"probe_{arguments.seed}"
        synthesize(
            other,
            10_000 + arguments.seed,
            arguments.probe_people,
            1,
            [*arguments.set, "layout.outfits=2", "layout.seen=2"],
        )
        shown = pl.read_parquet(other / "truth.parquet").filter(pl.col("split") == "train")
        betas = torch.tensor(shown["betas"].to_list())[:, 1:]
        start = time.perf_counter()
        probe = train_probe(pixels(other, shown), betas / betas.std(0), arguments.probe_epochs)
        print(
            f"probe: {len(shown)} pictures of {arguments.probe_people} people, {time.perf_counter() - start:.0f} s"
        )
        found = [predictions(probe, pixels(world, table)) for table in tables]
        true = torch.tensor(tables[1]["betas"].to_list())[:, 1:]
        correlation = [float(np.corrcoef(found[1][:, i], true[:, i])[0, 1]) for i in range(true.shape[1])]
        print("correlations of components 2 to 10:", *(f"{value:.2f}" for value in correlation))
        rows["probe"] = scores(*found, tables, "euclidean")
    print_table(
        f"seed {arguments.seed}, {' '.join(arguments.set) or 'as shipped'}",
        ["", *(f"{name} {what}, %" for name in PROTOCOLS for what in ("R1", "mAP"))],
        [
            [row, *(100 * results[n][w] for n in PROTOCOLS for w in ("r1", "map"))]
            for row, results in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
