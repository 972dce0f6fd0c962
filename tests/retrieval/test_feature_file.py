import numpy as np
import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.retrieval.evaluation import count, evaluate
from clip3dreid.retrieval.feature_file import load_features
from clip3dreid.retrieval.protocol import (
    Protocol,
    same_camera,
    same_camera_or_clothes,
    same_camera_or_other_clothes,
)

GENERAL = Protocol("general", same_camera, "")
CHANGING = Protocol("clothes_changing", same_camera_or_clothes, "", needs=["clothes"])
SAME = Protocol("same_clothes", same_camera_or_other_clothes, "", needs=["clothes"])


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
        ({"query_pids": np.array(["a", None], dtype=object)}, "query_pids holds no plain numbers"),
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
    with pytest.raises(InputError, match=r"cannot be read as NPZ .*by np\.savez"):
        load_features(tmp_path / "features.npy")


def test_a_truncated_archive_is_an_input_error(tmp_path):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    start = content.index(b"NUMPY") + 128
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="query_features cannot be read"):
        load_features(path)
