import logging
import pickle

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip3dreid.errors import InputError
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.feature_file import divide_features, equal_features, load_features
from clip3dreid.retrieval.protocol import (
    Protocol,
    same_camera,
    same_camera_or_clothes,
    same_camera_or_other_clothes,
)
from clip3dreid.retrieval.protocol_counts import count

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
        query_locations=np.array(["indoors", ""]),
        query_scales=np.array([1, -1]),
        query_paths=np.array(["one.png", "two.png"]),
    )
    _, query, _, gallery = load_features(path)
    assert query["camera"].to_list() == [None, "x"]
    assert query["frame"].to_list() == [10, 2]
    assert query["query_set"].to_list() == ["B", "C"]
    assert query["location"].to_list() == ["indoors", None]
    assert query["scale"].to_list() == ["1", None]
    assert gallery["location"].null_count() == 3
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


SPELLINGS = (str, "{:02d}".format, "{:04d}".format, " {}".format, "{} ".format, "{}.0".format)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 200), min_size=5, max_size=5), st.data())
def test_ids_match_however_they_are_spelled(tmp_path, ids, data):
    def spelled(numbers):
        if data.draw(st.booleans()):
            return np.array(numbers)
        return np.array([data.draw(st.sampled_from(SPELLINGS))(number) for number in numbers])

    plain = {"query_pids": np.array(ids[:2]), "gallery_pids": np.array(ids[2:])}
    cameras = {"query_camids": np.array(ids[:2]), "gallery_camids": np.array(ids[2:])}
    other = {name: spelled(array.tolist()) for name, array in (plain | cameras).items()}
    _, query, _, gallery = load_features(saved(tmp_path, **plain, **cameras))
    _, asked, _, items = load_features(saved(tmp_path, **other))
    for before, after in ((query, asked), (gallery, items)):
        assert before.select("person", "camera").equals(after.select("person", "camera"))


def test_ids_that_are_spelled_in_several_ways_or_nearly_alike_are_told(tmp_path, caplog):
    pids = {"query_pids": np.array(["08", "Ann"]), "gallery_pids": np.array(["8", "ann", "Bob"])}
    with caplog.at_level(logging.WARNING):
        load_features(saved(tmp_path, **pids))
    one, two = (record.getMessage() for record in caplog.records)
    assert "'08', '8' are '8'" in one
    assert "'Ann' and 'ann'" in two


def test_frames_that_are_no_numbers_are_refused_and_not_unknown(tmp_path):
    with pytest.raises(InputError, match=r"features\.npz: frame 'soon' .* must be a whole number"):
        load_features(saved(tmp_path, query_frames=np.array(["1", "soon"])))


def test_equal_paths_are_the_same_picture(tmp_path):
    paths = {"query_paths": np.array(["a", "b"]), "gallery_paths": np.array(["a", "b", "c"])}
    found = evaluate(*load_features(saved(tmp_path, **paths)), {"general": GENERAL})["general"]
    assert (found.counts.queries_in_gallery, found.counts.valid_queries) == (2, 1)


def test_equal_features_of_a_person_are_counted_where_paths_do_not_tell(tmp_path):
    assert equal_features(*load_features(saved(tmp_path))) == 2
    paths = {"query_paths": np.array(["a", "b"]), "gallery_paths": np.array(["a", "x", "y"])}
    assert equal_features(*load_features(saved(tmp_path, **paths))) == 1
    others = {"gallery_features": np.eye(3, dtype=np.float32) * 2}
    assert equal_features(*load_features(saved(tmp_path, **others))) == 0
    assert equal_features(*load_features(saved(tmp_path, gallery_pids=np.array([2, 1, 1])))) == 0


@pytest.mark.parametrize("content", [b"1.0 0.0\n0.0 1.0\n", pickle.dumps({"a": 1})])
def test_what_is_no_archive_is_never_advised_to_be_unpickled(tmp_path, content):
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_features(tmp_path / "f.npz")
    assert "pickle" not in str(caught.value)
    assert "unsafe" not in str(caught.value)


def test_features_are_divided_by_the_roles_of_a_table_whose_labels_are_spelled_by_the_one_rule():
    rows = np.arange(10, dtype=np.float64).reshape(5, 2)
    table = pl.DataFrame(
        {
            "pid": ["08", "8", "9", "9", "7"],
            "role": ["query", "gallery", "train", "gallery", "query"],
            "frame": ["1", "2", "3", "4.0", None],
            "split": ["test", "test", "test", "test", "val"],
        }
    )
    query, queries, gallery, items = divide_features(rows, table)
    assert query.tolist() == [[0, 1]]
    assert gallery.tolist() == [[2, 3], [6, 7]]
    assert query.dtype == torch.float64
    assert queries.select("person", "frame", "path").rows() == [("8", 1, "row 0")]
    assert items.select("person", "frame", "path").rows() == [("8", 2, "row 1"), ("9", 4, "row 3")]
    assert divide_features(torch.tensor(rows), table, "val")[0].tolist() == [[8, 9]]
    assert divide_features(torch.tensor(rows).bfloat16(), table)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "table", "message"),
    [
        (np.ones((2, 3)), {"person": [1, 2]}, "data has no column role; it has person"),
        (np.ones((2, 3)), {"person": [1], "role": ["query"]}, r"shape \(2, 3\) and data has 1 pictures"),
        (np.ones(1), {"person": [1], "role": ["query"]}, r"shape \(1,\)"),
        (
            np.ones((1, 3)),
            {"person": [1], "role": ["both"]},
            "data: role=both is unknown; choose query, gallery",
        ),
        (np.ones((1, 3)), {"person": [1], "role": [None]}, "role=null"),
        (
            np.ones((1, 3)),
            {"person": [1], "role": ["query"], "frame": ["x"]},
            "frame 'x' is of the wrong kind",
        ),
        (np.ones((1, 3)), {"person": [1], "pid": [1], "role": ["query"]}, "both stand for person"),
    ],
)
def test_a_table_that_divides_nothing_is_refused_in_one_line(rows, table, message):
    with pytest.raises(InputError, match=message) as caught:
        divide_features(rows, pl.DataFrame(table))
    assert "\n" not in str(caught.value)
