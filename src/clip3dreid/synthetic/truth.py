"""Join what is known of every picture of a world to one table, that of `data.truth_file`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy.typing as npt
import polars as pl

from clip3dreid.synthetic.world import World


def flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return nested values as columns `prefix_name`; what is None has none, and tuples become lists."""
    columns: dict[str, Any] = {}
    for name, value in values.items():
        column = f"{prefix}_{name}"
        if isinstance(value, Mapping):
            columns |= flat(value, column)
        elif value is not None:
            columns[column] = list(value) if isinstance(value, tuple) else value
    return columns


def truth(
    world: World,
    rendered: pl.DataFrame,
    measures: Mapping[str, npt.NDArray[Any]],
    words: Mapping[str, Sequence[str]],
) -> pl.DataFrame:
    """Return all that is known of every picture.

    Args:
        world: whose.
        rendered: what the renderer knows, one row a picture, with its place in the plan in `place`.
        measures: name -> (N,) of everybody, in the order of `world.people`.
        words: group -> N words.

    Returns:
        One row a picture, in plan order, with the columns that `data.truth_file` lists.
    """
    plan = world.plan
    rows = pl.DataFrame(
        [
            {
                "place": place,
                "path": picture.path,
                "split": picture.split,
                "role": picture.role,
                "person": picture.person_label,
                "clothes": picture.clothes_label,
                "camera": picture.camera_label,
                "frame": picture.frame,
                # A walk has a folder of its own.
                "tracklet": str(PurePosixPath(picture.path).parent) if picture.sequence >= 0 else None,
                "bad_box": picture.bad_box,
                "person_index": picture.person,
                "outfit_index": picture.outfit,
                "camera_index": picture.camera,
            }
            for place, picture in enumerate(plan.pictures)
        ],
        infer_schema_length=None,
        schema_overrides={"tracklet": pl.String},
    )
    people = pl.DataFrame(
        [
            {"person_index": index}
            | flat(dataclasses.asdict(person.identity), "identity")
            | {f"measure_{name}": float(values[index]) for name, values in measures.items()}
            | {f"word_{group}": chosen[index] for group, chosen in words.items()}
            for index, person in enumerate(world.people)
        ],
        infer_schema_length=None,
    ).rename({"identity_betas": "betas"})
    outfits = pl.DataFrame(
        [
            {"person_index": index, "outfit_index": number} | flat(dataclasses.asdict(outfit), "outfit")
            for index, person in enumerate(world.people)
            for number, outfit in enumerate(person.outfits)
        ],
        infer_schema_length=None,
    )
    cameras = pl.DataFrame(
        [
            {"camera_index": index} | flat(dataclasses.asdict(camera), "camera")
            for index, camera in enumerate(world.cameras)
        ],
        infer_schema_length=None,
    )
    joined = rows.join(people, on="person_index", how="left", maintain_order="left")
    if not plan.textureless:
        joined = joined.join(outfits, on=["person_index", "outfit_index"], how="left", maintain_order="left")
        # A person is bare in one picture and dressed in the next: what is not worn is not known of a picture.
        bare = pl.Series([picture.bare for picture in plan.pictures])
        worn = [name for name in outfits.columns if name.startswith("outfit_") and name != "outfit_index"]
        joined = joined.with_columns(pl.when(~bare).then(pl.col(worn)))
    joined = joined.join(cameras, on="camera_index", how="left", maintain_order="left")
    return joined.join(rendered, on="place", how="left", maintain_order="left").drop("place")
