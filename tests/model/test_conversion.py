"""Weights become a file of this project, and one that is a checkpoint already keeps all that it holds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.model.conversion import Converted, convert
from clip3dreid.model.weights import read_card, read_checkpoint, save_weights, student_from_checkpoint
from tests.model.test_weights import CARD, CONFIG, cal, student, trained

SIZE: dict[str, Any] = {"height": 64, "width": 32}


def test_weights_of_another_program_become_a_checkpoint_with_the_students_description(tmp_path: Path) -> None:
    network = cal()
    torch.save(network.state_dict(), tmp_path / "cal.pth")
    out = tmp_path / "ours.safetensors"
    done = convert(tmp_path / "cal.pth", out, CONFIG, **SIZE)
    assert done == Converted(out, len(read_checkpoint(out).state), complete=True)
    assert read_card(out) == {**CARD, "data": []}
    pictures = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    converted = student_from_checkpoint(out)
    torch.testing.assert_close(
        converted(pictures).embedding, network((pictures - converted.mean) / converted.std)
    )


def test_a_backbone_alone_is_no_checkpoint_to_evaluate(tmp_path: Path) -> None:
    state = {f"backbone.{name}": value for name, value in student().backbone.state_dict().items()}
    torch.save(state, tmp_path / "backbone.pth")
    done = convert(tmp_path / "backbone.pth", tmp_path / "ours.safetensors", CONFIG, **SIZE)
    assert (done.complete, done.tensors) == (False, len(state))
    assert read_checkpoint(done.out).state.keys() == state.keys()


def test_a_checkpoint_of_ours_keeps_its_card_and_its_heads_whatever_is_asked_for(tmp_path: Path) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    heads = {"heads.shape.weight": torch.rand(2, 128), "heads.shape.bias": torch.rand(2)}
    save_weights(trained().state_dict() | heads, CARD, source)
    done = convert(source, out, {"_target_": "not.looked.at"}, height=10, width=10)
    assert (done.complete, done.tensors) == (True, len(trained().state_dict()) + 2)
    before, after = read_checkpoint(source), read_checkpoint(out)
    assert after.card == before.card
    for there, here in ((before.state, after.state), (before.heads, after.heads)):
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) for name in there)


@pytest.mark.parametrize(
    ("out", "size", "said"),
    [
        ("a.safetensors", SIZE, "is there already"),
        ("b.pth", SIZE, r"must end in \.safetensors"),
        ("b.safetensors", {"height": 0, "width": 32}, "height=0 must be a whole number from 1 to 4096"),
        ("b.safetensors", {"height": 64, "width": 5000}, "width=5000 must be a whole number from 1 to 4096"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, out: str, size: dict[str, int], said: str
) -> None:
    (tmp_path / "a.safetensors").touch()
    torch.save(cal().state_dict(), tmp_path / "cal.pth")
    with pytest.raises(InputError, match=said):
        convert(tmp_path / "cal.pth", tmp_path / out, CONFIG, **size)
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "cal.pth"}
