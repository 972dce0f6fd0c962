"""The adapter, with the engine itself; skipped where LanceDB is not installed."""

import sys

import numpy as np
import polars as pl
import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.retrieval import lance as module
from clip3dreid.retrieval.engine import Exact
from clip3dreid.retrieval.filters import Filter
from clip3dreid.retrieval.lance import Lance
from tests.retrieval.galleries import MemoryGallery


def queries(gallery, count=6, seed=1):
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.standard_normal((count, gallery.vectors.shape[1]))).float()
    return gallery.vectors[rng.integers(len(gallery.vectors), size=count)] + noise


def test_without_the_client_the_extra_to_install_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(InputError, match=r"pip install 'clip3dreid\[lance\]'"):
        Lance(MemoryGallery(tmp_path), "embedding")


class TestWithLanceDB:
    @pytest.fixture(autouse=True)
    def _client(self):
        pytest.importorskip("lancedb")

    @pytest.fixture
    def gallery(self, tmp_path):
        return MemoryGallery(tmp_path)

    @pytest.mark.parametrize(
        "where",
        [
            {},
            {"camera": ["1", "o'brien"]},
            {"frame": [100, 500], "person": [3, 4, 5]},
            {"Odd Name!": ["y' OR 1=1 --"]},
        ],
    )
    @pytest.mark.parametrize("kind", [None, *module.KINDS])
    def test_with_every_list_read_it_finds_what_the_exact_search_does(self, gallery, kind, where):
        options = (
            {} if kind is None else {"kind": kind, "index_from": 1, "lists": 8, "probes": 8, "refine": 30}
        )
        found = Lance(gallery, "embedding", **options).search(queries(gallery), 10, Filter(**where))
        expected = Exact(gallery, "embedding").search(queries(gallery), 10, Filter(**where))
        assert found.rows.tolist() == expected.rows.tolist()
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
        assert (found.rows.dtype, found.scores.dtype) == (torch.int64, torch.float32)

    def test_a_filter_finds_its_rows_however_few_lists_are_read(self, gallery):
        index = Lance(gallery, "embedding", kind="IvfFlat", index_from=1, lists=60, probes=1, refine=None)
        for where in (Filter(person=7), Filter(frame=[0, 40]), Filter(camera=1)):
            allowed = int(where.mask(gallery.labels).sum())
            found = index.search(queries(gallery), 50, where)
            assert ((found.rows >= 0).sum(1) == min(50, allowed)).all()
            assert where.mask(gallery.labels)[found.rows[found.rows >= 0]].all()

    def test_few_lists_miss_some_and_more_find_more(self, tmp_path):
        gallery = MemoryGallery(tmp_path, rows=2000)
        exact = Exact(gallery, "embedding").search(queries(gallery, 40), 20, Filter()).rows
        recalls = []
        for probes in (1, 8, 40):
            index = Lance(gallery, "embedding", kind="IvfFlat", index_from=1, lists=40, probes=probes)
            found = index.search(queries(gallery, 40), 20, Filter()).rows
            recalls.append((found[:, :, None] == exact[:, None, :]).any(2).float().mean())
        assert recalls[0] < recalls[1] < recalls[2]
        assert recalls[2] == 1

    def test_ties_stand_in_gallery_order_and_missing_rows_are_filled_up(self, gallery):
        gallery.vectors[:] = gallery.vectors[0]
        found = Lance(gallery, "embedding").search(gallery.vectors[:2], 310, Filter())
        assert found.rows.tolist() == [[*range(300), *[-1] * 10]] * 2
        assert torch.isinf(found.scores[:, 300:]).all()

    def test_a_finished_index_is_opened_not_built(self, gallery, monkeypatch):
        first = Lance(gallery, "embedding").search(queries(gallery), 5, Filter())
        monkeypatch.setattr(Lance, "_build", None)
        again = Lance(gallery, "embedding").search(queries(gallery), 5, Filter())
        assert torch.equal(first.rows, again.rows)

    @pytest.mark.parametrize("step", ["rows", "index", "mark"])
    def test_a_killed_build_is_built_anew(self, gallery, monkeypatch, step):
        class Killed(BaseException):
            pass

        def kill(*arguments, **options):
            raise Killed

        with monkeypatch.context() as patch:
            if step == "rows":
                real = gallery.blocks

                def half(name):
                    blocks = real(name)
                    yield next(blocks)
                    raise Killed

                patch.setattr(gallery, "blocks", half)
            elif step == "index":
                patch.setattr("lancedb.table.LanceTable.create_index", kill)
            else:
                patch.setattr("json.dumps", kill)
            with pytest.raises((Killed, InputError)):
                Lance(gallery, "embedding", index_from=1, lists=4)
        found = Lance(gallery, "embedding", index_from=1, lists=4, probes=4).search(
            queries(gallery), 5, Filter()
        )
        assert torch.equal(found.rows, Exact(gallery, "embedding").search(queries(gallery), 5, Filter()).rows)

    def test_a_build_that_replaces_another_is_unfinished_from_its_start(self, gallery, monkeypatch):
        Lance(gallery, "embedding")
        other = MemoryGallery(gallery.folder, seed=5, fingerprint="other")
        with monkeypatch.context() as patch:
            patch.setattr(other, "blocks", lambda name: iter([torch.zeros(300, 16)]))
            with pytest.raises(InputError, match="gallery feature 0 has length 0"):
                Lance(other, "embedding", rebuild=True)
        # Neither the old nor half of the new is there to be opened.
        built = []
        monkeypatch.setattr(Lance, "_build", lambda *arguments: built.append(1))
        with pytest.raises(InputError):
            Lance(gallery, "embedding")
        assert built

    def test_an_index_of_another_model_or_other_labels_is_refused_until_rebuilt(self, gallery):
        Lance(gallery, "embedding")
        other = MemoryGallery(gallery.folder, seed=0, fingerprint="another")
        with pytest.raises(
            InputError, match=r"built with another model \(model…\); give engine.rebuild=true"
        ):
            Lance(other, "embedding")
        Lance(other, "embedding", name="second")
        relabelled = MemoryGallery(gallery.folder)
        relabelled.labels = relabelled.labels.with_columns(camera=pl.lit("1"))
        with pytest.raises(InputError, match="built from other labels or pictures"):
            Lance(relabelled, "embedding")
        assert (
            len(
                Lance(relabelled, "embedding", rebuild=True)
                .search(queries(gallery), 3, Filter(camera=1))
                .rows
            )
            == 6
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "Magic"}, "engine.kind=Magic is unknown"),
            ({"probes": 0}, "engine.probes=0"),
            ({"lists": -1}, "engine.lists=-1"),
            ({"uri": "/proc/nowhere/at/all"}, "engine.uri=/proc/nowhere/at/all: LanceDB says"),
        ],
    )
    def test_settings_that_do_not_fit_are_refused_in_one_line(self, gallery, options, message):
        with pytest.raises(InputError, match=message) as caught:
            Lance(gallery, "embedding", **options)
        assert "\n" not in str(caught.value)

    def test_queries_that_do_not_fit_are_refused(self, gallery):
        index = Lance(gallery, "embedding")
        for query, k, message in (
            (torch.ones(2, 7), 3, "both must come from one model"),
            (torch.ones(2, 16), 0, "k=0"),
            (torch.zeros(2, 16), 3, "query feature 0 has length 0"),
        ):
            with pytest.raises(InputError, match=message):
                index.search(query, k, Filter())
        with pytest.raises(InputError, match=r"where\.mood"):
            index.search(torch.ones(2, 16), 3, Filter(mood="glad"))

    def test_vectors_and_labels_of_other_numbers_are_refused(self, gallery):
        gallery.vectors = gallery.vectors[:200]
        with pytest.raises(InputError, match="other numbers of vectors and labels"):
            Lance(gallery, "embedding")
