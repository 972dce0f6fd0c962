"""Synthesise a data set: from settings to pictures, lists and truth in a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from clip3dreid.body.measure import measure
from clip3dreid.body.poses import load_poses
from clip3dreid.body.smpl import BodyModel
from clip3dreid.io.progress import progress
from clip3dreid.synthetic.backgrounds import Backgrounds, Pictures
from clip3dreid.synthetic.plan import PeopleCounts
from clip3dreid.synthetic.renderer import RendererFactory
from clip3dreid.synthetic.settings import SynthesisSettings
from clip3dreid.synthetic.truth import truth
from clip3dreid.synthetic.world import Stream, World
from clip3dreid.synthetic.writing import WorldReport, WorldSpec, write

PACKAGES = ("clip3dreid", "torch", "numpy", "polars", "pillow", "opencv-python-headless")
"""What the bytes of a world depend on, besides the machine."""

Measures = dict[str, npt.NDArray[Any]]


def synthesize(settings: SynthesisSettings, folder: Path | str) -> WorldReport:
    """Write a data set of rendered people in the layout of a real one, with the truth about every picture.

    The same settings give the same bytes. An interrupted world is gone on with, a complete one is left as it is.

    Args:
        settings: of the world.
        folder: of the data set; made if it is not there.

    Returns:
        How many pictures the world has, and how many of them this call has rendered.

    Raises:
        InputError: if a setting makes no world, a file is missing or damaged, or the folder is refused (see
            `writing.write`).
    """
    folder = Path(folder).expanduser()
    spec = world_spec(settings)
    with progress(str(folder), len(spec.plan.pictures), keep=True) as update:
        return write(spec, folder, workers=settings.workers, overwrite=settings.overwrite, progress=update)


def world_spec(settings: SynthesisSettings) -> WorldSpec:
    """Plan a world: its pictures, its people, what renders them, and what will be known of them.

    Raises:
        InputError: if a setting makes no world, or a file is missing or damaged.
    """
    differences = settings.world
    if settings.backgrounds is not None:
        differences = dataclasses.replace(differences, backgrounds=Pictures(str(settings.backgrounds)))
    poses = None if settings.poses is None else load_poses(settings.poses)
    body: BodyModel = settings.body()
    counts = PeopleCounts(settings.train_people, settings.test_people)
    plan = settings.layout(counts, np.random.default_rng([settings.seed, Stream.PLAN]))
    world = World(settings.seed, plan, differences, counts.train, counts.test, body.num_betas)
    config = settings.described() if settings.config is None else dict(settings.config)
    return WorldSpec(
        plan=plan,
        make_renderer=RendererFactory(
            world, settings.body, settings.height, settings.width, settings.antialias, poses
        ),
        height=settings.height,
        width=settings.width,
        config=config | {"inputs": _inputs(body, poses, differences.backgrounds)},
        environment={"python": platform.python_version(), "machine": platform.machine()}
        | {package: version(package) for package in PACKAGES},
        finish=_finisher(world, body, settings.vocabulary),
    )


def _finisher(
    world: World, body: BodyModel, make_vocabulary: Callable[[], Any] | None
) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Return what makes the truth of what the renderer knows of every picture."""
    vocabulary = None if make_vocabulary is None else make_vocabulary()

    def finish(rendered: pl.DataFrame) -> pl.DataFrame:
        measures = _measured(body, world.betas())
        words: dict[str, list[str]] = {}
        if vocabulary is not None:
            words, _ = vocabulary.words(measures, _measured(body, world.population()))
        return truth(world, rendered, measures, words)

    return finish


def _inputs(body: BodyModel, poses: npt.NDArray[Any] | None, backgrounds: Backgrounds) -> dict[str, Any]:
    """Return fingerprints of the files that a world is made from, which tell them apart wherever they lie."""
    buffers = [value.cpu().numpy() for _, value in sorted(body.named_buffers())]
    inputs = {"body_sha256": _digest(*buffers), "poses_sha256": None if poses is None else _digest(poses)}
    if isinstance(backgrounds, Pictures):
        listing = [f"{path.name} {path.stat().st_size}" for path in backgrounds.files]
        inputs["backgrounds_sha256"] = hashlib.sha256("\n".join(listing).encode()).hexdigest()[:16]
    return inputs


def _digest(*arrays: npt.NDArray[Any]) -> str:
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return hashlib.sha256(content).hexdigest()[:16]


def _measured(body: BodyModel, betas: torch.Tensor) -> Measures:
    with torch.no_grad():
        parts = [measure(body, part) for part in torch.split(betas, 64)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
