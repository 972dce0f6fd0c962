import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hydra.utils import instantiate

from clip3dreid.errors import InputError
from clip3dreid.model.places import find_model, find_weights, own_weights
from clip3dreid.model.weights import load_pretrained, read_checkpoint
from tests.conftest import STUDENT


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, a saved model and a published one; the network is not asked."""

    def never(*_: object, **__: object) -> str:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "run" / "checkpoints" / "last.ckpt")
    touch(tmp_path / "run" / "checkpoints" / "best.ckpt")
    touch(tmp_path / "saved" / "model.safetensors")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"library": "clip3dreid"}))
    touch(tmp_path / "published" / "model.safetensors")
    (tmp_path / "published" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("place", "weights", "config"),
    [
        ("run", "run/checkpoints/last.ckpt", None),
        ("run/checkpoints", "run/checkpoints/last.ckpt", None),
        ("run/checkpoints/best.ckpt", "run/checkpoints/best.ckpt", None),
        ("saved", "saved/model.safetensors", "saved/config.json"),
        ("saved/model.safetensors", "saved/model.safetensors", None),
    ],
)
def test_a_place_stands_for_the_same_files_wherever_it_is_given(
    disk: Path, place: str, weights: str, config: str | None
) -> None:
    for found in (find_weights(place), find_weights(disk / place), find_model(place)):
        assert found.weights.samefile(weights)
        assert (found.config is None) == (config is None)
        if found.config is not None and config is not None:
            assert found.config.samefile(config)
    assert own_weights(disk / place).samefile(weights)


@pytest.mark.parametrize("place", ["published", "empty", "nowhere", "published/model.safetensors"])
def test_what_is_not_ours_stays_what_it_is_where_it_may_be_a_model_of_others(disk: Path, place: str) -> None:
    assert own_weights(disk / place) == disk / place


@pytest.mark.parametrize(
    "place", ["nowhere", "run/nowhere", "run/typo.ckpt", "a/b/c", "user/last.ckpt", "empty"]
)
def test_what_is_not_there_is_said_with_what_would_do_and_no_hub_is_asked(disk: Path, place: str) -> None:
    for find in (find_weights, find_model):
        with pytest.raises(InputError, match=r"is not there; give a run's folder|holds no model"):
            find(place)


def test_a_training_starts_from_a_folder_as_from_the_file_in_it(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained, fresh = instantiate(STUDENT), instantiate(STUDENT)
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": {f"student.{k}": v for k, v in trained.state_dict().items()}}, file)
    load_pretrained(fresh, tmp_path / "run")
    for name, tensor in read_checkpoint(file).state.items():
        assert torch.equal(fresh.state_dict()[name], tensor)


def test_an_empty_place_is_not_the_working_folder() -> None:
    with pytest.raises(InputError, match="the model's place is empty; give "):
        find_weights("")
