"""A config builds what is of known packages and of those that are trusted, by whatever way it names it."""

from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.trust import check_targets, trusted
from clip3dreid.errors import InputError

# What lies in hydra/ is Hydra's own configuration, which it builds itself.
SHIPPED = [
    path for path in sorted(conf_dir().rglob("*.yaml")) if path.relative_to(conf_dir()).parts[0] != "hydra"
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_everything_that_is_shipped_is_known(path: Any) -> None:
    node = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "hydra"}
    check_targets(OmegaConf.create({**node, "trusted": []}))


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ({"_target_": "mypkg.Net"}, "a._target_"),
        ({"b": [{"c": {"_target_": "mypkg.Net"}}]}, "a.b.0.c._target_"),
        ({"_target_": "${x}"}, "a._target_"),
        ({"_target_": "hydra.utils.get_method", "path": "mypkg.read"}, "a.path"),
        ({"_target_": "hydra.utils.get_class", "path": "mypkg.Net"}, "a.path"),
        (
            {"_target_": "clip3dreid.model.resnet.ResNet", "depth": {"_target_": "mypkg.f"}},
            "a.depth._target_",
        ),
    ],
)
def test_a_package_of_ones_own_is_refused_with_the_hint_and_taken_with_trust(node: Any, key: str) -> None:
    cfg = OmegaConf.create({"x": "mypkg.Net", "a": node, "missing": "???", "trusted": []})
    with pytest.raises(InputError) as error:
        check_targets(cfg)
    assert str(error.value).startswith(f"{key}=mypkg.")
    assert str(error.value).endswith("; if you trust the package mypkg, give trusted=[mypkg]")


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system"},
        {"_target_": "hydra.utils.get_method", "path": "torch.hub.load"},
        {"_target_": "hydra.utils.get_object", "path": "os.system"},
        {"_target_": "hydra.utils.instantiate", "config": "x"},
    ],
)
def test_what_nobody_means_to_build_is_refused_without_a_hint(node: Any) -> None:
    with pytest.raises(InputError, match=r"is of a package that is not trusted$"):
        check_targets(OmegaConf.create({"a": node}))


def test_one_name_or_several_are_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").touch()
    assert trusted(OmegaConf.create({"trusted": "one"})) == ("one",)
    assert trusted(OmegaConf.create({"trusted": ["one", "two.part"]})) == ("one", "two.part")
    assert trusted(OmegaConf.create({"trusted": None})) == ()
    assert trusted(OmegaConf.create({})) == ()
    check_targets(OmegaConf.create({"a": {"_target_": "two.part.Net"}, "trusted": ["two.part"]}))
    with pytest.raises(InputError, match=r"two\.other\.Net is of a package"):
        check_targets(OmegaConf.create({"a": {"_target_": "two.other.Net"}, "trusted": ["two.part"]}))
