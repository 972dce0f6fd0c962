import gc
import json
import multiprocessing
import os
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from clip3dreid.errors import InputError
from clip3dreid.io.files import identify
from clip3dreid.model.embedding_cache import EmbeddingCache, MemoryCache, TeacherEmbeddings
from clip3dreid.types import Batch
from tests.small_disk import fill, small_disk

COUNT, WIDTH, PART = 11, 6, 4


def values(count: int = COUNT) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:02d}.jpg").write_bytes(b"x" * (number + 1))
    return folder


def opened(root: Path, **changes: object) -> EmbeddingCache:
    paths = sorted(path.name for path in root.iterdir())
    settings = {"teacher": "tiny", "fingerprint": "f" * 64, "width": WIDTH, "rows_per_part": PART}
    return EmbeddingCache(root.parent / "cache", identify(root, paths), **{**settings, **changes})


def filled(root: Path, **changes: object) -> EmbeddingCache:
    cache = opened(root, **changes)
    for rows in cache.missing():
        cache.put(rows, values(len(cache))[rows.start : rows.stop])
    return cache


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_is_put_is_read_back_row_by_row(root):
    cache = opened(root)
    assert cache.missing() == [range(4), range(4, 8), range(8, 11)]
    assert cache.stale == 0
    for rows in cache.missing():
        cache.put(rows, values()[rows.start : rows.stop])
    assert cache.missing() == []
    for reader in (cache, opened(root)):
        rows = torch.tensor([10, 0, 3, 4, 3, 7])
        found = reader.read(rows)
        assert torch.equal(found, values()[rows])
        assert found.dtype == torch.float32
        assert reader.read(torch.tensor([], dtype=torch.int64)).shape == (0, WIDTH)


def test_a_killed_build_goes_on_after_its_last_finished_part(root):
    cache = opened(root)
    first, *_ = cache.missing()
    cache.put(first, values()[:PART])
    (cache.folder / ".part-00001-x.safetensors").write_bytes(b"half")  # what a kill leaves of the second
    again = opened(root)
    assert again.missing() == [range(4, 8), range(8, 11)]
    assert again.stale == 0
    before = (cache.folder / "part-00000.safetensors").stat().st_mtime_ns
    for rows in again.missing():
        again.put(rows, values()[rows.start : rows.stop])
    assert (cache.folder / "part-00000.safetensors").stat().st_mtime_ns == before
    assert torch.equal(again.read(torch.arange(COUNT)), values())


def test_a_new_cache_may_ask_for_other_parts_but_an_old_one_keeps_its_own(root):
    filled(root)
    assert opened(root, rows_per_part=100).missing() == []


def touch(root: Path) -> None:
    os.utime(root / "05.jpg", ns=(1, 1))


def rewrite(root: Path) -> None:
    status = (root / "05.jpg").stat()
    (root / "05.jpg").write_bytes(b"another")
    os.utime(root / "05.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))


def add(root: Path) -> None:
    (root / "04b.jpg").write_bytes(b"new")


def remove(root: Path) -> None:
    (root / "05.jpg").unlink()


def rename(root: Path) -> None:
    (root / "05.jpg").rename(root / "05b.jpg")


@pytest.mark.parametrize(
    ("change", "rows", "stale"),
    [
        (touch, [range(4, 8)], 1),
        (rewrite, [range(4, 8)], 1),
        (rename, [range(4, 8)], 1),
        (add, [range(4, 8), range(8, 12)], 2),
        (remove, [range(4, 8), range(8, 10)], 2),
    ],
)
def test_parts_whose_pictures_changed_came_or_went_are_computed_anew(root, change, rows, stale):
    filled(root)
    change(root)
    cache = opened(root)
    assert cache.missing() == rows
    assert cache.stale == stale
    with pytest.raises(RuntimeError, match="lacks"):
        cache.read(torch.tensor([0]))
    filled(root)
    assert opened(root).missing() == []
    assert json.loads((cache.folder / "index.json").read_text())["count"] == len(cache)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, empty, flip, zeros])
def test_a_damaged_part_is_counted_and_computed_anew(root, damage):
    filled(root)
    damage(root.parent / "cache" / "part-00001.safetensors")
    cache = opened(root)
    assert cache.missing() == [range(4, 8)]
    assert cache.stale == 1
    assert torch.equal(filled(root).read(torch.arange(COUNT)), values())


def test_a_part_of_another_teacher_is_not_used_though_the_index_says_otherwise(root):
    filled(root)
    part = root.parent / "cache" / "part-00000.safetensors"
    kept = part.read_bytes()
    for path in part.parent.iterdir():
        path.unlink()
    filled(root, fingerprint="0" * 64)
    index = part.parent / "index.json"
    index.write_text(index.read_text().replace("0" * 64, "f" * 64))
    assert opened(root).stale == 3
    part.write_bytes(kept)
    assert opened(root).missing() == [range(4, 8), range(8, 11)]


def test_another_teachers_cache_is_refused_naming_both_and_what_to_do(root):
    filled(root)
    for changes in ({"teacher": "large", "fingerprint": "0" * 64}, {"teacher": "large", "width": 7}):
        with pytest.raises(InputError) as error:
            opened(root, **changes)
        message = one_line(error)
        for word in ("teacher tiny", "not of large", "remove", "model.teacher.cache_dir"):
            assert word in message
    assert opened(root, teacher="the same by another name").missing() == []


def test_another_version_and_a_damaged_index_are_refused(root):
    index = filled(root).folder / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "version": 99}))
    with pytest.raises(InputError, match="has version 99, this program reads 1") as error:
        opened(root)
    one_line(error)
    for text in ("{", "[]", '{"version": 1, "fingerprint": "%s", "width": 6}' % ("f" * 64)):
        index.write_text(text)
        with pytest.raises(InputError, match=r"(is damaged|cannot be read) .*; restore it") as error:
            opened(root)
        one_line(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_no_numbers_are_refused_naming_the_picture(root, value):
    cache = opened(root)
    wrong = values()[4:8]
    wrong[1, 2] = value
    with pytest.raises(InputError, match=r"tiny gives .* for 05\.jpg; set model\.teacher\.dtype") as error:
        cache.put(range(4, 8), wrong)
    one_line(error)
    assert range(4, 8) in cache.missing()
    with pytest.raises(InputError, match="row 1 is NaN or infinite"):
        MemoryCache(wrong)


def test_put_takes_whole_parts_alone(root):
    cache = opened(root)
    for rows, rightly in ((range(3), False), (range(1, 5), False), (range(12, 12), False), (range(4), True)):
        embeddings = torch.zeros(len(rows), WIDTH - rightly)
        with pytest.raises(ValueError, match="embeddings are" if rightly else "no part of this cache"):
            cache.put(rows, embeddings)


def test_a_part_put_again_is_read_as_it_is_now(root):
    cache = filled(root)
    cache.read(torch.arange(COUNT))
    cache.put(range(4, 8), -values()[4:8])
    assert torch.equal(cache.read(torch.arange(4, 8)), -values()[4:8])


def test_rows_that_are_not_there_are_no_embedding(root):
    for cache in (filled(root), MemoryCache(values())):
        for row in (-1, COUNT):
            with pytest.raises(IndexError):
                cache.read(torch.tensor([0, row]))


def test_a_picture_that_is_gone_is_named(root):
    with pytest.raises(InputError, match=r"99\.jpg cannot be read") as error:
        identify(root, ["99.jpg"])
    one_line(error)


def test_a_folder_that_cannot_be_made_is_refused(root):
    (root.parent / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cache is no folder; give another") as error:
        opened(root)
    one_line(error)


def test_opening_writes_nothing(root):
    opened(root)
    assert not (root.parent / "cache").exists()


@pytest.mark.parametrize("name", ["part-00000.safetensors", "part-00007.safetensors"])
def test_parts_that_are_nobody_knows_whose_are_not_written_over(root, name):
    (root.parent / "cache").mkdir()
    (root.parent / "cache" / name).write_text("mine")
    with pytest.raises(InputError, match=r"no index\.json that says whose they are") as error:
        opened(root)
    one_line(error)


@pytest.mark.parametrize("name", ["part-00001.safetensors", "index.json"])
def test_nothing_is_written_through_a_link(root, name):
    cache = filled(root)
    precious = root.parent / "precious"
    (cache.folder / name).rename(precious)
    (cache.folder / name).symlink_to(precious)
    before = precious.read_bytes()
    touch(root)
    remove(root)
    with pytest.raises(InputError, match="is a link"):
        filled(root)
    assert precious.read_bytes() == before
    assert (cache.folder / name).is_symlink()


def test_the_folder_itself_may_be_a_link_to_a_large_disk(root):
    (root.parent / "disk").mkdir()
    (root.parent / "cache").symlink_to(root.parent / "disk")
    assert torch.equal(filled(root).read(torch.arange(COUNT)), values())
    assert (root.parent / "disk" / "index.json").is_file()


def test_litter_of_killed_processes_is_swept_away(root):
    cache = filled(root)
    names = sorted(path.name for path in cache.folder.iterdir())
    for name in (".part-00001-abcdefgh.safetensors", ".index-abcdefgh.json", ".notes-abcdefgh.txt"):
        (cache.folder / name).write_text("half")
    cache.begin()
    assert sorted(path.name for path in cache.folder.iterdir()) == [".notes-abcdefgh.txt", *names]


def test_a_part_that_was_replaced_before_it_was_looked_at_is_not_served(root):
    """Another training on other pictures was given the same folder while this one was under way."""
    reader, seen = filled(root), filled(root)
    seen.read(torch.arange(COUNT))
    touch(root)
    other = opened(root)
    for rows in other.missing():
        other.put(rows, -values()[rows.start : rows.stop])
    # What was looked at is still what it was, and what is as it was may still be looked at.
    assert torch.equal(seen.read(torch.arange(COUNT)), values())
    assert torch.equal(reader.read(torch.tensor([0])), values()[:1])
    with pytest.raises(InputError, match=r"part-00001\.safetensors was replaced meanwhile") as error:
        reader.read(torch.tensor([5]))
    one_line(error)


@pytest.mark.slow
@pytest.mark.parametrize("leave", range(0, 4 * 4096, 4096))
def test_a_disk_that_fills_up_for_real_is_one_line_and_the_next_run_goes_on(root, leave):
    with small_disk(root.parent / "cache", 100) as disk:
        filler = fill(disk, leave=leave)
        with pytest.raises(InputError, match="No space left on device") as error:
            filled(root)
        one_line(error)
        assert not [path for path in disk.iterdir() if path.name.startswith(".") and path != filler]
        filler.unlink()
        assert torch.equal(filled(root).read(torch.arange(COUNT)), values())


def test_a_cache_that_nobody_uses_any_more_lets_go_of_its_files_at_once(root):
    gc.disable()
    try:
        cache = filled(root)
        cache.read(torch.arange(COUNT))
        gone = weakref.ref(cache)
        del cache
        assert gone() is None
    finally:
        gc.enable()


def test_parts_are_plain_safetensors_that_say_whose_they_are(root):
    filled(root)
    tensors = load_file(root.parent / "cache" / "part-00002.safetensors")
    assert torch.equal(tensors["embedding"], values()[8:])
    assert tensors["identity"].dtype == torch.int64
    assert tensors["identity"].shape == (3,)


class Rows(Dataset[torch.Tensor]):
    def __init__(self, cache: EmbeddingCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.cache.read(torch.tensor([row]))[0]


@pytest.mark.parametrize("started", [False, True], ids=["unread", "already read"])
def test_two_loader_workers_read_a_cache(root, started):
    cache = filled(root)
    if started:
        cache.read(torch.arange(COUNT))
    context = multiprocessing.get_context("fork")
    loader = DataLoader(Rows(cache), batch_size=3, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), values())


def test_a_pickled_cache_takes_no_embeddings_along_and_reads_the_same(root):
    cache = filled(root)
    cache.read(torch.arange(COUNT))
    packed = pickle.dumps(cache)
    assert values()[0].numpy().tobytes() not in packed
    copied = pickle.loads(packed)  # noqa: S301
    assert torch.equal(copied.read(torch.arange(COUNT)), values())


def test_spawned_loader_workers_read_a_cache(root):
    cache = filled(root)
    context = multiprocessing.get_context("spawn")
    loader = DataLoader(Rows(cache), batch_size=3, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), values())


def test_memory_gives_what_the_disk_gives(root):
    rows = torch.tensor([[9, 2, 2]])[0]
    assert torch.equal(MemoryCache(values()).read(rows), filled(root).read(rows))
    with pytest.raises(ValueError, match=r"must be \(N, d\)"):
        MemoryCache(torch.zeros(3))


class Blind(torch.nn.Module):
    """A teacher that sees a picture's first pixel."""

    width = 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, :2]


def test_a_training_loop_gets_cached_rows_or_the_teachers_view_of_the_augmented_picture():
    labels = torch.zeros(2, dtype=torch.int64)
    images, view = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    batch = Batch(images, labels, labels, labels, row=torch.tensor([1, 0]), view=view)
    fresh = TeacherEmbeddings(Blind())
    assert torch.equal(fresh(batch), view[:, 0, 0, :2])
    assert torch.equal(fresh(batch._replace(view=None)), images[:, 0, 0, :2])
    kept = torch.rand(2, 2)
    cached = TeacherEmbeddings(Blind(), MemoryCache(kept))
    assert torch.equal(cached(batch), kept[[1, 0]])
    assert fresh.width == cached.width == 2
    with pytest.raises(ValueError, match="a teacher or a cache"):
        TeacherEmbeddings()


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("erased", [False, True])
@pytest.mark.parametrize("guided", ["middle", "all"])
def test_of_clips_the_teacher_is_asked_of_the_frames_that_guides_are_about(guided, erased, frames):
    """Whether or not it sees what is erased, by a plain loop; a clip of one frame comes as a picture."""
    rows = torch.tensor([[0, 2, 4], [5, 3, 1]])[:, :frames]
    labels, kept = torch.zeros(2, dtype=torch.int64), torch.rand(6, 2)
    images, views = torch.rand(2, frames, 3, 4, 4), torch.rand(2, frames, 3, 4, 4)
    shown = images if erased else views
    middle = [int(one[frames // 2]) for one in rows]
    expected, cached = [], []
    for clip, numbers in zip(shown, rows, strict=True):
        if guided == "middle":
            expected.append(clip[frames // 2, 0, 0, :2])
            cached.append(kept[numbers[frames // 2]])
            continue
        means = sum(one[0, 0, :2] for one in clip) / frames, sum(kept[one] for one in numbers) / frames
        expected.append(means[0] / means[0].norm())
        cached.append(means[1] / means[1].norm())
    if guided == "middle":
        views = views[:, frames // 2]
    if frames == 1:
        images, views = images[:, 0], views if guided == "middle" else views[:, 0]
    batch = Batch(
        images, labels, labels, labels, torch.tensor(middle),
        view=None if erased else views, frames=rows if guided == "all" else None,
    )  # fmt: skip
    torch.testing.assert_close(TeacherEmbeddings(Blind())(batch), torch.stack(expected))
    torch.testing.assert_close(TeacherEmbeddings(Blind(), MemoryCache(kept))(batch), torch.stack(cached))
