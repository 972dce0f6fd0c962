"""Tracklets are trained on, embedded and ranked by their clips, through whole trainings on tiny walks."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch
from PIL import Image

from clip3dreid.data.clips import ClipSettings
from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.datasets import ccvid
from clip3dreid.data.manifest import Manifest, build
from clip3dreid.data.sources import DataSpec
from clip3dreid.errors import InputError
from clip3dreid.loss.identity import CrossEntropy
from clip3dreid.model.student import Student
from clip3dreid.model.teacher import Teacher
from clip3dreid.model.weights import read_card
from clip3dreid.retrieval.standard import CLOTHES, GENERAL
from clip3dreid.training.callbacks import AfterResults
from clip3dreid.training.data import RunData, as_run_data, read_data
from clip3dreid.training.defaults import usual_callbacks
from clip3dreid.training.evaluation import evaluate_model, read_student
from clip3dreid.training.evaluation_module import EvaluationModule
from clip3dreid.training.module import ReidModule
from clip3dreid.training.run import train
from clip3dreid.types import Batch, Features
from tests.conftest import STUDENT, TINY, Command, paint
from tests.pretend_accelerator import run_on_it
from tests.retrieval import plain
from tests.runs import assert_same
from tests.tiny_training import tiny_trainer
from tests.training.test_distributed import assert_same_training
from tests.training.test_run import column, weights

FRAMES, STRIDE = 3, 2
HOW = ClipSettings(FRAMES, STRIDE, piece=7)
TRAINED, TESTED = range(1, 9), range(50, 54)


def length_of(person: int, outfit: int, walk: int) -> int:
    """Frames of a walk: 1 to 14, few of them alike."""
    return 1 + (5 * person + 7 * outfit + 3 * walk) % 14


def write_walks(
    root: Path,
    trained: Sequence[int] = TRAINED,
    tested: Sequence[int] = TESTED,
    length: Callable[[int, int, int], int] = length_of,
) -> Path:
    """CCVID's layout: each person in two outfits, past two cameras in each; the first walk in each is the query."""
    lists: dict[str, list[str]] = {"train": [], "query": [], "gallery": []}
    for part, people in (("train", trained), ("test", tested)):
        for person in people:
            for outfit in (1, 2):
                for walk in (1, 2):
                    folder = f"session{outfit}/{person:03d}_{walk:02d}"
                    for frame in range(1, length(person, outfit, walk) + 1):
                        paint(root / folder / f"{frame:05d}.png", person, outfit, 100 * walk + frame)
                    role = "train" if part == "train" else "query" if walk == 1 else "gallery"
                    lists[role].append(f"{folder}\t{person:03d}\tu{outfit}_l0_s0_c0_a0\n")
    for role, lines in lists.items():
        (root / f"{role}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def walks_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CCVID: 8 training and 4 test people, 4 walks each."""
    return write_walks(tmp_path_factory.mktemp("walks") / "CCVID")


CLIPS = (
    *(one for one in TINY if not one.startswith(("model/student", "datamodule.evaluation_batch"))),
    "data=ccvid", "datamodule=clips", "model/student=c2d_resnet18_quarter", "datamodule.evaluation_batch=12",
    f"datamodule.clips.frames={FRAMES}", f"datamodule.clips.stride={STRIDE}", "datamodule.clips.piece=7",
)  # fmt: skip


CAL = ("method=cal", "clothes_start_epoch=1")


def asked(root: Path, *more: str, run: str = "run") -> list[str]:
    """A training on clips; what comes later of one key counts."""
    given = [f"data.root={root}", *CLIPS, f"hydra.run.dir={run}", *more]
    return list({one.partition("=")[0]: one for one in given}.values())


CLIP_STUDENT = {
    **STUDENT,
    "_target_": "clip3dreid.model.clip_student.ClipStudent",
    "pooling": {"_target_": "clip3dreid.model.pooling.Maximum"},
}
LOSSES: Any = {
    "identity": {
        "weight": 1.0,
        "start_epoch": 0,
        "warmup_epochs": 0,
        "term": partial(CrossEntropy, smoothing=0.1),
    }
}
SMALL = partial(ReidDataModule, people=4, pictures=2, height=32, width=16, evaluation_batch=12)
CPU = partial(pl.Trainer, accelerator="cpu")


class Kept(AfterResults):
    """Keeps what queries and galleries were compared by in the last test."""

    def __init__(self) -> None:
        self.features: dict[str, torch.Tensor] = {}

    def on_results(self, trainer: pl.Trainer, module: ReidModule, result: Any) -> None:
        self.features = dict(module.features)


def run(
    data: Any, folder: Path, clips: ClipSettings | None = HOW, student: Any = CLIP_STUDENT, **more: Any
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Train on clips; returns what came of it, and the features of the last test."""
    kept = Kept()
    batches = partial(SMALL, clips=clips, **more.pop("sizes", {}))
    result = train(
        data,
        **{
            "student": student,
            "losses": LOSSES,
            "folder": folder,
            "batches": batches,
            "trainer": CPU,
            "epochs": 2,
            "callbacks": [*usual_callbacks(folder), kept],
        }
        | more,
    )
    return result, kept.features


def walks_of(manifest: Manifest) -> Iterator[tuple[str, dict[str, Any], list[Path]]]:
    """Yield the role of every test tracklet, its labels, and its frames in time: queries first."""
    for role in ("query", "gallery"):
        found: dict[str, list[dict[str, Any]]] = {}
        for row in manifest.part("test", role).iter_rows(named=True):
            found.setdefault(row["tracklet"], []).append(row)
        for frames in found.values():
            in_time = sorted(frames, key=lambda row: row["frame"])
            yield role, frames[0], [manifest.root / row["path"] for row in in_time]


def clips_of(length: int, frames: int, stride: int) -> Iterator[list[int]]:
    """Yield the clips of a tracklet: blocks of interleaved ones, the rest with a smaller stride, then looped."""
    start = 0
    while length - start >= frames:
        step = stride if length - start >= frames * stride else (length - start) // frames
        yield from ([start + first + step * one for one in range(frames)] for first in range(step))
        start += frames * step
    if start < length:
        yield [start + one % (length - start) for one in range(frames)]


def embedded(student: Student, files: Sequence[Path], frames: int, stride: int) -> torch.Tensor:
    """(D,) of a tracklet: clip by clip and its mirror image."""
    pictures = torch.stack(
        [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255 for file in files]
    )
    features = []
    for clip in clips_of(len(files), frames, stride):
        images = pictures[clip][None] if frames > 1 else pictures[clip]
        features.append(student(images).embedding + student(images.flip(-1)).embedding)
    return torch.stack(features).mean(0)[0]


def assert_as_a_plain_loop(
    run: Path, manifest: Manifest, found: torch.Tensor, results: Any, how: ClipSettings = HOW
) -> None:
    """Features and scores of a test are those of a loop over tracklets, clip by clip."""
    student = read_student(run).student.eval()
    with torch.inference_mode():
        walks = list(walks_of(manifest))
        expected = torch.stack([embedded(student, files, how.frames, how.stride) for _, _, files in walks])
    assert found.shape == expected.shape
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(found), unit(expected), rtol=0, atol=1e-6)
    # Not of length 1 before the mean: only then do long clips' and short ones' features weigh alike.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    count = sum(role == "query" for role, _, _ in walks)
    labels = [row for _, row, _ in walks]
    scores = plain.score_matrix(expected[:count], expected[count:], "cosine")
    for protocol in CLOTHES.protocols:
        hits = plain.evaluate_plain(scores, labels[:count], labels[count:], plain.JUNK[protocol])
        valid = [one for one in hits if one is not None]
        assert results[protocol]["valid_queries"] == len(valid) > 0
        assert results[protocol]["r1"] == pytest.approx(
            np.mean([first <= 1 for first, _, _ in valid]), abs=1e-6
        )
        assert results[protocol]["map"] == pytest.approx(np.mean([ap for _, ap, _ in valid]), abs=1e-6)


def test_a_student_of_clips_is_trained_and_evaluated_as_a_plain_loop_would(
    walks_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = ccvid.read(walks_root)
    caplog.set_level("INFO")
    result, features = run(RunData(manifest, CLOTHES), tmp_path / "run", epochs=3)
    scores = result.results.evaluations[0].results
    assert_as_a_plain_loop(result.folder, manifest, features["ccvid"], scores)
    assert read_card(result.checkpoints["last"])["clips"] == {"frames": FRAMES, "stride": STRIDE}
    assert result.results.cost.pictures_per_step == 4 * 2 * FRAMES
    losses = column(result.folder, "loss/total")
    assert losses[-1] < losses[0]
    lengths = [length_of(p, o, w) for p in TRAINED for o in (1, 2) for w in (1, 2)]
    tested = [length_of(p, o, w) for p in TESTED for o in (1, 2) for w in (1, 2)]
    pieces = sum(max(1, length // HOW.piece) for length in lengths)
    short, few = (sum(length < FRAMES for length in part) for part in (lengths, tested))
    assert short > 0 < few
    said = "tracklets {} are shorter than a clip of 3 frames: looped"
    assert f"{short} of {pieces} {said.format('to train on')}" in caplog.text
    assert f"{few} of 16 {said.format('of ccvid (test)')}" in caplog.text
    # Evaluated by itself, it is looked at as it was trained.
    alone = evaluate_model(result.folder, RunData(manifest, CLOTHES), trainer=CPU, batches=SMALL)
    for protocol, values in scores.items():
        assert alone.results["ccvid"][protocol]["map"] == pytest.approx(values["map"], abs=1e-9)


def test_a_student_of_pictures_has_the_mean_over_all_frames_where_clips_are_of_one(
    walks_root: Path, tmp_path: Path
) -> None:
    manifest, one = ccvid.read(walks_root), ClipSettings(frames=1, stride=3, piece=0)
    result, features = run(RunData(manifest, CLOTHES), tmp_path / "run", one, STUDENT)
    scores = result.results.evaluations[0].results
    assert_as_a_plain_loop(result.folder, manifest, features["ccvid"], scores, one)


def test_pictures_in_memory_in_a_pack_and_in_files_train_and_rank_the_same(
    walks_root: Path, invoke: Command, tmp_path: Path
) -> None:
    packed = invoke(
        "pack", "data=ccvid", f"data.root={walks_root}", "out=packed", "height=32", "width=16", "workers=0"
    )
    assert packed.returncode == 0, packed.stderr
    manifest = ccvid.read(walks_root)
    sizes = {
        "files": {},
        "kept": {"keep_pictures": True},
        "pack": {"pack": tmp_path / "packed"},
        "device": {"pack": tmp_path / "packed", "augment_on": "device"},
    }
    view = {"train_view": None}
    found = {
        name: run(manifest, tmp_path / name, sizes={**how, **view}, epochs=1) for name, how in sizes.items()
    }
    states = {name: weights(tmp_path / name) for name in ("files", "kept", "pack")}
    for name in ("kept", "pack"):
        assert all(torch.equal(value, states[name][key]) for key, value in states["files"].items()), name
        assert torch.equal(found[name][1]["ccvid"], found["files"][1]["ccvid"])
    # Augmented on the device a picture may differ by a grey level.
    assert found["device"][1]["ccvid"].isfinite().all()
    assert found["device"][0].results is not None


def test_a_training_on_clips_that_is_stopped_within_an_epoch_ends_with_the_bits_of_one_that_is_not(
    walks_root: Path, invoke: Command, at_step: Callable[..., None], tmp_path: Path
) -> None:
    def all_of(run: str) -> list[str]:
        # With loader workers, which fetch ahead of what is trained.
        return asked(walks_root, *CAL, "data.val_people=2", "evaluate_every=2", "epochs=4", "milestones=[2]",
                     "datamodule.workers=1", run=run)  # fmt: skip

    assert invoke("train", *all_of("whole")).returncode == 0
    at_step("on_train_batch_end", 7)
    done = invoke("train", *all_of("stopped"))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert re.search(r"stopped by SIGTERM in epoch \d after batch \d of \d, saved", done.stdout)
    done = invoke("train", "resume=stopped")
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on after \d epochs? and \d batch", done.stdout)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


# Groups of 4 clips in batches of 8: one process normalises as two with 4 clips each. In double precision, since Adam
# makes a whole step of whatever sign noise gives a gradient that is next to nothing.
def test_two_processes_give_the_losses_weights_and_metrics_of_one_on_tracklets_of_uneven_lengths(
    walks_root: Path, command: Command, tmp_path: Path
) -> None:
    shared = (*CAL, "data.val_people=2", "evaluate_every=4", "epochs=8", "model.student.ghost_group=4",
              "trainer.precision=64-true")  # fmt: skip
    pair = ("trainer.devices=2", "trainer.strategy=ddp_find_unused_parameters_true")
    for name, more in (("one", ()), ("two", pair)):
        done = command("train", *asked(walks_root, *shared, *more, run=name))
        assert done.returncode == 0, done.stderr
    terms = ("loss/total", "loss/identity", "val/ccvid/general/map", "val/ccvid/clothes_changing/minp")
    assert_same_training(tmp_path / "one", tmp_path / "two", terms[:2], epochs=8)
    for term in terms[2:]:
        # In validation each holds a part of the gallery.
        expected, found = (column(tmp_path / name, term) for name in ("one", "two"))
        assert len(expected) == 2
        assert found == pytest.approx(expected, abs=1e-6)
    both = [
        json.loads((tmp_path / name / "results.json").read_text())["evaluations"] for name in ("one", "two")
    ]
    assert [one["checkpoint"] for one in both[0]] == ["last", "best"]
    for single, double in zip(*both, strict=True):
        for protocol, scores in single["results"].items():
            for key in ("r1", "r5", "map", "minp", "valid_queries"):
                assert double["results"][protocol][key] == pytest.approx(scores[key], abs=1e-6)


def test_people_who_are_held_out_are_ranked_by_whole_tracklets(walks_root: Path) -> None:
    (manifest,) = read_data(as_run_data(DataSpec("ccvid", walks_root, ccvid.read, val_people=3)), 1, 0)
    (val,) = SMALL([manifest], clips=HOW).evaluations("val")
    assert val.tracklets is not None
    lengths = val.tracklets.lengths.tolist()
    walks = polars.concat([val.query, val.gallery]).select("person", "clothes", "camera").rows()
    expected = [length_of(int(p), 1 + ("u2" in outfit), int(camera)) for p, outfit, camera in walks]
    # Every walk is a camera's own in its outfit: one of each person's is asked for.
    assert (len(val.query), len(val.gallery)) == (3, 9)
    assert lengths == expected


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Batch, list[list[torch.Tensor]]]]:
    """Batches as the student sees them, with the files of their frames."""
    batches: list[Any] = []
    see = ReidModule._see

    def watched(self: ReidModule, batch: Batch) -> Any:
        rows = batch.row[:, None] if batch.frames is None else batch.frames
        files = [[self.data.train_files[row] for row in clip] for clip in rows.tolist()]
        batches.append((batch, [[picture(file) for file in clip] for clip in files]))
        return see(self, batch)

    monkeypatch.setattr(ReidModule, "_see", watched)
    return batches


def picture(file: Path) -> torch.Tensor:
    """(3, 32, 16) in 0..1."""
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    ("cache", "guided"),
    [
        ("memory", "middle"),
        ("off", "all"),
        # These differ from the others as `TeacherEmbeddings` does alone.
        pytest.param("memory", "all", marks=pytest.mark.slow),
        pytest.param("off", "middle", marks=pytest.mark.slow),
        pytest.param("off_erased", "all", marks=pytest.mark.slow),
        pytest.param("off_erased", "middle", marks=pytest.mark.slow),
    ],
)
def test_the_teacher_says_of_a_clip_what_it_says_of_the_frames_that_guide(
    cache: str,
    guided: str,
    walks_root: Path,
    invoke: Command,
    seen: list[tuple[Batch, list[list[torch.Tensor]]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teachers: list[Teacher] = []
    made = Teacher.__init__

    def remember(self: Teacher, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        teachers.append(self)

    monkeypatch.setattr(Teacher, "__init__", remember)
    erased = cache != "memory"
    done = invoke(
        "train",
        *asked(
            walks_root, "method=clip3dreid", "loss=[identity,local,global]", "epochs=1", "model/teacher=body_clip",
            f"model.teacher.cache={cache}", f"model.student.guided={guided}",
            "datamodule.train_view.flip_probability=0", f"datamodule.train_view.erase_probability={int(erased)}",
        ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (teacher,) = teachers
    assert len(seen) >= 2
    for batch, files in seen:
        middle = slice(FRAMES // 2, FRAMES // 2 + 1)
        shown = batch.images if guided == "all" else batch.images[:, middle]
        on_disk = torch.stack([torch.stack(clip) for clip in files])
        assert on_disk.shape == shown.shape
        differ = [not torch.equal(*pair) for pair in zip(shown, on_disk, strict=True)]
        assert differ == [erased] * len(shown)
        looked_at = (shown if cache == "off_erased" else on_disk).flatten(0, 1)
        if cache == "memory":
            # A loader's workers resample for it, to bytes.
            looked_at = teacher.view((looked_at * 255).round().byte())
        answers = teacher(looked_at).unflatten(0, shown.shape[:2])
        expected = answers.mean(1) / answers.mean(1).norm(dim=1, keepdim=True)
        torch.testing.assert_close(batch.targets["teacher"], expected, rtol=0, atol=1e-5)


WAYS = {
    "ce": ("method=ce", "datamodule.augment_on=device"),
    "all frames": ("method=clip3dreid", "datamodule.augment_on=worker", "model.student.guided=all"),
    "the middle one": ("method=clip3dreid_cal", "datamodule.augment_on=device", "clothes_start_epoch=0"),
}


@pytest.mark.parametrize(
    "ways", [("ce",), pytest.param(("all frames", "the middle one"), marks=pytest.mark.slow)]
)
def test_no_step_on_clips_waits_for_the_device(
    ways: tuple[str, ...], walks_root: Path, tmp_path: Path
) -> None:
    teacher = ("model/teacher=body_clip", "model.teacher.cache=memory", "epochs=1")
    reports = run_on_it(
        *(["train", *asked(walks_root, *teacher, *WAYS[way], run=way.split()[0])] for way in ways),
        folder=tmp_path,
    )
    for way, report in zip(ways, reports, strict=True):
        assert len(report.steps) >= 4, way
        assert report.waits() == {}, way
        assert report.mixed == [], way


class Colours(torch.nn.Module):
    """The mean colour of a clip, of which each frame counts as often as it stands there."""

    width = 3

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[int] = []

    def forward(self, images: torch.Tensor) -> Features:
        clips = images if images.ndim == 5 else images[:, None]
        self.frames.append(clips.shape[0] * clips.shape[1])
        colours = clips.mean((1, 3, 4))
        return Features(clips[:, 0], colours, colours)


LONG = 5000


@pytest.fixture(scope="module")
def long_walks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, list[float]]:
    """Two people of a query and a tracklet each, one of 5,000 frames; and the grey of each of that one's frames."""
    root = tmp_path_factory.mktemp("long")
    greys = np.arange(5, 250, 7)
    for grey in greys:
        Image.fromarray(np.full((8, 4, 3), grey, np.uint8)).save(root / f"{grey:05d}.png")
    rows, means = [], []
    for person, role, length in (
        ("1", "query", 2),
        ("2", "query", 9),
        ("1", "gallery", LONG),
        ("2", "gallery", 1),
    ):
        shown = greys[(np.arange(length) * 5) ** 2 % len(greys)]
        for frame, grey in enumerate(shown):
            path = Path(role) / person / f"{frame:05d}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(root / f"{grey:05d}.png", root / path)
            rows.append({"path": str(path), "person": person, "tracklet": person, "frame": frame, "split": "test",
                         "role": role, "camera": role, "clothes": f"{person}_{role}"})  # fmt: skip
        means.append(float(shown.mean() / 255))
    return build("long", root, rows), means


def embedding(
    manifest: Manifest, clips: ClipSettings, batch: int, **trainer: Any
) -> tuple[EvaluationModule, Colours]:
    data = ReidDataModule([manifest], height=8, width=4, evaluation_batch=batch, clips=clips)
    student = Colours()
    module = EvaluationModule(
        student,  # type: ignore[arg-type]
        protocols={"test": {manifest.name: GENERAL.protocols}},
        metric="cosine",
        flip=False,
    )
    tiny_trainer(accelerator="cpu", **trainer).test(module, datamodule=data, verbose=False)
    return module, student


# 5,000 is a multiple of 8 frames, not of 8 x 3 or of 1,000 x 3.
@pytest.mark.parametrize(
    "clips", [ClipSettings(1), ClipSettings(8, 4), ClipSettings(8, 3), ClipSettings(1000, 3)]
)
def test_a_tracklet_of_5000_frames_takes_the_memory_of_one_batch(
    clips: ClipSettings, long_walks: tuple[Manifest, list[float]]
) -> None:
    manifest, means = long_walks
    module, student = embedding(manifest, clips, batch=64)
    # A batch has a clip at least.
    assert max(student.frames) <= max(64, clips.frames)
    assert sum(student.frames) >= LONG
    found = module.features["long"][2]
    torch.testing.assert_close(found, torch.full((3,), means[2]), rtol=0, atol=1e-5)


def test_a_tracklet_of_which_some_clips_were_left_out_has_no_score(
    long_walks: tuple[Manifest, list[float]],
) -> None:
    with pytest.raises(
        InputError, match=r"2 of 4 tracklets of long were never embedded, first .*gallery/1/.*trainer\.limit"
    ):
        embedding(long_walks[0], ClipSettings(8), batch=64, limit_test_batches=3)


@pytest.fixture(scope="module")
def trained(walks_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on clips."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(ccvid.read(walks_root), folder, epochs=1)
    return folder


def told(done: Any) -> str:
    """The one line of a command that refused."""
    assert done.returncode == 2, done.stderr + done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return str(line)


PICTURE_STUDENT = ("model/student=resnet18", "model.pretrained=null")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (PICTURE_STUDENT, "datamodule.clips.frames=3, and the student looks at pictures; take one of clips"),
        (("data=ltcc",), "ltcc: 48 of 48 pictures have no tracklet; clips need the column `tracklet`"),
        (("datamodule.people=9",), "8 people, but a batch takes 9"),
        (("bodies.batch_norm=shared",), "bodies.batch_norm=shared makes one batch of bodies and people"),
        (("datamodule.clips.frames=0",), "datamodule.clips.frames=0 must be"),
        (("datamodule.clips.sampling=random",), "datamodule.clips.sampling=random is unknown"),
    ],
)
def test_clips_that_cannot_be_are_refused_in_one_line_and_nothing_is_written(
    more: tuple[str, ...], said: str, walks_root: Path, ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    root = ltcc_root if "data=ltcc" in more else walks_root
    assert said in told(invoke("train", *asked(root, *more)))
    assert not list((tmp_path / "run").rglob("*.ckpt")) if (tmp_path / "run").exists() else True


def test_a_model_of_clips_is_not_evaluated_on_pictures_without_tracklets(
    trained: Path, ltcc_root: Path, invoke: Command
) -> None:
    shared = ["evaluate", f"checkpoint={trained}", "datamodule.workers=0"]
    line = told(invoke(*shared, "data=ltcc", f"data.root={ltcc_root}"))
    assert "pictures have no tracklet" in line


def test_what_is_asked_of_clips_comes_before_what_a_model_was_trained_on(
    trained: Path, walks_root: Path, invoke: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = (
        "evaluate",
        f"checkpoint={trained}",
        "data=ccvid",
        f"data.root={walks_root}",
        "datamodule.workers=0",
    )
    longer = {f"datamodule.clips.{name}={value}" for name, value in {"frames": 9, "stride": 1}.items()}
    manifest = RunData(ccvid.read(walks_root), CLOTHES)
    caplog.set_level("INFO")
    called = {}
    for frames, clips in ((FRAMES, None), (9, ClipSettings(9, 1))):
        caplog.clear()
        result = evaluate_model(trained, manifest, trainer=CPU, batches=SMALL, clips=clips)
        assert f"(test) are shorter than a clip of {frames} frames: looped" in caplog.text
        called[frames] = result.results["ccvid"]["general"]["map"]
    for frames, more in ((FRAMES, ()), (9, ("datamodule=clips", *longer))):
        done = invoke(*shared, *more, "out=scores.json")
        assert done.returncode == 0, done.stderr
        assert f"(test) are shorter than a clip of {frames} frames: looped" in done.stdout
        scores = json.loads((tmp_path / "scores.json").read_text())["results"]["general"]
        assert called[frames] == pytest.approx(scores["map"], abs=1e-9)


@pytest.mark.slow
def test_a_rendered_world_of_walks_is_trained_on_gone_on_with_and_evaluated(
    command: Command, tmp_path: Path
) -> None:
    done = command(
        "synthesize", "layout=ccvid", "layout.frames=5", "layout.walks=2", "layout.outfits=2", "train_people=9",
        "test_people=3", "height=64", "width=32", "antialias=1", "seed=7", "out=walking",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = ("data.root=walking", "datamodule.height=64", "datamodule.width=32", "datamodule.workers=0")
    done = command("train", "+experiment=walking", *data, "epochs=1", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    done = command("train", "resume=run", "epochs=2")
    assert done.returncode == 0, done.stderr
    assert "going on after 1 epoch" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"][0]["results"]
    # A walk of each outfit and session is asked for, and not each of its frames.
    assert results["general"]["queries"] < 3 * 3 * 5
    done = command(
        "evaluate", "checkpoint=run", "data=ccvid", "data.root=walking", "datamodule.workers=0", "out=s.json"
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "s.json").read_text())["results"]
    for protocol, values in results.items():
        assert scores[protocol]["map"] == pytest.approx(values["map"], abs=1e-6)
