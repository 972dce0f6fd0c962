"""What models are worth on people whom they were never shown: a table of scores, beside what needs no model.

    python benchmarks/zero_shot.py body_student [MODEL ...] --pku FOLDER
    python benchmarks/zero_shot.py body_student [MODEL ...] --worlds WORLD [WORLD ...]

MODEL is whatever `clip3dreid.load` takes. FOLDER is PKU-Reid, of which every person's pictures of camera 1 are looked
for among those of camera 2: all people, and each half of them (`split_seed=0`), so that what was chosen by one half
is judged by the other. WORLD is a rendered world in LTCC's layout. Beside the models: raw pixels (a crop of 32x16,
less its mean), and the colour histogram of `colour_histogram.py`.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from colour_histogram import histogram

import clip3dreid
from clip3dreid.data.datasets import ltcc, pku_reid
from clip3dreid.data.manifest import Manifest
from clip3dreid.io.pictures import read_rgb
from clip3dreid.training.evaluated import Evaluated


def pixels(path: Path) -> np.ndarray:
    """(1536,) float32 about the picture's mean."""
    small = cv2.resize(read_rgb(path), (16, 32), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return small - small.mean()


def halves(root: Path) -> dict[str, Manifest]:
    """Return PKU-Reid's people, all and each half of them, as test people."""
    whole = pku_reid.read(root, train_fraction=0)
    people = whole.table["person"].unique()
    later = set(pku_reid.read(root, train_fraction=0.5, split_seed=0).part("test")["person"])
    first = set(people) - later
    return {
        "all people": whole,
        "first half": only(whole, first),
        "second half": only(whole, later),
    }


def only(manifest: Manifest, people: set[int]) -> Manifest:
    return manifest.replace(table=manifest.table.filter(manifest.table["person"].is_in(list(people))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*")
    parser.add_argument("--pku", type=Path)
    parser.add_argument("--worlds", type=Path, nargs="*", default=[])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    sets = halves(arguments.pku) if arguments.pku else {}
    sets |= {world.name: ltcc.read(world) for world in arguments.worlds}
    for name, manifest in sets.items():
        # Nobody changes clothes in PKU-Reid.
        protocols = ["general"] if manifest.name == "pku_reid" else ["same_clothes", "clothes_changing"]
        files = manifest.files(manifest.part("test"))
        for what, make in (("raw pixels", pixels), ("colour histogram", histogram)):
            features = np.stack([make(path) for path in files])
            show(name, what, clip3dreid.evaluate(features, manifest, protocol=protocols))
        for model in arguments.models:
            loaded = clip3dreid.load(model, device=arguments.device)
            show(name, model, clip3dreid.evaluate(loaded, manifest, protocol=protocols))


def interval(row: dict[str, float], key: str) -> str:
    return f"{100 * row[key]:5.1f} ({100 * row[key + '_low']:.1f} to {100 * row[key + '_high']:.1f})"


def show(people: str, what: str, scores: Evaluated) -> None:
    for row in scores.to_polars().iter_rows(named=True):
        print(
            f"{people:12} {what:40} {row['protocol']:16} R1 {interval(row, 'r1')}  mAP {interval(row, 'map')}"
            f"  {row['people']} people"
        )


if __name__ == "__main__":
    main()
