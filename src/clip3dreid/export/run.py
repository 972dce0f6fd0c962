"""Export a trained model as files that run without this package: ONNX, and programs of torch.export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from clip3dreid.errors import InputError
from clip3dreid.export.formats import INPUT, Array, Contract, Format, Opened, prepare, quiet
from clip3dreid.export.graph import Graph, contract_of
from clip3dreid.export.parity import (
    BATCHES,
    COSINE,
    RELATIVE,
    Parity,
    as_clips,
    compare,
    crops,
    drawn,
    latency,
)
from clip3dreid.export.settings import ExportSettings
from clip3dreid.inference.model import ReidModel
from clip3dreid.io.files import inside, reason_of, write_json
from clip3dreid.io.formats import peek_json
from clip3dreid.io.locks import at_work
from clip3dreid.io.staging import together

REPORT = "export.json"
TIMED = (1, 32)
"""Pictures, or clips, in a batch when speed is measured."""


class ExportedFile(NamedTuple):
    """One file, and how close it is to the model."""

    name: str
    """Of the file, in the export's folder."""
    megabytes: float
    """10^6 bytes."""
    facts: dict[str, Any]
    """What its format tells of it, such as `opset`."""
    parity: Parity
    """How close it is to the model."""


@dataclass(frozen=True)
class Exported:
    """What came of an export."""

    folder: Path
    """Where the files and `export.json` are."""
    contract: Contract
    """What the files say of themselves."""
    parameters: int
    """Numbers that the model has learnt."""
    files: dict[str, ExportedFile]
    """By name of the format."""
    threads: int
    """Of torch and of onnxruntime, while files were checked and timed."""
    milliseconds: dict[str, dict[str, float]] | None
    """Pictures, or clips, in a batch -> `torch` (the same graph, run by torch) and formats -> milliseconds a picture;
    None where speed was not measured."""

    def report(self) -> dict[str, Any]:
        """Return what `export.json` says, as plain values."""
        return {
            **self.contract,
            "parameters": self.parameters,
            "files": {
                name: {
                    "file": file.name,
                    "megabytes": file.megabytes,
                    **file.facts,
                    **file.parity._asdict(),
                }
                for name, file in self.files.items()
            },
            "threads": self.threads,
            "milliseconds_per_picture": self.milliseconds,
        }


def export(
    model: ReidModel,
    settings: ExportSettings,
    formats: Mapping[str, Format],
    out: Path,
    *,
    facts: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a model as files, after each has been opened again and compared with the model.

    Args:
        model: on the CPU.
        settings: what the files take and give, and how they are checked.
        formats: by name.
        out: folder for the files and `export.json`; an earlier export there is replaced, file by file.
        facts: more for `export.json`.

    Returns:
        The files, how close they are and how fast.

    Raises:
        InputError: if a file does not compute what the model computes, or the folder cannot be written, is in use, or
            holds files of these names that were not exported; then nothing is written.
    """
    if not formats:
        raise InputError("no format; give format=[onnx,torch_export] or one of them")
    if settings.feature is not None:
        model = model.with_feature(settings.feature)
    graph = Graph(model, settings)
    contract = contract_of(model, settings)
    size = model.height, model.width
    # As many as the batches take: one of each size.
    checks = as_clips(drawn(sum(BATCHES) * graph.frames, *size), graph.frames)
    if settings.pictures is not None:
        mine = as_clips(crops(settings.pictures, *size, model.square), graph.frames)
        checks = np.concatenate([checks, mine])
    _check_place(out, formats)
    with at_work(out, "exports", tidy=True), together(out, last=REPORT) as made, _threads(settings.threads):
        _check_place(out, formats)
        program = _program(graph, checks, contract)
        files: dict[str, ExportedFile] = {}
        opened: dict[str, Opened] = {}
        for name, one in formats.items():
            path = made / one.file
            about = one.write(program, contract, path)
            opened[name] = one.open(path, settings.threads)
            parity = _agreed(name, opened[name], model, settings, checks, contract)
            files[name] = ExportedFile(one.file, path.stat().st_size / 1e6, about, parity)
        exported = Exported(
            folder=out,
            contract=contract,
            parameters=sum(parameter.numel() for parameter in graph.parameters()),
            files=files,
            threads=settings.threads,
            milliseconds=_speeds(graph, opened, contract, settings.timing) if settings.timing else None,
        )
        write_json(made / REPORT, {**exported.report(), **(facts or {})})
    return exported


def _check_place(out: Path, formats: Mapping[str, Format]) -> None:
    """Check, before the work, that what lies where the files go is an earlier export."""
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
    with torch.no_grad():
        graph(example)  # a student of clips sets up what depends on their length, which no program could
    with quiet():
        program = torch.export.export(graph, (example,), dynamic_shapes={INPUT: {0: Dim("batch")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _agreed(
    name: str, opened: Opened, model: ReidModel, settings: ExportSettings, pictures: Array, contract: Contract
) -> Parity:
    """Return how close the file is, if it is close enough."""
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
    """Return milliseconds a picture, as `Exported.milliseconds` has them."""
    found = {}
    for count in TIMED:
        frames = graph.frames
        drawing = drawn(count * frames, contract["height"], contract["width"])
        batch = prepare(as_clips(drawing, frames), contract)
        runners: dict[str, Callable[[], object]] = {"torch": partial(graph, torch.from_numpy(batch))}
        runners |= {name: partial(one.run, batch) for name, one in opened.items()}
        with torch.no_grad():
            times = latency(runners, seconds)
        found[str(count)] = {name: 1000 * value / count / frames for name, value in times.items()}
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
