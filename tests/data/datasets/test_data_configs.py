from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.data.manifest import Manifest

from . import trees

NAMES = sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml") if path.stem != "base")
TREES = {
    "celeb_reid_light": trees.celeb_reid,
    "celeb_reid_blur": trees.celeb_reid,
    "celeb_reid_light_blur": trees.celeb_reid,
    "ccda": trees.celeb_reid,
    "embedded": trees.ltcc,
}


def read(config: str, tmp_path: Path, **options: Any) -> Manifest:
    plant = TREES.get(config) or getattr(trees, config)
    # `defaults` belongs to Hydra; here the options alone matter.
    files = ["base", *(["custom"] if config == "tracklets" else []), config]
    data = OmegaConf.merge(*(OmegaConf.load(conf_dir() / "data" / f"{file}.yaml") for file in files))
    assert isinstance(data, DictConfig)
    del data["defaults"]
    cfg = OmegaConf.create({"data": OmegaConf.merge(data, options)})
    manifest: Manifest = instantiate(cfg.data.read)(plant(trees.misleading(tmp_path, "set")))
    return manifest


@pytest.mark.parametrize("name", NAMES)
def test_a_config_reads_its_layout_under_its_own_name(name: str, tmp_path: Path) -> None:
    manifest = read(name, tmp_path)
    assert manifest.name == name
    assert all(len(manifest.part(split)) for split in ("train", "test"))


@pytest.mark.parametrize(
    ("name", "options", "pictures"),
    [
        ("pku_reid", {"train_fraction": 0.25}, 8),
        ("prcc", {"use_val": "train"}, 5),
        ("msmt17", {"val_in_train": True}, 2),
        ("custom", {"name": "shop"}, 1),
    ],
)
def test_options_stand_beside_the_root_and_reach_the_reader(
    name: str, options: dict[str, Any], pictures: int, tmp_path: Path
) -> None:
    manifest = read(name, tmp_path, **options)
    assert len(manifest.part("train")) == pictures
    assert manifest.name == options.get("name", name)
