"""How well a trained student knows shapes: of unseen bare bodies in millimetres, of clothed people by correlation.

    python benchmarks/shape_error.py RUN [RUN ...] --bodies BODIES --world WORLD

RUN is a training with `loss.shape` or `loss.body`. BODIES is the folder of `synthesize layout=bodies` (its test
bodies are used), WORLD that of `synthesize layout=ltcc` (its test people; the truth is known, since they are
rendered). Printed: mean vertex error at true size and at stature 1 (in thousandths of the stature) against answering
with the mean body; and for each shape component the correlation of prediction and truth, picture by picture.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch

import clip3dreid
from clip3dreid.body.smpl import load_body
from clip3dreid.data.bodies import read_bodies
from clip3dreid.loss.body import unit_stature, vertex_distance
from clip3dreid.report.tables import print_table


def correlations(found: np.ndarray, true: np.ndarray) -> list[float]:
    # A component that is not learnt is answered with its mean.
    return [
        float(np.corrcoef(f, t)[0, 1]) if f.std() > 0 else np.nan
        for f, t in zip(found.T, true.T, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--bodies", type=Path, required=True)
    parser.add_argument("--world", type=Path, required=True)
    arguments = parser.parse_args()
    body = load_body("anny_light")
    train, test = (read_bodies(arguments.bodies, split) for split in ("train", "test"))
    truth = pl.read_parquet(arguments.world / "truth.parquet")
    truth = truth.filter((pl.col("split") == "test") & (pl.col("role") != "left_out"))
    people = [arguments.world / path for path in truth["path"]]
    clothed = np.array(truth["betas"].to_list())
    meshes = body.rest(torch.from_numpy(test.betas)).vertices
    mean = body.rest(torch.from_numpy(train.betas).mean(0, keepdim=True)).vertices.expand_as(meshes)

    def errors(found: torch.Tensor) -> list[float]:
        metres = vertex_distance(found, meshes).mean()
        stature = vertex_distance(unit_stature(found), unit_stature(meshes)).mean()
        return [1e3 * float(metres), 1e3 * float(stature)]

    rows: list[list[object]] = [["mean body", *errors(mean)]]
    components: list[list[object]] = []
    for run in arguments.runs:
        model = clip3dreid.load(run)
        shape = model.shape(test.files)
        rows.append([run.name, *errors(shape.vertices)])
        bare = correlations(shape.betas.numpy(), test.betas)
        dressed = correlations(model.shape(people).betas.numpy(), clothed)
        for name, values in (("bare", bare), ("clothed", dressed)):
            components.append([run.name, name, *(f"{value:.2f}" for value in values)])
    seen = f"{len(test.files)} pictures of {test.bodies} unseen bodies"
    print_table(f"vertex error, {seen}", ["", "mm", "thousandths of the stature"], rows)
    header = ["", f"{len(people)} clothed" if len(people) else "", *map(str, range(clothed.shape[1]))]
    print_table("correlation of each component with the truth", header, components)


if __name__ == "__main__":
    main()
