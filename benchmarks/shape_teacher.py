"""How well a shape teacher sees shapes: of rendered people whose truth is known, and of real crops without a truth.

    python benchmarks/shape_teacher.py [FOLDER ...] --worlds WORLD [WORLD ...] [--pku PKU-Reid]

FOLDER is one that `clip3dreid pretrain_shape_teacher` wrote; without any, the one that ships with the package. A
WORLD has LTCC's layout (`synthesize layout=ltcc`); its test people are asked about, who are nobody that a shape
teacher has learnt from if the seeds differ. Printed for each world: the correlation of answer and truth for each
component, by picture and by person (answers averaged by certainty), and R1 and mAP, clothes changing, of the
answers alone as a feature, in galleries of 40 people, against chance. For PKU-Reid, of whose people nobody knows
the shape: for each component the share of the answers' variance that lies between people (the intraclass
correlation, from one-way analysis of variance), which is 0 for answers that have nothing to do with the person and
1 for answers that nothing else sways, against the largest of 200 permutations of the people; and R1 from camera 1
to camera 2.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch

from clip3dreid.data.datasets import ltcc, pku_reid
from clip3dreid.data.manifest import Manifest
from clip3dreid.guidance.embeddings import embed_pictures
from clip3dreid.guidance.shapes import of_people
from clip3dreid.model.shape_teacher import ShapeTeacher, answers_of
from clip3dreid.report.tables import print_table
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import Protocol, same_camera, same_camera_or_clothes

GALLERY_PEOPLE = 40
PERMUTATIONS = 200


def asked(teacher: ShapeTeacher, manifest: Manifest, table: pl.DataFrame) -> torch.Tensor:
    """Answers and log variances (N, 2 A) about the pictures of a table."""
    cache = embed_pictures(
        teacher, manifest, table, cache="memory", folder=Path(), batch=64, workers=0, progress=lambda _: None
    )
    return cache.read(torch.arange(len(table)))


def between(values: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Share of variance between people (A,) of values (N, A): the intraclass correlation of one-way ANOVA."""
    counts = np.bincount(person)
    means = np.stack([np.bincount(person, column) for column in values.T], 1) / counts[:, None]
    size = (len(values) - (counts**2).sum() / len(values)) / (len(counts) - 1)
    inner = ((values - means[person]) ** 2).sum(0) / (len(values) - len(counts))
    outer = (counts[:, None] * (means - values.mean(0)) ** 2).sum(0) / (len(counts) - 1)
    return (outer - inner) / (outer + (size - 1) * inner)


def scores(features: torch.Tensor, table: pl.DataFrame, protocol: Protocol) -> list[str]:
    """R1, mAP and chance, in per cent."""
    query, gallery = ((table["role"] == role).to_numpy() for role in ("query", "gallery"))
    sides = (features[query], table.filter(query), features[gallery], table.filter(gallery))
    found = evaluate(*sides, {"p": protocol}, metric="euclidean")["p"].result()
    return [f"{100 * found[key]:.1f}" for key in ("r1", "map", "chance_r1")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--worlds", type=Path, nargs="*", default=[])
    parser.add_argument("--pku", type=Path)
    arguments = parser.parse_args()
    teachers = [ShapeTeacher(str(folder), name=str(folder)) for folder in arguments.folders]
    teachers = teachers or [ShapeTeacher("package:body_shape", name="body_shape")]
    changing = Protocol("c", same_camera_or_clothes, "", gallery_people=GALLERY_PEOPLE)
    rows: list[list[object]] = []
    for world in arguments.worlds:
        manifest = ltcc.read(world, "world")
        truth = pl.read_parquet(world / "truth.parquet").select("path", "betas")
        table = manifest.part("test").join(truth, on="path", how="left", maintain_order="left")
        betas = np.array(table["betas"].to_list())
        _, first, person = np.unique(table["person"].to_numpy(), return_index=True, return_inverse=True)
        for teacher in teachers:
            said = answers_of(asked(teacher, manifest, table))
            people = of_people(said, torch.from_numpy(person)).value.numpy()
            index = list(teacher.card.coefficients)
            for kind, values, true in (
                ("picture", said.value.numpy(), betas[:, index]),
                ("person", people, betas[first][:, index]),
            ):
                found = [np.corrcoef(v, t)[0, 1] for v, t in zip(values.T, true.T, strict=True)]
                told = [f"{one:.2f}" for one in (*found, np.mean(found))] if index else ["none"] * 10
                found_by = scores(said.value, table, changing) if kind == "picture" else ["", "", ""]
                rows.append([world.name, teacher.name, kind, *told, *found_by])
    if rows:
        header = ["world", "shape teacher", "by", *map(str, range(1, 10)), "mean", "R1", "mAP", "chance"]
        print_table(
            "rendered test people: correlation with the truth, and retrieval by the answers", header, rows
        )
    if arguments.pku:
        manifest = pku_reid.read(arguments.pku, train_fraction=0.0)
        table = manifest.table
        person = np.unique(table["person"].to_numpy(), return_inverse=True)[1]
        rng, rows = np.random.default_rng(0), []
        for teacher in teachers:
            values = answers_of(asked(teacher, manifest, table)).value
            shares = between(values.numpy(), person)
            chance = max(between(values.numpy(), rng.permutation(person)).max() for _ in range(PERMUTATIONS))
            general = scores(values, table, Protocol("g", same_camera, ""))
            told = [f"{one:.2f}" for one in (*shares[:9], shares.mean(), chance)]
            rows.append([teacher.name, *told, *general])
        header = [
            "shape teacher",
            *map(str, range(1, 10)),
            "mean",
            "largest by chance",
            "R1",
            "mAP",
            "chance",
        ]
        title = f"{len(table)} real crops of {person.max() + 1} people: share of variance between people"
        print_table(title, header, rows)


if __name__ == "__main__":
    main()
