"""How long evaluation takes beside the matrix product that it cannot do without, and how much memory.

    python benchmarks/ranking.py [--width 512 4096] [--sizes market1501 ltcc msmt17 last] [--queries 2000]
    python benchmarks/ranking.py --device cuda [--rows 1000000]

Features are made up: a good model's (mAP near 1) and an untrained one's, whose positives lie among the negatives.
Times are in milliseconds a query, the least of interleaved repeats, in brackets as multiples of the product:

- `product`: the matrix product in blocks, and nothing else;
- `ranking`: one protocol's evaluation without the products inside it;
- `evaluation`: one protocol's, from features and tables of labels to scores, as `evaluate` returns them;
- `three`: general, clothes changing and same clothes at once;
- `open set`: the three with TPR at FPR 1e-4, 1e-3 and 1e-2, if asked for (--open-set);
- `argsort`: a full sort of every row alone, what a plain implementation starts with;
- `cython`: torchreid's compiled evaluation of ready distances, or fast-reid's, which descends from it, if installed.

On a GPU (`--device cuda`) features are there, times are the clock's with the device at rest before and after, and
behind the evaluations of `--sizes` (by default MSMT17's) stands the exact search, `top_k`, in `--rows` rows beside
the product in the same blocks. Features are drawn on the device; float32 products run without TF32.

By default times are those of the processor (--clock cpu), which other programs disturb less; several threads need
--clock wall. Memory is the highest during the three protocols, above what the program and the features take before.
"""

import argparse
import importlib
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import torch

from clip3dreid.retrieval import ranking, similarity
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import (
    Protocol,
    encode,
    same_camera,
    same_camera_or_clothes,
    same_camera_or_other_clothes,
)
from clip3dreid.retrieval.protocol_counts import prepare
from clip3dreid.search import top_k as top

SIZES = {  # queries, gallery, people
    "ltcc": (493, 7_050, 75),
    "market1501": (3_368, 15_913, 750),
    "msmt17": (11_659, 82_161, 3_060),
    "last": (10_176, 125_353, 5_805),
}
ONE = {"general": Protocol("general", same_camera, "")}
TWO = {**ONE, "clothes_changing": Protocol("clothes_changing", same_camera_or_clothes, "")}
THREE = {**TWO, "same_clothes": Protocol("same_clothes", same_camera_or_other_clothes, "")}
RATES = (1e-4, 1e-3, 1e-2)
CYTHON = (
    "torchreid.metrics.rank_cylib.rank_cy",
    "torchreid.reid.metrics.rank_cylib.rank_cy",
    "fastreid.evaluation.rank_cylib.rank_cy",
    "rank_cy",
)
SORTED = 100
"""Rows that full sorts and compiled evaluations are timed on."""


def side(rows, people, width, noise, seed, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    person = rng.integers(people, size=rows)
    centres = np.random.default_rng(0).standard_normal((people, width), dtype=np.float32)
    features = torch.empty(rows, width, dtype=dtype)
    for start in range(0, rows, 4096):
        part = slice(start, start + 4096)
        spread = rng.standard_normal((len(person[part]), width), dtype=np.float32)
        features[part] = torch.from_numpy(centres[person[part]] + np.float32(noise) * spread).to(dtype)
    outfit = [f"{p}_{c}" for p, c in zip(person, rng.integers(3, size=rows), strict=True)]
    table = pl.DataFrame(
        {"person": person.astype(str), "camera": rng.integers(6, size=rows).astype(str), "clothes": outfit}
    )
    return features, table


def cython():
    """Return the compiled evaluation that is installed, or None."""
    for name in CYTHON:
        try:
            return importlib.import_module(name).evaluate_cy
        except ImportError:
            continue
    return None


def resident():
    """MiB of its own that the program holds, files that it maps aside; None where Linux does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), None)


def highest_of(call):
    """MiB that a call takes at its highest, looked at every few milliseconds; None where Linux does not say."""
    before = resident()
    if before is None:
        return None
    seen, done = [before], threading.Event()

    def look():
        while not done.wait(0.003):
            seen.append(resident())

    watcher = threading.Thread(target=look)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(seen) - before


def measure(size, width, noise, options):
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    queries, items, people = SIZES[size]
    queries = min(queries, options.queries or queries)
    dtype = getattr(torch, options.dtype)
    query, query_table = side(queries, people, width, noise, 1, dtype)
    gallery, gallery_table = side(items, people, width, noise, 2, dtype)
    rows = ranking.block_rows(items, 2 * items // people, 4)
    real = similarity.SimilarityBlocks.block
    spent = {"product": 0.0}

    def time_of(call):
        start = clock()
        call()
        return clock() - start

    def product():
        scores = torch.empty(min(rows, queries), items, dtype=dtype)
        for start in range(0, queries, rows):
            block = query[start : start + rows]
            torch.mm(block, gallery.T, out=scores[: len(block)])

    def timed_block(self, block):
        start = clock()
        scores = real(self, block)
        spent["product"] += clock() - start
        return scores

    def evaluation(protocols=ONE, **keys):
        return evaluate(query, query_table, gallery, gallery_table, protocols, **keys)

    def beside_products():
        spent["product"] = 0.0
        with mock.patch.object(similarity.SimilarityBlocks, "block", timed_block):
            return time_of(evaluation) - spent["product"]

    watched = {"open_set": RATES} if options.open_set else {}
    memory = highest_of(lambda: evaluation(THREE, **watched))
    parts = {
        "product": lambda: time_of(product),
        "evaluation": lambda: time_of(evaluation),
        "three": lambda: time_of(lambda: evaluation(THREE)),
        "ranking": beside_products,
    }
    if options.open_set:
        parts["open set"] = lambda: time_of(lambda: evaluation(THREE, open_set=RATES))
    some = similarity.SimilarityBlocks(query, gallery).block(torch.arange(min(SORTED, queries))).copy()
    share = len(some) / queries
    parts["argsort"] = lambda: time_of(lambda: torch.from_numpy(some).argsort(dim=1, descending=True)) / share
    compiled = cython()
    if compiled is not None:
        labels = [
            table[column].cast(pl.Int64).to_numpy().copy()
            for column in ("person", "camera")
            for table in (query_table[: len(some)], gallery_table)
        ]
        parts["cython"] = lambda: time_of(lambda: compiled(-some, *labels, 50)) / share
    times = {name: [] for name in parts}
    for _ in range(options.repeats):
        for name, part in parts.items():
            times[name].append(part())
    least = {name: min(values) / queries * 1e3 for name, values in times.items()}
    return least, evaluation()["general"].result()["map"], memory


def elapsed(call, device, repeats):
    """Seconds of a call, the least of several, with the device at rest before and after."""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def evaluation_on_device(size, width, model, noise, options):
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    queries, items, people = SIZES[size]
    queries = min(queries, options.queries or queries)
    query, query_table = side(queries, people, width, noise, 1, dtype)
    gallery, gallery_table = side(items, people, width, noise, 2, dtype)
    some = evaluate(query[:100], query_table[:100], gallery, gallery_table, ONE)["general"].per_query
    query, gallery = query.to(device), gallery.to(device)
    rows = ranking.block_rows(items, 2 * items // people, 4, ranking.DEVICE_MEMORY)
    blocks = [torch.arange(start, min(start + rows, queries)) for start in range(0, queries, rows)]
    source = similarity.SimilarityBlocks(query, gallery)

    def evaluation(protocols=ONE, count=queries):
        return evaluate(query[:count], query_table[:count], gallery, gallery_table, protocols)

    pairs = ranking.SamePerson(*encode(query_table, gallery_table))
    jobs = [prepare(ONE["general"], pairs, query_table, gallery_table)[0]]
    parts = {
        "product": lambda: [source.tensor(block) for block in blocks],
        "ranking": lambda: ranking.rank(source, pairs, jobs, device=device),
        "evaluation": evaluation,
        "three": lambda: evaluation(THREE),
    }
    report(f"{size} {width} {model}", parts, queries, device, options)
    here = evaluation(count=100)["general"].per_query
    same = (some.first_hit == here.first_hit).double().mean().item()
    score = evaluation()["general"].result()["map"]
    print(f"  mAP {score:.4f}; first hits of 100 queries as on the CPU: {same:.0%}", flush=True)


def on_device(options):
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    name = torch.cuda.get_device_name(device)
    print(f"{name}, torch {torch.__version__}, {options.dtype}; ms a query (share of the product's)")
    for size in options.sizes:
        for width in options.width:
            for model, noise in (("good", 1.0), ("untrained", 40.0)):
                evaluation_on_device(size, width, model, noise, options)
    generator = torch.Generator(device).manual_seed(0)
    gallery = torch.randn(options.rows, 512, device=device, generator=generator)
    gallery = torch.nn.functional.normalize(gallery).to(dtype)
    query = torch.nn.functional.normalize(
        gallery[:1024].float() + 0.05 * torch.randn(1024, 512, device=device)
    )
    width = min(top.ROWS, top.DEVICE_MEMORY // 4 // 1024)
    scores = torch.empty(1024, width, device=device)

    def product():
        for block in gallery.split(width):
            torch.mm(query, block.float().T, out=scores[:, : len(block)])

    parts = {"product": product, "top 50": lambda: top.top_k(query, gallery, 50, "product")}
    report(f"search in {options.rows:,} x 512", parts, len(query), device, options)
    found = top.top_k(query[:20], gallery, 50, "product")
    plain = (query[:20] @ gallery.float().T).topk(50)
    print(
        f"  scores as of one whole product: {(found.scores - plain.values).abs().max().item():.1e} apart at most"
    )


def report(what, parts, queries, device, options):
    times = {name: elapsed(part, device, options.repeats) / queries * 1e3 for name, part in parts.items()}
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    cells = (f"{name} {ms:.4f} ({ms / times['product']:.2f})" for name, ms in times.items())
    print(f"{what:28}", "  ".join(cells), f" {peak:.1f} GiB at most", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES)
    parser.add_argument("--queries", type=int, default=0, help="at most so many; 0: all")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--open-set", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the search on a device")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    options.sizes = options.sizes or (["ltcc", "market1501"] if on_cpu else ["msmt17"])
    if not on_cpu:
        on_device(options)
        return
    torch.set_num_threads(options.threads)
    print(
        f"{options.threads} thread(s), {options.dtype}, {options.clock} clock; ms a query (share of the product's)"
    )
    for size in options.sizes:
        for width in options.width:
            for model, noise in (("good", 1.0), ("untrained", 40.0)):
                least, score, memory = measure(size, width, noise, options)
                cells = (f"{name} {ms:.3f} ({ms / least['product']:.2f})" for name, ms in least.items())
                extra = "" if memory is None else f"  {memory:.0f} MiB above the features"
                print(f"{size:10} {width:4} {model:9} mAP {score:.2f}  ", "  ".join(cells), extra, flush=True)


if __name__ == "__main__":
    main()
