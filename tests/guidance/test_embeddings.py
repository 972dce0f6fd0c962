import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip3dreid.data.manifest import Manifest
from clip3dreid.data.training_set import training_set
from clip3dreid.errors import InputError
from clip3dreid.guidance import embeddings as embeddings_module
from clip3dreid.guidance.embeddings import JoinedCache, TrainingEmbeddings, embed_pictures, text_targets
from clip3dreid.guidance.settings import TeacherUse
from clip3dreid.io.locks import LOCK
from clip3dreid.io.ranks import ALONE, Ranks, met
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.model.embedding_cache import MemoryCache
from clip3dreid.model.small_clip import make_small_clip, save_small_clip, train_tokenizer
from clip3dreid.model.teacher import Teacher
from clip3dreid.model.teacher_view import Native
from tests.io.test_ranks import together
from tests.model.test_small_clip import CONFIG, MEAN, STD, TEXTS
from tests.processes import side_by_side

STATURE = {"measure": "stature", "words": ["short", "tall"], "cuts": [50], "phrase": "a {word} {person}"}
VOCABULARY = Vocabulary(
    {
        "stature": STATURE,
        "shoulders": {"measure": "shoulders", "words": ["broad shoulders", "narrow shoulders"], "cuts": [50]},
    },
    {"templates": ["{phrase}", "a photo of {phrase}"]},
)
CHOSEN = np.array([[1, 2], [0, 3], [1, 2]])
SURE = np.array([[0.25, 0.75], [1, 2], [0, 0]], np.float32)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 300, 32)
    folder = tmp_path_factory.mktemp("teachers") / "t"
    save_small_clip(folder, make_small_clip(tokenizer, CONFIG), tokenizer, MEAN, STD, {})
    return Teacher(str(folder), Native(32, 16), name="t")


def test_descriptors_are_the_mean_of_a_words_prompts(teacher: Teacher) -> None:
    targets = text_targets(teacher, VOCABULARY, CHOSEN, SURE, mode="descriptor", by="person")
    assert targets.embeddings.shape == (4, teacher.width)
    assert targets.embeddings.dtype == torch.float32
    # Broad shoulders are the third of all words.
    said = ["a person with broad shoulders", "a photo of a person with broad shoulders"]
    mean = torch.nn.functional.normalize(teacher.embed_texts(said).mean(0), dim=0)
    torch.testing.assert_close(targets.embeddings[2], mean)
    assert targets.tokens.tolist() == CHOSEN.tolist()
    assert targets.tokens.dtype == torch.int64
    assert targets.confidence.tolist() == SURE.tolist()
    assert targets.confidence.dtype == torch.float32
    assert targets.by == "person"


def test_words_are_the_states_of_the_composed_sentence(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip3dreid.guidance.embeddings.TEXTS_AT_ONCE", 1)
    targets = text_targets(teacher, VOCABULARY, CHOSEN, SURE, mode="words", by="row")
    sentences = ["a tall person with broad shoulders", "a short person with narrow shoulders"]
    lengths = []
    for row, text in ((0, sentences[0]), (1, sentences[1]), (2, sentences[0])):
        alone = teacher.embed_tokens([text])
        expected = alone.states[0][alone.mask[0]]
        lengths.append(len(expected))
        own = targets.tokens[row]
        torch.testing.assert_close(targets.embeddings[own[: len(expected)]], expected)
        # What is left over belongs to nobody.
        assert (own[len(expected) :] == -1).all()
    assert targets.tokens.shape == (3, max(lengths))
    assert targets.by == "row"
    # People of the same words share their tokens; every token is somebody's.
    assert targets.tokens[0].tolist() == targets.tokens[2].tolist()
    assert sorted(set(targets.tokens.flatten().tolist()) - {-1}) == list(range(len(targets.embeddings)))
    assert len(targets.embeddings) == lengths[0] + lengths[1]


def test_shorter_sentences_are_padded(teacher: Teacher) -> None:
    longer = Vocabulary(
        {
            "stature": STATURE,
            "shoulders": {"measure": "shoulders", "words": ["broad shoulders", "arms"], "cuts": [50]},
        },
        {"templates": ["{phrase}"]},
    )
    targets = text_targets(teacher, longer, CHOSEN, SURE, mode="words", by="person")
    counts = [int(teacher.embed_tokens([text]).mask.sum()) for text in (
        "a tall person with broad shoulders", "a short person with arms"
    )]  # fmt: skip
    assert counts[0] != counts[1]
    assert (targets.tokens >= 0).sum(1).tolist() == [counts[0], counts[1], counts[0]]
    assert targets.tokens.shape == (3, max(counts))


def test_every_token_of_a_sentence_is_as_sure_as_its_words_are_on_average(teacher: Teacher) -> None:
    targets = text_targets(teacher, VOCABULARY, CHOSEN, SURE, mode="words", by="person")
    assert targets.confidence.shape == targets.tokens.shape
    for row, mean in enumerate([(0.25 + 0.75) / 2, (1 + 2) / 2, 0]):
        assert targets.confidence[row].tolist() == [mean] * targets.tokens.shape[1]


@pytest.mark.parametrize("mode", ["descriptor", "words"])
def test_the_whole_vocabulary_comes_along(mode: str, teacher: Teacher) -> None:
    targets = text_targets(teacher, VOCABULARY, CHOSEN[:1], SURE[:1], mode=mode, by="person")
    assert targets.words.shape == (4, teacher.width)
    assert targets.group_sizes == (2, 2)
    for row, (_, word) in enumerate(VOCABULARY.flat):
        phrase = f"a {word} person" if row < 2 else f"a person with {word}"
        mean = teacher.embed_texts([phrase, f"a photo of {phrase}"]).mean(0)
        torch.testing.assert_close(targets.words[row], torch.nn.functional.normalize(mean, dim=0))
    for vectors in (targets.words, targets.embeddings):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_an_unknown_mode_is_refused(teacher: Teacher) -> None:
    with pytest.raises(InputError, match=r"labels\.tokens=sentence is unknown; choose descriptor or words"):
        text_targets(teacher, VOCABULARY, CHOSEN, SURE, mode="sentence", by="person")


def test_a_sentence_longer_than_the_teacher_reads_is_named(teacher: Teacher, tmp_path: Path) -> None:
    long = Vocabulary(
        {"stature": {"measure": "stature", "words": ["short" * 30, "tall"], "cuts": [50]}},
    )
    with pytest.raises(InputError, match="reads texts of at most 32 tokens"):
        text_targets(teacher, long, np.array([[0]]), np.ones((1, 1), np.float32), mode="words", by="person")


class Counting(torch.nn.Module):
    """A teacher that sees a picture's first pixel, slowly, and counts the pictures."""

    width, device, name, fingerprint = 3, torch.device("cpu"), "counting", "c" * 64

    def __init__(self, pause: float = 0) -> None:
        super().__init__()
        self.pause, self.seen = pause, 0

    def view(self, planes: torch.Tensor) -> torch.Tensor:
        return planes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        self.seen += len(images)
        return images[:, :, 0, 0].double()


def pictures(root: Path, count: int) -> Manifest:
    for row in range(count):
        if not (path := root / f"{row:03d}.png").exists():
            Image.new("RGB", (2, 3), (row, 2 * row, 255 - row)).save(path)
    return Manifest("tiny", root, pl.DataFrame({"path": [f"{row:03d}.png" for row in range(count)]}))


def embedded(teacher: Counting, root: Path, count: int, cache: str, **changes: object) -> torch.Tensor:
    manifest = pictures(root, count)
    settings = {"folder": root / "cache", "batch": 4, "workers": 0, "progress": lambda done: None, **changes}
    return embed_pictures(teacher, manifest, manifest.table, cache=cache, **settings).read(
        torch.arange(count)
    )


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_embedding_draws_nothing_from_the_generator_whether_or_not_it_was_done_before(
    cache: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for _ in range(2):
        embedded(Counting(), tmp_path, 5, cache)
        assert torch.equal(torch.get_rng_state(), before)


@given(count=st.integers(1, 23), batch=st.integers(1, 9), part=st.integers(1, 9))
def test_embeddings_are_those_of_their_pictures_however_they_are_cut(
    count: int, batch: int, part: int
) -> None:
    root = Path(os.environ["PYTEST_PICTURES"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip3dreid.guidance.embeddings.ROWS_PER_PART", part)
        found = embedded(Counting(), root, count, "memory", batch=batch)
    assert found.dtype == torch.float32
    assert found.tolist() == [[row, 2 * row, 255 - row] for row in range(count)]


@pytest.fixture(autouse=True, scope="module")
def root_of_pictures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where hypothesis finds pictures that were painted once."""
    os.environ["PYTEST_PICTURES"] = str(tmp_path_factory.mktemp("pictures"))


EMBED = """
import sys
from pathlib import Path
from clip3dreid.guidance import embeddings
from tests.guidance.test_embeddings import Counting, embedded
embeddings.ROWS_PER_PART = 8
teacher = Counting(0.02)
found = embedded(teacher, Path(sys.argv[1]), 60, "disk", progress=lambda done: print(done, flush=True))
print(teacher.seen, int(found.sum()), flush=True)
"""


def test_one_process_computes_another_waits_and_goes_on_where_the_first_was_killed(tmp_path: Path) -> None:
    """What the processes of a training on two GPUs do, or a second command that needs the same pictures."""
    pictures(tmp_path, 60)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-c", EMBED, str(tmp_path)]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lock = tmp_path / "cache" / LOCK
    while not lock.exists() or not lock.read_text() or len(list(lock.parent.glob("part-*"))) < 2:
        time.sleep(0.01)
    holder = int(lock.read_text().split()[1])
    first, second = sorted(runs, key=lambda run: run.pid != holder)
    first.kill()
    first.communicate()
    *_, said = second.communicate()[0].splitlines()
    assert second.returncode == 0
    seen, total = map(int, said.split())
    assert 0 < seen <= 60 - 2 * 8
    assert total == sum(row + 2 * row + 255 - row for row in range(60))
    teacher = Counting()
    embedded(teacher, tmp_path, 60, "disk")
    assert teacher.seen == 0


def test_a_folder_that_lacks_nothing_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on a disk that nobody may write, and others may be at work there."""
    first = embedded(Counting(), tmp_path, 5, "disk")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("clip3dreid.io.files.os.open", read_only)
    teacher = Counting()
    assert torch.equal(embedded(teacher, tmp_path, 5, "disk"), first)
    assert teacher.seen == 0


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keeps nothing; choose memory or disk"):
        embedded(Counting(), tmp_path, 5, "off")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*: Not a directory; choose another place"):
        embedded(Counting(), tmp_path, 5, "disk", folder=tmp_path / "file" / "cache")


def test_caches_of_several_data_sets_are_read_as_one() -> None:
    parts = torch.arange(14.0).view(7, 2).split([3, 1, 3])
    joined = JoinedCache([MemoryCache(part) for part in parts], [3, 1, 3])
    assert joined.width == 2
    rows = torch.tensor([6, 0, 3, 2, 6])
    assert joined.read(rows)[:, 0].tolist() == [12, 0, 6, 4, 12]
    assert joined.read(rows[:0]).shape == (0, 2)


def people(root: Path, name: str, count: int) -> Manifest:
    root.mkdir()
    made = pictures(root, count)
    columns = {"camera": None, "clothes": None, "split": "train", "role": "train", "data_set": name}
    table = made.table.with_columns(
        person=pl.lit("1"), **{key: pl.lit(value) for key, value in columns.items()}
    )
    return Manifest(name, root, table)


def embeddings_of(
    root: Path, which: list[Manifest], teacher: Counting, kept: str = "disk", ranks: Ranks = ALONE
) -> TrainingEmbeddings:
    teacher.to = lambda device: teacher  # type: ignore[method-assign, assignment, return-value]
    return TrainingEmbeddings(
        lambda: teacher,  # type: ignore[arg-type, return-value]
        training_set(which),
        TeacherUse(kept, root / "cache" / which[0].name),
        device=torch.device("cpu"),
        batch=4,
        workers=0,
        ranks=ranks,
    )


def test_each_data_set_is_embedded_once_where_other_runs_with_it_look(tmp_path: Path) -> None:
    """A training on two sets reads what one on either has computed."""
    manifests = [people(tmp_path / name, name, count) for name, count in (("a", 3), ("b", 2))]
    teacher = Counting()
    both = embeddings_of(tmp_path, manifests, teacher).cache.read(torch.arange(5))
    assert both[:, 0].tolist() == [0, 1, 2, 0, 1]
    made = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("index.json")}
    assert made == {"cache/a", "cache/b"}
    assert torch.equal(embeddings_of(tmp_path, manifests, teacher).cache.read(torch.arange(5)), both)
    second = embeddings_of(tmp_path, manifests[1:], teacher)
    assert torch.equal(second.cache.read(torch.arange(2)), both[3:])
    assert teacher.seen == 5


def shared_pass(rank: int, root: str, kept: str) -> None:
    """One of two processes that embed two data sets, and count the pictures that they read."""
    torch.set_num_threads(1)
    folder = Path(root)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{kept}", rank=rank, world_size=2)
    read: list[str] = []
    real = embeddings_module.read_rgb

    def counted(file: Path, *arguments: object) -> object:
        read.append(str(file))
        return real(file, *arguments)

    embeddings_module.read_rgb = counted  # type: ignore[assignment]
    manifests = [Manifest(name, folder / name, pl.read_parquet(folder / f"{name}.parquet")) for name in "ab"]
    made = embeddings_of(folder, manifests, Counting(), kept, met(folder / "run", "a launch"))
    values = made.cache.read(torch.arange(16))
    torch.save((read, values, made.lines), folder / f"{kept}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kept", ["disk", "memory"])
def test_a_teacher_pass_shared_by_two_processes_reads_every_picture_once(kept: str, tmp_path: Path) -> None:
    manifests = [people(tmp_path / name, name, count) for name, count in (("a", 11), ("b", 5))]
    for manifest in manifests:
        manifest.table.write_parquet(tmp_path / f"{manifest.name}.parquet")
    if kept == "disk":
        # What an earlier run has made of the second set is not made again.
        embeddings_of(tmp_path, manifests[1:], Counting()).cache  # noqa: B018
        assert (tmp_path / "cache" / "b" / "index.json").exists()
    side_by_side(shared_pass, 2, str(tmp_path), kept)
    told = [torch.load(tmp_path / f"{kept}-{rank}.pt", weights_only=False) for rank in range(2)]
    expected = manifests[0].files() + ([] if kept == "disk" else manifests[1].files())
    assert sorted(file for read, _, _ in told for file in read) == sorted(map(str, expected))
    # As even as parts allow: six and five, three and two.
    assert abs(len(told[0][0]) - len(told[1][0])) <= 2
    alone = embeddings_of(tmp_path / "alone", manifests, Counting()).cache.read(torch.arange(16))
    for _, values, lines in told:
        assert torch.equal(values, alone)
        assert lines == told[0][2]
    place = tmp_path / ("cache/a" if kept == "disk" else "run/teacher/0")
    assert sorted(path.name for path in place.iterdir()) == [
        "index.json", "part-00000.safetensors", "part-00001.safetensors",
    ]  # fmt: skip


def test_processes_that_do_not_see_each_others_parts_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a disk of its own under one name, as where a cache lies on the disks of several machines."""
    manifest = people(tmp_path / "a", "a", 6)
    monkeypatch.setattr(embeddings_module, "_SEEN_S", 0.0)

    def embed(folder: Path, ranks: Ranks) -> None:
        embed_pictures(
            Counting(), manifest, manifest.table, cache="disk", folder=folder, batch=4, workers=0,  # type: ignore[arg-type]
            progress=lambda count: None, ranks=ranks,
        )  # fmt: skip

    def work(ranks: Ranks) -> str:
        with pytest.raises(InputError) as caught:
            embed(tmp_path / f"machine{ranks.rank}", ranks)
        return str(caught.value)

    said = together(2, tmp_path / "run", work)
    for rank in range(2):
        assert f"process {rank} does not see 1 parts that others of this run have put into" in said[rank]
