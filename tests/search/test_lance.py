"""The adapter, with the engine itself; skipped where LanceDB is not installed."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.search import lance as module
from clip3dreid.search.engine import Exact
from clip3dreid.search.filters import Filter
from clip3dreid.search.lance import Lance
from tests.search.galleries import MemoryGallery
from tests.small_disk import fill, small_disk


def queries(gallery, count=6, seed=1):
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.standard_normal((count, gallery.vectors.shape[1]))).float()
    return gallery.vectors[rng.integers(len(gallery.vectors), size=count)] + noise


BUILD = """
import sys
from pathlib import Path
from clip3dreid.search.lance import Lance
from tests.search.galleries import MemoryGallery
from tests.small_disk import fill, small_disk
gallery = MemoryGallery(Path(sys.argv[1]))
whole = gallery.blocks
def slowly(name):
    first, *rest = whole(name)
    yield first
    print("half", flush=True)
    sys.stdin.read()
    yield from rest
gallery.blocks = slowly
Lance(gallery, "embedding")
"""


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
        # Every row is compared anew: which of them a bit a value leaves out is the engine's chance, not the build's.
        index = Lance(gallery, "embedding", index_from=1, lists=4, probes=4, refine=60)
        found = index.search(queries(gallery), 5, Filter())
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

    def test_tables_of_somebody_else_are_not_dropped(self, gallery):
        """A wrong `engine.uri`, such as another program's database."""
        import lancedb

        database = lancedb.connect(str(gallery.folder / "lance"))
        for name in ("gallery_embedding", "second_embedding_finished"):
            database.create_table(name, [{"precious": 1}])
        for name in ("gallery", "second"):
            for rebuild in (False, True):
                with pytest.raises(InputError, match=r"that is no index of this program; give another"):
                    Lance(gallery, "embedding", name=name, rebuild=rebuild)
        for name in ("gallery_embedding", "second_embedding_finished"):
            assert database.open_table(name).to_arrow().to_pylist() == [{"precious": 1}]

    @pytest.mark.parametrize("place", ["lance", "lance/gallery_embedding.lance"])
    def test_nothing_is_written_or_removed_through_a_link(self, gallery, place):
        (gallery.folder / "precious").mkdir()
        (gallery.folder / "precious" / "file").write_text("mine")
        (gallery.folder / place).parent.mkdir(exist_ok=True)
        (gallery.folder / place).symlink_to(gallery.folder / "precious")
        for rebuild in (False, True):
            with pytest.raises(InputError, match="is a link"):
                Lance(gallery, "embedding", rebuild=rebuild)
        assert [path.name for path in (gallery.folder / "precious").iterdir()] == ["file"]
        # A place that is named may be one.
        (gallery.folder / "disk").mkdir()
        (gallery.folder / "linked").symlink_to(gallery.folder / "disk")
        Lance(gallery, "embedding", uri=str(gallery.folder / "linked"))
        assert list((gallery.folder / "disk").glob("*.lance"))

    def test_a_second_process_waits_for_the_index_that_the_first_builds(self, gallery, monkeypatch):
        """The first is stopped in the middle of building."""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        }
        command = [sys.executable, "-c", BUILD, str(gallery.folder)]
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as first:
            assert first.stdout.readline() == "half\n"
            threading.Timer(0.5, first.stdin.close).start()
            monkeypatch.setattr(Lance, "_build", lambda *_: pytest.fail("built twice"))
            start = time.monotonic()
            found = Lance(gallery, "embedding").search(queries(gallery), 5, Filter())
            assert time.monotonic() - start >= 0.4
        assert torch.equal(found.rows, Exact(gallery, "embedding").search(queries(gallery), 5, Filter()).rows)

    @pytest.mark.slow
    @pytest.mark.parametrize("leave", [0, 8192, 20480, 40960])
    def test_a_disk_that_fills_up_for_real_is_one_line_and_the_index_is_built_later(self, gallery, leave):
        with small_disk(gallery.folder / "disk", 400) as disk:
            filler = fill(disk, leave=leave)
            with pytest.raises(InputError) as error:
                Lance(gallery, "embedding", uri=str(disk / "index"))
            assert "\n" not in str(error.value)
            filler.unlink()
            found = Lance(gallery, "embedding", uri=str(disk / "index")).search(queries(gallery), 5, Filter())
        exact = Exact(gallery, "embedding").search(queries(gallery), 5, Filter())
        assert torch.equal(found.rows, exact.rows)

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

    @pytest.mark.parametrize("index_from", [1, 20_000])
    def test_it_has_the_labels_as_the_gallery_has_them(self, gallery, index_from):
        gallery.labels = gallery.labels.with_columns(
            site=pl.Series(range(300), dtype=pl.Int32), share=pl.Series([0.1] * 300, dtype=pl.Float32)
        )
        index = Lance(gallery, "embedding", index_from=index_from, lists=4)
        assert len(index) == 300
        for rows in ([299, 3, 17, 3], []):
            assert index.labels_at(rows).equals(gallery.labels[rows])

    @pytest.mark.parametrize(
        "where", [{"camera": 1}, {"camera": ["01", 2], "site": 7}, {"frame": [40, None]}, {"frame": 0}]
    )
    def test_labels_are_found_in_any_spelling(self, gallery, where):
        cameras = ["1", "01", "1.0", "2", None] * 60
        frames = pl.Series([str(row % 90) for row in range(300)])
        site = pl.Series([row % 9 for row in range(300)], dtype=pl.Int64)
        gallery.labels = gallery.labels.with_columns(camera=pl.Series(cameras), site=site, frame=frames)
        found = Lance(gallery, "embedding").search(queries(gallery), 300, Filter(**where))
        allowed = Filter(**where).mask(gallery.labels).nonzero()[:, 0].tolist()
        assert sorted(found.rows[0][found.rows[0] >= 0].tolist()) == allowed

    @pytest.mark.parametrize(
        "where",
        [
            {"camera": 9},
            {"camera": 1, "frame": [2000, None]},
            {"clothes": 1},
            {"camera": 1, "person": 60},
            {"words": "tall"},
            {"mood": "glad"},
        ],
    )
    def test_what_a_filter_leaves_empty_is_said_as_of_the_gallery(self, gallery, where):
        with pytest.raises(InputError) as expected:
            Filter(**where).mask(gallery.labels)
        index = Lance(gallery, "embedding")
        for asked in (index.check, lambda where: index.search(queries(gallery), 3, where)):
            with pytest.raises(InputError) as found:
                asked(Filter(**where))
            if "frame" not in where:
                assert str(found.value) == str(expected.value)
            assert (
                str(found.value).partition("; there is")[0] == str(expected.value).partition("; there is")[0]
            )
