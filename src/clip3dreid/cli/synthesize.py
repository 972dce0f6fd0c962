"""`clip3dreid synthesize`: writes a data set of rendered people in the layout of a real one."""

from __future__ import annotations

import hashlib
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clip3dreid.body.measure import measure
from clip3dreid.body.poses import load_poses
from clip3dreid.body.smpl import BodyModel
from clip3dreid.config.hydra import conf_dir, entry_point
from clip3dreid.errors import InputError
from clip3dreid.guidance.sources import plain
from clip3dreid.synthetic.backgrounds import Pictures
from clip3dreid.synthetic.plan import People
from clip3dreid.synthetic.studio import Studio
from clip3dreid.synthetic.truth import truth
from clip3dreid.synthetic.world import Settings, Stream, World
from clip3dreid.synthetic.writing import Commission, write

# What does not decide how the world looks.
HANDLING = ("out", "workers", "overwrite")
PACKAGES = ("clip3dreid", "torch", "numpy", "polars", "pillow", "opencv-python-headless")
"""What the bytes of a world depend on, besides the machine."""

Measures = dict[str, npt.NDArray[Any]]


def _require(cfg: DictConfig) -> None:
    """Refuses a config without layout, or with numbers that make no world."""
    if "layout" not in cfg or cfg.layout is None:
        names = ", ".join(sorted(path.stem for path in (conf_dir() / "layout").glob("*.yaml")))
        raise InputError(f"no layout: give layout=NAME; NAME is one of {names}")
    least = {"train_people": 1, "test_people": 1, "height": 16, "width": 8, "antialias": 1, "seed": 0}
    for key, lowest in least.items():
        if int(cfg[key]) < lowest:
            raise InputError(f"{key}={cfg[key]} is too small; give at least {lowest}")


def _digest(*arrays: npt.NDArray[Any]) -> str:
    """What tells files apart, wherever they lie."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[
        :16
    ]


def _inputs(body: BodyModel, poses: npt.NDArray[Any] | None, backgrounds: Any) -> dict[str, Any]:
    """Fingerprints of the files that a world is made from."""
    buffers = [value.cpu().numpy() for _, value in sorted(body.named_buffers())]
    found = {"body_sha256": _digest(*buffers), "poses_sha256": None if poses is None else _digest(poses)}
    if isinstance(backgrounds, Pictures):
        listing = [f"{path.name} {path.stat().st_size}" for path in backgrounds.files]
        found["backgrounds_sha256"] = hashlib.sha256("\n".join(listing).encode()).hexdigest()[:16]
    return found


def _measured(body: BodyModel, betas: torch.Tensor) -> Measures:
    with torch.no_grad():
        parts = [measure(body, part) for part in torch.split(betas, 64)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def commission(cfg: DictConfig) -> Commission:
    """What a config asks for: the plan, the people, the artist and the truth.

    Raises:
        InputError: if a setting makes no world, or a file is missing or damaged.
    """
    _require(cfg)
    world_settings = instantiate(cfg.world, _convert_="all")
    if cfg.backgrounds is not None:
        world_settings["backgrounds"] = Pictures(str(cfg.backgrounds))
    settings = Settings(**world_settings)
    poses = None if cfg.poses is None else load_poses(str(cfg.poses))
    make_body = partial(instantiate, plain(cfg.body))
    body: BodyModel = make_body()
    seed = int(cfg.seed)
    people = People(int(cfg.train_people), int(cfg.test_people))
    plan = instantiate(cfg.layout)(people, np.random.default_rng([seed, Stream.PLAN]))
    world = World(seed, plan, settings, people.train, people.test, body.num_betas)
    studio = Studio(world, make_body, int(cfg.height), int(cfg.width), int(cfg.antialias), poses)

    def finish(drawn: pl.DataFrame) -> pl.DataFrame:
        measures = _measured(body, world.betas())
        words, _ = instantiate(cfg.language).words(measures, _measured(body, world.population()))
        return truth(world, drawn, measures, words)

    config = {key: value for key, value in plain(cfg).items() if key not in HANDLING}
    return Commission(
        plan=plan,
        artist=studio,
        height=studio.height,
        width=studio.width,
        config=config | {"inputs": _inputs(body, poses, settings.backgrounds)},
        environment={"python": platform.python_version(), "machine": platform.machine()}
        | {package: version(package) for package in PACKAGES},
        finish=finish,
    )


@entry_point("synthesize")
def main(cfg: DictConfig) -> None:
    """Writes the world, then says what it holds."""
    console = Console()
    task = commission(cfg)
    out = Path(str(cfg.out)).expanduser()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task(f"{out}", total=len(task.plan.pictures))
        report = write(
            task,
            out,
            workers=int(cfg.workers),
            overwrite=bool(cfg.overwrite),
            progress=lambda done, total: bar.update(line, completed=done, total=total),
        )
    if not report.drawn:
        console.print(
            f"{out} is complete already, {report.pictures} pictures; nothing was done", soft_wrap=True
        )
        return
    earlier = report.pictures - report.drawn
    found = f" ({earlier} of them were there from an interrupted run)" if earlier else ""
    console.print(
        f"{report.pictures} pictures in {out}{found}; truth.parquet says what is in them", soft_wrap=True
    )


if __name__ == "__main__":
    main()
