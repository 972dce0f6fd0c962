import numpy as np
import pytest
import torch

from clip3dreid.retrieval import similarity
from clip3dreid.retrieval.similarity import SimilarityBlocks
from tests.retrieval.plain import score_matrix

ROWS = torch.tensor([4, 0, 7])


def features(rows, width=6, dtype=torch.float64):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows), dtype=dtype)


@pytest.mark.parametrize("copied", [2**20, 1])
def test_a_block_of_cosines_is_the_plain_one(copied, monkeypatch):
    monkeypatch.setattr(similarity, "COPIED", copied)  # a gallery normalised beforehand, or not
    query, gallery = features(9), features(31)
    before = gallery.clone()
    expected = score_matrix(query, gallery, "cosine")[ROWS]
    np.testing.assert_allclose(SimilarityBlocks(query, gallery).block(ROWS), expected, atol=1e-12)
    assert torch.equal(gallery, before), "features are left as they are"


def test_with_its_offsets_a_block_is_half_the_negated_squared_distance():
    query, gallery = features(9), features(31)
    source = SimilarityBlocks(query, gallery, "euclidean")
    found = source.block(ROWS) + source.offsets(ROWS)[:, None]
    np.testing.assert_allclose(2 * found, score_matrix(query, gallery, "euclidean")[ROWS], atol=1e-12)
    assert SimilarityBlocks(query, gallery).offsets(ROWS) is None


def test_blocks_of_any_size_share_one_memory():
    source = SimilarityBlocks(features(9), features(31))
    large = source.block(torch.arange(9))
    expected = large[ROWS].copy()
    assert np.shares_memory(large, source.block(ROWS))
    np.testing.assert_allclose(source.block(ROWS), expected, atol=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_a_part_at_a_time(metric, dtype, monkeypatch):
    widths = []
    real = torch.addmm if metric == "euclidean" else torch.mm

    def noting(*arguments, **keys):
        widths.append(keys["out"].shape[1])
        return real(*arguments, **keys)

    monkeypatch.setattr(torch, real.__name__, noting)
    monkeypatch.setattr(similarity, "CONVERTED", 10 * 6 * 4)
    monkeypatch.setattr(similarity, "COPIED", 1)
    query, gallery = features(9).to(dtype), features(31).to(dtype)
    found = SimilarityBlocks(query, gallery, metric)
    scores = found.block(ROWS)
    assert widths == [10, 10, 10, 1]
    assert scores.dtype == np.float32
    whole = SimilarityBlocks(query.float(), gallery.float(), metric)
    np.testing.assert_allclose(scores, whole.block(ROWS), rtol=1e-5, atol=1e-6)
    if metric == "euclidean":
        np.testing.assert_array_equal(found.offsets(ROWS), whole.offsets(ROWS))


def test_the_wider_of_both_types_is_multiplied_in():
    assert SimilarityBlocks(features(9), features(31, dtype=torch.bfloat16)).block(ROWS).dtype == np.float64
    assert (
        SimilarityBlocks(features(9, dtype=torch.float16), features(31, dtype=torch.float16)).dtype
        == torch.float32
    )


def test_small_whole_numbers_give_exact_scores():
    whole = torch.arange(-15, 15, dtype=torch.float32).reshape(5, 6)
    source = SimilarityBlocks(whole, whole, "euclidean")
    rows = torch.arange(5)
    found = source.block(rows) + source.offsets(rows)[:, None]
    np.testing.assert_array_equal(2 * found, score_matrix(whole, whole, "euclidean"))


def test_converted_parts_share_one_memory_and_others_are_no_copies(monkeypatch):
    monkeypatch.setattr(similarity, "CONVERTED", 10 * 6 * 4)
    monkeypatch.setattr(similarity, "COPIED", 1)
    half = features(31).half()
    source = SimilarityBlocks(half, half)
    assert len({part.data_ptr() for _, part in source._parts(10)}) == 1
    single = half.float()
    assert [part.data_ptr() for _, part in SimilarityBlocks(single, single)._parts(31)] == [single.data_ptr()]
