"""Kinds of files that a model is exported to: each is written, and opened as a stranger would open it."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.export import ExportedProgram

from clip3dreid.errors import InputError

CONTRACT = "clip3dreid"
"""Where a file says how to use it: a key of ONNX's metadata; in a .pt2 the extra file of that name and `.json`."""
CONTRACT_VERSION = 1
INPUT = "pictures"

_ONNX_BYTES = 2**31 - 2**24
_OPSETS = range(18, 26)
_LOUD = ("torch.onnx", "onnxscript", "onnx_ir")

Array = npt.NDArray[Any]
Contract = dict[str, Any]
"""What a file takes and gives, as plain JSON values; `docs/export.md` describes it."""


class Opened(NamedTuple):
    """A file as a stranger would open it."""

    run: Callable[[Array], dict[str, Array]]
    """(B, 3, H, W), or clips (B, T, 3, H, W), as the contract says, to outputs by name."""
    contract: Contract
    """Read out of the file."""


class Format(Protocol):
    """One kind of file."""

    file: str
    """Its name."""

    def write(self, program: ExportedProgram, contract: Contract, path: Path) -> dict[str, Any]:
        """Write the program with its contract inside; return what is to be told of the file."""

    def open(self, path: Path, threads: int) -> Opened:
        """Open it with nothing but what its users have, on the CPU."""


class Onnx:
    """`model.onnx`: weights inside, the contract in `metadata_props`.

    Args:
        opset: version of ONNX's operators, 18 to 25; None: the exporter's own.

    Raises:
        InputError: if a package is missing, or the exporter does not know the version.
    """

    file = "model.onnx"

    def __init__(self, opset: int | None = None) -> None:
        if opset is not None and opset not in _OPSETS:
            raise InputError(
                f"formats.onnx.opset={opset} is not supported; give {_OPSETS[0]} to {_OPSETS[-1]}, or null"
            )
        needed = ("onnx", "onnxscript", "onnxruntime")
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            raise InputError(
                f"format=onnx needs {', '.join(missing)}; pip install 'clip3dreid[onnx]', or give "
                "format=torch_export"
            )
        self.opset = opset

    def write(self, program: ExportedProgram, contract: Contract, path: Path) -> dict[str, Any]:
        """Write it.

        Raises:
            InputError: if the weights are more than such a file can hold.
        """
        size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
        if size > _ONNX_BYTES:
            raise InputError(
                f"the weights are {size / 1e9:.1f} GB and one ONNX file holds 2; give format=torch_export"
            )
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=self.opset,
                input_names=[INPUT],
                output_names=list(contract["outputs"]),
                dynamic_shapes={INPUT: {0: "batch"}},
                verbose=False,
            )
        assert made is not None
        for node in made.model.graph:
            # Stack traces: paths of this machine, and an eighth of a small file.
            node.metadata_props.clear()
        made.model.metadata_props[CONTRACT] = json.dumps(contract)
        made.save(str(path), external_data=False)
        return {"opset": made.model.opset_imports[""]}

    def open(self, path: Path, threads: int) -> Opened:
        """Open it with onnxruntime."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(pictures: Array) -> dict[str, Array]:
            return dict(zip(names, session.run(names, {INPUT: pictures}), strict=True))

        return Opened(run, json.loads(session.get_modelmeta().custom_metadata_map[CONTRACT]))


class TorchExport:
    """`model.pt2`: a program of torch.export that returns a dict, the contract in an extra file."""

    file = "model.pt2"

    def write(self, program: ExportedProgram, contract: Contract, path: Path) -> dict[str, Any]:
        """Write it."""
        # Not by path, which would give the archive's folder a temporary name, nor to a file: on a full disk its
        # writer ends the whole process.
        written = io.BytesIO()
        torch.export.save(program, written, extra_files={f"{CONTRACT}.json": json.dumps(contract)})
        path.write_bytes(written.getbuffer())
        return {}

    def open(self, path: Path, threads: int) -> Opened:
        """Open it with torch alone; threads are torch's own."""
        extra = {f"{CONTRACT}.json": ""}
        module = torch.export.load(path, extra_files=extra).module()

        def run(pictures: Array) -> dict[str, Array]:
            with torch.no_grad():
                found = module(torch.from_numpy(pictures))
            return {name: tensor.numpy() for name, tensor in found.items()}

        return Opened(run, json.loads(extra[f"{CONTRACT}.json"]))


def prepare(pictures: Array, contract: Contract) -> Array:
    """Prepare resized pictures as a file's user must, by its contract alone.

    Args:
        pictures: (B, 3, H, W) uint8 RGB, or clips (B, T, 3, H, W).
        contract: of the file.

    Returns:
        Likewise, float32 or uint8, as the file takes them.
    """
    if contract["input"]["dtype"] == "uint8":
        return pictures
    values = pictures.astype(np.float32) / np.float32(255)
    if contract["normalise"] == "outside":
        mean, std = (np.asarray(contract[key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))
        values = (values - mean) / std
    return values


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporter tells of its steps, and of packages that nothing here needs."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in _LOUD}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
