"""A trained model, and pictures for it."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from clip3dreid.inference.model import ReidModel, load
from clip3dreid.model.student import Student
from tests.conftest import STUDENT
from tests.inference.models import CARD, HEADS, HEIGHT, SIZES, WIDTH, Checkpoint, D, noise


@pytest.fixture(scope="session")
def student() -> Student:
    """A student whose running statistics are not at their start; shared, so never to be changed."""
    torch.manual_seed(1)
    network: Student = instantiate(STUDENT)
    network(torch.rand(4, 3, HEIGHT, WIDTH))
    return network.eval()


@pytest.fixture
def checkpoint(student: Student, tmp_path: Path) -> Checkpoint:
    """Writes a checkpoint as training does."""

    def write(card: object = CARD, heads: object = HEADS, name: str = "last.ckpt") -> Path:
        state = {f"student.{key}": tensor for key, tensor in student.state_dict().items()}
        content = {
            "state_dict": state | {"losses.identity.weight": torch.zeros(7, D)},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
            "clip3dreid": card,
        }
        if heads is not None:
            content["clip3dreid_heads"] = heads
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def model(checkpoint: Checkpoint) -> ReidModel:
    return load(checkpoint())


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three files: of the model's size, larger, smaller."""
    paths = [tmp_path / f"{number}.png" for number in range(len(SIZES))]
    for seed, (path, size) in enumerate(zip(paths, SIZES, strict=True)):
        Image.fromarray(noise(seed, *size)).save(path)
    return paths
