"""Does a training on a pack come out as one on the files? `python benchmarks/packed_training.py DATA [--out FOLDER]`.

DATA is a rendered world in LTCC's layout. The demo's student learns it with `ce`, without colour jitter (which is a
CPU's to do), from a pack whose augmentation is left to the device and from the files, with the same seeds: the same
batches, windows, mirror images and rectangles, so that a seed's two runs differ by grey levels alone. With
`augment_on=worker` the two would be the same to the last bit, which a test holds. What is in the folder is not
trained again. Prints R1 and mAP of the last checkpoint, clothes changing, and the differences with a 95 %
interval of the mean over seeds (Student's t).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t

WAYS = ("files", "pack")


def command(name, *words):
    subprocess.run([sys.executable, "-m", "clip3dreid", name, *words], check=True, stdout=subprocess.DEVNULL)


def scores(folder):
    found = json.loads((folder / "results.json").read_text())["evaluations"]
    result = next(one for one in found if one["checkpoint"] == "last")["results"]["clothes_changing"]
    return 100 * result["r1"], 100 * result["map"]


def trained(way, seed, data, out, epochs):
    """Train, unless that is done, and return the scores."""
    folder = out / f"{way}_{seed}"
    if not (folder / "results.json").exists():
        pack = (f"datamodule.pack={out / 'pack'}", "datamodule.augment_on=device") if way == "pack" else ()
        command(
            *(
                "train",
                "+experiment=demo",
                f"data.root={data}",
                "method=ce",
                f"seed={seed}",
                f"epochs={epochs}",
            ),
            *(f"milestones=[{2 * epochs // 3},{7 * epochs // 8}]", "datamodule.train_view.extra=[]"),
            *("datamodule.keep_pictures=true", "output=quiet", f"hydra.run.dir={folder}", *pack),
        )
    return scores(folder)


def main(data, out, seeds, epochs):
    command("pack", "data=embedded", f"data.root={data}", f"out={out / 'pack'}", "height=128", "width=64")
    values = np.array(
        [[trained(way, seed, data, out, epochs) for way in WAYS] for seed in seeds]
    )  # (S, 2, 2)
    for number, way in enumerate(WAYS):
        r1, precision = values[:, number].T
        print(f"{way:6} R1 {np.round(r1, 1)} mean {r1.mean():.1f}", end="; ")
        print(f"mAP {np.round(precision, 1)} mean {precision.mean():.1f}")
    for number, name in enumerate(("R1", "mAP")):
        apart = values[:, 1, number] - values[:, 0, number]
        half = t.ppf(0.975, len(seeds) - 1) * apart.std(ddof=1) / len(seeds) ** 0.5
        print(
            f"pack - files, {name}: {apart.mean():+.2f} ({apart.mean() - half:+.2f} to {apart.mean() + half:+.2f})"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("packed_training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=20)
    main(**vars(parser.parse_args()))
