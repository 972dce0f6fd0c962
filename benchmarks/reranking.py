"""k-reciprocal re-ranking beside the dense computation of the original code: time, memory, and whether they agree.

    python benchmarks/reranking.py [--size market1501] [--width 512] [--noise 1.0] [--k1 20] [--k2 6] [--repeats 3]

Each runs in a process of its own on made-up features of the given size, clustered as a good model's; with
`--noise 40` they are those of an untrained one. The dense one holds matrices of all pairs in float32 and goes
through pictures one by one, as the original does; at the size of Market-1501 it takes some 6 GB and a minute or two.
Seconds are the fastest of the repeats, which the dense one has only one of. Memory is the peak of the process,
and what of it came after imports and features. On a busy machine only the ratios mean something, and those of
the processors' seconds most.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from clip3dreid.retrieval.rerank import KReciprocal, QueryExpansion

SIZES = {  # queries, gallery, people
    "small": (300, 1_500, 70),
    "ltcc": (493, 7_050, 75),
    "half": (1_684, 7_956, 375),
    "market1501": (3_368, 15_913, 750),
    "msmt17": (11_659, 82_161, 3_060),
}
BLOCK = 500
"""Queries that are asked for at once."""


def made_up(size, width, noise):
    queries, gallery, people = SIZES[size]
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((people, width), dtype=np.float32)
    person = rng.integers(people, size=queries + gallery)
    made = centres[person] + np.float32(noise) * rng.standard_normal((len(person), width), dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made[:queries], made[queries:]


def dense(query, gallery, k1, k2, lambda_):
    """Return final distances (Q, G) by matrices of all pairs."""
    features = np.concatenate([query, gallery])
    pictures = len(features)
    squares = (features**2).sum(1)
    distance = features @ features.T
    distance *= -2
    distance += squares
    distance += squares[:, None]
    distance = np.ascontiguousarray((distance / distance.max(0)).T)
    order = np.argsort(distance, axis=1).astype(np.int32)

    def reciprocal(picture, k):
        ahead = order[picture, : k + 1]
        return ahead[(order[ahead, : k + 1] == picture).any(1)]

    code = np.zeros_like(distance)
    for picture in range(pictures):
        own = reciprocal(picture, k1)
        found = [own]
        for candidate in own:
            others = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(others, own)) > 2 / 3 * len(others):
                found.append(others)
        entries = np.unique(np.concatenate(found))
        weight = np.exp(-distance[picture, entries])
        code[picture, entries] = weight / weight.sum()
    distance = distance[: len(query)].copy()
    mean = np.zeros_like(code)
    for picture in range(pictures):
        mean[picture] = code[order[picture, :k2]].mean(0)
    code = mean
    lists = [np.flatnonzero(code[:, picture]) for picture in range(pictures)]
    jaccard = np.zeros_like(distance)
    for row in range(len(query)):
        shared = np.zeros(pictures, np.float32)
        for entry in np.flatnonzero(code[row]):
            shared[lists[entry]] += np.minimum(code[row, entry], code[lists[entry], entry])
        jaccard[row] = 1 - shared / (2 - shared)
    return ((1 - lambda_) * jaccard + lambda_ * distance)[:, len(query) :]


def sparse(query, gallery, k1, k2, lambda_):
    return -blocks(KReciprocal(k1, k2, lambda_), query, gallery, keep=True)


def blocks(method, query, gallery, keep=False):
    """Return the scores (Q, G), or nothing where they are not kept: block by block they never stand together."""
    source = method(torch.from_numpy(query), torch.from_numpy(gallery), "cosine")
    scores = np.empty((len(query), len(gallery)), np.float32) if keep else None
    for rows in torch.arange(len(query)).split(BLOCK):
        block = source.block(rows)
        if keep:
            scores[rows[0] : rows[-1] + 1] = block
    return scores


def run(options):
    """In a process of its own: times one way and writes its scores."""
    query, gallery = made_up(options.size, options.width, options.noise)
    ways = {
        "dense": lambda: dense(query, gallery, options.k1, options.k2, 0.3),
        "sparse": lambda: blocks(KReciprocal(options.k1, options.k2), query, gallery),
        "alpha_qe": lambda: blocks(QueryExpansion(), query, gallery),
        "alpha_qe both": lambda: blocks(QueryExpansion(4, 3.0, True), query, gallery),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, busy = [], []
    for _ in range(1 if options.way == "dense" else options.repeats):
        start, work = time.perf_counter(), time.process_time()
        found = ways[options.way]()
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.scores:
        keep = found if options.way == "dense" else sparse(query, gallery, options.k1, options.k2, 0.3)
        np.save(options.scores, keep)
    print(json.dumps({"seconds": min(seconds), "cpu": min(busy), "peak": peak, "added": peak - before}))


def compare(dense_file, sparse_file):
    one, other = np.load(dense_file, mmap_mode="r"), np.load(sparse_file, mmap_mode="r")
    above, largest, first = 0, 0.0, 0
    for start in range(0, len(one), BLOCK):
        left, right = one[start : start + BLOCK], other[start : start + BLOCK]
        difference = np.abs(left - right)
        above += int((difference > 1e-5).sum())
        largest = max(largest, float(difference.max()))
        first += int((left.argmin(1) == right.argmin(1)).sum())
    print(
        f"entries that differ by more than 1e-5: {above} of {one.size} ({above / one.size:.1e}), largest "
        f"{largest:.1e}; same first picture for {first} of {len(one)} queries"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="half")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--k1", type=int, default=20)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-dense", action="store_true", help="leave the dense computation out")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--scores", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run(options)
        return
    print(f"{options.size} {SIZES[options.size]}, {options.width} wide, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        files = {way: str(Path(folder) / f"{way}.npy") for way in ("dense", "sparse")}
        ways = ["sparse", "alpha_qe", "alpha_qe both", *([] if options.no_dense else ["dense"])]
        results = {}
        for way in ways:
            extra = ["--way", way] + (
                ["--scores", files[way]] if way in files and not options.no_dense else []
            )
            command = [sys.executable, __file__, *sys.argv[1:], *extra]
            results[way] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            numbers = results[way]
            print(
                f"{way:14} {numbers['seconds']:8.2f} s  processors {numbers['cpu']:8.2f} s  "
                f"peak {numbers['peak']:6.0f} MiB, added {numbers['added']:6.0f} MiB",
                flush=True,
            )
        if not options.no_dense:
            ratios = {key: results["dense"][key] / results["sparse"][key] for key in results["dense"]}
            print("dense / sparse:", ", ".join(f"{key} {ratio:.1f}" for key, ratio in ratios.items()))
            compare(files["dense"], files["sparse"])


if __name__ == "__main__":
    main()
