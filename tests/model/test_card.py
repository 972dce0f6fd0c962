"""What a downloaded model may say of itself: each lie is refused in a line, and no network is asked for anything."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file

from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.inference.model import load
from clip3dreid.model.card import VISION_MODELS, check_student, clip_size
from clip3dreid.model.weights import save_weights
from tests.conftest import STUDENT

TRANSFORMER = "clip3dreid.model.transformer.TransformersBackbone"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def config(**changes: Any) -> dict[str, Any]:
    """A backbone of `transformers` with a hostile configuration."""
    return {
        "backbone": {"_target_": TRANSFORMER, "config": {"model_type": "vit", "hidden_size": 8, **changes}}
    }


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


LIES: dict[str, dict[str, Any]] = {
    "a function as student": {"_target_": "os.system", "command": "touch ran"},
    "a function as backbone": {"backbone": {"_target_": "os.system", "command": "touch ran"}},
    "arguments by place": {"backbone": {**STUDENT["backbone"], "_args_": ["x"]}},
    "half an object": {"backbone": {**STUDENT["backbone"], "_partial_": True}},
    "another recursion": {"_recursive_": False},
    "a value of the environment": {"backbone": {**STUDENT["backbone"], "depth": "${oc.env:HOME}"}},
    "a way through our module": {"backbone": {"_target_": "clip3dreid.model.student.torch.hub.load"}},
    "a line's end": {"_target_": "clip3dreid.model.student.Student\n"},
    "a list of classes": {"_target_": ["clip3dreid.model.student.Student"]},
    "the teacher, which asks the hub": {
        "backbone": {
            "_target_": "clip3dreid.model.teacher.Teacher",
            "name": "x",
            "path": "evil/repo",
            "view": None,
        }
    },
    "a cache as backbone": {"backbone": {"_target_": "clip3dreid.model.embedding_cache.TeacherEmbeddings"}},
    "a norm as pooling": {"pooling": {"_target_": "clip3dreid.model.normalisation.GhostBatchNorm1d"}},
    "a backbone inside a detector": config(
        model_type="detr", backbone="evil/repo", use_pretrained_backbone=True, use_timm_backbone=False
    ),
    "weights of timm": config(model_type="timm_wrapper", architecture="resnet18", pretrained=True),
    "a backbone of timm": config(model_type="timm_backbone", backbone="x", use_pretrained_backbone=True),
    "a segmenter": config(model_type="upernet", backbone="evil/repo", use_pretrained_backbone=True),
    "a hybrid": config(model_type="dpt", is_hybrid=True, backbone="evil/repo"),
    "a backbone where none belongs": config(backbone="evil/repo", use_pretrained_backbone=True),
    "a backbone further in": config(nested={"backbone_config": {"use_pretrained_backbone": True}}),
    "a quantiser": config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "a kernel of the hub": config(attn_implementation="evil/kernel"),
    "code of the hub": config(auto_map={"AutoModel": "evil/repo--x.Y"}),
    "trust": config(trust_remote_code=True, name_or_path="evil/repo"),
    "a class in a configuration": config(nested={"_target_": "os.system"}),
    "a million layers": config(num_hidden_layers=10**6),
    "layers in a list": config(model_type="swin", depths=[2, 2, 10**6, 2]),
    "an endless width": config(hidden_size=10**12),
    "a width of another type": config(hidden_size="8"),
    "nothing finite": config(layer_norm_eps=float("inf")),
    "a configuration without an end": config(nested=nested(900)),
    "a hook": {"backbone": {"_target_": TRANSFORMER, "config": {"model_type": "vit"}, "forward": {"x": "y"}}},
    "a path to a part": {
        "backbone": {"_target_": TRANSFORMER, "config": {"model_type": "vit"}, "final_norm": "a.b"}
    },
    "a thousand million channels": {"backbone": {**STUDENT["backbone"], "width": 10**9}},
    "channels that are not there": {"backbone": {**STUDENT["backbone"], "width": 1024}},
    "a truth for a number": {"backbone": {**STUDENT["backbone"], "width": True}},
    "an unknown depth": {"backbone": {**STUDENT["backbone"], "depth": 99}},
    "a mean of words": {"mean": ["a", "b", "c"]},
    "an endless mean": {"mean": [0.1] * 10**5},
    "no deviation": {"std": [0.2, 0.2, float("nan")]},
    "a key of nobody's": {"colour": "red"},
    "no backbone": {"backbone": None},
    "a student that is text": {"_target_": None},
    "a time that there is not": {
        "_target_": "clip3dreid.model.clip_student.ClipStudent",
        "time": "os.system",
    },
    "blocks of another kind": {
        "backbone": {"_target_": "clip3dreid.model.video.ClipResNet", "time": ["i3d"]}
    },
}
CARD_LIES: dict[str, dict[str, Any]] = {
    "a picture of 10^12 rows": {"height": 10**12},
    "a negative height": {"height": -3},
    "a height of text": {"height": "32"},
    "a true width": {"width": True},
    "no width": {"width": None},
    "a student that is a list": {"student": [1, 2]},
    "no student": {"student": None},
    "a vocabulary that is a list": {"vocabulary": [1]},
    "a word twice": {"vocabulary": {"groups": {"a": ["x", "x"]}}},
    "a body of 10^12 numbers": {"body": {"name": "../../x", "sha256": "0" * 64, "num_betas": 10**12}},
    "a body without a checksum": {"body": {"name": "anny", "sha256": "/etc/x", "num_betas": 4}},
    "another version": {"version": 10**30},
}
ALL = [(name, {"student": STUDENT | lie}) for name, lie in LIES.items()] + list(CARD_LIES.items())


@pytest.mark.parametrize(("lie", "change"), ALL, ids=[name for name, _ in ALL])
@pytest.mark.parametrize("place", ["config.json", "model.safetensors"])
@pytest.mark.usefixtures("no_network")
def test_a_lie_in_a_models_card_is_one_line(
    saved_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lie: str,
    change: dict[str, Any],
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(saved_model, folder)
    card = json.loads((folder / "config.json").read_text()) | change
    # As a liar would, with the right checksum.
    save_weights(load_file(folder / "model.safetensors"), card, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(InputError) as error:
        load(folder if place == "config.json" else folder / "model.safetensors")
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(folder) in message
    assert not (tmp_path / "ran").exists()


def test_the_truth_is_believed(saved_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved_model, folder)
    assert (
        load(folder).fingerprint
        == load(saved_model).fingerprint
        == load(folder / "model.safetensors").fingerprint
    )


def shipped_students() -> list[Path]:
    return sorted((Path(__file__).parents[2] / "conf" / "model" / "student").glob("*.yaml"))


@pytest.mark.parametrize("path", shipped_students(), ids=lambda path: path.stem)
@pytest.mark.usefixtures("no_network")
def test_every_student_that_is_shipped_is_believed_and_costs_no_memory_to_look_at(path: Path) -> None:
    from omegaconf import OmegaConf

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose(overrides=[f"+model/student={path.stem}"])
    node: Any = OmegaConf.to_container(composed.model.student, resolve=False)
    check_student(node, path)
    with torch.device("meta"):
        made = instantiate(node)
    assert all(parameter.is_meta for parameter in made.parameters())


@pytest.mark.parametrize("name", ["Average", "Maximum", "MaximumAverage", "ClassToken", "GeneralisedMean"])
def test_every_pooling_is_believed(name: str) -> None:
    check_student(STUDENT | {"pooling": {"_target_": f"clip3dreid.model.pooling.{name}"}}, "a card")


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(VISION_MODELS))
@pytest.mark.usefixtures("no_network")
def test_every_model_of_transformers_that_is_believed_is_made_of_its_configuration_alone(kind: str) -> None:
    node = STUDENT | {"backbone": {"_target_": TRANSFORMER, "config": {"model_type": kind}}}
    check_student(node | {"pooling": {"_target_": "clip3dreid.model.pooling.Average"}}, "a card")
    with torch.device("meta"):
        assert instantiate(node["backbone"]).example_size[0] > 0


@pytest.mark.parametrize(
    "clips",
    [
        8,
        [8, 4],
        "8",
        {},
        {"frames": 8},
        {"frames": 8, "stride": 4, "piece": 64},
        {"frames": 0, "stride": 4},
        {"frames": 8, "stride": -1},
        {"frames": True, "stride": 4},
        {"frames": 8.0, "stride": 4},
        {"frames": 10**9, "stride": 4},
        {"frames": 8, "stride": 10**30},
        {"frames": nested(5000), "stride": 4},
        {"frames": "8\n", "stride": 4},
    ],
    ids=range(14),
)
def test_clips_that_cannot_be_are_refused_in_a_line(clips: Any) -> None:
    with pytest.raises(
        InputError, match=r"^a\.ckpt says that its clips are .*, which cannot be; get the file again$"
    ) as error:
        clip_size({"clips": clips}, "a.ckpt")
    assert len(str(error.value)) < 200


def test_clips_of_a_card_are_those_that_a_model_was_trained_on() -> None:
    assert clip_size({"clips": {"stride": 4, "frames": 8}}, "a.ckpt") == (8, 4)
    assert clip_size({}, "a.ckpt") is clip_size({"clips": None}, "a.ckpt") is None
