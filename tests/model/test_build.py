"""What a description may build: our classes, those of trusted packages, and nothing by any other way."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from clip3dreid.errors import InputError
from clip3dreid.model.build import build, trust_hint
from clip3dreid.model.card import check_student
from clip3dreid.model.pooling import Average, GeneralisedMean
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.student import Student
from clip3dreid.model.weights import build_student
from tests.conftest import STUDENT

OWN = """
import os
import torch
from torch.hub import load
from clip3dreid.model.student import Student

class Holder:
    def __init__(self, inner=None, rest=()):
        self.inner, self.rest = inner, rest

def function():
    open("ran", "w")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that can be imported, and imports what runs commands and fetches code."""
    (tmp_path / "ownmodule.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("ownmodule", None)
    assert not (tmp_path / "ran").exists()


def test_a_node_makes_an_object_and_those_in_its_arguments() -> None:
    student = build(STUDENT | {"pooling": {"_target_": "clip3dreid.model.pooling.GeneralisedMean", "p": 2.0}})
    assert isinstance(student, Student)
    assert isinstance(student.backbone, ResNet)
    assert isinstance(student.pooling, GeneralisedMean)
    assert student.pooling.p.item() == 2.0


def test_a_node_of_a_config_is_as_good_as_a_dict() -> None:
    node = OmegaConf.create({"width": 8, "model": STUDENT | {"neck": "${yes}"}, "yes": False})
    assert isinstance(build(node.model), Student)


@pytest.mark.usefixtures("package")
def test_a_class_of_a_trusted_package_takes_objects_of_ours_and_lists_of_them() -> None:
    pooling = {"_target_": "clip3dreid.model.pooling.Average"}
    node = {"_target_": "ownmodule.Holder", "inner": {"a": pooling}, "rest": [pooling, 1]}
    made = build(node, ("ownmodule",))
    assert type(made).__name__ == "Holder"
    assert isinstance(made.inner["a"], Average)
    assert isinstance(made.rest[0], Average)
    assert made.rest[1] == 1


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "ownmodule.os.system", "command": "touch ran"}, "cannot be imported"),
        ({"_target_": "ownmodule.load"}, "is no class of ownmodule"),
        ({"_target_": "ownmodule.function"}, "is no class of ownmodule"),
        ({"_target_": "ownmodule.torch"}, "is no class of ownmodule"),
        ({"_target_": "ownmodule.nothing"}, "is no class of ownmodule"),
        ({"_target_": "ownmodule.Holder", "_partial_": True}, "_partial_ is no argument"),
        ({"_target_": "ownmodule.Holder", "_args_": [1]}, "_args_ is no argument"),
        (
            {"_target_": "ownmodule.Holder", "other": 1},
            "unexpected keyword argument 'other'; correct the keys",
        ),
        ({"_target_": "ownmodule.Holder", "inner": {"_target_": "os.system"}}, "os.system is no class of"),
        ({"_target_": "clip3dreid.model.student.torch.hub.load"}, "cannot be imported"),
        ({"_target_": "clip3dreid.model.resnet.nn"}, "is no class of clip3dreid"),
        ({"_target_": "clip3dreid.io.files.atomic"}, "is no class of clip3dreid.model"),
        ({"inner": 1}, "describes nothing that can be built"),
    ],
)
def test_nothing_is_built_by_any_other_way(node: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build(node, ("ownmodule",))
    assert "\n" not in str(error.value)


def test_a_package_that_is_not_there_is_named() -> None:
    node = {"_target_": "nowhere_at_all.Net"}
    with pytest.raises(InputError, match=r"if you trust the package nowhere_at_all, give trusted=\["):
        build(node)
    with pytest.raises(InputError, match=r"cannot be imported .*PYTHONPATH"):
        build(node, ("nowhere_at_all",))


@pytest.mark.parametrize(
    "target", ["os.system", "torch.hub.load", "clip3dreid.x.Y", "Net", "a b.C", None, 3, ""]
)
def test_nobody_is_advised_to_trust_what_holds_no_model_of_theirs(target: Any) -> None:
    assert trust_hint(target) == ""


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"_target_": "other.Net"}}, r"to build other.Net, where .* give trusted=\[other\]"),
        ({"backbone": {"_target_": "ownmodulex.Net"}}, "wants to build ownmodulex.Net"),
        ({"backbone": {"_target_": "ownmodule.Holder", "rest": [{"_target_": "os.system"}]}}, "os.system"),
        ({"backbone": {"_target_": "ownmodule.Holder", "inner": {"_partial_": True}}}, "no key _partial_"),
        ({"backbone": {"_target_": "ownmodule.Holder", "inner": "${oc.env:HOME}"}}, "must be a plain value"),
        (
            {"pooling": {"_target_": "ownmodule.Holder", "inner": STUDENT["backbone"] | {"width": 10**9}}},
            "must be a whole number",
        ),
        (
            {"pooling": {"_target_": "ownmodule.Holder", "inner": STUDENT["backbone"] | {"x": 1}}},
            "has no key x",
        ),
        ({"_target_": "ownmodule.Holder", "inner": STUDENT | {"neck": 3}}, "student.neck is 3"),
    ],
)
def test_a_card_is_held_to_the_packages_that_are_trusted(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        check_student(STUDENT | change, "a card", ("ownmodule",))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("package")
def test_a_trusted_class_that_is_no_student_makes_none() -> None:
    card = {"student": {"_target_": "ownmodule.Holder"}}
    with pytest.raises(InputError, match=r"a Holder is no subclass of clip3dreid\.model\.student\.Student"):
        build_student(card, {}, Path("a.ckpt"), ("ownmodule",))
