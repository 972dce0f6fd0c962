"""Read features that any model made, with their labels, from a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose, some
from clip3dreid.io.formats import decoding, npz_keys, read_npz
from clip3dreid.io.spelling import alike, labels, merged
from clip3dreid.io.table_files import understood, whole_numbers
from clip3dreid.retrieval.evaluation import FeatureRows
from clip3dreid.retrieval.protocol import labels_of

log = logging.getLogger(__name__)

# Arrays of a feature file, after `query_` or `gallery_`, and the manifest column that each becomes.
_ARRAYS = {
    "pids": "person",
    "camids": "camera",
    "clothes": "clothes",
    "tracklets": "tracklet",
    "frames": "frame",
    "sets": "query_set",
    "locations": "location",
    "scales": "scale",
    "paths": "path",
}
_ADVICE = "save plain arrays of numbers or strings, by np.savez"
_REQUIRED = ("pids", "camids")


def load_features(path: Path | str) -> tuple[Tensor, pl.DataFrame, Tensor, pl.DataFrame]:
    """Read features that any model made, with their labels, from an NPZ file.

    The file holds `query_features` (Q, D), `query_pids` (Q,) and `query_camids` (Q,), and the same for
    `gallery_` (G rows). `…_clothes`, `…_tracklets`, `…_frames`, `…_sets` (the manifest's `query_set`),
    `…_locations`, `…_scales` and `…_paths` are optional. Labels are whole numbers or strings, spelled by the one
    rule of `spelling.label`: person "08" and person 8 are one. -1 or an empty string is unknown. Clothes need only
    tell the outfits of one person apart. Gallery items with pid -1 are left out: Market-1501's junk, which counts
    neither as a hit nor as a miss.

    Args:
        path: the file; pickled objects in it are refused.

    Returns:
        query features (Q, D), query table, gallery features (G, D), gallery table; columns of the tables are
        the manifest's.

    Raises:
        InputError: if the file cannot be read, an array is missing, holds something else than labels or
            features, or differs in length from the features.
    """
    path = Path(path)
    wanted = {f"{side}_{name}" for side in ("query", "gallery") for name in ("features", *_ARRAYS)}
    loaded = read_npz(path, f"features={path}", _ADVICE, keys=wanted)
    query_features, query_table = _load_side(path, loaded, "query")
    gallery_features, gallery_table = _load_side(path, loaded, "gallery")
    for column in ("person", "camera"):
        both = pl.concat([query_table[column], gallery_table[column]])
        for note in (*merged(both, column), *alike(labels(both).drop_nulls().unique(), column)):
            log.warning("features=%s: %s", path, note)
    query_table, gallery_table = _in_one_spelling(path, query_table), _in_one_spelling(path, gallery_table)
    known = labels_of(gallery_table, "person").is_not_null()
    kept = torch.from_numpy(known.to_numpy().copy())
    return query_features, query_table, gallery_features[kept], gallery_table.filter(known)


def divide_features(
    features: FeatureRows, table: pl.DataFrame, split: str = "test", name: str = "data"
) -> tuple[Tensor, pl.DataFrame, Tensor, pl.DataFrame]:
    """Divide features into those of queries and of the gallery, as a table of their pictures has them.

    Args:
        features: (N, D) float, an array or a tensor.
        table: N rows with `person` and `role` (`query`, `gallery` or `train`, which is left out) and any other
            columns of the manifest, by their common names too; null is unknown. With a column `split`, other
            splits are left out.
        split: which.
        name: what messages call the table.

    Returns:
        As `load_features`.

    Raises:
        InputError: if there are not N features, a column is missing, or a role or frame is none.
    """
    rows = torch.as_tensor(features).detach()
    if rows.dtype == torch.bfloat16:  # which NumPy does not know
        rows = rows.float()
    table = understood(table, name)
    if absent := [column for column in ("person", "role") if column not in table.columns]:
        raise InputError(f"{name} has no column {', '.join(absent)}; it has {some(table.columns, 8)}")
    if rows.ndim != 2 or len(rows) != len(table):
        raise InputError(
            f"features have shape {tuple(rows.shape)} and {name} has {len(table)} pictures; give one row for each"
        )
    for role in table["role"].unique().sort():
        choose(f"{name}: role", role, ("query", "gallery", "train"))
    known = [column for column in _ARRAYS.values() if column in table.columns and column != "path"]
    table = table.with_columns(
        whole_numbers(table[column], name) if column == "frame" else labels(table[column]) for column in known
    )
    if "path" not in table.columns:
        table = table.with_columns(path=pl.format("row {}", pl.int_range(pl.len())))
    asked = pl.lit(True) if "split" not in table.columns else pl.col("split") == split
    sides: list[Any] = []
    for role in ("query", "gallery"):
        chosen = table.select(((pl.col("role") == role) & asked).fill_null(False)).to_series()
        sides += rows[torch.from_numpy(chosen.to_numpy().copy())], table.filter(chosen)
    query, query_table, gallery, gallery_table = sides
    return query, query_table, gallery, gallery_table


def equal_features(
    query_features: Tensor, query_table: pl.DataFrame, gallery_features: Tensor, gallery_table: pl.DataFrame
) -> int:
    """Count queries with a gallery item of the same person and the very same features under another path.

    They are the same pictures, or a model that tells nothing apart: without paths nobody can say which.

    Args:
        query_features: (Q, D).
        query_table: Q rows with `person` and `path`.
        gallery_features: (G, D).
        gallery_table: G rows, likewise.
    """
    # A few columns tell nearly all rows apart, and few rows are then compared in full.
    width = min(4, query_features.shape[1], gallery_features.shape[1])
    if not width or query_features.dtype != gallery_features.dtype:
        return 0
    heads = [features[:, :width].contiguous().numpy() for features in (query_features, gallery_features)]
    keys = [head.view(np.dtype((np.void, head.dtype.itemsize * width)))[:, 0] for head in heads]
    queries, items = (np.isin(side, other).nonzero()[0] for side, other in (keys, keys[::-1]))
    asked: dict[tuple[str, bytes], list[int]] = {}
    for row in queries.tolist():
        key = (query_table["person"][row], query_features[row].numpy().tobytes())
        asked.setdefault(key, []).append(row)
    equal: set[int] = set()
    for item in items.tolist():
        key = (gallery_table["person"][item], gallery_features[item].numpy().tobytes())
        path = gallery_table["path"][item]
        equal.update(row for row in asked.get(key, ()) if query_table["path"][row] != path)
    return len(equal)


def _load_side(path: Path, arrays: Mapping[str, npt.NDArray[Any]], side: str) -> tuple[Tensor, pl.DataFrame]:
    needed = [f"{side}_{name}" for name in ("features", *_REQUIRED)]
    if missing := [name for name in needed if name not in arrays]:
        there = npz_keys(path, f"features={path}", _ADVICE)
        raise InputError(f"features={path} lacks {missing}; it holds {there}")
    features = arrays[f"{side}_features"]
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise InputError(
            f"features={path}: {side}_features is {features.dtype} of shape {features.shape}; expected real "
            "numbers, one row a picture"
        )
    table = {"path": pl.Series([f"{side}[{row}]" for row in range(len(features))], dtype=pl.String)}
    for suffix, column in _ARRAYS.items():
        name = f"{side}_{suffix}"
        if name in arrays:
            table[column] = _labels(path, name, arrays[name], len(features))
        elif column != "path":
            table[column] = pl.Series([None] * len(features), dtype=pl.String)
    dtype = features.dtype if features.dtype in (np.float16, np.float32, np.float64) else np.dtype(np.float32)
    return torch.from_numpy(features.astype(dtype, copy=False)), pl.DataFrame(table)


def _in_one_spelling(path: Path, table: pl.DataFrame) -> pl.DataFrame:
    """Return a table with its labels in the one spelling of the manifest."""
    # Paths are no labels.
    spelled = table.with_columns(labels(table[column]) for column in _ARRAYS.values() if column != "path")
    frames = whole_numbers(spelled["frame"], f"features={path}")
    # An outfit is one person's in the manifest, and files often number them anew for each person.
    return spelled.with_columns(frames, clothes=pl.col("person") + "_" + pl.col("clothes"))


def _labels(path: Path, name: str, array: npt.NDArray[Any], length: int) -> pl.Series:
    """Return labels as strings, unknown ones as null."""
    if array.shape != (length,):
        raise InputError(f"features={path}: {name} has shape {array.shape}, but there are {length} features")
    if array.dtype.kind not in "iuUS":
        raise InputError(
            f"features={path}: {name} is {array.dtype}; labels are whole numbers or strings, -1 or '' unknown"
        )
    with decoding(f"features={path}: {name}", "labels", _ADVICE):
        text = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
        strings = pl.Series(text).cast(pl.String)
    return strings.set(strings.str.strip_chars().is_in(["-1", ""]), None)
