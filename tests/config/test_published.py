"""What is said of published models can be acted on: their students build, and their commands are whole."""

import shlex

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from clip3dreid.config.folder import options
from clip3dreid.config.published import Zoo, student_weights, zoos
from tests.conftest import student_config

ZOOS = {zoo.program: zoo for zoo in zoos()}


def test_every_program_whose_checkpoints_are_read_is_listed() -> None:
    assert ZOOS.keys() == {"torchreid", "fast-reid", "TransReID", "CLIP-ReID"}
    names = [model.name for zoo in ZOOS.values() for model in zoo.models]
    assert len(names) == len(set(names)) == 34


@pytest.mark.parametrize("zoo", ZOOS.values(), ids=ZOOS)
def test_every_model_has_a_student_that_builds_a_licence_and_a_score_with_its_source(zoo: Zoo) -> None:
    assert zoo.licence in ("MIT", "Apache-2.0")
    assert zoo.page.startswith("https://")
    assert "commit " in zoo.source
    for settings in {(model.student, *model.settings) for model in zoo.models}:
        student, *overrides = settings
        node = student_config(student)
        for override in overrides:
            key, _, value = override.partition("=")
            assert OmegaConf.select(node, key.removeprefix("model.")) is not None
            OmegaConf.update(node, key.removeprefix("model."), int(value))
        with torch.device("meta"):
            assert instantiate(node.student).width >= 512
    for model in zoo.models:
        assert model.distance in ("cosine", "euclidean")
        if zoo.program == "CLIP-ReID":  # whose page has none
            assert (model.rank1, model.mean_ap) == (None, None)
        else:
            assert model.mean_ap is not None
            assert model.rank1 is not None
            assert 0 < model.mean_ap < model.rank1 < 100


@pytest.mark.parametrize("zoo", ZOOS.values(), ids=ZOOS)
def test_commands_get_a_file_and_convert_that_file(zoo: Zoo) -> None:
    for model in zoo.models:
        fetch, convert = (shlex.split(command) for command in zoo.commands(model))
        assert fetch[0] in ("gdown", "curl")
        assert model.file in fetch
        keys = dict(word.split("=", 1) for word in convert[2:])
        assert keys["convert"] == fetch[fetch.index("-o" if fetch[0] == "curl" else "-O") + 1]
        assert keys["out"] == f"{model.name}.safetensors"
        assert keys["model/student"] in options("model/student")
        assert (keys["height"], keys["width"]) == ("256", "128")
        assert all(setting in convert for setting in model.settings)


def test_a_variant_of_a_student_starts_from_what_that_one_starts_from() -> None:
    found = {one.name: one for one in student_weights("w")}
    assert found["resnet50_bot"].place == found["resnet50"].place == "w/resnet50-0676ba61.pth"
    assert found["resnet50_bot"].sha256 == found["resnet50"].sha256
    assert found["osnet_x0_5"].place == "w/osnet_x0_5_imagenet.pth"
    assert "resnet18_quarter" not in found
