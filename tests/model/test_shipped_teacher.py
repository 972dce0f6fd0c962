"""The teacher in the package: whole, small, and not blind."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr

from clip3dreid.io.pictures import read_rgb
from clip3dreid.model.checked_folder import check_sums
from clip3dreid.model.teacher import Teacher
from clip3dreid.model.teacher_files import locate
from clip3dreid.model.teacher_view import Native

FOLDER = locate("package:body_clip", "body_clip")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher("package:body_clip", Native(128, 64), name="body_clip")


def test_it_is_whole_and_its_weights_have_at_most_eight_megabytes() -> None:
    check_sums(FOLDER)
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    assert not list(FOLDER.glob("*.bin"))
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["view"] == {"height": 128, "width": 64}
    assert (FOLDER / "README.md").is_file()


def test_its_context_holds_a_sentence_of_all_words(teacher: Teacher) -> None:
    longest = (
        "a surveillance picture of a medium-sized, normal-weight, average-built person whose shoulders are average, "
        "chest is average, waist is average, hips are average, belly is average, torso is average, legs are average, "
        "thighs are average, arms are average, upper arms are average, neck is average and figure is rectangular"
    )
    assert teacher.embed_texts([longest]).shape == (1, teacher.width)


def test_it_tells_heavy_from_thin_people_whom_it_never_met(teacher: Teacher, sixteen_people: Path) -> None:
    table = pl.read_parquet(sixteen_people / "truth.parquet").filter(pl.col("split") == "test")
    pictures = (
        torch.from_numpy(read_rgb(sixteen_people / path).copy()).permute(2, 0, 1) for path in table["path"]
    )
    embeddings = torch.cat([teacher(picture[None]) for picture in pictures])
    thin, heavy = teacher.embed_texts(["a skinny person", "a heavyset person"])
    scored = table.select("person", "measure_weight_index").with_columns(
        pl.Series("score", (embeddings @ (heavy - thin)).numpy().astype(np.float64))
    )
    people = scored.group_by("person").mean()
    # Of 16 people, a rank correlation above 0.5 comes by chance once in fifty times.
    assert spearmanr(people["score"], people["measure_weight_index"]).statistic > 0.5
