"""Labels through the command line: what is by hand, what is resumed, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import polars as pl
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.data.datasets import ltcc
from clip3dreid.data.sources import DataSpec
from clip3dreid.guidance import labelling
from clip3dreid.guidance.settings import LabelRun, TeacherUse
from clip3dreid.io.pictures import read_rgb
from clip3dreid.language.labels import aggregate, choose, load
from clip3dreid.language.prompts import word_embeddings
from clip3dreid.language.vocabulary import Vocabulary
from clip3dreid.model.small_clip import make_small_clip, save_small_clip, train_tokenizer
from clip3dreid.model.teacher import Teacher
from clip3dreid.model.teacher_view import Native
from tests.conftest import Command, write_ltcc
from tests.model.test_networks import onnx_file
from tests.model.test_small_clip import CONFIG, MEAN, STD
from tests.processes import holding


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    found: Vocabulary = instantiate(
        OmegaConf.load(conf_dir() / "language" / "body_words.yaml"), _convert_="all"
    )
    return found


def random_teacher(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["a tall person with broad shoulders and a wide waist"] * 9, 300, 112)
    save_small_clip(folder, make_small_clip(tokenizer, CONFIG), tokenizer, MEAN, STD, {})
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_teacher(tmp_path_factory.mktemp("teachers") / "small", 1)


@pytest.fixture
def label(invoke: Command, ltcc_root: Path, teacher: Path) -> Callable[..., Any]:
    def run(*arguments: str, out: str = "out") -> Any:
        view = ("model.teacher.view.height=32", "model.teacher.view.width=16")
        data = ("data=ltcc", f"data.root={ltcc_root}", "workers=0")
        return invoke("label", *data, f"model.teacher.path={teacher}", *view, f"out={out}", *arguments)

    return run


def test_labels_are_those_made_by_hand(
    label: Callable[..., Any], ltcc_root: Path, teacher: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    done = label()
    assert done.returncode == 0, done.stderr
    labels = load(tmp_path / "out" / "labels.parquet", vocabulary)
    model = Teacher(str(teacher), Native(32, 16), name="by hand")
    words = word_embeddings(vocabulary.prompts, lambda texts: model.embed_texts(texts).numpy())
    table = ltcc.read(ltcc_root).part("train")
    pictures = [
        torch.from_numpy(read_rgb(ltcc_root / path).copy()).permute(2, 0, 1) for path in table["path"]
    ]
    units, scores = aggregate(model(torch.stack(pictures)).numpy() @ words.T, table)
    expected = choose(units, scores, vocabulary)
    assert labels.table.drop("score", "margin").equals(expected.drop("score", "margin"))
    np.testing.assert_allclose(labels.table["margin"], expected["margin"], atol=1e-4)
    assert (labels.pictures, labels.level, labels.data_sets) == (48, "person", ("ltcc",))
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {
        "labels.parquet",
        "labels.md",
        "words.png",
        "scores.png",
        "certain.jpg",
        "uncertain.jpg",
    }
    page = (tmp_path / "out" / "labels.md").read_text()
    assert r"body\_clip" in page


def test_a_killed_run_goes_on_and_a_second_one_computes_nothing(
    label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = label("model.teacher.cache=memory", out="whole")
    assert whole.returncode == 0, whole.stderr
    monkeypatch.setattr("clip3dreid.guidance.embeddings.ROWS_PER_PART", 8)
    forward, seen = Teacher.forward, 0

    def killed(self: Teacher, images: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(images)
        if seen > 30:
            raise KeyboardInterrupt
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        label("batch=10")
    parts = list((tmp_path / "cache").rglob("part-*.safetensors"))
    assert len(parts) == 3
    assert not (tmp_path / "out").exists()

    counted = 0

    def counting(self: Teacher, images: torch.Tensor) -> torch.Tensor:
        nonlocal counted
        counted += len(images)
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", counting)
    assert label("batch=10").returncode == 0
    assert counted == 48 - 3 * 8
    assert label("overwrite=true").returncode == 0
    assert counted == 48 - 3 * 8
    first, second = (pl.read_parquet(tmp_path / out / "labels.parquet") for out in ("whole", "out"))
    assert first.drop("score", "margin").equals(second.drop("score", "margin"))


def test_edited_labels_are_not_written_over(label: Callable[..., Any], tmp_path: Path) -> None:
    assert label("format=csv").returncode == 0
    mine = (tmp_path / "out" / "labels.csv").read_text().replace("short,", "tall,")
    (tmp_path / "out" / "labels.csv").write_text(mine)
    again = label("format=csv")
    assert again.returncode == 2
    assert "is there already, perhaps edited; give overwrite=true" in again.stderr
    assert (tmp_path / "out" / "labels.csv").read_text() == mine


def test_a_rendered_worlds_labels_are_compared_with_its_truth(
    label: Callable[..., Any], ltcc_root: Path, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    root = write_ltcc(tmp_path / "world")
    table = ltcc.read(root).part("train")
    words = {f"word_{group}": pl.lit(names[0]) for group, names in vocabulary.groups.items()}
    table.select("path", "person", "split").with_columns(**words).write_parquet(root / "truth.parquet")
    done = label(f"data.root={root}")
    assert done.returncode == 0, done.stderr
    assert "agreement with the truth" in done.stdout
    assert "Spearman" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.teacher.path=openai/no-such-model",), "is not found locally"),
        (("calibration=zscores",), "calibration=zscores is unknown"),
        (("level=outfit",), "level=outfit is unknown"),
        (("format=json",), "format=json is unknown"),
        (("model.teacher.cache='off'",), "model.teacher.cache=off keeps nothing"),
        (("device=abacus",), "device=abacus cannot be used"),
        (("language.groups.belly.measure=a/b/c",), "language.groups.belly"),
        (("~language.groups.belly.words",), "language.groups.belly must have"),
    ],
)
def test_bad_input_gets_one_line_and_no_labels(
    arguments: tuple[str, ...],
    message: str,
    label: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The variable HF_HUB_OFFLINE, which is read when the library is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = label(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_teacher_without_words_is_refused_before_a_picture_is_looked_at(
    invoke: Command, ltcc_root: Path, tmp_path: Path
) -> None:
    network = onnx_file(tmp_path / "tiny.onnx", sides=(3, 256, 128))
    data = ("data=ltcc", f"data.root={ltcc_root}")
    done = invoke("label", *data, "model/teacher=onnx", f"model.teacher.path={network}")
    assert done.returncode == 2
    assert "model/teacher=onnx embeds pictures and no texts" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_embeddings_of_another_teacher_are_refused(label: Callable[..., Any], tmp_path: Path) -> None:
    assert label().returncode == 0
    other = random_teacher(tmp_path / "other", 2)
    done = label(f"model.teacher.path={other}", out="again")
    assert done.returncode == 2
    assert "holds embeddings of teacher body_clip" in done.stderr
    assert not (tmp_path / "again").exists()


def test_an_unreadable_picture_is_named_or_left_out(label: Callable[..., Any], tmp_path: Path) -> None:
    root = write_ltcc(tmp_path / "broken")
    bad = next((root / "train").glob("000_*.png"))
    bad.write_bytes(bad.read_bytes()[:60])
    failed = label(f"data.root={root}")
    assert failed.returncode == 2
    assert bad.name in failed.stderr
    skipped = label(f"data.root={root}", "data.on_error=skip", "model.teacher.cache_dir=cache/other")
    assert skipped.returncode == 0, skipped.stderr


def test_a_person_without_a_usable_picture_is_named(label: Callable[..., Any], tmp_path: Path) -> None:
    root = write_ltcc(tmp_path / "broken")
    for bad in (root / "train").glob("000_*.png"):
        bad.write_bytes(b"no picture")
    done = label(f"data.root={root}", "data.on_error=skip", "model.teacher.cache_dir=cache/other")
    assert done.returncode == 2
    assert "no usable picture of ltcc/0" in done.stderr


def test_labels_are_made_from_python_as_from_the_command_line(
    label: Callable[..., Any], ltcc_root: Path, teacher: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    assert label().returncode == 0
    made = labelling.label(
        [DataSpec("ltcc", ltcc_root, ltcc.read)],
        lambda: Teacher(str(teacher), Native(32, 16), name="body_clip"),
        lambda: vocabulary,
        TeacherUse("memory"),
        LabelRun(tmp_path / "mine", workers=0),
    )
    assert made.path == tmp_path / "mine" / "labels.parquet"
    assert (made.units, made.agreement) == (6, None)
    by_command = load(tmp_path / "out" / "labels.parquet", vocabulary)
    assert made.labels.table.drop("score", "margin").equals(by_command.table.drop("score", "margin"))
    assert made.labels.facts == by_command.facts


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", ["save", pytest.param("write_page", marks=pytest.mark.slow)])
def test_labels_and_page_are_replaced_together_or_not_at_all(
    label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    assert label().returncode == 0
    before = contents(tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"clip3dreid.guidance.labelling.{step}", full)
        failed = label("overwrite=true", "calibration=none")
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1] == (
        "error: cannot write out: No space left on device; make room, or choose another place"
    )
    assert contents(tmp_path / "out") == before
    assert label("overwrite=true", "calibration=none").returncode == 0
    assert set(contents(tmp_path / "out")) == set(before)
    assert contents(tmp_path / "out")["labels.parquet"] != before["labels.parquet"]


@pytest.mark.parametrize("name", ["labels.md", "words.png", "certain.jpg", "labels.parquet", "labels.json"])
def test_files_of_something_else_are_not_written_over(
    label: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    """A wrong `out`, such as a folder of notes."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    done = label("overwrite=true")
    assert done.returncode == 2
    assert f"out holds {name} and no labels of ours" in done.stderr
    assert contents(tmp_path / "out") == {name: b"mine"}


@pytest.mark.parametrize("name", ["labels.md", "words.png", "labels.parquet", ".unfinished"])
def test_nothing_is_written_through_a_link(label: Callable[..., Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    done = label("overwrite=true")
    assert done.returncode == 2
    assert f"out/{name} is a link" in done.stderr
    assert not list((tmp_path / "precious").iterdir())


def test_a_folder_in_use_is_refused(label: Callable[..., Any], tmp_path: Path) -> None:
    with holding(tmp_path / "out", "labels people") as holder:
        done = label()
        assert done.returncode == 2
        assert f"out is in use: process {holder} on" in done.stderr
