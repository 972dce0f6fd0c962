"""How near labelling comes to what decoding and the teacher's forward allow.

    python benchmarks/labelling.py --root worlds/ltcc [--pictures 1200]

Times, in one process without loader workers: decoding and resampling alone, the shipped teacher's forward alone, and
all of it as `clip3dreid label` does it, with the embeddings written to disk. `share` is (decode +
forward) / whole: 1 is the floor. Medians of interleaved rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.data.datasets import ltcc
from clip3dreid.guidance.embeddings import embed_pictures
from clip3dreid.io.pictures import read_rgb
from clip3dreid.model.teacher import load_teacher
from clip3dreid.report.tables import print_table

BATCH = 64


def main() -> None:
    register()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="a data set in the layout of LTCC")
    parser.add_argument("--pictures", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        teacher = load_teacher(compose("label").model.teacher)
    manifest = ltcc.read(arguments.root.absolute())
    table = manifest.part("train").head(arguments.pictures)
    files = manifest.files(table)

    def decode() -> torch.Tensor:
        planes = (np.ascontiguousarray(read_rgb(path).transpose(2, 0, 1)) for path in files)
        return torch.cat([teacher.view(torch.from_numpy(plane)[None]) for plane in planes])

    pictures = decode()

    def forward() -> None:
        for batch in pictures.split(BATCH):
            teacher(batch)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            how = {"cache": "disk", "folder": Path(folder) / "c", "batch": BATCH, "workers": 0}
            embed_pictures(teacher, manifest, table, **how, progress=lambda done: None)

    times: dict[str, list[float]] = {"decode": [], "forward": [], "whole": []}
    steps: dict[str, Callable[[], object]] = {"decode": decode, "forward": forward, "whole": whole}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(values) for name, values in times.items()}
    count = len(files)
    print_table(
        f"{count} pictures, {torch.get_num_threads()} threads",
        ["", "pictures a second"],
        [[name, count / seconds] for name, seconds in middle.items()],
    )
    print(
        f"share of what decoding and forward allow: {(middle['decode'] + middle['forward']) / middle['whole']:.3f}"
    )


if __name__ == "__main__":
    main()
