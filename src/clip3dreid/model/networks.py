"""Read the files of an image network: ONNX, OpenVINO's IR, a program of torch.export, or a model of `transformers`.

Each class is a `Network` of `embedder.py`. Libraries are imported where they are needed; no code in a file is run.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.io.checks import choose, some
from clip3dreid.io.files import inside
from clip3dreid.io.formats import decoding
from clip3dreid.model.backbone import BackboneOutput
from clip3dreid.model.card import check_network
from clip3dreid.model.embedder import Takes
from clip3dreid.model.places import LIBRARY
from clip3dreid.model.program_archive import read_program
from clip3dreid.model.student import Student
from clip3dreid.model.teacher_files import FAMILIES, harmless, read_teacher_json, weight_files

CPU = "CPUExecutionProvider"
_AGAIN = "get it again, or export it anew"
# Of element types that a network may ask for; bytes are taken only where no pixel is a fraction.
_TYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "uint8": np.uint8}


class _OnCpu:
    """What networks have in common that run on the CPU, wherever the pictures are."""

    device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Stay."""


class OnnxNetwork(_OnCpu):
    """A file of ONNX with one input (B, 3, H, W), run by onnxruntime on the CPU.

    Args:
        path: the file; weights in files of their own lie beside it.
        output: its name or number; None: the only one.
        providers: onnxruntime's, by preference; pictures and answers are on the CPU whichever computes.

    Attributes:
        contract: what this project's export says of the file; None where another wrote it.

    Raises:
        InputError: if the package is missing, the file cannot be read, or has another input or no such output.
    """

    def __init__(
        self, path: Path, output: str | int | None = None, providers: Sequence[str] = (CPU,)
    ) -> None:
        _require("onnx", "onnxruntime", extra="onnx")
        import onnxruntime

        self.path, self.files = path, [path, *_external(path)]
        for name in providers:
            choose("providers", name, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        with decoding(path, "ONNX", _AGAIN):
            self._session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
            written = self._session.get_modelmeta().custom_metadata_map.get(LIBRARY)
            self.contract = json.loads(written) if written else None
        inputs, outputs = self._session.get_inputs(), [one.name for one in self._session.get_outputs()]
        _check_count(path, [one.name for one in inputs])
        self._input = inputs[0].name
        self._output: str = outputs[_chosen(path, outputs, output)]
        # Sides that may be any are names, or nothing.
        self.takes = _takes(path, [side if isinstance(side, int) else None for side in inputs[0].shape])
        kind = inputs[0].type.removeprefix("tensor(").removesuffix(")")
        self._dtype = _dtype(path, "float32" if kind == "float" else kind)
        self.takes_bytes = self._dtype is np.uint8

    def __call__(self, values: Tensor) -> Tensor:
        """Map (B, 3, H, W) float32 to the output (B, ...) float32."""
        given = {self._input: _array(values, self._dtype)}
        return torch.from_numpy(self._session.run([self._output], given)[0]).float()

    def describe(self) -> str:
        """Return which output is read."""
        return self._output


class OpenVinoNetwork(_OnCpu):
    """A network in OpenVINO's IR with one input (B, 3, H, W), run in float32 on the CPU.

    Args:
        path: the `.xml`, with its `.bin` beside it.
        output: its name or number; None: the only one.

    Raises:
        InputError: if the package or a file is missing, the file cannot be read, or has another input or no such
            output.
    """

    def __init__(self, path: Path, output: str | int | None = None) -> None:
        _require("openvino", extra="openvino")
        openvino = import_openvino()
        self.path, self.files = path, [path, path.with_suffix(".bin")]
        if path.suffix != ".xml" or not self.files[1].is_file():
            raise InputError(f"{path} is no network of OpenVINO: give NAME.xml, with NAME.bin beside it")
        with decoding(path, "a network of OpenVINO", _AGAIN):
            core = openvino.Core()
            model = core.read_model(path)
            _check_count(path, [str(one) for one in model.inputs])
            sides = [side.get_length() if side.is_static else None for side in model.input(0).partial_shape]
            takes = _takes(path, sides)
            model, takes = _any_batch(openvino, core, path, model, takes)
            precise = {
                # Where the processor has them, halves would be the default.
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            }
            self._compiled = core.compile_model(model, "CPU", precise)
        self.takes = takes
        names = [
            min(one.names) if one.names else f"output {place}" for place, one in enumerate(model.outputs)
        ]
        self._place = _chosen(path, names, output)
        self._name = names[self._place]
        self._dtype = _dtype(path, str(model.input(0).element_type.to_dtype()))
        self.takes_bytes = self._dtype is np.uint8

    def __call__(self, values: Tensor) -> Tensor:
        """Map (B, 3, H, W) float32 to the output (B, ...) float32."""
        found = self._compiled([_array(values, self._dtype)])[self._place]
        return torch.from_numpy(np.array(found)).float()

    def describe(self) -> str:
        """Return which output is read."""
        return self._name


class TorchExportNetwork:
    """A program of `torch.export` with one input (B, 3, H, W), run by torch; nothing in its file is unpickled.

    Args:
        path: the `.pt2`.
        output: name or number of an output, by name where the program returns a dictionary; None: the only one.

    Attributes:
        contract: what this project's export says of the file; None where another wrote it.

    Raises:
        InputError: as `program_archive.read_program`, or if it has another input or no such output.
    """

    def __init__(self, path: Path, output: str | int | None = None) -> None:
        self.path, self.files = path, [path]
        program, self.contract = read_program(path)
        with decoding(path, "a program of torch.export", _AGAIN):
            inputs = [str(name) for name in program.graph_signature.user_inputs]
            _check_count(path, inputs)
            given = next(node for node in program.graph.nodes if node.name == inputs[0]).meta["val"]
            self.takes = _takes(path, [side if isinstance(side, int) else None for side in given.shape])
            self._module = program.module(check_guards=False)
        for tensor in (*self._module.parameters(), *self._module.buffers()):
            tensor.requires_grad_(False)
        self.device = next((tensor.device for tensor in program.state_dict.values()), torch.device("cpu"))
        self.takes_bytes = given.dtype == torch.uint8
        self._dtype: torch.dtype = getattr(
            torch, np.dtype(_dtype(path, str(given.dtype).removeprefix("torch."))).name
        )
        self._output = output

    def to(self, device: torch.device) -> None:
        """Go to a device."""
        self._module.to(device)
        self.device = device

    def __call__(self, values: Tensor) -> Tensor:
        """Map (B, 3, H, W) float32 to the output (B, ...) float32."""
        with torch.no_grad():
            found = self._module((values.round() if self.takes_bytes else values).to(self._dtype))
        if isinstance(found, Tensor):
            found = [found]
        names = list(found) if isinstance(found, dict) else [str(number) for number in range(len(found))]
        chosen: Tensor = [*(found.values() if isinstance(found, dict) else found)][
            _chosen(self.path, names, self._output)
        ]
        return chosen.float()

    def describe(self) -> str:
        """Return which output is read."""
        return str(self._output)


class _TokenOrAverage(nn.Module):
    """The class token, or the mean over the map: what a network has of the two, or the one that is asked for."""

    def __init__(self, output: str | None) -> None:
        super().__init__()
        self._output = output

    def forward(self, features: BackboneOutput) -> Tensor:
        """Return (B, C)."""
        if self._output == "token" and features.token is None:
            raise InputError("this network has no class token; set output=average")
        if self._output == "average" or features.token is None:
            return features.map.mean((2, 3))
        return features.token


class TransformersNetwork:
    """A vision model of `transformers`, read from a folder of this disk; no code in it is run.

    Args:
        path: the folder, with `config.json` and safetensors, or `pytorch_model.bin` read without unpickling.
        output: `token`, the class token; `average`, over the map; None: the token of networks that have one.

    Raises:
        InputError: if the folder is incomplete or damaged, or holds no vision model, or one with a text tower.
    """

    takes_bytes = False
    takes = Takes(None, None, None)

    def __init__(self, path: Path, output: str | None = None) -> None:
        choose("output", output, ("token", "average", None))
        # Here: it loads the library.
        from clip3dreid.model.transformer import TransformersBackbone

        weights = weight_files(path)
        if not (path / "config.json").is_file() or not weights:
            raise InputError(
                f"{path} is no folder of a model: give one with config.json and model.safetensors"
            )
        self.path, self.files, self._output = path, [path / "config.json", *weights], output
        config = _vision_config(path)
        # A student measures its width, and tells what of a published model no feature depends on.
        self._student = Student(
            TransformersBackbone(config), _TokenOrAverage(output), [0.0] * 3, [1.0] * 3, neck=False
        )
        self._student.backbone.load_published(str(path))
        self._student.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return self._student.mean.device

    def to(self, device: torch.device) -> None:
        """Go to a device."""
        self._student.to(device)

    def __call__(self, values: Tensor) -> Tensor:
        """Map (B, 3, H, W) float32 to (B, C) float32."""
        embedding: Tensor = self._student(values).embedding
        return embedding

    def describe(self) -> str:
        """Return which output is read."""
        return self._output or "token or average"


def import_openvino() -> Any:
    """Return the library, imported so that the program that does it stays as it is.

    Where Abseil's Python package is installed, it comes along. Its log handler takes hold of what `sys.stderr` is at
    that moment, and closes it when logging is configured anew, if `sys.stderr` is another by then. It gets the
    process's own, which it leaves open.
    """
    before = "absl.logging" in sys.modules
    import openvino

    if not before and "absl.logging" in sys.modules:
        sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__
    return openvino


def _vision_config(folder: Path) -> dict[str, Any]:
    """Return a published configuration without what no network is made of, once it is known to bring nothing in."""
    path = folder / "config.json"
    plain: dict[str, Any] = harmless(read_teacher_json(path))
    kind = plain.get("model_type")
    if kind in FAMILIES:
        raise InputError(
            f"{folder} holds a model of type {kind}, with a text tower; give model/teacher=clip_vit_b16 (siglip_b16) "
            "with this folder as model.teacher.path"
        )
    for key in ("architectures", "id2label", "label2id", "torch_dtype", "dtype", "transformers_version"):
        plain.pop(key, None)
    check_network(plain, path)
    return plain


def _external(path: Path) -> list[Path]:
    """Return the files in which an ONNX file's weights lie, if not in itself."""
    import onnx

    with decoding(path, "ONNX", _AGAIN):
        model = onnx.load(str(path), load_external_data=False)
    places = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [inside(path.parent, place) for place in sorted(places)]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise InputError(
            f"{path} has weights in {some(missing)}, which is not there; copy it beside the file"
        )
    return files


def _any_batch(openvino: Any, core: Any, path: Path, model: Any, takes: Takes) -> tuple[Any, Takes]:
    """Return a network for batches of any size, where it can be made one; else as it is."""
    if takes.batch is None:
        return model, takes
    sides = [-1, 3, *(-1 if side is None else side for side in takes[1:])]
    try:
        model.reshape({model.input(0): openvino.PartialShape(sides)})
    except RuntimeError:  # a layer with the batch in its shape; what is left of the model is read anew
        return core.read_model(path), takes
    return model, takes._replace(batch=None)


def _takes(path: Path, sides: Sequence[int | None]) -> Takes:
    """Return what an input of these sides takes."""
    if len(sides) == 5 and sides[2] in (3, None):
        frames = "" if sides[1] is None else f" of {sides[1]} frames"
        raise InputError(
            f"{path} takes clips{frames}, and such a file is only shown pictures here; give the run or the saved "
            "folder that it was exported from"
        )
    if len(sides) != 4 or sides[1] not in (3, None):
        shown = "x".join("?" if side is None else str(side) for side in sides)
        raise InputError(f"{path} takes {shown}, not pictures (B, 3, H, W); export it with channels first")
    return Takes(sides[0], sides[2], sides[3])


def _check_count(path: Path, inputs: Sequence[str]) -> None:
    if len(inputs) != 1:
        raise InputError(
            f"{path} has {len(inputs)} inputs ({some(inputs)}); give a network of pictures alone"
        )


def _chosen(path: Path, names: Sequence[str], output: str | int | None) -> int:
    """Return the number of the output that is asked for."""
    if output is None and len(names) == 1:
        return 0
    if output is None:
        raise InputError(f"{path} has {len(names)} outputs; choose one with output=NAME: {some(names)}")
    if isinstance(output, int):
        choose(f"{path}: output", output, range(len(names)))
        return output
    choose(f"{path}: output", output, names)
    return names.index(output)


def _dtype(path: Path, name: str) -> Any:
    if name not in _TYPES:
        raise InputError(f"{path} takes pictures of type {name}; give a network of float32, float16 or uint8")
    return _TYPES[name]


def _array(values: Tensor, dtype: Any) -> npt.NDArray[Any]:
    array = values.numpy()
    # Bytes: fractions come of pictures that were resampled as such.
    return np.ascontiguousarray((array.round() if dtype is np.uint8 else array).astype(dtype, copy=False))


def _require(*packages: str, extra: str) -> None:
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise InputError(f"this network needs {', '.join(missing)}; pip install 'clip3dreid[{extra}]'")
