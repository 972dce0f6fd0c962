"""Everything that only a GPU can tell, in one run of at most ten minutes; its output belongs into RESULTS.md.

    python benchmarks/gpu.py --out FOLDER [--only train_ce,train_full] [--seconds 540]
    python benchmarks/gpu.py --out FOLDER --small        # rehearsal without a GPU: small pictures, few people

Nothing is downloaded: people are rendered in LTCC's layout, students start from scratch, the teachers are those that
ship. Sections have a time limit, and one that fails costs the others nothing. Trainings are the real command,
`clip3dreid train`; a callback finds, in the same process and with the same student, losses and loader,

* `waits`: how often the host waited for the device in the second epoch, by the line that did, the first and the last
  step and what happens between epochs left out;
* `run`: pictures a second of the run itself, from the first to the last step of an epoch, the first epoch left out;
* `loop`: the same loader, transfer and step in a plain PyTorch loop;
* `step`: the step alone, on a batch that lies on the device;
* `loader`: the loader alone, batches thrown away on the device.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))  # on a machine where nothing can be installed
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{REPOSITORY / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
STEPS = 40
"""Of a plain loop, after as many as it takes to be warm."""


def rehearsal() -> bool:
    return os.environ.get("CLIP3DREID_REHEARSAL") == "1"


def say(section: str, **found: Any) -> None:
    """Print a line that people read and programs can."""
    print(json.dumps({"section": section, **found}), flush=True)


def command(*arguments: str) -> float:
    """Run a command of the package to its end, and return its seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "clip3dreid", *arguments], check=True, env=ENVIRONMENT)
    return time.perf_counter() - start


# The machine itself.


def machine(work: Path) -> None:
    """Say what this is, and how fast it multiplies and copies: the limits that everything else is seen against."""
    import torch

    device = torch.device("cpu" if rehearsal() else "cuda")
    name = "rehearsal" if rehearsal() else torch.cuda.get_device_name()
    size = 256 if rehearsal() else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = _seconds(lambda: a @ b, device)
    large = torch.randn(2**20 if rehearsal() else 2**30, device=device)
    other = torch.empty_like(large)
    copy = _seconds(lambda: other.copy_(large), device)
    say(
        "machine",
        device=name,
        torch=torch.__version__,
        cores=len(os.sched_getaffinity(0)),
        bf16_tflops=round(2 * size**3 / product / 1e12, 1),
        copy_tb_s=round(2 * large.nbytes / copy / 1e12, 2),
    )


def _seconds(job: Callable[[], object], device: Any, repeats: int = 10) -> float:
    """Return the mean seconds of a job on a device that is warm."""
    for _ in range(3):
        job()
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        job()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: Any) -> None:
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


# Data.


def _size() -> tuple[int, int]:
    return (64, 32) if rehearsal() else (384, 192)


def world(work: Path) -> None:
    """Render the people, and the bodies of the paper's second stream; small, for packs are made at full size."""
    height, width = (64, 32) if rehearsal() else (128, 64)
    people = 16 if rehearsal() else 80
    workers = len(os.sched_getaffinity(0))
    size = [f"height={height}", f"width={width}", f"workers={workers}"]
    seconds = command(
        "synthesize",
        "layout=ltcc",
        f"out={work}/world",
        f"train_people={people}",
        "test_people=20",
        "seed=7",
        *size,
    )
    pictures = sum(1 for _ in (work / "world").rglob("*.png")) + sum(
        1 for _ in (work / "world").rglob("*.jpg")
    )
    say("world", pictures=pictures, seconds=round(seconds, 1), a_second=round(pictures / seconds, 1))
    command(
        "synthesize",
        "layout=bodies",
        f"out={work}/bodies",
        "train_people=16",
        "test_people=1",
        "seed=3",
        *size[:2],
        "workers=2",
    )


def pack(work: Path) -> None:
    """Decode and resize them once."""
    height, width = _size()
    workers = len(os.sched_getaffinity(0))
    seconds = command(
        "pack",
        "data=ltcc",
        f"data.root={work}/world",
        f"out={work}/pack",
        f"height={height}",
        f"width={width}",
        f"workers={workers}",
    )
    say("pack", seconds=round(seconds, 1))


# Trainings.


def _ride_along(work: Path, name: str, overrides: Iterable[str]) -> None:
    """Run `clip3dreid train` in this process, with a callback that compares it with plain loops."""
    import clip3dreid.training.run as run
    from clip3dreid.cli.train import main

    timed = _beside(name)
    plain = run.train

    def train(**arguments: Any) -> Any:
        return plain(**{**arguments, "callbacks": [*arguments["callbacks"], timed]})

    run.train = train  # type: ignore[assignment]
    height, width = _size()
    sys.argv = [
        "clip3dreid train",
        "+experiment=ltcc",
        f"data.root={work}/world",
        "model.pretrained=null",
        "model/teacher=body_clip",
        f"bodies.root={work}/bodies",
        f"datamodule.height={height}",
        f"datamodule.width={width}",
        f"datamodule.pack={work}/pack",
        "datamodule.augment_on=device",
        "logger=csv",
        f"hydra.run.dir={work}/runs/{name}-{time.time():.0f}",
        *(_small() if rehearsal() else ("trainer=gpu", "epochs=5", "evaluate_every=100")),
        *overrides,
    ]
    try:
        main()
    finally:
        run.train = plain


def _small() -> list[str]:
    return [
        "trainer=cpu",
        "epochs=3",
        "evaluate_every=100",
        "datamodule.workers=0",
        "datamodule.people=2",
        "bodies.batch=4",
        "model/student=resnet18",
        "model.student.ghost_group=8",
    ]


class Waits:
    """Counts where the host waits for the device, while it is on."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self._show = warnings.showwarning

    def count(self, on: bool) -> None:
        """Begin or end."""
        import torch

        if not torch.cuda.is_available():
            return
        torch.cuda.set_sync_debug_mode("warn" if on else "default")
        warnings.showwarning = self._found if on else self._show
        if on:
            warnings.simplefilter("always")

    def _found(self, message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        if "synchroniz" not in str(message):
            return
        own = [frame for frame in traceback.extract_stack() if "/clip3dreid/" in frame.filename]
        frame = own[-1] if own else traceback.extract_stack()[-2]
        self.places[f"{Path(frame.filename).name}:{frame.lineno} ({Path(filename).name}:{lineno})"] += 1


def _beside(name: str) -> Any:
    import torch
    from lightning.pytorch import Callback

    class Beside(Callback):
        """Times epochs of the run, and plain loops once it has ended."""

        def __init__(self) -> None:
            self.started = 0.0
            self.steps: list[float] = []
            self.batch: Any = None
            self.waits = Waits()

        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            last = batch_idx + 1 == trainer.num_training_batches
            if trainer.current_epoch == 1 and batch_idx in (0, trainer.num_training_batches - 3):
                self.waits.count(module.device.type == "cuda" and batch_idx == 0)
            if batch_idx == 0 or last:
                _wait(module.device)
                now = time.perf_counter()
                # The first epoch warms up, the second counts.
                if last and trainer.current_epoch > 1:
                    self.steps.append((now - self.started) / batch_idx)
                self.started, self.batch = now, batch

        def on_train_end(self, trainer: Any, module: Any) -> None:
            device = module.device
            pictures = len(self.batch.images)
            bodies = 0 if self.batch.bodies is None else len(self.batch.bodies.images)
            optimizer = trainer.optimizers[0]

            def step(batch: Any) -> None:
                with trainer.precision_plugin.forward_context():
                    features, of_bodies = module._see(batch)
                    total = module.losses(features, batch, trainer.current_epoch, bodies=of_bodies).total
                total.backward()
                optimizer.step()
                optimizer.zero_grad()

            def batches() -> Iterator[Any]:
                """Bring batches as the run does."""
                while True:
                    loader = trainer.datamodule.train_dataloader()
                    for found in iter(loader):
                        # Two streams side by side come with their number; a batch is a named tuple itself.
                        batch = found[0] if type(found) is tuple else found
                        yield trainer.strategy.batch_to_device(batch, device)

            module.train()
            seconds = {"run": min(self.steps), "step": _seconds(lambda: step(self.batch), device, STEPS)}
            coming = batches()
            seconds["loop"] = _seconds(lambda: step(next(coming)), device, STEPS)
            coming = batches()
            seconds["loader"] = _seconds(lambda: next(coming), device, STEPS)
            a_second = {key: round((pictures + bodies) / one, 1) for key, one in seconds.items()}
            memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
            say(
                name,
                batch=[pictures, bodies],
                **a_second,
                run_of_step=round(seconds["step"] / seconds["run"], 3),
                run_of_loop=round(seconds["loop"] / seconds["run"], 3),
                epochs=[round((pictures + bodies) / one, 1) for one in self.steps],
                waits=dict(self.waits.places),
                gib=round(memory, 2),
            )

    return Beside()


def train_ce(work: Path) -> None:
    """Train with cross-entropy alone."""
    _ride_along(work, "train_ce", ["method=ce"])


def train_cal(work: Path) -> None:
    """Train with clothes-based adversarial loss, all of it from the first epoch on."""
    _ride_along(work, "train_cal", ["method=cal", "clothes_start_epoch=0"])


def train_full(work: Path) -> None:
    """Train with the full method."""
    _ride_along(work, "train_full", ["method=clip3dreid"])


def train_paper(work: Path) -> None:
    """Train with the method as its paper has it: a second stream of 16 bodies beside the 64 people."""
    _ride_along(work, "train_paper", ["method=clip3dreid_paper"])


def train_compiled(work: Path) -> None:
    """Train with the full method and a compiled student; the first epoch has the compiler's time."""
    _ride_along(work, "train_compiled", ["method=clip3dreid", "compile=true"])


# Beyond training.


def extraction(work: Path) -> None:
    """Extract features of many pictures from files, and of a batch that lies on the device, flipped and not."""
    from functools import partial

    import lightning.pytorch as pl
    import torch

    from clip3dreid.inference.model import load
    from clip3dreid.search.extraction import extract
    from clip3dreid.search.settings import ExtractSettings

    device = torch.device("cpu" if rehearsal() else "cuda")
    pictures, times = _crops(work)
    model = load(sorted((work / "runs").glob("train_ce-*"))[-1], device=device)
    batch = 16 if rehearsal() else 256
    images = torch.rand(batch, 3, *_size(), device=device)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=not rehearsal())
    with torch.inference_mode(), autocast():
        bare = batch / _seconds(lambda: model(images, flip=True), device)
    trainer = partial(
        pl.Trainer,
        accelerator="cpu" if rehearsal() else "gpu",
        devices=1,
        precision="32-true" if rehearsal() else "bf16-mixed",
        enable_model_summary=False,
        logger=False,
    )
    workers = 0 if rehearsal() else len(os.sched_getaffinity(0)) - 2
    settings = ExtractSettings(workers=workers, batch=batch)
    done = extract(model, work / "crops", settings, work / f"shards-{time.time():.0f}", trainer)
    whole = pictures * times / done.seconds
    say(
        "extraction",
        pictures=pictures * times,
        extract=round(whole, 1),
        bare=round(bare, 1),
        of_bare=round(whole / bare, 3),
    )


def _crops(work: Path) -> tuple[int, int]:
    """Write JPEG files of full size, each under several names; return how many there are, and how many names."""
    from PIL import Image

    folder, found = work / "crops", sorted((work / "world" / "train").iterdir())
    folder.mkdir()
    times = 1 if rehearsal() else 20
    for picture in found:
        height, width = _size()
        first = folder / f"{picture.stem}_0.jpg"
        Image.open(picture).convert("RGB").resize((width, height)).save(first, quality=90)
        for number in range(1, times):
            os.link(first, folder / f"{picture.stem}_{number}.jpg")
    return len(found), times


def ranking(work: Path) -> None:
    """Rank on the device, as `benchmarks/ranking.py` does."""
    _benchmark("ranking.py", "--device", "cpu" if rehearsal() else "cuda")


def switches(work: Path) -> None:
    """Switch on one thing after another, as `benchmarks/trainer_switches.py` does."""
    _benchmark("trainer_switches.py", "--device", "cpu" if rehearsal() else "cuda")


def _benchmark(name: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / name), *arguments], check=True, env=ENVIRONMENT
    )


SECTIONS: dict[str, tuple[Callable[[Path], None], int]] = {
    "machine": (machine, 40),
    "world": (world, 120),
    "pack": (pack, 60),
    "train_ce": (train_ce, 120),
    "train_cal": (train_cal, 90),
    "train_full": (train_full, 120),
    "train_paper": (train_paper, 120),
    "extraction": (extraction, 90),
    "ranking": (ranking, 60),
    "switches": (switches, 100),
    "train_compiled": (train_compiled, 120),
}
"""Name -> what it does, and the seconds that it may take."""


class OutOfTimeError(Exception):
    """A section took longer than it may."""


def _ring(signal_number: int, frame: object) -> None:
    raise OutOfTimeError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between")
    parser.add_argument("--seconds", type=float, default=540, help="after which no further section begins")
    parser.add_argument("--small", action="store_true", help="rehearse on the CPU")
    arguments = parser.parse_args()
    work = arguments.out.absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)  # where the teacher's embeddings are kept
    if arguments.small:
        os.environ["CLIP3DREID_REHEARSAL"] = "1"
    signal.signal(signal.SIGALRM, _ring)
    began = time.perf_counter()
    for name in arguments.only.split(","):
        section, limit = SECTIONS[name]
        left = arguments.seconds - (time.perf_counter() - began)
        if left < 5:
            say(name, failed="no time left")
            continue
        start = time.perf_counter()
        signal.alarm(int(min(left, limit)))
        try:
            section(work)
        except (Exception, SystemExit) as error:
            # What fails costs the sections after it nothing.
            traceback.print_exc()
            say(name, failed=f"{type(error).__name__}: {error}"[:300])
        finally:
            signal.alarm(0)
        say(name, seconds=round(time.perf_counter() - start, 1))


if __name__ == "__main__":
    main()
