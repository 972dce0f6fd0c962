"""`clip3dreid demo`: the whole project on people of its own making, with nothing to download.

It runs the commands that a user would type, and prints each before it runs.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point
from clip3dreid.io.files import atomic
from clip3dreid.io.formats import decoding, read_json
from clip3dreid.io.run_folder import LAST_CHECKPOINT
from clip3dreid.report.tables import print_scores


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)  # noqa: T201


def _run(door: str, *arguments: str) -> None:
    """Runs a command of the project as a user would; ends with its status if it fails."""
    _say(shlex.join(["$", "clip3dreid", door, *arguments]).replace("'$'", "$"))
    status = subprocess.run([sys.executable, "-m", "clip3dreid", door, *arguments], check=False).returncode
    if status:
        # The command has said why.
        sys.exit(status)


METHODS = {
    "ce": "The baseline: identity loss alone, trained on the training people, tested on people it never saw",
    "clip3dreid": "The full method: the same people and the same number of steps, guided by the teacher's words and "
    "pictures and by the shapes of the bare bodies",
}


def _train(run: Path, method: str, world: Path, bodies: Path, training: list[str]) -> None:
    """One training, from the beginning or from where it was stopped; a finished one is shown again."""
    results = run / "results.json"
    if results.is_file():
        _say(f"{run} holds a finished training; its results:")
        for evaluation in _evaluations(results):
            title = f"{evaluation['data']}, {evaluation['checkpoint']} checkpoint"
            print_scores(title, evaluation["results"])
    elif (run / LAST_CHECKPOINT).is_file():
        _run("train", f"resume={run}")
    else:
        # A run is called what its method is called, so that the two can be compared.
        names = [f"method={method}", f"variant={method}", f"hydra.run.dir={run}"]
        _run("train", "+experiment=demo", f"data.root={world}", f"bodies.root={bodies}", *names, *training)


@entry_point("demo")
def main(cfg: DictConfig) -> None:
    """Makes people and bodies, trains two methods on some, finds the others; what exists is used again."""
    from clip3dreid.synthetic.contact_sheet import contact_sheet
    from clip3dreid.synthetic.folder import world_facts

    out = Path(str(cfg.out))
    world, bodies = out / "world", out / "bodies"
    _say(f"1. People who change clothes, rendered and written to {world} in the layout of LTCC")
    people = [f"{key}={cfg[key]}" for key in ("seed", "train_people", "test_people", "workers")]
    _run("synthesize", "layout=ltcc", f"out={world}", *people, *cfg.rendering)
    digest = str(world_facts(world)["fingerprint"])[:8]
    name = f"people_{digest}.jpg"
    if not (out / name).is_file():
        with atomic(out / name) as temporary:
            contact_sheet(world, temporary, split="train")
    _say(f"Look at them: {out / name} shows training people in their clothes, a row each")

    _say(f"2. Bare grey bodies of other people, whose shapes are known, written to {bodies}")
    others = [f"train_people={cfg.bodies}", "test_people=200", "layout.pictures=2", f"workers={cfg.workers}"]
    _run("synthesize", "layout=bodies", f"out={bodies}", f"seed={cfg.bodies_seed}", *others, *cfg.rendering)

    # Named after the world, so that another one is never judged by this one's model.
    runs = {method: out / f"{method}_{digest}" for method in METHODS}
    for number, (method, what) in enumerate(METHODS.items(), start=3):
        _say(f"{number}. {what}")
        _train(runs[method], method, world, bodies, list(cfg.training))

    _say("5. What the method is worth")
    _run("compare", *map(str, runs.values()), f"out={out / f'compare_{digest}'}")
    shards, found = out / f"shards_{digest}", out / f"found_{digest}.jpg"
    _say("6. Test people found by a description, in what the full method says of their pictures")
    model = f"checkpoint={runs['clip3dreid']}"
    _run(
        "extract", model, "data=embedded", f"data.root={world}", "split=test", f"out={shards}", "trainer=cpu"
    )
    _run("search", f"gallery={shards}", model, f'text="{cfg.text}"', "top=10", f"sheet={found}")
    _say(
        f"Look at them: {found}.\n"
        "A rendered world with a wide spread of shapes (docs/world.md): its numbers compare with each other and\n"
        f"with chance, not with those of real data sets. Look at {out / f'compare_{digest}' / 'compare.png'}.\n"
        "Next: clip3dreid.load on a run's folder (docs/api.md), or train on your own pictures."
    )


def _evaluations(results: Path) -> list[dict[str, Any]]:
    again = f"remove {results.parent} and start again"
    with decoding(results, "the results of a run", again):
        found: list[dict[str, Any]] = read_json(results, "the results of a run", again)["evaluations"]
    return found


if __name__ == "__main__":
    main()
