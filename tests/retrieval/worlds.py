"""Random features and labels for the tests of ranking."""

import logging

import numpy as np
import polars as pl
import torch

from clip3dreid.errors import InputError
from clip3dreid.retrieval import protocol as rules
from clip3dreid.retrieval.distributed import gallery_share, gather_evaluation
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import Protocol
from clip3dreid.retrieval.torchmetric import RetrievalMetric

RULES = {
    "general": rules.same_camera,
    "clothes_changing": rules.same_camera_or_clothes,
    "same_clothes": rules.same_camera_or_other_clothes,
    "no_removal": rules.nothing,
    "celeb_first_digit": rules.same_first_digit,
    "deepchange_tracklet": rules.same_tracklet,
}
PROTOCOLS = {name: Protocol(name, rule, "") for name, rule in RULES.items()}


def labels(rng, size, people, cameras=3):
    person = rng.integers(people, size=size)
    return [
        {
            "person": f"p{p}",
            "camera": None if camera == cameras else f"c{camera}",
            "clothes": f"p{p}_{outfit}",
            "tracklet": f"p{p}_{outfit}_{walk}",
            "frame": int(frame),
        }
        for p, camera, outfit, walk, frame in zip(
            person,
            rng.integers(cameras + 1, size=size),
            rng.integers(2, size=size),
            rng.integers(2, size=size),
            rng.integers(1, 40, size=size),
            strict=True,
        )
    ]


def world(seed, queries=40, gallery=90, people=8, width=16, dtype=torch.float32, kind="random"):
    """Features and label rows: `whole` numbers have many exact ties, `signs` also on the unit sphere."""
    rng = np.random.default_rng(seed)
    rows = [*labels(rng, queries, people), *labels(rng, gallery, people)]
    shape = (queries + gallery, width)
    if kind == "whole":
        features = rng.integers(-1, 2, shape)
    elif kind == "signs":
        features = rng.choice([-1, 1], shape)
    else:
        centres = rng.normal(size=(people, width))
        features = np.array([centres[int(row["person"][1:])] for row in rows]) + 2 * rng.normal(size=shape)
    features = torch.tensor(features, dtype=dtype)
    return features[:queries], rows[:queries], features[queries:], rows[queries:]


def table(rows):
    return pl.DataFrame(rows, schema_overrides={"camera": pl.String})


def run(query, query_rows, gallery, gallery_rows, protocols=PROTOCOLS, **options):
    return evaluate(query, table(query_rows), gallery, table(gallery_rows), protocols, **options)


def rank_a_share(rank, world_size, folder):
    """What each of several processes does; here, so that a fresh process imports no test tools."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    results = {}
    found = run(*world(seed=11, kind="signs"), share=(rank, world_size), open_set=[0.01, 0.2])
    for name, evaluation in found.items():
        everything = gather_evaluation(evaluation, torch.device("cpu"))
        results[name] = {"share": evaluation.rows.tolist(), **evaluation.result(everything)}
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def rank_in_parts(rank, world_size, folder):
    """Every process holds a part of the gallery; here, so that a fresh process imports no test tools."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    results = {}
    drawn = {"drawn": Protocol("drawn", rules.same_camera, "", draws=3, seed=5)}
    some = {"some": Protocol("some", rules.same_camera, "", gallery={"camera": ["c0", "c1"]})}
    for kind in ("random", "signs"):
        query, query_rows, gallery, gallery_rows = world(seed=13, width=4, kind=kind)
        order = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(3))
        for name, mine in {
            "strided": order[rank::world_size].sort().values,
            "uneven": order[:7].sort().values if rank else order[7:].sort().values,
            "one has nothing": order.sort().values if rank else order[:0],
        }.items():
            share = gallery_share(mine, torch.device("cpu"))
            # Blocks of some ten queries.
            found = run(
                *(query, query_rows, gallery[mine], gallery_rows, {**PROTOCOLS, **drawn, **some}),
                gallery_share=share,
                memory=20_000,
            )
            results[kind, name] = {key: one.per_query for key, one in found.items()}
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def pictures(seed, **how):
    """A world as what a data set yields of each picture, whole numbers but for the features and the role."""
    query, query_rows, gallery, gallery_rows = world(seed, **how)

    def whole(row, column):
        return -1 if row[column] is None else int(str(row[column]).lstrip("pc").replace("_", ""))

    found = []
    for role, features, rows in (("query", query, query_rows), ("gallery", gallery, gallery_rows)):
        for index, (feature, row) in enumerate(zip(features, rows, strict=True)):
            labels = {column: whole(row, column) for column in row}
            found.append({"features": feature, "role": role, "index": index, **labels})
    return found


def feed(metric, given, batch=7):
    """Update a metric with pictures, batch by batch, joined as a data loader joins them."""
    for start in range(0, len(given), batch):
        metric.update(**torch.utils.data.default_collate(given[start : start + batch]))
    return metric


def score_a_share(rank, world_size, folder):
    """Several ways to divide pictures among processes; here, so that a fresh process imports no test tools."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    given = pictures(seed=12, kind="signs")
    # As a DistributedSampler divides 130 + 1 of them: the first one again, to fill up.
    padded = [*given, given[0]]
    ways = {
        "repeated": [*padded[rank::world_size], padded[0]],
        "uneven": given[:100] if rank else given[100:],
        "none": given if rank else [],
        "both sides apart": [one for one in given if one["role"] == ("query", "gallery")[rank]],
    }
    results = {name: feed(RetrievalMetric(PROTOCOLS), mine).compute() for name, mine in ways.items()}
    for store in ("float16", "bfloat16", "float64"):
        results[store] = feed(RetrievalMetric(PROTOCOLS, store=store), ways["none"]).compute()
    errors = {}
    wrong = {
        "NaN": [{**one, "features": one["features"] * torch.nan} for one in ways["uneven"]],
        "wide": [{**one, "features": one["features"][: 16 - 8 * rank]} for one in ways["uneven"]],
        "nothing": [],
    }
    for name, mine in wrong.items():
        try:
            feed(RetrievalMetric(PROTOCOLS), mine).compute()
        except InputError as error:
            errors[name] = str(error)
    warnings = []
    watch = logging.Handler()
    watch.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("clip3dreid").addHandler(watch)
    without = [{**one, "index": -1} for one in ways["repeated"]]
    unnamed = feed(RetrievalMetric(PROTOCOLS), without).compute()
    # And what a process has itself is as it was.
    metric = feed(RetrievalMetric(PROTOCOLS), ways["repeated"])
    metric.compute()
    mine = sum(map(len, metric.labels))
    said = {"results": results, "errors": errors, "own": mine, "without index": unnamed, "warnings": warnings}
    torch.save(said, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
