"""How long evaluation takes beside the matrix product that it cannot do without, and how much memory.

    python benchmarks/ranking.py [--width 512] [--repeats 5] [--sizes market1501 ltcc msmt17]

Times are medians of interleaved repeats, in milliseconds a query, on made-up features of the given sizes: a good
model (mAP near 1) and an untrained one, whose positives lie among the strangers. On a busy machine only the
ratios mean something. `argsort` is a full sort of every row alone, what a plain implementation starts with.
"""

import argparse
import resource
import statistics
import time
from unittest import mock

import numpy as np
import polars as pl
import torch

from clip3dreid.retrieval import ranking
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import Protocol, same_camera, same_camera_or_clothes

SIZES = {  # queries, gallery, people
    "ltcc": (493, 7_050, 75),
    "market1501": (3_368, 15_913, 750),
    "msmt17": (11_659, 82_161, 3_060),
}
ONE = {"general": Protocol("general", same_camera, "")}
TWO = {**ONE, "clothes_changing": Protocol("clothes_changing", same_camera_or_clothes, "")}


def side(rows, people, width, noise, seed):
    rng = np.random.default_rng(seed)
    person = rng.integers(people, size=rows)
    centres = np.random.default_rng(0).standard_normal((people, width), dtype=np.float32)
    features = centres[person] + np.float32(noise) * rng.standard_normal((rows, width), dtype=np.float32)
    outfit = [f"{p}_{c}" for p, c in zip(person, rng.integers(3, size=rows), strict=True)]
    table = pl.DataFrame(
        {"person": person.astype(str), "camera": rng.integers(6, size=rows).astype(str), "clothes": outfit}
    )
    return torch.from_numpy(features), table


def time_of(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(size, width, noise, repeats):
    queries, items, people = SIZES[size]
    query, query_table = side(queries, people, width, noise, 1)
    gallery, gallery_table = side(items, people, width, noise, 2)
    rows = ranking.block_rows(items, 2 * items // people, 4)
    scores = torch.empty(min(rows, queries), items)
    real = ranking._products

    def product():
        for start in range(0, queries, rows):
            block = query[start : start + rows]
            torch.mm(block, gallery.T, out=scores[: len(block)])

    def argsort():
        scores[:100].argsort(dim=1, descending=True)

    def evaluation(protocols):
        return evaluate(query, query_table, gallery, gallery_table, protocols)

    def timed_products(*arguments):
        products = real(*arguments)
        while True:
            start = time.perf_counter()
            block = next(products, None)
            spent["product"] += time.perf_counter() - start
            if block is None:
                return
            yield block

    times = {"product": [], "ranking": [], "evaluation": [], "two protocols": [], "argsort": []}
    for _ in range(repeats):
        spent = {"product": 0.0}
        times["product"].append(time_of(product))
        times["evaluation"].append(time_of(lambda: evaluation(ONE)))
        times["two protocols"].append(time_of(lambda: evaluation(TWO)))
        with mock.patch.object(ranking, "_products", timed_products):
            whole = time_of(lambda: evaluation(ONE))
        times["ranking"].append(whole - spent["product"])
        times["argsort"].append(time_of(argsort) * queries / 100)
    medians = {name: statistics.median(values) / queries * 1e3 for name, values in times.items()}
    return medians, evaluation(ONE)["general"].result()["map"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["ltcc", "market1501"])
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {options.width} wide; ms a query, and share of the product's")
    for size in options.sizes:
        for model, noise in (("good", 1.0), ("untrained", 40.0)):
            medians, score = measure(size, options.width, noise, options.repeats)
            cells = (f"{name} {ms:.3f} ({ms / medians['product']:.2f})" for name, ms in medians.items())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{size:10} {model:9} mAP {score:.2f}  ", "  ".join(cells), f"  peak {peak:.0f} MiB so far")


if __name__ == "__main__":
    main()
