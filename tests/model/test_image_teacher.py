import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.nn import functional as F

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.errors import InputError
from clip3dreid.model.embedding_cache import TeacherEmbeddings
from clip3dreid.model.image_teacher import ImageTeacher, NetworkTeacher, OnnxTeacher, TransformersTeacher
from clip3dreid.model.teacher import load_teacher, text_tower
from clip3dreid.model.teacher_view import Native
from clip3dreid.types import Batch

from .test_networks import AS_BYTES, IMAGES, SIZE, expected, folder, ir_file, onnx_file

PIXELS = {"_target_": "clip3dreid.model.embedder.Pixels", "range": 255}
VIEW = {"_target_": "clip3dreid.model.teacher_view.Native", "height": SIZE[0], "width": SIZE[1]}


def teacher(path: Path, kind: str = "OnnxTeacher", /, **changes: Any) -> ImageTeacher:
    node = {
        "_target_": f"clip3dreid.model.image_teacher.{kind}",
        "name": "tiny",
        "path": str(path),
        "cache": "disk",
    }
    return load_teacher({**node, "view": VIEW, "pixels": PIXELS, **changes})


def test_embeddings_have_length_one_whatever_the_pictures_come_as(tmp_path: Path) -> None:
    made = teacher(onnx_file(tmp_path / "tiny.onnx"))
    found = made(IMAGES)
    torch.testing.assert_close(found, F.normalize(expected(IMAGES), dim=1), rtol=0, atol=1e-5)
    assert (made.width, made.view.size, made.device.type) == (5, SIZE, "cpu")
    torch.testing.assert_close(made(IMAGES / 255), found, rtol=0, atol=1e-5)
    # As a picture of another size is shown to it.
    large = torch.randint(0, 256, (2, 3, 12, 9), dtype=torch.uint8)
    torch.testing.assert_close(made(large), made(made.view(large)))


def test_it_is_nobodys_parameter_and_never_in_training(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "vit")
    made = TransformersTeacher(str(path), Native(64, 32), AS_BYTES, name="tiny")
    owner = TeacherEmbeddings(made)
    assert not list(owner.parameters())
    assert not owner.state_dict()
    assert not owner.train().teacher.training  # type: ignore[union-attr]
    labels = torch.zeros(5, dtype=torch.int64)
    owner.half()
    images = IMAGES / 255
    found = owner(Batch(images, labels, labels, labels, row=torch.arange(5)))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(made(images), found, rtol=0, atol=1e-6)


def test_the_fingerprint_is_of_all_that_decides_and_of_no_names(tmp_path: Path) -> None:
    path = onnx_file(
        tmp_path / "tiny.onnx", sides=(3, "h", "w"), outputs=("embedding", "mean"), external=True
    )
    made = teacher(path, output="embedding").fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path, moved, ignore=lambda folder, names: {"moved"} & set(names))
    assert teacher(moved / "tiny.onnx", output="embedding", name="other").fingerprint == made
    others = [
        teacher(path, output=1),
        teacher(path, output=0, pixels=PIXELS | {"channels": "bgr"}),
        teacher(path, output=0, pixels=PIXELS | {"range": 1}),
        teacher(path, output=0, pixels=PIXELS | {"std": [1, 2, 1]}),
        teacher(path, output=0, view=VIEW | {"height": 7}),
        teacher(path, output=0, view={"_target_": "clip3dreid.model.teacher_view.Squash", "size": 6}),
    ]
    weights = moved / "tiny.onnx.data"
    weights.write_bytes(weights.read_bytes()[::-1])
    prints = {made, teacher(moved / "tiny.onnx", output=0).fingerprint, *(one.fingerprint for one in others)}
    assert len(prints) == 2 + len(others)
    assert teacher(path, output=0).fingerprint == made
    assert all(len(one) == 64 for one in prints)


def test_the_same_network_teaches_the_same_as_onnx_and_as_openvinos_ir(tmp_path: Path) -> None:
    made = teacher(ir_file(tmp_path), "OpenVinoTeacher")
    torch.testing.assert_close(made(IMAGES), teacher(tmp_path / "tiny.onnx")(IMAGES), rtol=0, atol=1e-6)


def test_a_folder_says_what_pixels_it_wants(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "convnext")
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json, which says what pixels"):
        teacher(path, "TransformersTeacher", pixels=None)
    (path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}'
    )
    view = VIEW | {"height": 64, "width": 32}
    wanted = {"_target_": PIXELS["_target_"], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    images = torch.rand(2, 3, 64, 32)
    told, read = (teacher(path, "TransformersTeacher", pixels=one, view=view) for one in (wanted, None))
    assert torch.equal(told(images), read(images))
    assert told.fingerprint == read.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": None}, r"files are not given; give model\.teacher\.path=FILE\.onnx"),
        ({}, r"no network at .*none\.onnx; give model\.teacher\.path=FILE\.onnx"),
        ({"fetch": "curl -O somewhere"}, "get it: curl -O somewhere"),
    ],
)
def test_files_that_are_not_there_are_asked_for(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        teacher(tmp_path / "none.onnx", **changes)


def onnx_recipe(tmp_path: Path) -> Path:
    return onnx_file(tmp_path / "tiny.onnx", sides=(3, 256, 128))


def vit_folder(tmp_path: Path) -> Path:
    path, _ = folder(tmp_path / "vit", "vit")
    (path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    return path


@pytest.mark.parametrize(
    ("name", "made", "swapped"),
    [
        ("onnx", onnx_recipe, False),
        ("openvino", lambda place: ir_file(place, sides=(3, 256, 128)), True),
        ("image_network", vit_folder, None),
    ],
)
def test_every_recipe_of_one_makes_a_teacher(
    name: str, made: Any, swapped: bool | None, tmp_path: Path
) -> None:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        sets = [
            "data=ltcc",
            "data.root=/nowhere",
            f"model/teacher={name}",
            f"model.teacher.path={made(tmp_path)}",
        ]
        node = OmegaConf.to_container(compose("train", sets).model.teacher, resolve=True)
    assert node["name"] == name
    taught = load_teacher(node)
    assert isinstance(taught, NetworkTeacher)
    images = torch.randint(0, 256, (2, 3, *taught.view.size), dtype=torch.uint8)
    found = taught(images)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    if swapped is not None:
        # What its header says of pixels: BGR 0..255, or ImageNet's.
        statistics = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        values = images.flip(1) if swapped else (images / 255 - statistics[0]) / statistics[1]
        torch.testing.assert_close(found, F.normalize(expected(values), dim=1), rtol=0, atol=1e-4)


def test_words_are_not_asked_of_it(tmp_path: Path) -> None:
    made = teacher(onnx_file(tmp_path / "tiny.onnx"))
    assert isinstance(made, OnnxTeacher | NetworkTeacher)
    with pytest.raises(InputError, match=r"tiny embeds pictures and no texts.*loss=\[identity,global\]"):
        text_tower(made)
