"""A trained model as files that run without this package: ONNX, and programs of torch.export."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from clip3dreid.data.images import TestView, to_unit
from clip3dreid.data.listing import list_pictures
from clip3dreid.errors import InputError
from clip3dreid.export.formats import (
    CONTRACT_VERSION,
    INPUT,
    Array,
    Contract,
    Format,
    Opened,
    prepare,
    quiet,
)
from clip3dreid.inference.model import ReidModel
from clip3dreid.io.files import inside, reason_of, write_json
from clip3dreid.io.formats import peek_json
from clip3dreid.io.locks import at_work
from clip3dreid.io.pictures import read_rgb
from clip3dreid.io.staging import together

REPORT = "export.json"
COSINE = 1 - 1e-4
"""Least cosine, for each picture and output, of what a file and the model make of it."""
RELATIVE = 1e-3
"""Largest difference, as a fraction of the output's largest value: features may all point the same way."""
BATCHES = (1, 2, 5)
"""Pictures in a batch when a file is checked: files take any number of them."""
TIMED = (1, 32)
"""Pictures in a batch when speed is measured."""
MOST_PICTURES = 32


class Parity(NamedTuple):
    """How close a file is to the model, over all pictures and outputs."""

    cosine: float
    """The least."""
    difference: float
    """The largest, absolute."""
    relative: float
    """The largest, as a fraction of the largest value of the same output."""
    pictures: int

    @property
    def good(self) -> bool:
        """Whether the file may be used for the model; NaN is not."""
        return self.cosine >= COSINE and self.relative <= RELATIVE


@dataclass(frozen=True)
class Settings:
    """What the files take and give.

    Args:
        outputs: `embedding`, `joint` (see `ReidModel.joint`), or both.
        flip: add the mirror image's embedding.
        unit_length: embeddings of length 1; `joint` always is.
        normalise: `inside` the file, or `outside`, by the caller.
        input: `float32`, values 0..1, or `uint8`, bytes 0..255.

    Raises:
        InputError: if a value is none of these.
    """

    outputs: Sequence[str] = ("embedding",)
    flip: bool = True
    unit_length: bool = False
    normalise: str = "inside"
    input: str = "float32"

    def __post_init__(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "flip": (True, False),
            "unit_length": (True, False),
            "normalise": ("inside", "outside"),
            "input": ("float32", "uint8"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                shown = " or ".join(str(value).lower() for value in allowed)
                raise InputError(f"{key}={getattr(self, key)} is unknown; choose {shown}")
        known = ("embedding", "joint")
        if unknown := [name for name in self.outputs if name not in known]:
            raise InputError(f"outputs: {unknown[0]} is unknown; choose from {', '.join(known)}")
        if not self.outputs or len(set(self.outputs)) < len(self.outputs):
            raise InputError("outputs must name at least one output, each once, as outputs=[embedding]")
        if self.normalise == "outside" and self.input == "uint8":
            raise InputError("bytes cannot be normalised outside; give input=float32 or normalise=inside")


class Graph(nn.Module):
    """What a file computes: a model's student, and its way into the teacher's space where that is asked for.

    Args:
        model: on the CPU; it is copied.
        settings: what to take and give.

    Raises:
        InputError: if the model has not learnt an output.
    """

    def __init__(self, model: ReidModel, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        # Files are float32, whatever the precision that the model was moved to.
        self.student = copy.deepcopy(model.student).float()
        if settings.normalise == "outside":
            self.student.mean.zero_()
            self.student.std.fill_(1)
        self.joint: nn.Linear | None = None
        if "joint" in settings.outputs:
            if "joint" not in model.heads:
                raise InputError(
                    "outputs: this model has no joint, which the loss term loss.local (projection=student) teaches; "
                    "leave it out"
                )
            head = model.heads["joint"]
            weight, bias = head.get_buffer("weight"), head.get_buffer("bias")
            self.joint = nn.Linear(weight.shape[1], len(bias))
            self.joint.load_state_dict({"weight": weight, "bias": bias})
        self.requires_grad_(False)
        self.eval()

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to (B, D) and (B, d), by name, in the order of the settings."""
        pictures = to_unit(pictures)
        flip = self.settings.flip and "embedding" in self.settings.outputs
        views = torch.stack([pictures, pictures.flip(-1)] if flip else [pictures])  # (1 or 2, B, 3, H, W)
        seen = self.student(views.flatten(0, 1))
        embedding = seen.embedding.unflatten(0, (len(views), -1)).sum(0)
        found = {"embedding": F.normalize(embedding, dim=1) if self.settings.unit_length else embedding}
        if self.joint is not None:
            # Of the picture as it is.
            maps = seen.map.unflatten(0, (len(views), -1))[0]
            found["joint"] = F.normalize(self.joint(maps.mean((2, 3))), dim=1)
        return {name: found[name] for name in self.settings.outputs}


def contract_of(model: ReidModel, settings: Settings) -> Contract:
    """What every file says of itself."""
    outside = settings.normalise == "outside"

    def values(buffer: Tensor) -> list[float] | None:
        # Nothing to apply, nothing to apply twice.
        return [float(str(value)) for value in buffer.flatten().numpy()] if outside else None

    widths = {"embedding": model.student.width}
    if "joint" in model.heads:
        widths["joint"] = len(model.heads["joint"].get_buffer("bias"))
    return {
        "version": CONTRACT_VERSION,
        "input": {"name": INPUT, "dtype": settings.input, "channels": "RGB"},
        "height": model.height,
        "width": model.width,
        "square": model.square,
        "normalise": settings.normalise,
        "mean": values(model.student.mean),
        "std": values(model.student.std),
        "flip": settings.flip,
        "unit_length": settings.unit_length,
        "outputs": {name: widths[name] for name in settings.outputs},
        "data": model.card.get("data") or [],
    }


def drawn(count: int, height: int, width: int) -> Array:
    """Pictures to compare on, always the same: by turns smooth ones with a figure in them, and noise.

    Args:
        count: N.
        height: H, in pixels.
        width: W, in pixels.

    Returns:
        (N, 3, H, W) uint8.
    """
    found = []
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    for number in range(count):
        rng = np.random.default_rng(number)
        if number % 2:
            found.append(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
            continue
        colours = rng.uniform(0, 1, (5, 3, 1, 1))
        slope = rng.uniform(0, 1)
        ramp = slope * rows + (1 - slope) * columns
        picture = colours[0] * ramp + colours[1] * (1 - ramp)
        # Head, trunk, legs: ellipses with soft edges, by centre and radius down the picture.
        for colour, (centre, radius) in zip(
            colours[2:], ((0.15, 0.1), (0.4, 0.2), (0.78, 0.24)), strict=True
        ):
            wide = rng.uniform(0.15, 0.4)
            inside = 1 - ((rows - centre) / radius) ** 2 - ((columns - rng.uniform(0.4, 0.6)) / wide) ** 2
            weight = 1 / (1 + np.exp(-8 * inside))
            picture = picture * (1 - weight) + colour * weight
        found.append((255 * picture).round().astype(np.uint8))
    return np.stack(found)


def crops(folder: Path, height: int, width: int, square: bool = False) -> Array:
    """Real pictures to compare on: up to 32, spread evenly over a folder and what is below it.

    Args:
        folder: of pictures of single people.
        height: H, in pixels, that they are resized to.
        width: W, in pixels.
        square: as in `TestView`.

    Returns:
        (N, 3, H, W) uint8.

    Raises:
        InputError: if there is none, or one cannot be read.
    """
    listing = list_pictures(folder)
    found = listing.table["path"]
    rows = np.unique(np.linspace(0, len(found) - 1, MOST_PICTURES).round().astype(int))
    view = TestView(height, width, square)
    advice = "replace it, or give another pictures=FOLDER"
    return np.stack([view(read_rgb(listing.root / found[int(row)], advice)) for row in rows])


def compare(opened: Opened, model: ReidModel, settings: Settings, pictures: Array) -> Parity:
    """Holds a file against the model, batch by batch, each fed as its own contract asks.

    Args:
        opened: the file.
        model: what it was made from.
        settings: what was asked for.
        pictures: (N, 3, H, W) uint8 of the model's size.
    """
    cosine, difference, relative = 1.0, 0.0, 0.0
    # The model's own way, which knows nothing of the graph; it normalises by itself.
    images = torch.from_numpy(pictures)
    wanted: dict[str, Array] = {}
    for name in settings.outputs:
        value = model.embed(images, flip=settings.flip) if name == "embedding" else model.joint(images)
        wanted[name] = (F.normalize(value, dim=1) if settings.unit_length else value).double().numpy()
    for part in _batches(len(pictures)):
        found = opened.run(prepare(pictures[part], opened.contract))
        for name, whole in wanted.items():
            ours, theirs = whole[part], found[name].astype(np.float64)
            lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            # numpy's minimum and maximum pass NaN on.
            cosine = float(np.minimum(cosine, ((ours * theirs).sum(1) / lengths).min()))
            off = np.abs(ours - theirs).max()
            difference = float(np.maximum(difference, off))
            relative = float(np.maximum(relative, off / np.abs(whole).max()))
    return Parity(cosine, difference, relative, len(pictures))


def _batches(count: int) -> Iterator[slice]:
    """Consecutive pieces of 1, 2 and 5 pictures by turns; the last may be smaller."""
    start = 0
    for size in itertools.cycle(BATCHES):
        if start >= count:
            return
        yield slice(start, min(start + size, count))
        start += size


def latency(runners: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median time of each, in seconds, taken by turns, so that whatever else the machine does hits all alike.

    Args:
        runners: what to run, by name.
        seconds: when to stop; the first round warms up, unless it took that long.
    """
    taken: dict[str, list[float]] = {name: [] for name in runners}
    begin = time.perf_counter()
    while True:
        for name, run in runners.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
        if time.perf_counter() - begin >= seconds:
            break
    return {name: statistics.median(values[1:] or values) for name, values in taken.items()}


def export(
    model: ReidModel,
    settings: Settings,
    formats: Mapping[str, Format],
    out: Path,
    *,
    pictures: Path | None = None,
    timing: float = 5.0,
    threads: int = 1,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a model as files, after each has been opened again and compared with the model.

    Args:
        model: on the CPU.
        settings: what the files take and give.
        formats: by name.
        out: folder for the files and `export.json`; an earlier export there is replaced, file by file.
        pictures: folder of crops to compare on, besides drawn pictures.
        timing: seconds to measure speed for, at each size of batch; 0: not at all.
        threads: of torch and of onnxruntime, meanwhile.
        facts: more for `export.json`.

    Returns:
        What `export.json` says.

    Raises:
        InputError: if a file does not compute what the model computes, or the folder cannot be written, is in use, or
            holds files of these names that were not exported; then nothing is written.
    """
    if not formats:
        raise InputError("no format; give format=[onnx,torch_export] or one of them")
    graph = Graph(model, settings)
    contract = contract_of(model, settings)
    size = model.height, model.width
    # As many as the batches take: one of each size.
    checks = drawn(sum(BATCHES), *size)
    if pictures is not None:
        checks = np.concatenate([checks, crops(pictures, *size, model.square)])
    _check_place(out, formats)
    with at_work(out, "exports", tidy=True), together(out, last=REPORT) as made, _threads(threads):
        _check_place(out, formats)
        program = _program(graph, checks, contract)
        files, opened = {}, {}
        for name, one in formats.items():
            told = one.write(program, contract, made / one.file)
            opened[name] = one.open(made / one.file, threads)
            parity = _agreed(name, opened[name], model, settings, checks, contract)
            size_mb = (made / one.file).stat().st_size / 1e6
            files[name] = {"file": one.file, "megabytes": size_mb, **told, **parity._asdict()}
        report = {
            **contract,
            **(facts or {}),
            "parameters": sum(parameter.numel() for parameter in graph.parameters()),
            "files": files,
            "threads": threads,
            "milliseconds_per_picture": _speeds(graph, opened, contract, timing) if timing else None,
        }
        write_json(made / REPORT, report)
    return report


def _check_place(out: Path, formats: Mapping[str, Format]) -> None:
    """Raises InputError, before the work, unless what lies where the files go is an earlier export."""
    names = [*(one.file for one in formats.values()), REPORT]
    there = [name for name in names if inside(out, name).exists()]
    for name in there:
        if (out / name).is_dir():
            raise InputError(f"cannot write {out / name}: it is a folder; choose another out")
    if not there:
        return
    if not {"version", "files", "outputs"} <= (peek_json(out / REPORT) or {}).keys():
        raise InputError(
            f"out={out} holds {there[0]} and no {REPORT} that says it was exported; choose another out, or move it "
            "away"
        )


def _program(graph: Graph, pictures: Array, contract: Contract) -> ExportedProgram:
    # Two, since a batch of one would be taken for the only size.
    example = torch.from_numpy(prepare(pictures[:2], contract))
    with quiet():
        program = torch.export.export(graph, (example,), dynamic_shapes={INPUT: {0: Dim("batch")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _agreed(
    name: str, opened: Opened, model: ReidModel, settings: Settings, pictures: Array, contract: Contract
) -> Parity:
    """How close the file is, if it is close enough."""
    if opened.contract != contract:
        raise InputError(
            f"{name}: the file says another thing of itself than was asked for; nothing was written"
        )
    try:
        parity = compare(opened, model, settings, pictures)
    # Readers have exceptions of their own.
    except Exception as error:
        raise InputError(
            f"{name}: the file does not take batches of {BATCHES} pictures: {reason_of(error)}; nothing was written"
        ) from error
    if not parity.good:
        raise InputError(
            f"{name}: the file does not compute what the model computes: cosine {parity.cosine:.6f} (at least "
            f"{COSINE}), largest difference {parity.relative:.1e} of the largest value (at most {RELATIVE:.0e}); "
            "nothing was written; try another format, or other versions of torch and onnxruntime"
        )
    return parity


def _speeds(
    graph: Graph, opened: Mapping[str, Opened], contract: Contract, seconds: float
) -> dict[str, dict[str, float]]:
    """Batch -> `torch` (the same graph, run by torch) and formats -> milliseconds a picture."""
    found = {}
    for count in TIMED:
        batch = prepare(drawn(count, contract["height"], contract["width"]), contract)
        runners: dict[str, Callable[[], object]] = {"torch": partial(graph, torch.from_numpy(batch))}
        runners |= {name: partial(one.run, batch) for name, one in opened.items()}
        with torch.no_grad():
            times = latency(runners, seconds)
        found[str(count)] = {name: 1000 * value / count for name, value in times.items()}
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
