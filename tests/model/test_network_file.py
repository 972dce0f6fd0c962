"""Networks of others as models: found, described, compared with their own runtime, refused."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from PIL import Image
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.model.network_file import describe_network, is_network
from clip3dreid.model.teacher import Teacher
from clip3dreid.model.teacher_view import Native
from tests.model.test_networks import SIZE, expected, onnx_file
from tests.model.test_program_archive import Pooled

SHEET = "height: 6\nwidth: 4\nchannels: bgr\nrange: 255\nflip: false\n"
SAID: dict[str, Any] = {"height": 6, "width": 4, "channels": "rgb", "range": 255}


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    numbers = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        Image.fromarray(numbers.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
    return paths


def tensor(paths: list[Path]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])


def test_an_onnx_file_with_its_description_is_a_model(tmp_path: Path, pictures: list[Path]) -> None:
    path = onnx_file(tmp_path / "tiny.onnx")
    (tmp_path / "tiny.yaml").write_text(SHEET + "licence: Apache-2.0\nsource: a test\n", encoding="utf-8")
    session = onnxruntime.InferenceSession(str(path))
    own = session.run(None, {"pictures": tensor(pictures).flip(1).float().numpy()})[0]
    for place in (path, tmp_path / "tiny.yaml"):
        model = clip3dreid.load(place)
        features = model.embed(pictures)
        torch.testing.assert_close(features, nn.functional.normalize(torch.from_numpy(own), dim=1))
        assert model.card["network"] == {"licence": "Apache-2.0", "source": "a test"}
        assert not model.flip


def test_arguments_count_more_than_the_description(tmp_path: Path, pictures: list[Path]) -> None:
    path = onnx_file(tmp_path / "tiny.onnx")
    told = clip3dreid.load(path, network=SAID)
    wanted = nn.functional.normalize(expected(tensor(pictures)), dim=1)
    torch.testing.assert_close(told.embed(pictures, flip=False), wanted)
    (tmp_path / "tiny.yaml").write_text(SHEET, encoding="utf-8")
    swapped = clip3dreid.load(path)
    assert swapped.fingerprint != told.fingerprint
    again = clip3dreid.load(path, network={"channels": "rgb"})
    torch.testing.assert_close(again.embed(pictures), wanted)
    # What people look at twice by default is not what a description says not to.
    assert (told.flip, again.flip) == (True, False)


def test_a_program_of_torch_export_is_a_model(tmp_path: Path, pictures: list[Path]) -> None:
    torch.manual_seed(0)
    network = Pooled().eval()
    exported = torch.export.export(
        network, (torch.zeros(4, 3, *SIZE),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(exported, tmp_path / "tiny.pt2")
    model = clip3dreid.load(tmp_path / "tiny.pt2", network={"range": 1, "mean": [0.5, 0.5, 0.5]})
    assert (model.height, model.width) == SIZE
    with torch.no_grad():
        wanted = network(tensor(pictures) / 255 - 0.5)
    torch.testing.assert_close(model.embed(pictures, flip=False), nn.functional.normalize(wanted, dim=1))


def test_a_text_of_two_outputs_is_chosen_from(tmp_path: Path) -> None:
    onnx_file(tmp_path / "tiny.onnx", outputs=("embedding", "map"))
    with pytest.raises(InputError, match="2 outputs; choose one with output=NAME"):
        clip3dreid.load(tmp_path / "tiny.onnx", network=SAID)
    assert clip3dreid.load(tmp_path / "tiny.onnx", network=SAID | {"output": "embedding"}).widths == {
        "embedding": 5
    }


@pytest.mark.parametrize(
    ("sheet", "said", "message"),
    [
        ("", {}, r"does not say what pixels it takes; write tiny\.yaml beside it"),
        (
            "",
            {"range": 255, "height": 8, "width": 4},
            r"takes pictures of 6x4 pixels, not 8x4; leave height and width out",
        ),
        ("heigth: 6\n", {}, r"heigth is nothing that is said of a network; say height.*did you mean height"),
        ("- 1\n", {}, "must say height: 256 and the like, not a list"),
        ("", {"channels": "gbr"}, "channels=gbr is unknown; choose rgb or bgr"),
        ("", {"height": 0}, "height=0 must be a whole number of pixels"),
        ("", {"height": "tall"}, "height=tall"),
        ("", SAID | {"mean": [1, 2]}, "must be three numbers each"),
        ("", SAID | {"providers": ["Abacus"]}, "providers=Abacus is unknown; choose"),
    ],
)
def test_what_is_said_wrongly_is_refused(
    tmp_path: Path, sheet: str, said: dict[str, Any], message: str
) -> None:
    onnx_file(tmp_path / "tiny.onnx")
    (tmp_path / "tiny.yaml").write_text(sheet, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        clip3dreid.load(tmp_path / "tiny.onnx", network=said)


def test_a_network_of_any_size_needs_one(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "tiny.onnx", sides=(3, "height", "width"))
    with pytest.raises(InputError, match="takes pictures of any size; say height and width"):
        clip3dreid.load(path, network={"range": 255})


def test_what_a_network_cannot_be_asked_is_said(tmp_path: Path, pictures: list[Path]) -> None:
    model = clip3dreid.load(onnx_file(tmp_path / "tiny.onnx"), network=SAID)
    with pytest.raises(InputError, match="a network of others; pass its own files on"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(InputError, match="has not learnt words"):
        model.describe(pictures)
    with pytest.raises(InputError, match="computes in its file's precision; leave dtype=bfloat16 out"):
        clip3dreid.load(tmp_path / "tiny.onnx", network=SAID, dtype="bfloat16")
    with pytest.raises(InputError, match="device=tpu cannot be used"):
        clip3dreid.load(tmp_path / "tiny.onnx", network=SAID, device="tpu")


def test_a_model_of_ours_is_told_nothing(saved_model: Path) -> None:
    with pytest.raises(
        InputError, match="is a model of ours, which knows its pictures itself; leave height out"
    ):
        clip3dreid.load(saved_model, network={"height": 5})


@pytest.mark.slow
def test_what_this_project_exported_says_itself_what_it_takes(saved_model: Path, tmp_path: Path) -> None:
    from clip3dreid.export.formats import Onnx, TorchExport
    from clip3dreid.export.run import export
    from clip3dreid.export.settings import ExportSettings

    ours = clip3dreid.load(saved_model)
    crops = torch.randint(0, 256, (3, 3, ours.height, ours.width), dtype=torch.uint8)
    wanted = nn.functional.normalize(ours.embed(crops), dim=1)
    for kind, settings in enumerate(({}, {"input": "uint8"}, {"normalise": "outside"})):
        out = tmp_path / str(kind)
        export(
            ours, ExportSettings(**settings, timing=0), {"onnx": Onnx(), "torch_export": TorchExport()}, out
        )
        for name in ("model.onnx", "model.pt2"):
            # The mirror image is in the file.
            found = clip3dreid.load(out / name).embed(crops, flip=False)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_networks_are_told_from_models_of_ours(saved_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
    assert [is_network(place) for place in ("a.onnx", "a.xml", "a.pt2", "a.yaml", folder)] == [True] * 5
    assert not any(is_network(place) for place in (saved_model, "user/name", "runs/x", "last.ckpt"))


def test_a_description_names_its_network(tmp_path: Path) -> None:
    onnx_file(tmp_path / "tiny.onnx")
    sheet = tmp_path / "other.yaml"
    sheet.write_text(SHEET, encoding="utf-8")
    with pytest.raises(InputError, match=r"says of no network which it is; add network: FILE\.onnx"):
        describe_network(sheet, {})
    sheet.write_text(f"{SHEET}network: tiny.onnx\n", encoding="utf-8")
    assert describe_network(sheet, {}).network == tmp_path / "tiny.onnx"
    sheet.write_text(f"{SHEET}network: away.onnx\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"away\.onnx is not there; give a network's file"):
        clip3dreid.load(sheet)


def test_bytes_are_wanted_as_bytes(tmp_path: Path, pictures: list[Path]) -> None:
    path = onnx_file(tmp_path / "tiny.onnx", kind=TensorProto.UINT8)
    wanted = nn.functional.normalize(expected(tensor(pictures)), dim=1)
    torch.testing.assert_close(clip3dreid.load(path, network=SAID).embed(pictures, flip=False), wanted)
    with pytest.raises(InputError, match="takes bytes; say range=255, and no mean and std"):
        clip3dreid.load(path, network=SAID | {"range": 1})


def test_a_vision_model_of_transformers_is_a_model(tmp_path: Path, pictures: list[Path]) -> None:
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=2,
    )
    torch.manual_seed(0)
    network = ViTModel(config, add_pooling_layer=False).eval()
    network.save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        clip3dreid.load(tmp_path / "vit")
    model = clip3dreid.load(tmp_path / "vit", network={"mean": [0.5] * 3, "std": [0.25] * 3})
    assert (model.height, model.width) == (8, 8)
    crops = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        wanted = network((crops / 255 - 0.5) / 0.25).last_hidden_state[:, 0]
    torch.testing.assert_close(model.embed(crops, flip=False), nn.functional.normalize(wanted, dim=1))


def test_the_image_tower_of_a_clip_is_a_model() -> None:
    folder = resources.files("clip3dreid.model") / "assets" / "body_clip"
    model = clip3dreid.load(str(folder), network={"height": 128, "width": 64})
    teacher = Teacher("package:body_clip", Native(128, 64), name="body_clip")
    crops = torch.randint(0, 256, (3, 3, 128, 64), dtype=torch.uint8)
    torch.testing.assert_close(model.embed(crops, flip=False), teacher(crops / 255))
    with pytest.raises(InputError, match="is a clip, whose pixels and output are known"):
        clip3dreid.load(str(folder), network={"height": 128, "width": 64, "range": 255})
