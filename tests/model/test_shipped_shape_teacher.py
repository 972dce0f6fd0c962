"""The shape teacher in the package: whole, small, and not blind."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import torch

from clip3dreid.body.smpl import body_digest
from clip3dreid.io.pictures import read_rgb
from clip3dreid.model.checked_folder import check_sums
from clip3dreid.model.places import packaged
from clip3dreid.model.shape_teacher import ShapeTeacher, answers_of

FOLDER = packaged("package:body_shape")


def test_it_is_whole_small_and_of_the_body_that_ships() -> None:
    check_sums(FOLDER)
    assert (FOLDER / "model.safetensors").stat().st_size <= 4_000_000
    assert (FOLDER / "README.md").is_file()
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["body"]["sha256"] == body_digest("anny_light")
    assert card["coefficients"] == list(range(1, 10))
    assert np.mean(card["unseen"]["correlation"]) > 0.45


def test_it_sees_the_shapes_of_dressed_people_whom_it_never_met(sixteen_people: Path) -> None:
    table = pl.read_parquet(sixteen_people / "truth.parquet").filter(pl.col("split") == "test")
    teacher = ShapeTeacher("package:body_shape", name="body_shape")
    images = (
        torch.from_numpy(read_rgb(sixteen_people / path).copy()).permute(2, 0, 1)[None]
        for path in table["path"]
    )
    said = answers_of(torch.cat([teacher(image) for image in images])).value.numpy()
    person = table["person"].to_numpy()
    true = np.array(table["betas"].to_list())
    means, truth = (
        np.stack([rows[person == one].mean(0) for one in np.unique(person)]) for rows in (said, true)
    )
    found = [np.corrcoef(means[:, i], truth[:, i + 1])[0, 1] for i in range(9)]
    # Sixteen people: a correlation by chance has a deviation of a quarter.
    assert np.mean(found) > 0.5, found
    assert min(found) > 0, found
