"""Random features and labels for the tests of ranking."""

import numpy as np
import polars as pl
import torch

from clip3dreid.retrieval import protocol as rules
from clip3dreid.retrieval.distributed import gather_evaluation
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import Protocol

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
