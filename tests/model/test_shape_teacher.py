"""The shape teacher's folder and its answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.model.build import build
from clip3dreid.model.checked_folder import CHECKSUMS
from clip3dreid.model.shape_teacher import (
    LEAST_LOG_VARIANCE,
    MOST_LOG_VARIANCE,
    ShapeCard,
    ShapeNetwork,
    ShapeTeacher,
    answers_of,
    load_shape_teacher,
    save_shape_teacher,
)

STUDENT: dict[str, Any] = {
    "_target_": "clip3dreid.model.student.Student",
    "backbone": {"_target_": "clip3dreid.model.resnet.ResNet", "depth": 18, "last_stride": 1, "width": 4},
    "pooling": {"_target_": "clip3dreid.model.pooling.MaximumAverage"},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}
CARD = ShapeCard(
    learns="betas",
    student=STUDENT,
    height=32,
    width=16,
    coefficients=(1, 2),
    mean=(0.5, -0.5),
    deviation=(2.0, 3.0),
    rest=(0.0, 0.5, -0.5),
    body={"name": "anny_light", "sha256": "0", "num_betas": 3},
)


def network(card: ShapeCard = CARD) -> ShapeNetwork:
    torch.manual_seed(0)
    return ShapeNetwork(build(card.student), len(card.coefficients) or None).eval()


def saved(folder: Path, card: ShapeCard = CARD) -> ShapeNetwork:
    made = network(card)
    save_shape_teacher(folder, made, card, {"seed": 1})
    return made


def pictures(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 16), dtype=torch.uint8)


def test_a_saved_network_answers_as_before_for_a_picture_and_its_mirror_image_alike(tmp_path: Path) -> None:
    made = saved(tmp_path / "t")
    teacher = ShapeTeacher(str(tmp_path / "t"), name="t")
    images = pictures()
    with torch.no_grad():
        one, other = (made(view) for view in (images / 255, images.flip(-1) / 255))
    said = answers_of(teacher(images))
    torch.testing.assert_close(said.value, (one.value + other.value) / 2)
    torch.testing.assert_close(said.log_variance, (one.log_variance + other.log_variance) / 2)
    torch.testing.assert_close(teacher(images.flip(-1)), teacher(images))
    assert teacher.width == 4
    assert teacher.card == CARD
    assert not teacher(images).requires_grad


def test_it_is_never_trained_nor_saved_with_its_owner(tmp_path: Path) -> None:
    saved(tmp_path / "t")
    teacher = ShapeTeacher(str(tmp_path / "t"), name="t").train()
    assert list(teacher.parameters()) == []
    assert teacher.state_dict() == {}
    assert not teacher.network.training


def test_reading_it_draws_nothing_from_the_generator(tmp_path: Path) -> None:
    saved(tmp_path / "t")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ShapeTeacher(str(tmp_path / "t"), name="t")
    assert torch.equal(torch.get_rng_state(), before)


def test_answers_are_neither_surer_nor_less_sure_than_their_bounds() -> None:
    made = network()
    assert made.head is not None
    torch.nn.init.constant_(made.head.bias, 100.0)
    assert made(pictures() / 255).log_variance.unique().tolist() == [MOST_LOG_VARIANCE]
    torch.nn.init.constant_(made.head.bias, -100.0)
    assert made(pictures() / 255).log_variance.unique().tolist() == [LEAST_LOG_VARIANCE]


def test_a_network_that_tells_people_apart_answers_with_its_embedding(tmp_path: Path) -> None:
    card = CARD._replace(learns="identity", coefficients=(), mean=(), deviation=())
    made = saved(tmp_path / "t", card)
    teacher = ShapeTeacher(str(tmp_path / "t"), name="t")
    images = pictures()
    with torch.no_grad():
        both = [made.student(view / 255).embedding for view in (images, images.flip(-1))]
    said = answers_of(teacher(images))
    torch.testing.assert_close(said.value, (both[0] + both[1]) / 2)
    assert not said.log_variance.any()


def test_the_fingerprint_is_that_of_the_files(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    saved(tmp_path / "c", CARD._replace(deviation=(2.0, 4.0)))
    a, b, c = (ShapeTeacher(str(tmp_path / name), name=name).fingerprint for name in "abc")
    assert a == b != c


def test_a_mapping_makes_one_and_keys_of_the_cache_are_left_alone(tmp_path: Path) -> None:
    saved(tmp_path / "t")
    node = {
        "_target_": "clip3dreid.model.shape_teacher.ShapeTeacher",
        **{"name": "t", "path": str(tmp_path / "t"), "cache": "disk", "cache_dir": "c"},
    }
    assert load_shape_teacher(node).name == "t"
    with pytest.raises(InputError, match=r"model\.shape_teacher\._target_ makes a MaximumAverage"):
        load_shape_teacher({"_target_": "clip3dreid.model.pooling.MaximumAverage"})


def write_card(folder: Path, changes: Mapping[str, Any]) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))
    (folder / CHECKSUMS).unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, r"is of version 2; get the folder anew"),
        ({"learns": "words"}, r"learns=words is unknown; choose betas or identity"),
        ({"height": 0}, r"it says nothing usable of height"),
        ({"coefficients": [1, 9]}, r"do not fit together"),
        ({"deviation": [1.0, 0.0]}, r"do not fit together"),
        ({"mean": [1.0]}, r"do not fit together"),
        ({"mean": ["x", 1.0]}, r"cannot be read as the card of a shape teacher"),
        ({"coefficients": [], "mean": [], "deviation": []}, r"do not fit together"),
        ({"coefficients": [1], "mean": [0.0], "deviation": [1.0]}, r"does not fit its card"),
        ({"student": {"_target_": "os.system"}}, r"os.system is no class of clip3dreid.model"),
    ],
)
def test_a_wrong_card_is_told(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path / "t")
    write_card(tmp_path / "t", changes)
    with pytest.raises(InputError, match=message):
        ShapeTeacher(str(tmp_path / "t"), name="t")


def test_missing_and_damaged_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no card\.json and no model\.safetensors; make one with clip3dreid"
    ):
        ShapeTeacher(str(tmp_path / "none"), name="t")
    saved(tmp_path / "t")
    weights = tmp_path / "t" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"is not the file that SHA256SUMS lists"):
        ShapeTeacher(str(tmp_path / "t"), name="t")
    (tmp_path / "t" / CHECKSUMS).unlink()
    weights.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"cannot be read as the weights of a shape teacher"):
        ShapeTeacher(str(tmp_path / "t"), name="t")
