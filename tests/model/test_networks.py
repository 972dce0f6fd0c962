import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from transformers import ConvNextConfig, ConvNextModel, ViTConfig, ViTModel

from clip3dreid.errors import InputError
from clip3dreid.model.embedder import Embedder, Pixels
from clip3dreid.model.networks import OnnxNetwork, OpenVinoNetwork, TransformersNetwork, import_openvino
from tests.processes import PATIENCE_S

SIZE = (6, 4)
WEIGHT = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
AS_BYTES = Pixels(range=255)
IMAGES = torch.randint(0, 256, (5, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def expected(images: Tensor) -> Tensor:
    """The channels' means times a matrix: what every little file of this page computes."""
    return images.float().mean((2, 3)) @ torch.from_numpy(WEIGHT)


def onnx_file(
    path: Path,
    batch: int | str = "batch",
    *,
    sides: tuple[Any, ...] = (3, *SIZE),
    kind: int = TensorProto.FLOAT,
    fixed: bool = False,
    outputs: tuple[str, ...] = ("embedding",),
    inputs: tuple[str, ...] = ("pictures",),
    external: bool = False,
    scale: float = 1.0,
) -> Path:
    """Write the network as ONNX; `fixed`: one picture's shape stands within it, though its input takes several."""
    nodes = [
        helper.make_node("Cast", [inputs[0]], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], [outputs[0]]),
        *(helper.make_node("ReduceMean", [inputs[0], "axes"], [name], keepdims=1) for name in outputs[1:]),
    ]
    weights = {
        "axes": np.array([2, 3]),
        "weight": np.resize(WEIGHT, (sides[0], 5)) * np.float32(scale),
        "shape": np.array([1, -1] if fixed else [-1, 5]),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, [batch, *sides]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(
        model, str(path), save_as_external_data=external, location=f"{path.name}.data", size_threshold=64
    )
    return path


def embedder(path: Path, pixels: Pixels = AS_BYTES, output: str | int | None = None) -> Embedder:
    return Embedder(OnnxNetwork(path, output), pixels, SIZE)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({}, id="any batch"),
        pytest.param({"batch": 1}, id="one at a time"),
        pytest.param({"batch": 3}, id="three at a time"),
        pytest.param({"fixed": True}, id="any batch in name only"),
        pytest.param({"kind": TensorProto.UINT8}, id="bytes"),
        pytest.param({"external": True}, id="weights beside it"),
        pytest.param({"sides": (3, "height", "width")}, id="any size"),
    ],
)
def test_a_file_of_onnx_gives_its_vectors_however_many_pictures_it_takes(
    tmp_path: Path, shape: dict[str, Any]
) -> None:
    made = embedder(onnx_file(tmp_path / "tiny.onnx", **shape))
    assert made.width == 5
    for count in (5, 1):
        found = made(IMAGES[:count])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected(IMAGES[:count]), rtol=1e-5, atol=1e-3)


def test_weights_beside_a_file_are_among_those_that_decide(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "tiny.onnx", external=True)
    assert [file.name for file in OnnxNetwork(path).files] == ["tiny.onnx", "tiny.onnx.data"]
    (tmp_path / "tiny.onnx.data").unlink()
    with pytest.raises(InputError, match=r"has weights in .*tiny\.onnx\.data, which is not there"):
        OnnxNetwork(path)


@pytest.mark.parametrize(
    ("shape", "pixels", "output", "message"),
    [
        ({"sides": (3, 8, 4)}, AS_BYTES, None, "of 8x4 pixels and is shown 6x4; set its view.height=8"),
        ({"sides": (6, 4, 3)}, AS_BYTES, None, r"takes \?x6x4x3, not pictures"),
        ({"sides": (5, 3, 6, 5)}, AS_BYTES, None, "takes clips of 5 frames, and such a file is only shown pictures"),
        ({"kind": TensorProto.UINT8}, Pixels(), None, "takes bytes; set its pixels.range=255"),
        ({"kind": TensorProto.INT32}, AS_BYTES, None, "takes pictures of type int32"),
        ({"inputs": ("pictures", "lengths")}, AS_BYTES, None, r"has 2 inputs \(pictures, lengths\)"),
        ({"outputs": ("embedding", "map")}, AS_BYTES, None, "2 outputs; choose one with output=NAME: embedding, map"),
        ({"outputs": ("embedding", "map")}, AS_BYTES, "mop", "output=mop is unknown; choose embedding or map"),
        ({}, AS_BYTES, 1, "output=1 is unknown; choose 0"),
        ({"scale": float("nan")}, AS_BYTES, None, "gives NaN or infinity"),
    ],
)  # fmt: skip
def test_what_embeds_no_picture_is_refused(
    tmp_path: Path, shape: dict[str, Any], pixels: Pixels, output: str | int | None, message: str
) -> None:
    path = onnx_file(tmp_path / "tiny.onnx", **shape)
    with pytest.raises(InputError, match=message):
        embedder(path, pixels, output)


def test_an_output_is_chosen_by_name_or_number(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "tiny.onnx", outputs=("embedding", "average"))
    for output in ("average", 1):
        # (B, 3, 1, 1) is one vector a picture.
        torch.testing.assert_close(embedder(path, output=output)(IMAGES), IMAGES.float().mean((2, 3)))
    assert embedder(path, output=0).width == 5


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(b"\x08\x0a nothing")
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        OnnxNetwork(tmp_path / "tiny.onnx")


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = onnx_file(tmp_path / "tiny.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(InputError, match=r"needs onnx, onnxruntime; pip install 'clip3dreid\[onnx\]'"):
        OnnxNetwork(path)
    with pytest.raises(InputError, match=r"needs openvino; pip install 'clip3dreid\[openvino\]'"):
        OpenVinoNetwork(path)


def ir_file(folder: Path, **shape: Any) -> Path:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("the extra openvino is not installed")
    openvino = import_openvino()
    path = folder / "tiny.xml"
    model = openvino.Core().read_model(onnx_file(folder / "tiny.onnx", **shape))
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize(
    "shape", [{}, {"batch": 1}, {"batch": 1, "fixed": True}], ids=["any", "one", "one within"]
)
def test_openvinos_ir_gives_its_vectors_however_many_pictures_it_takes(
    tmp_path: Path, shape: dict[str, Any]
) -> None:
    path = ir_file(tmp_path, **shape)
    network = OpenVinoNetwork(path)
    assert [file.name for file in network.files] == ["tiny.xml", "tiny.bin"]
    made = Embedder(network, Pixels("bgr", 255), SIZE)
    for count in (5, 1):
        swapped = IMAGES[:count].flip(1)
        torch.testing.assert_close(made(IMAGES[:count]), expected(swapped), rtol=1e-5, atol=1e-3)


def test_importing_openvino_leaves_the_programs_stderr_open(tmp_path: Path) -> None:
    ir_file(tmp_path)
    code = """
import contextlib, io, logging, sys
from clip3dreid.model.networks import import_openvino
taken = io.StringIO()
with contextlib.redirect_stderr(taken):
    import_openvino()
logging.shutdown()
print(taken.closed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.split() == ["False"], done.stderr


def test_an_ir_without_its_weights_is_refused(tmp_path: Path) -> None:
    path = ir_file(tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match=r"give NAME\.xml, with NAME\.bin beside it"):
        OpenVinoNetwork(path)
    with pytest.raises(InputError, match=r"give NAME\.xml"):
        OpenVinoNetwork(tmp_path / "tiny.onnx")


def folder(path: Path, kind: str) -> tuple[Path, Any]:
    torch.manual_seed(0)
    if kind == "vit":
        config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                           patch_size=8, image_size=32)  # fmt: skip
        model = ViTModel(config, add_pooling_layer=False)
    else:
        model = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2))
    model.eval().save_pretrained(path)
    return path, model


@pytest.mark.parametrize(
    ("kind", "output", "width"),
    [("vit", None, 8), ("vit", "average", 8), ("vit", "token", 8), ("convnext", None, 8)],
)
@torch.no_grad()
def test_a_vision_model_gives_its_class_token_or_the_mean_of_its_map(
    tmp_path: Path, kind: str, output: str | None, width: int
) -> None:
    path, model = folder(tmp_path, kind)
    pixels = Pixels(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    made = Embedder(TransformersNetwork(path, output), pixels, (64, 32))
    assert made.width == width
    images = torch.randint(0, 256, (3, 3, 64, 32), dtype=torch.uint8)
    values = (images / 255 - torch.tensor(pixels.mean).view(3, 1, 1)) / torch.tensor(pixels.std).view(3, 1, 1)
    if kind == "vit":
        states = model(values, interpolate_pos_encoding=True).last_hidden_state
        wanted = states[:, 1:].mean(1) if output == "average" else states[:, 0]
    else:
        wanted = model(values).last_hidden_state.mean((2, 3))
    torch.testing.assert_close(made(images), wanted, rtol=1e-4, atol=1e-5)


def test_a_folder_that_brings_code_or_a_text_tower_is_refused(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "vit")
    config = path / "config.json"
    written = config.read_text()
    config.write_text(written.replace('"vit"', '"clip"'))
    with pytest.raises(InputError, match=r"of type clip, with a text tower; give model/teacher=clip_vit_b16"):
        TransformersNetwork(path)
    config.write_text(written.replace('"vit"', '"timm_wrapper"'))
    with pytest.raises(InputError, match="built from its configuration alone, which timm_wrapper is not"):
        TransformersNetwork(path)
    config.write_text(written.replace('"patch_size"', '"pretrained_backbone": "a/b", "patch_size"'))
    with pytest.raises(InputError, match="without pretrained_backbone"):
        TransformersNetwork(path)
    config.write_text(written)
    with pytest.raises(InputError, match="output=pooler is unknown; choose token, average or null"):
        TransformersNetwork(path, "pooler")
    with pytest.raises(InputError, match="is no folder of a model"):
        TransformersNetwork(tmp_path / "nothing")


def test_a_network_without_a_class_token_says_so(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "convnext")
    with pytest.raises(InputError, match="no class token; set output=average"):
        TransformersNetwork(path, "token")
