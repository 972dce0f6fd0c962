import json

import numpy as np
import polars as pl
import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.retrieval.evaluation import count, evaluate, load_features
from clip3dreid.retrieval.protocol import (
    Protocol,
    nothing,
    same_camera,
    same_camera_or_clothes,
    same_camera_or_other_clothes,
)

GENERAL = Protocol("general", same_camera, "the usual one")
NO_REMOVAL = Protocol("no_removal", nothing, "")
CHANGING = Protocol("clothes_changing", same_camera_or_clothes, "", needs=["clothes"])
SAME = Protocol("same_clothes", same_camera_or_other_clothes, "", needs=["clothes"])


def tables():
    query = pl.DataFrame(
        {"path": ["q/a.png", "q/b.png", "q/c.png"], "person": ["a", "b", "c"], "camera": ["1", "1", "1"]}
    )
    gallery = pl.DataFrame({"path": list("wxyz"), "person": list("aabb"), "camera": ["1", "2", "2", "2"]})
    return query, gallery


def features(rows, width=3):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


def run(query_features=None, gallery_features=None, protocols=None, **options):
    query, gallery = tables()
    return evaluate(
        features(3) if query_features is None else query_features,
        query,
        features(4) if gallery_features is None else gallery_features,
        gallery,
        {"general": GENERAL} if protocols is None else protocols,
        **options,
    )


def test_the_result_holds_scores_counts_and_protocol_and_is_json():
    result = json.loads(json.dumps(run()["general"].result(), allow_nan=False))
    assert {"r1", "r5", "r10", "r20", "map", "minp"} <= set(result)
    assert all(0 <= result[score] <= 1 for score in ("r1", "map", "minp", "junk_share", "chance_r1"))
    assert (result["queries"], result["valid_queries"], result["gallery"]) == (3, 2, 4)
    assert result["without_positive"] == ["q/c.png"]
    assert result["positives_per_query"] == 1.5
    assert result["junk_per_query"] == pytest.approx(1 / 3)
    assert result["junk_share"] == pytest.approx(1 / 12)
    assert result["chance_r1"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert (result["protocol"], result["description"]) == ("general", "the usual one")
    assert (result["drop"], result["metric"], result["shots"]) == ("same_camera", "cosine", "multi-shot")


def test_counts_need_no_features_and_are_those_of_the_evaluation():
    assert count(GENERAL, *tables()) == run()["general"].counts


def test_at_most_ten_queries_without_a_positive_are_named():
    query = pl.DataFrame({"person": ["a", *"bcdefghijklm"]})
    found = count(NO_REMOVAL, query, pl.DataFrame({"person": ["a"]}))
    assert found.valid_queries == 1
    assert found.without_positive == tuple(f"row {row}" for row in range(1, 11))


def test_euclidean_takes_lengths_into_account_and_cosine_does_not():
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[9.0, 0.0], [1.0, 0.5]])
    data = query, pl.DataFrame({"person": ["a"]}), gallery, pl.DataFrame({"person": ["a", "b"]})
    ranks = {
        metric: evaluate(*data, {"n": NO_REMOVAL}, metric=metric)["n"].per_query.first_hit.item()
        for metric in ("cosine", "euclidean")
    }
    assert ranks == {"cosine": 1, "euclidean": 2}


def with_value(rows, value):
    tensor = features(rows)
    tensor[1, 2] = value
    return tensor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_features": with_value(3, torch.nan)}, "1 of 3 query features hold NaN or inf.*q/b.png"),
        ({"gallery_features": with_value(4, torch.inf)}, "1 of 4 gallery features hold NaN or inf.* x"),
        ({"gallery_features": with_value(4, 1e30)}, "too large to square"),
        ({"gallery_features": features(4) * torch.tensor([[1.0], [0], [1], [0]])}, "2 of 4 .*all zero.* x"),
        ({"gallery_features": features(4, 5)}, "3 wide and gallery features 5"),
        ({"query_features": features(5)}, "5 query features for 3 pictures"),
        (
            {"query_features": torch.zeros(3, 0), "gallery_features": torch.zeros(4, 0)},
            "query features are empty",
        ),
        ({"query_features": torch.zeros(3)}, "expected floating-point"),
        ({"query_features": torch.zeros(3, 3, dtype=torch.int64)}, "expected floating-point"),
        ({"metric": "manhattan"}, "choose cosine or euclidean"),
        ({"protocols": {}}, "no protocol"),
        ({"protocols": {"cc": CHANGING}}, "clothes_changing needs clothes"),
    ],
)
def test_bad_input_gets_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        run(**arguments)
    assert "\n" not in str(caught.value)


def test_zero_features_have_a_place_in_euclidean_space():
    assert run(gallery_features=torch.zeros(4, 3), metric="euclidean")["general"].counts.valid_queries == 2


@pytest.mark.parametrize("empty", ["query", "gallery"])
def test_an_empty_query_or_gallery_is_an_error(empty):
    query, gallery = tables()
    query, gallery = (query.clear(), gallery) if empty == "query" else (query, gallery.clear())
    with pytest.raises(InputError, match=f"the {empty} features are empty"):
        evaluate(features(3)[: len(query)], query, features(4)[: len(gallery)], gallery, {"general": GENERAL})
    with pytest.raises(InputError, match=f"no {empty} pictures"):
        count(GENERAL, query, gallery)


def test_no_valid_query_at_all_says_what_removed_them():
    query, gallery = tables()
    with pytest.raises(InputError, match="rule same_camera drops all 4 gallery pictures"):
        count(GENERAL, query, gallery.with_columns(camera=pl.lit("1")))
    with pytest.raises(InputError, match="no person of its 3 queries is among its 4 gallery"):
        count(GENERAL, query, gallery.with_columns(person=pl.lit("z")))


def arrays(**changes):
    found = {
        "query_features": np.eye(2, 3, dtype=np.float32),
        "query_pids": np.array([1, 2]),
        "query_camids": np.array([0, 0]),
        "query_clothes": np.array([0, 0]),
        "gallery_features": np.eye(3, dtype=np.float32),
        "gallery_pids": np.array([1, 2, 2]),
        "gallery_camids": np.array([1, 1, 1]),
        "gallery_clothes": np.array([0, 1, 0]),
        **changes,
    }
    return {name: array for name, array in found.items() if array is not None}


def saved(folder, **changes):
    path = folder / "features.npz"
    np.savez(path, **arrays(**changes))
    return path


def test_a_file_of_features_gives_the_same_scores_as_its_tensors(tmp_path):
    query, query_table, gallery, gallery_table = load_features(saved(tmp_path))
    assert torch.equal(gallery, torch.eye(3))
    assert query_table["person"].to_list() == ["1", "2"]
    assert query_table["camera"].to_list() == ["0", "0"]
    found = evaluate(query, query_table, gallery, gallery_table, {"general": GENERAL, "same": SAME})
    # Person 2 finds g1 first and g2 (tied with g0) third under general, and g2 alone, after g0, in the same clothes.
    np.testing.assert_allclose(found["general"].per_query.ap, [1, (1 + 2 / 3) / 2])
    np.testing.assert_allclose(found["same"].per_query.ap, [1, 1 / 2])


def test_clothes_numbered_anew_for_each_person_are_outfits_of_that_person(tmp_path):
    query_table, gallery_table = load_features(saved(tmp_path))[1::2]
    assert query_table["clothes"].to_list() == ["1_0", "2_0"]
    assert gallery_table["clothes"].to_list() == ["1_0", "2_1", "2_0"]
    assert count(CHANGING, query_table, gallery_table).valid_queries == 1


def test_labels_may_be_strings_or_bytes_and_optional_ones_become_columns(tmp_path):
    path = saved(
        tmp_path,
        query_pids=np.array(["a", "b"]),
        gallery_pids=np.array([b"a", b"b", b"b"]),
        query_camids=np.array(["", "x"]),
        query_clothes=None,
        gallery_clothes=None,
        query_frames=np.array([10, 2]),
        query_sets=np.array(["B", "C"]),
        query_paths=np.array(["one.png", "two.png"]),
    )
    _, query, _, gallery = load_features(path)
    assert query["camera"].to_list() == [None, "x"]
    assert query["frame"].to_list() == [10, 2]
    assert query["query_set"].to_list() == ["B", "C"]
    assert query["path"].to_list() == ["one.png", "two.png"]
    assert query["clothes"].null_count() == 2
    assert gallery["person"].to_list() == ["a", "b", "b"]
    assert gallery["path"].to_list() == ["gallery[0]", "gallery[1]", "gallery[2]"]


def test_gallery_items_of_person_minus_one_are_junk_and_left_out(tmp_path):
    _, _, gallery, table = load_features(saved(tmp_path, gallery_pids=np.array([1, -1, 2])))
    assert torch.equal(gallery, torch.eye(3)[[0, 2]])
    assert table["person"].to_list() == ["1", "2"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_keep_their_floating_type_and_whole_numbers_become_float32(tmp_path, dtype):
    found = load_features(saved(tmp_path, query_features=np.eye(2, 3, dtype=dtype)))[0]
    assert found.numpy().dtype == dtype
    assert (
        load_features(saved(tmp_path, query_features=np.eye(2, 3, dtype=np.int8)))[0].dtype == torch.float32
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_pids": None}, r"lacks \['query_pids'\]"),
        ({"gallery_features": None}, r"lacks \['gallery_features'\]"),
        ({"query_features": np.zeros(2)}, r"query_features is float64 of shape \(2,\)"),
        ({"query_features": np.zeros((2, 3), complex)}, "complex128"),
        ({"gallery_pids": np.array([1, 2])}, r"gallery_pids has shape \(2,\), but there are 3"),
        ({"gallery_clothes": np.zeros((3, 1), int)}, r"gallery_clothes has shape \(3, 1\)"),
        ({"query_pids": np.array([1.0, 2.0])}, "query_pids is float64; labels are whole"),
        ({"query_pids": np.array(["a", None], dtype=object)}, "query_pids cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_says_where(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load_features(saved(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert "features.npz" in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_archive_is_an_input_error(tmp_path, content):
    path = tmp_path / "features.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"features\.npz cannot be read"):
        load_features(path)


def test_a_lone_array_is_an_input_error(tmp_path):
    np.save(tmp_path / "features.npy", np.eye(3))
    with pytest.raises(InputError, match="one array"):
        load_features(tmp_path / "features.npy")


def test_a_truncated_archive_is_an_input_error(tmp_path):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    start = content.index(b"NUMPY") + 128
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="query_features cannot be read"):
        load_features(path)
