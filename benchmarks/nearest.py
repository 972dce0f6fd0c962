# ruff: noqa: D102
"""Nearest neighbours: what the exact search costs beside its matrix product, and what vector engines make of it.

    python benchmarks/nearest.py exact [--rows 1000000] [--width 512] [--queries 1000] [--k 50]
    python benchmarks/nearest.py engines [--rows 1000000] [--data people noise] [--only lancedb_ivf_rq] [--limit 600]

`exact` repeats product, search and `torch.topk` over every block in turn, and prints medians of elapsed and of
processor time, each with its ratio to the bare product's. Only the ratios of one run mean something. With
OMP_NUM_THREADS=1 those of processor time are the surer ones: threads that wait take it too.

`engines` gives the same gallery to every engine that is installed (`pip install lancedb pymilvus milvus-lite
qdrant-client faiss-cpu`). Building and searching are processes of their own, so that peak memory is each one's; one
that takes longer than the limit is stopped and said to have been. `cpu` is time of all cores, which other work on the
machine changes less. Effort (lists probed, candidates kept) rises until
recall@50 is 0.95. `people` are features like a trained model's: 20 pictures of each person, spread about a centre,
axis i with a variance in proportion to 1/i. `noise` has neither people nor axes: the worst case of every index.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np

BLOCK = 20_000
PICTURES = 20
ENOUGH = 0.95


def features(kind, rows, width, seed):
    """Yield (n, width) float32 of length 1; picture i is of person i // PICTURES. Seed 0 is the gallery."""
    scale = np.arange(1, width + 1, dtype=np.float32) ** (-0.5 if kind == "people" else 0)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        own = np.random.default_rng((seed, start)).standard_normal((count, width), dtype=np.float32)
        if kind == "people":
            people = np.random.default_rng((9, start)).standard_normal(
                (BLOCK // PICTURES, width), dtype=np.float32
            )
            own = people[np.arange(count) // PICTURES] + 0.7 * own
        own *= scale
        yield own / np.linalg.norm(own, axis=1, keepdims=True)


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def exact(options):
    import torch

    from clip3dreid.search.top_k import top_k

    gallery = torch.empty(options.rows, options.width)
    for start, block in zip(
        range(0, options.rows, BLOCK), features("people", options.rows, options.width, 0), strict=True
    ):
        gallery[start : start + BLOCK] = torch.from_numpy(block)
    query = torch.from_numpy(next(iter(features("people", options.queries, options.width, 1))))
    half = gallery.half()
    scores = torch.empty(options.queries, 4096)

    def product():
        for block in torch.split(gallery, 4096):
            torch.mm(query, block.T, out=scores[:, : len(block)])

    def topk():
        for block in torch.split(gallery, 4096):
            torch.mm(query, block.T, out=scores[:, : len(block)])
            scores.topk(options.k)

    ways = {
        "product alone": product,
        "top_k, product": lambda: top_k(query, gallery, options.k, "product"),
        "top_k, cosine": lambda: top_k(query, gallery, options.k, "cosine"),
        "top_k, euclidean": lambda: top_k(query, gallery, options.k, "euclidean"),
        "top_k, float16": lambda: top_k(query, half, options.k, "product"),
        "topk of every block": topk,
    }
    if find_spec("faiss"):
        import faiss

        flat = faiss.IndexFlatIP(options.width)
        flat.add(gallery.numpy())
        ways["faiss flat"] = lambda: flat.search(query.numpy(), options.k)
    one = query[:1]
    single = {
        "one query, product alone": lambda: torch.mm(one, gallery.T),
        "one query, product": lambda: top_k(one, gallery, options.k, "product"),
        "one query, cosine": lambda: top_k(one, gallery, options.k, "cosine"),
    }
    print(f"{options.queries} queries, {options.rows} x {options.width}, {torch.get_num_threads()} threads")
    for group in (ways, single):
        wall, busy = {name: [] for name in group}, {name: [] for name in group}
        for _ in range(options.repeats):
            for name, way in group.items():
                start = time.process_time()
                wall[name].append(seconds(way))
                busy[name].append(time.process_time() - start)
        floors = [statistics.median(next(iter(times.values()))) for times in (wall, busy)]
        for name in group:
            own = [statistics.median(times[name]) for times in (wall, busy)]
            cells = (f"{t * 1e3:8.0f} ms {t / floor:5.2f}" for t, floor in zip(own, floors, strict=True))
            print(f"{name:26}", "   cpu".join(cells), flush=True)


class Exact:
    """This project's exact search, the gallery in memory."""

    needs = ()
    efforts = (0,)

    def build(self, blocks, folder, width):
        with (folder / "gallery").open("wb") as file:
            for block in blocks:
                file.write(block.tobytes())

    def open(self, folder, width):
        import torch

        self.gallery = torch.from_numpy(np.fromfile(folder / "gallery", np.float32).reshape(-1, width))

    def search(self, query, k, effort):
        import torch

        from clip3dreid.search.top_k import top_k

        return top_k(torch.from_numpy(query), self.gallery, k, "product").rows.numpy()


class Faiss:
    """A library: no labels, no server, the index in memory."""

    needs = ("faiss",)
    efforts = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

    def __init__(self, kind):
        self.kind = kind

    def build(self, blocks, folder, width):
        import faiss

        data = np.concatenate(list(blocks))
        if self.kind == "ivf_flat":
            index = faiss.index_factory(
                width, f"IVF{int(4 * len(data) ** 0.5)},Flat", faiss.METRIC_INNER_PRODUCT
            )
            sample = np.random.default_rng(0).choice(
                len(data), min(len(data), 40 * index.nlist), replace=False
            )
            index.train(data[sample])
        else:
            index = faiss.index_factory(width, "HNSW16,Flat", faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 100
        index.add(data)
        faiss.write_index(index, str(folder / "index"))

    def open(self, folder, width):
        import faiss

        self.index = faiss.read_index(str(folder / "index"))

    def search(self, query, k, effort):
        if self.kind == "ivf_flat":
            self.index.nprobe = effort
        else:
            self.index.hnsw.efSearch = max(k, 16 * effort)
        return self.index.search(query, k)[1]


class Milvus:
    """`pymilvus` on a local file (Milvus Lite); a Milvus cluster takes the same calls."""

    needs = ("pymilvus", "milvus_lite")
    efforts = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

    def __init__(self, kind):
        self.kind = kind

    def build(self, blocks, folder, width):
        from pymilvus import DataType, MilvusClient

        client = MilvusClient(str(folder / "milvus.db"))
        schema = client.create_schema()
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("camera", DataType.VARCHAR, max_length=64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
        client.create_collection("gallery", schema=schema)
        row = 0
        for block in blocks:
            for part in np.split(block, range(2000, len(block), 2000)):
                client.insert(
                    "gallery",
                    [
                        {"row": row + i, "camera": str((row + i) % 6), "vector": vector}
                        for i, vector in enumerate(part)
                    ],
                )
                row += len(part)
        client.flush("gallery")
        index = client.prepare_index_params()
        options = {"IVF_FLAT": {"nlist": 1024}, "HNSW": {"M": 16, "efConstruction": 100}}[self.kind]
        index.add_index("vector", index_type=self.kind, metric_type="IP", params=options)
        client.create_index("gallery", index)
        client.load_collection("gallery")
        client.close()

    def open(self, folder, width):
        from pymilvus import MilvusClient

        self.client = MilvusClient(str(folder / "milvus.db"))
        self.client.load_collection("gallery")

    def search(self, query, k, effort):
        options = {"nprobe": effort} if self.kind == "IVF_FLAT" else {"ef": max(k, 16 * effort)}
        found = self.client.search("gallery", query, limit=k, search_params={"params": options})
        return np.array([[hit["row"] for hit in hits] + [-1] * (k - len(hits)) for hits in found])


class Qdrant:
    """`qdrant-client` on a local folder; a Qdrant server takes the same calls and has an index."""

    needs = ("qdrant_client",)
    efforts = (0,)

    def build(self, blocks, folder, width):
        from qdrant_client import QdrantClient, models

        client = QdrantClient(path=str(folder))
        client.create_collection("gallery", models.VectorParams(size=width, distance=models.Distance.DOT))
        row = 0
        for block in blocks:
            points = models.Batch(
                ids=list(range(row, row + len(block))),
                vectors=block.tolist(),
                payloads=[{"camera": str((row + i) % 6)} for i in range(len(block))],
            )
            client.upsert("gallery", points)
            row += len(block)
        client.close()

    def open(self, folder, width):
        from qdrant_client import QdrantClient

        self.client = QdrantClient(path=str(folder))

    def search(self, query, k, effort):
        return np.array(
            [[point.id for point in self.client.query_points("gallery", q, limit=k).points] for q in query]
        )


class Lance:
    """`lancedb` on a local folder; an object store or LanceDB's server takes the same calls."""

    needs = ("lancedb",)
    efforts = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

    def __init__(self, kind, refine):
        self.kind, self.refine = kind, refine

    def build(self, blocks, folder, width):
        import lancedb
        import pyarrow as pa
        from lancedb import index

        vectors = pa.list_(pa.float32(), width)
        schema = pa.schema([("row", pa.int64()), ("camera", pa.string()), ("vector", vectors)])

        def batches():
            row = 0
            for block in blocks:
                rows = np.arange(row, row + len(block))
                values = pa.FixedSizeListArray.from_arrays(block.reshape(-1), width)
                yield pa.record_batch(
                    [pa.array(rows), pa.array((rows % 6).astype(str)), values], schema=schema
                )
                row += len(block)

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        table = lancedb.connect(str(folder)).create_table("gallery", reader)
        rows = table.count_rows()
        # A graph needs few lists, the others about as many as a list has rows.
        lists = {"num_partitions": max(1, rows // 10**6) if "Hnsw" in self.kind else int(rows**0.5)}
        if "Hnsw" in self.kind:
            lists |= {"m": 16, "ef_construction": 100}
        table.create_index("vector", config=getattr(index, self.kind)(distance_type="dot", **lists))

    def open(self, folder, width):
        import lancedb

        self.table = lancedb.connect(str(folder)).open_table("gallery")

    def search(self, query, k, effort):
        def one(vector):
            asked = self.table.search(vector, vector_column_name="vector").distance_type("dot").limit(k)
            asked = asked.select(["row", "_distance"])
            asked = (
                asked.nprobes(1).ef(max(2 * k, 16 * effort)) if "Hnsw" in self.kind else asked.nprobes(effort)
            )
            if self.refine:
                asked = asked.refine_factor(self.refine)
            return asked.to_arrow()["row"].to_numpy()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(one, query))
        return np.array([np.pad(rows, (0, k - len(rows)), constant_values=-1) for rows in found])


ENGINES = {
    "exact": Exact(),
    "faiss_ivf_flat": Faiss("ivf_flat"),
    "faiss_hnsw": Faiss("hnsw"),
    "milvus_lite_ivf_flat": Milvus("IVF_FLAT"),
    "milvus_lite_hnsw": Milvus("HNSW"),
    "qdrant_local": Qdrant(),
    "lancedb_ivf_flat": Lance("IvfFlat", 0),
    "lancedb_ivf_rq": Lance("IvfRq", 10),
    "lancedb_hnsw_sq": Lance("HnswSq", 2),
}


def read(path, width):
    with path.open("rb") as file:
        while len(block := np.fromfile(file, np.float32, BLOCK * width)):
            yield block.reshape(-1, width)


def work(options):
    """One phase of one engine, in a process of its own; prints a line of JSON."""
    engine, data, folder = (
        ENGINES[options.engine],
        Path(options.folder),
        Path(options.folder) / options.engine,
    )
    result = {}
    if options.phase == "build":
        result["build_s"] = seconds(
            lambda: engine.build(read(data / "gallery", options.width), folder, options.width)
        )
    else:
        query = np.fromfile(data / "query", np.float32).reshape(-1, options.width)
        truth = np.load(data / "truth.npy")
        result["open_s"] = seconds(lambda: engine.open(folder, options.width))
        for effort in engine.efforts:
            found = engine.search(query[:200], options.k, effort)
            recall = np.mean(
                [
                    len(set(a) & set(b)) / len(b)
                    for a, b in zip(found.tolist(), truth[:200].tolist(), strict=True)
                ]
            )
            if recall >= ENOUGH or effort == engine.efforts[-1]:
                break
        result |= {"recall": float(recall), "effort": effort}
        busy = time.process_time()
        single = [seconds(lambda q=q: engine.search(q[None], options.k, effort)) for q in query[200:300]]
        result |= {"single_ms": statistics.median(single) * 1e3}
        result |= {"single_cpu_ms": (time.process_time() - busy) / len(single) * 1e3}
        many = query[300:]
        busy = time.process_time()
        result["batch_ms"] = seconds(lambda: engine.search(many, options.k, effort)) / len(many) * 1e3
        result["batch_cpu_ms"] = (time.process_time() - busy) / len(many) * 1e3
    result[f"{options.phase}_cpu_s"] = time.process_time()
    # Not getrusage: a process starts with its parent's peak.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    result[f"{options.phase}_mib"] = int(peak[1]) / 1024
    print(json.dumps(result))


def engines(options):
    for kind in options.data:
        folder = Path(tempfile.mkdtemp(prefix="nearest-", dir=options.scratch))
        try:
            compare(kind, folder, options)
        finally:
            shutil.rmtree(folder)


def compare(kind, folder, options):
    with (folder / "gallery").open("wb") as file:
        for block in features(kind, options.rows, options.width, 0):
            file.write(block.tobytes())
    # New pictures of people all over the gallery.
    query = np.concatenate([block[::20] for block in features(kind, options.rows, options.width, 1)])
    query = query[np.random.default_rng(2).permutation(len(query))[: options.queries]]
    query.tofile(folder / "query")
    exact = Exact()
    exact.open(folder, options.width)
    np.save(folder / "truth.npy", exact.search(query, options.k, 0))
    del exact
    print(f"{kind}: {options.rows} x {options.width}, recall@{options.k}, {os.cpu_count()} cores")
    for name in options.only or ENGINES:
        if missing := [package for package in ENGINES[name].needs if not find_spec(package)]:
            print(f"{name:22} skipped: {', '.join(missing)} not installed")
            continue
        place = folder / name
        place.mkdir()
        result = {}
        for phase in ("build", "search"):
            command = [
                sys.executable,
                __file__,
                "work",
                "--engine",
                name,
                "--phase",
                phase,
                "--folder",
                str(folder),
            ]
            command += ["--width", str(options.width), "--k", str(options.k)]
            try:
                run = subprocess.run(
                    command, capture_output=True, text=True, timeout=options.limit, check=False
                )
            except subprocess.TimeoutExpired:
                print(f"{name:22} {phase} stopped after {options.limit} s", flush=True)
                break
            if run.returncode:
                print(f"{name:22} {phase} failed: {run.stderr.strip().splitlines()[-1:]}", flush=True)
                break
            result |= json.loads(run.stdout.strip().splitlines()[-1])
            if phase == "build":
                size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
                result["disk_mib"] = size / 2**20
        if result:
            print(f"{name:22}", "  ".join(f"{key} {value:.4g}" for key, value in result.items()), flush=True)
        shutil.rmtree(place)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("exact", "engines", "work"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", nargs="+", choices=("people", "noise"), default=["people"])
    parser.add_argument("--only", nargs="+", choices=ENGINES)
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds for building and for searching, each"
    )
    parser.add_argument(
        "--scratch", help="folder with room for the data; the system's temporary folder by default"
    )
    for name in ("engine", "phase", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    {"exact": exact, "engines": engines, "work": work}[options.what](options)


if __name__ == "__main__":
    main()
