"""How long a search of a gallery in Python takes, against the bare product of its features.

    python benchmarks/gallery.py [--pictures 100000] [--width 512]

One query and 64, exact, ten hits each, features alone; with a filter by camera; and adding 1,000 features. Medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import polars as pl
import torch

from clip3dreid.report.tables import print_table
from clip3dreid.search.filters import Filter
from clip3dreid.search.gallery import _Live, _Rows
from clip3dreid.search.top_k import unit


def milliseconds(job: Callable[[], object], rounds: int = 30) -> float:
    job()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    features = unit(torch.randn(arguments.pictures, arguments.width), "picture")
    rows = _Rows(arguments.width)
    rows.append(features)
    camera = [str(row % 5) for row in range(arguments.pictures)]
    index = _Live(rows, pl.DataFrame({"camera": camera}))
    one, many, new = (torch.randn(count, arguments.width) for count in (1, 64, 1000))
    jobs = {
        "one query": milliseconds(lambda: index.search(one, 10, Filter())),
        "the bare product of one": milliseconds(lambda: one @ features.T),
        "one query of camera 2": milliseconds(lambda: index.search(one, 10, Filter(camera=2))),
        "each of 64 queries": milliseconds(lambda: index.search(many, 10, Filter()), 10) / 64,
        "adding 1,000 features": milliseconds(lambda: rows.append(unit(new, "picture"))),
    }
    what = f"{arguments.pictures:,} x {arguments.width}, {torch.get_num_threads()} threads"
    print_table(what, ["", "ms"], [[name, f"{value:.2f}"] for name, value in jobs.items()])


if __name__ == "__main__":
    main()
