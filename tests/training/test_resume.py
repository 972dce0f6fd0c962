"""A training that goes on is the training that began: equal bits, the config's own rates, no other model."""

import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback

from clip3dreid.errors import InputError
from clip3dreid.report.results import read_results
from clip3dreid.training.resume import changes, may_change
from clip3dreid.training.signals import SaveWhenTold
from tests.conftest import TINY, Command, trained
from tests.runs import Killer, assert_same, differences
from tests.small_disk import small_disk
from tests.training.test_run import column

# With loader workers, as by default: they fetch ahead of what is trained.
WORKERS = [override if "workers" not in override else "datamodule.workers=1" for override in TINY]
METHODS = {
    "ce": ("method=ce",),
    "cal": ("method=cal", "clothes_start_epoch=1"),
    "orthogonal": ("loss=[identity,clothes_orthogonal]",),
    "full": ("loss=[identity,local,global,body,shape]", "model.teacher.cache=memory"),
    "averaged": ("method=ce", "ema=0.9", "fused=true", "activation_checkpointing=true"),
    "shares": (
        "loss=[identity,local,global,body]",
        "model.teacher.cache=memory",
        "loss.local.share=0.5",
        "loss.body.share=0.2",
        "loss.body.start_epoch=1",
        "gradient_norms_every=5",
        "datamodule.augment_on=device",
        "datamodule.keep_pictures=true",
    ),
}


def overrides(method: str, ltcc_root: Path, guided: tuple[str, ...]) -> list[str]:
    """A training of 4 epochs of 6 batches, two people held out, with a checkpoint selected on them."""
    extra = [*guided] if method in ("full", "shares") else []
    base = [
        "data=ltcc",
        f"data.root={ltcc_root}",
        "data.val_people=2",
        "evaluate_every=2",
        "epochs=4",
        "milestones=[2]",
    ]
    return [*base, *[o for o in WORKERS if not o.startswith("method=")], *METHODS[method], *extra]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process a signal at a certain moment of its next training, and at that one alone."""

    def arrange(hook: str, step: int, signum: int = signal.SIGTERM) -> None:
        real = getattr(SaveWhenTold, hook, None) or getattr(Callback, hook)
        sent = threading.Event()

        def watched(self: SaveWhenTold, trainer: Any, *arguments: Any) -> None:
            if trainer.global_step >= step and not sent.is_set():
                sent.set()
                os.kill(os.getpid(), signum)
            real(self, trainer, *arguments)

        monkeypatch.setattr(SaveWhenTold, hook, watched, raising=False)

    return arrange


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in ("shares", "averaged") else pytest.mark.slow)
        for name in METHODS
    ],
)
def test_a_training_that_is_stopped_within_an_epoch_ends_with_the_bits_of_one_that_is_not(
    method: str,
    ltcc_root: Path,
    guided: tuple[str, ...],
    invoke: Command,
    at_step: Callable[..., None],
    tmp_path: Path,
) -> None:
    arguments = overrides(method, ltcc_root, guided)
    done = invoke("train", *arguments, "hydra.run.dir=whole")
    assert done.returncode == 0, done.stderr
    at_step("on_train_batch_end", 9)
    done = invoke("train", *arguments, "hydra.run.dir=stopped")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert re.search(
        r"stopped by SIGTERM in epoch \d after batch \d of \d, saved; go on with .*resume=", done.stdout
    )
    done = invoke("train", "resume=stopped")
    assert done.returncode == 0, done.stderr
    assert re.search(r"going on after \d epochs? and \d batch", done.stdout)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


# The first batch; the last of an epoch with a validation behind it; within that; within the last test.
MOMENTS = {
    "the first batch": ("on_train_batch_end", 1),
    "an epoch's last batch": ("on_train_batch_end", 8),
    "a validation": ("on_validation_batch_end", 8),
    "the end": ("on_train_epoch_end", 16),
    "the test": ("on_test_batch_end", 16),
}


@pytest.fixture(scope="module")
def whole(ltcc_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ce`, trained in one go."""
    folder = tmp_path_factory.mktemp("whole")
    return trained(folder, *overrides("ce", ltcc_root, ()), "hydra.run.dir=run")


@pytest.mark.parametrize(
    "moment", [pytest.param(name, marks=() if "last batch" in name else pytest.mark.slow) for name in MOMENTS]
)
def test_whenever_it_is_stopped_it_goes_on_to_the_same_end(
    moment: str, whole: Path, ltcc_root: Path, invoke: Command, at_step: Callable[..., None], tmp_path: Path
) -> None:
    at_step(*MOMENTS[moment])
    done = invoke("train", *overrides("ce", ltcc_root, ()), "hydra.run.dir=stopped")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr + done.stdout
    assert "resume=" in done.stdout
    done = invoke("train", "resume=stopped")
    assert done.returncode == 0, done.stderr
    assert_same(whole, tmp_path / "stopped")


def test_a_run_that_fails_within_an_epoch_goes_on_from_what_was_saved_a_moment_before(
    whole: Path, ltcc_root: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Saved after every batch, by the clock, in a thread; and never at the end of an epoch."""

    def fails(self: SaveWhenTold, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == 9:
            raise ZeroDivisionError

    often = ["callbacks.last.every_epochs=null", "callbacks.last.every_minutes=1e-9"]
    with monkeypatch.context() as patch:
        patch.setattr(SaveWhenTold, "on_train_batch_end", fails)
        done = invoke("train", *overrides("ce", ltcc_root, ()), *often, "hydra.run.dir=stopped")
    assert done.returncode == 1, done.stderr + done.stdout
    done = invoke("train", "resume=stopped")
    assert done.returncode == 0, done.stderr
    assert "going on after 2 epochs" in done.stdout
    assert_same(whole, tmp_path / "stopped")


@pytest.mark.slow
def test_a_run_that_was_moved_goes_on_with_what_it_had_selected(
    whole: Path, ltcc_root: Path, invoke: Command, at_step: Callable[..., None], tmp_path: Path
) -> None:
    at_step("on_train_batch_end", 13)
    invoke("train", *overrides("ce", ltcc_root, ()), "hydra.run.dir=here")
    (tmp_path / "here").rename(tmp_path / "there")
    done = invoke("train", "resume=there")
    assert done.returncode == 0, done.stderr
    assert_same(whole, tmp_path / "there")


def test_the_first_resumed_epoch_has_the_rate_of_the_new_schedule_and_both_configs_are_kept(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    arguments = [
        "data=ltcc",
        f"data.root={ltcc_root}",
        *TINY,
        "optimizer=sgd",
        "optimizer.schedule.warmup_epochs=0",
    ]
    assert invoke("train", *arguments, "epochs=2", "hydra.run.dir=run").returncode == 0
    assert invoke("train", *arguments, "epochs=6", "hydra.run.dir=long").returncode == 0
    done = invoke("train", "resume=run", "epochs=6", "optimizer.optimizer.weight_decay=0")
    assert done.returncode == 0, done.stderr
    assert "epochs 2 -> 6" in done.stdout
    assert "optimizer.optimizer.weight_decay 0.0005 -> 0" in done.stdout
    # A cosine of 2 epochs would have come to nothing here.
    name = "lr-SGD"
    assert column(tmp_path / "run", name) == column(tmp_path / "long", name)[2:]
    assert len(column(tmp_path / "run", name)) == 4
    kept = [
        (tmp_path / "run" / file).read_text() for file in ("config.1.yaml", "config.yaml", "results.1.json")
    ]
    assert "\nepochs: 2\n" in kept[0]
    assert "\nepochs: 6\n" in kept[1]


def test_a_run_within_an_epoch_does_not_pass_for_one_that_ended_before_it(
    ltcc_root: Path, invoke: Command, at_step: Callable[..., None], tmp_path: Path
) -> None:
    at_step("on_train_batch_end", 9)
    invoke("train", *overrides("ce", ltcc_root, ()), "hydra.run.dir=run")
    done = invoke("train", "resume=run", "epochs=2")
    assert done.returncode == 2, done.stderr + done.stdout
    assert re.search(r"epochs=2, but \S*run has trained 2 of them and \d batches of the next", done.stderr)


def test_a_finished_run_that_is_resumed_keeps_what_a_step_took(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    arguments = ["data=ltcc", f"data.root={ltcc_root}", *TINY, "epochs=1", "hydra.run.dir=run"]
    assert invoke("train", *arguments).returncode == 0
    taken = read_results(tmp_path / "run" / "results.json").cost
    assert taken.step_seconds is not None
    for _ in range(2):
        assert invoke("train", "resume=run").returncode == 0
        assert read_results(tmp_path / "run" / "results.json").cost == taken


def test_a_resumed_run_that_is_killed_before_it_trains_is_resumed_again(
    ltcc_root: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ["data=ltcc", f"data.root={ltcc_root}", *TINY, "epochs=1", "hydra.run.dir=run"]
    assert invoke("train", *arguments).returncode == 0
    with monkeypatch.context() as patch:
        # A dashboard that does not answer, say.
        patch.setattr("clip3dreid.config.training.record_overrides", lambda folder: sys.exit(9))
        assert invoke("train", "resume=run", "epochs=2").returncode == 9
    done = invoke("train", "resume=run", "epochs=2")
    assert done.returncode == 0, done.stderr
    assert "epochs 1 -> 2" in done.stdout


def test_a_run_of_before_keys_were_renamed_goes_on(ltcc_root: Path, invoke: Command, tmp_path: Path) -> None:
    arguments = ["data=ltcc", f"data.root={ltcc_root}", *TINY, "datamodule.sampler=chunks", "epochs=1"]
    assert invoke("train", *arguments, "hydra.run.dir=run").returncode == 0
    record, config = tmp_path / "run" / ".hydra" / "overrides.yaml", tmp_path / "run" / "config.yaml"
    old = record.read_text().replace("datamodule.sampler", "loader.rule").replace("datamodule.", "loader.")
    record.write_text(old)
    facts = yaml.safe_load(config.read_text())
    facts["loader"] = facts.pop("datamodule")
    facts["loader"]["rule"] = facts["loader"].pop("sampler")
    facts["rung"] = facts.pop("variant")
    for key in ("trusted", "guides"):
        del facts[key]
    for key in ("headline", "val_headline"):
        del facts["data"][key]
    config.write_text(yaml.safe_dump(facts))
    done = invoke("train", "resume=run", "epochs=2")
    assert done.returncode == 0, done.stderr
    assert "going on after 1 epoch" in done.stdout
    assert "loader" not in record.read_text()
    assert "datamodule.sampler=chunks" in record.read_text()


@pytest.fixture(scope="module")
def short(ltcc_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of `ce`."""
    folder = tmp_path_factory.mktemp("short")
    return trained(folder, "data=ltcc", f"data.root={ltcc_root}", *TINY, "epochs=2", "hydra.run.dir=run")


def test_what_would_be_another_training_is_refused_by_name_and_nothing_is_touched(
    short: Path, invoke: Command
) -> None:
    def files() -> dict[Path, bytes]:
        kept = [path for path in short.rglob("*") if path.is_file() and path.suffix != ".log"]
        return {path: path.read_bytes() for path in kept if path.name not in (".lock", ".run.json")}

    def refused(*arguments: str) -> str:
        done = invoke("train", f"resume={short}", *arguments)
        assert done.returncode == 2, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return line

    before = files()
    line = refused(
        "model.student.backbone.width=16", "seed=2", "datamodule.people=2",
        "datamodule.train_view.flip_probability=0",
        "data.val_people=2", "optimizer=sgd", "epochs=5",
    )  # fmt: skip
    for told in (
        "model.student.backbone.width was 8, is 16", "seed was 1, is 2", "datamodule.people was 4, is 2",
        "data.val_people was 0, is 2", "flip_probability was 0.5, is 0", "optimizer.optimizer._target_",
    ):  # fmt: skip
        assert told in line
    assert "epochs was" not in line
    assert "loss.clothes_adversarial" in refused("method=cal", "clothes_start_epoch=0")
    assert "has trained 2 of them" in refused("epochs=1")
    # Nor does a refused command become part of the run that is resumed next.
    assert files() == before


def test_other_training_pictures_are_noticed(
    short: Path, ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    moved = tmp_path / "LTCC"
    for path in ltcc_root.rglob("*.png"):
        (moved / path.parent.name).mkdir(parents=True, exist_ok=True)
        (moved / path.parent.name / path.name).symlink_to(path)
    next((moved / "train").iterdir()).unlink()
    done = invoke("train", f"resume={short}", f"data.root={moved}", "epochs=3")
    assert done.returncode == 2, done.stderr
    assert "what is trained on" in done.stderr


def test_keys_that_may_change_are_told_and_all_others_are_refused() -> None:
    then = {
        "epochs": 2,
        "trainer": {"devices": 1},
        "loss": {"local": {"start_epoch": 0, "weight": 1}},
        "logger": {},
    }
    now = {
        "epochs": 3,
        "trainer": {"devices": 2},
        "loss": {"local": {"start_epoch": 1, "weight": 1}},
        "logger": {"csv": 1},
    }
    assert changes(then, now) == [
        "epochs 2 -> 3",
        "logger {} -> absent",
        "logger.csv absent -> 1",
        "loss.local.start_epoch 0 -> 1",
        "trainer.devices 1 -> 2",
    ]
    with pytest.raises(InputError, match=r"loss.local.weight was 1, is 2.*start a new run"):
        changes(then, now | {"loss": {"local": {"start_epoch": 1, "weight": 2}}})
    with pytest.raises(
        InputError, match=r"loss.local.start_epoch was 0, is absent|loss.local.weight was 1, is absent"
    ):
        changes(then, now | {"loss": {}})
    # A run of before there were shares goes on with its weights, and gets none.
    plain = {"start_epoch": 0, "weight": 1, "share": None}
    assert changes(then, then | {"loss": {"local": plain}}) == []
    with pytest.raises(InputError, match=r"loss\.local\.share was absent, is 0\.5"):
        changes(then, then | {"loss": {"local": plain | {"share": 0.5}}})
    # Told and never run: what gets a file that is missing has other words in another version.
    assert may_change("data.fetch")
    assert may_change("data.also.prcc.fetch")
    assert may_change("optimizer.optimizer.lr")
    assert not may_change("optimizer.optimizer._target_")
    assert not may_change("trainer.accumulate_grad_batches")
    assert not may_change("data.also.prcc.val_people")


# Real kills, of real processes.


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_twenty_random_moments_ends_where_an_undisturbed_one_does(
    method: str, ltcc_root: Path, guided: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = [
        o if "workers" not in o else "datamodule.workers=2" for o in overrides(method, ltcc_root, guided)
    ]
    killer = Killer(tmp_path, [*arguments, "epochs=12", "milestones=[6]"], 5)
    whole, killed = killer.undisturbed(), killer.killed(signal.SIGKILL, kills=20, span=0.6)
    assert killer.kills >= 5
    assert_same(whole, killed)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_two_processes_killed_and_resumed_end_where_two_undisturbed_ones_do(
    method: str, signum: int, ltcc_root: Path, guided: tuple[str, ...], tmp_path: Path
) -> None:
    pair = [
        "trainer.devices=2", "trainer.strategy=ddp_find_unused_parameters_true", "model.student.ghost_group=4",
        "epochs=8", "milestones=[4]",
    ]  # fmt: skip
    killer = Killer(tmp_path, [*overrides(method, ltcc_root, guided), *pair], 6)
    whole, killed = killer.undisturbed(), killer.killed(signum, kills=6, span=0.8)
    assert killer.kills >= 3
    assert differences(whole, killed) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_no_epoch_that_was_saved(ltcc_root: Path, tmp_path: Path) -> None:
    """The run's folder is a small file system of its own, TMPDIR another: a cluster's usual case."""
    arguments = overrides("ce", ltcc_root, ())
    whole = Killer(tmp_path, [*arguments, "epochs=40", "milestones=[20]"], 0).undisturbed()
    # Sockets of the loader's workers lie in it, whose paths may not be long.
    elsewhere = Path(tempfile.mkdtemp(dir="/tmp"))
    with small_disk(tmp_path / "disk", 12_000) as disk:
        killer = Killer(disk.parent, [*arguments, "epochs=40", "milestones=[20]"], 0)
        os.environ["TMPDIR"] = str(elsewhere)
        try:
            process = killer.start(*killer.arguments, f"hydra.run.dir={disk}/run", log="full.log")
        finally:
            del os.environ["TMPDIR"]
        last = disk / "run" / "checkpoints" / "last.ckpt"
        while not last.exists():
            assert process.poll() is None
            time.sleep(0.01)
        filler = disk / "filler"
        with filler.open("ab", buffering=0) as file:
            while process.poll() is None:
                try:
                    file.write(b"x" * 65536)
                except OSError:
                    time.sleep(0.001)
        said = (tmp_path / "full.log").read_text(errors="replace")
        assert process.returncode == 2, said[-3000:]
        assert "No space left on device" in said
        assert "Traceback" not in said
        assert not list(elsewhere.rglob("*.ckpt*"))
        filler.unlink()
        assert killer.start(f"resume={disk}/run", log="resumed.log").wait() == 0
        assert_same(whole, disk / "run")
