import inspect

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.search.engine import Exact
from clip3dreid.search.filters import Filter
from clip3dreid.search.top_k import top_k
from tests.search.galleries import MemoryGallery


@pytest.mark.parametrize("stream", [False, True])
def test_rows_are_those_of_the_gallery_and_scores_are_cosines(tmp_path, stream):
    gallery = MemoryGallery(tmp_path)
    index = Exact(gallery, "embedding", stream=stream)
    # Twice: a stream must start anew.
    for _ in range(2):
        found = index.search(gallery.vectors[[5, 250]], 3, Filter())
        assert found.rows[:, 0].tolist() == [5, 250]
        cosines = torch.cosine_similarity(gallery.vectors[found.rows[0]], gallery.vectors[5])
        torch.testing.assert_close(found.scores[0], cosines, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stream", [False, True])
def test_a_filtered_search_finds_what_a_gallery_of_those_rows_would(tmp_path, stream):
    gallery = MemoryGallery(tmp_path)
    where = Filter(camera=["1", "o'brien"], frame=[200, 800])
    query = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 16))).float()
    found = Exact(gallery, "embedding", stream=stream).search(query, 10, where)
    rows = where.mask(gallery.labels).nonzero()[:, 0]
    alone = top_k(query, gallery.vectors[rows], 10)
    assert torch.equal(found.rows, rows[alone.rows])
    torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-6)


def test_more_than_there_are_is_filled_up(tmp_path):
    gallery = MemoryGallery(tmp_path, rows=4)
    found = Exact(gallery, "embedding").search(gallery.vectors[:1], 6, Filter())
    assert sorted(found.rows[0].tolist()) == [-1, -1, 0, 1, 2, 3]


def test_half_precision_is_kept_as_it_is_stored(tmp_path):
    gallery = MemoryGallery(tmp_path)
    gallery.vectors = gallery.vectors.half()
    index = Exact(gallery, "embedding")
    assert index._vectors.dtype == torch.float16
    expected = top_k(gallery.vectors[:2].float(), gallery.vectors.float(), 5)
    assert torch.equal(index.search(gallery.vectors[:2].float(), 5, Filter()).rows, expected.rows)


def test_a_query_in_half_precision_is_not_rounded_again(tmp_path):
    gallery = MemoryGallery(tmp_path)
    query = gallery.vectors[:3].half()
    index = Exact(gallery, "embedding")
    half, single = index.search(query, 5, Filter()), index.search(query.float(), 5, Filter())
    assert torch.equal(half.scores, single.scores)


def test_a_vector_without_direction_is_named(tmp_path):
    gallery = MemoryGallery(tmp_path)
    gallery.vectors[120] = 0
    with pytest.raises(InputError, match="gallery feature 120 has length 0"):
        Exact(gallery, "embedding")


@pytest.mark.parametrize("rows", [299, 301])
def test_vectors_and_labels_that_do_not_fit_are_refused(tmp_path, rows):
    gallery = MemoryGallery(tmp_path, rows=400)
    gallery.labels, gallery.vectors = gallery.labels[:300], gallery.vectors[:rows]
    with pytest.raises(InputError, match="other numbers of vectors and labels"):
        Exact(gallery, "embedding")


@pytest.mark.parametrize("path", sorted((conf_dir() / "engine").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_defaults_of_the_configs_are_those_of_the_code(path):
    node = OmegaConf.load(path)
    parameters = inspect.signature(get_class(node["_target_"])).parameters
    options = {name: own.default for name, own in parameters.items() if own.kind is own.KEYWORD_ONLY}
    assert {key: value for key, value in node.items() if not key.startswith("_")} == options


def test_half_of_the_memory_is_enough_for_cosines_of_three_digits(tmp_path):
    gallery = MemoryGallery(tmp_path)
    whole, half = (Exact(gallery, "embedding", half=half) for half in (False, True))
    assert half._vectors.dtype == torch.float16
    first, second = (index.search(gallery.vectors[:9], 5, Filter()) for index in (whole, half))
    torch.testing.assert_close(first.scores, second.scores, rtol=0, atol=2e-3)
    assert torch.equal(first.rows[:, 0], second.rows[:, 0])


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="device=cuda:63 cannot be used"):
        Exact(MemoryGallery(tmp_path), "embedding", device="cuda:63")
