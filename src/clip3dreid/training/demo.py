"""Show the whole project on people of its own making: the commands that a user would type, one after the other.

What exists already is used again. Nothing is downloaded, and nothing heavy is loaded here: every step is a process.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip3dreid.io.checks import Count, Positive, Seed, check
from clip3dreid.io.files import atomic
from clip3dreid.io.run_folder import LAST_CHECKPOINT, RESULTS

METHODS = {
    "ce": "The baseline: identity loss alone, trained on the training people, tested on people it never saw",
    "clip3dreid": "The full method: the same people and the same number of steps, guided by the teacher's words and "
    "pictures and by the shape teacher's answers",
}


@dataclass(frozen=True)
class DemoSettings:
    """What the demo renders and trains.

    Attributes:
        out: folder of all that it makes.
        seed: of the people.
        train_people: how many are trained on.
        test_people: how many others are tested on.
        workers: processes that render.
        rendering: further keys for `clip3dreid synthesize`.
        training: further keys for `clip3dreid train`.
        text: whom to look for at the end.

    Raises:
        InputError: if a value is none of these.
    """

    out: Path = Path("demo")
    seed: Seed = 7
    train_people: Positive = 150
    test_people: Positive = 40
    workers: Count = 2
    rendering: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    text: str = "a tall, heavyset man with broad shoulders"

    def __post_init__(self) -> None:
        """Check the values."""
        check(self)


def run_demo(settings: DemoSettings) -> None:
    """Render people, train two methods on some, compare them on the others, find some by words.

    A command that fails has said why, and ends the program with its status.
    """
    from clip3dreid.synthetic.contact_sheet import contact_sheet
    from clip3dreid.synthetic.folder import world_facts

    out = settings.out
    world = out / "world"
    _say(f"1. People who change clothes, rendered and written to {world} in the layout of LTCC")
    people = [f"{key}={getattr(settings, key)}" for key in ("seed", "train_people", "test_people", "workers")]
    _run("synthesize", "layout=ltcc", f"out={world}", *people, *settings.rendering)
    digest = str(world_facts(world)["fingerprint"])[:8]
    sheet = out / f"people_{digest}.jpg"
    if not sheet.is_file():
        with atomic(sheet) as temporary:
            contact_sheet(world, temporary, split="train")
    _say(f"Look at them: {sheet} shows training people in their clothes, a row each")

    # Named after the world, so that another one is never judged by this one's model.
    runs = {method: out / f"{method}_{digest}" for method in METHODS}
    for number, (method, what) in enumerate(METHODS.items(), start=2):
        _say(f"{number}. {what}")
        _train(runs[method], method, world, settings.training)

    comparison = out / f"compare_{digest}"
    _say("4. What the method is worth")
    _run("compare", *map(str, runs.values()), f"out={comparison}")
    shards, hits = out / f"shards_{digest}", out / f"found_{digest}.jpg"
    _say("5. Test people found by a description, in what the full method says of their pictures")
    model = f"checkpoint={runs['clip3dreid']}"
    pictures = ["data=embedded", f"data.root={world}", "split=test"]
    _run("extract", model, *pictures, f"out={shards}", "trainer=cpu")
    _run("search", f"gallery={shards}", model, f"text={settings.text}", "top=10", f"sheet={hits}")
    _say(
        f"Look at them: {hits}.\n"
        "A rendered world with a wide spread of shapes (docs/world.md): its numbers compare with each other and\n"
        f"with chance, not with those of real data sets. Look at {comparison / 'compare.png'}.\n"
        "Next: clip3dreid serve, which opens on these people in a browser; clip3dreid.load on a run's folder\n"
        "(docs/api.md); or train on your own pictures."
    )


def _train(run: Path, method: str, world: Path, training: Sequence[str]) -> None:
    """Train from the beginning, or from where it was stopped; show a finished training again."""
    if (run / RESULTS).is_file():
        _say(f"{run} holds a finished training; its results:")
        _show_results(run)
    elif (run / LAST_CHECKPOINT).is_file():
        _run("train", f"resume={run}")
    else:
        # A run is called what its method is called, so that the two can be compared.
        names = [f"method={method}", f"variant={method}", f"hydra.run.dir={run}"]
        _run("train", "+experiment=demo", f"data.root={world}", *names, *training)


def _show_results(run: Path) -> None:
    from clip3dreid.report.results import print_results, read_results

    print_results(read_results(run / RESULTS, f"remove {run} and start again"))


def _run(command: str, *arguments: str) -> None:
    """Run a command of the project as a user would; end with its status if it fails."""
    _say(shlex.join(["$", "clip3dreid", command, *arguments]).replace("'$'", "$"))
    process = [sys.executable, "-m", "clip3dreid", command, *arguments]
    if status := subprocess.run(process, check=False).returncode:
        sys.exit(status)


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)  # noqa: T201
