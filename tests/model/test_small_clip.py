import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.model.checked_folder import check_place, check_sums
from clip3dreid.model.small_clip import (
    make_small_clip,
    save_small_clip,
    train_tokenizer,
)
from clip3dreid.model.teacher import Teacher
from clip3dreid.model.teacher_view import Native
from tests.small_disk import fill, small_disk

TEXTS = ["a tall person with broad shoulders", "a short person who looks heavy"] * 20
CONFIG = {
    "projection_dim": 8,
    "vision_config": {
        "image_size": 24,
        "patch_size": 8,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]


def made() -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 300, 32)
    return make_small_clip(tokenizer, CONFIG), tokenizer


def test_the_same_texts_give_the_same_tokenizer() -> None:
    first, second = (train_tokenizer(TEXTS, 300, 32) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_texts_come_back_in_lower_case_and_are_marked_at_both_ends() -> None:
    tokenizer = train_tokenizer(TEXTS, 300, 32)
    ids = tokenizer("A tall PERSON")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a tall person"
    assert tokenizer.eos_token_id != 2, "transformers would read texts off another token"


def test_a_word_is_the_same_token_at_the_start_and_within() -> None:
    tokenizer = train_tokenizer(TEXTS, 300, 32)
    assert tokenizer("tall")["input_ids"][1] == tokenizer("a tall")["input_ids"][2]


def test_what_was_saved_is_a_teacher_that_embeds_as_the_model_did(tmp_path: Path) -> None:
    model, tokenizer = made()
    save_small_clip(tmp_path / "t", model, tokenizer, MEAN, STD, {"seed": 1})
    teacher = Teacher(str(tmp_path / "t"), Native(32, 16), name="t")
    images = torch.rand(3, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.eval().get_image_features((images - 0.5) / 0.25, interpolate_pos_encoding=True)
    cosine = torch.nn.functional.cosine_similarity(wanted.pooler_output, teacher(images))
    assert cosine.min() > 0.9999  # weights were rounded to half precision
    assert json.loads((tmp_path / "t" / "card.json").read_text()) == {"seed": 1}


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    save_small_clip(tmp_path / "t", *made(), MEAN, STD, {})
    check_sums(tmp_path / "t")
    weights = tmp_path / "t" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is not the file that SHA256SUMS lists"):
        Teacher(str(tmp_path / "t"), Native(32, 16), name="t")


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="holds no network of ours"):
        save_small_clip(tmp_path / "t", *made(), MEAN, STD, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["t", "mine.txt"]
    save_small_clip(tmp_path / "u", *made(), MEAN, STD, {"round": 1})
    save_small_clip(tmp_path / "u", *made(), MEAN, STD, {"round": 2})
    assert json.loads((tmp_path / "u" / "card.json").read_text()) == {"round": 2}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["mine.txt", "deep/mine.txt", ".hidden"])
def test_a_teacher_with_somebodys_files_beside_it_is_not_replaced(name: str, tmp_path: Path) -> None:
    save_small_clip(tmp_path / "t", *made(), MEAN, STD, {})
    (tmp_path / "t" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "t" / name).write_text("keep")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds 1 files that are not of the network there"):
        save_small_clip(tmp_path / "t", *made(), MEAN, STD, {})
    assert contents(tmp_path) == before


def test_a_link_in_the_place_of_a_teacher_is_refused(tmp_path: Path) -> None:
    save_small_clip(tmp_path / "theirs", *made(), MEAN, STD, {})
    before = contents(tmp_path / "theirs")
    (tmp_path / "t").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="is a link"):
        save_small_clip(tmp_path / "t", *made(), MEAN, STD, {"round": 2})
    assert contents(tmp_path / "theirs") == before


@pytest.mark.parametrize("text", ["", "one\n", "\xff"])
def test_a_damaged_list_is_one_line(text: str, tmp_path: Path) -> None:
    save_small_clip(tmp_path / "t", *made(), MEAN, STD, {})
    (tmp_path / "t" / "SHA256SUMS").write_text(text, encoding="latin-1")
    for attempt in (check_sums, check_place):
        if text:
            with pytest.raises(InputError, match="is no list of checksums, or damaged"):
                attempt(tmp_path / "t")
    with pytest.raises(InputError, match=r"no list of checksums|not of the network"):
        check_place(tmp_path / "t")


@pytest.mark.slow
@pytest.mark.parametrize("leave", range(0, 60_000, 4096))
def test_a_disk_that_fills_up_for_real_leaves_the_teacher_that_was_there(leave: int, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 400) as disk:
        save_small_clip(disk / "t", *made(), MEAN, STD, {"round": 1})
        before = contents(disk)
        filler = fill(disk, leave=leave)
        with pytest.raises(InputError, match="No space left on device"):
            save_small_clip(disk / "t", *made(), MEAN, STD, {"round": 2})
        filler.unlink()
        assert contents(disk) == before
        save_small_clip(disk / "t", *made(), MEAN, STD, {"round": 2})
        check_sums(disk / "t")
        assert json.loads((disk / "t" / "card.json").read_text()) == {"round": 2}
        assert [path.name for path in disk.iterdir()] == ["t"]


def test_what_makes_no_network_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="vocabulary_size=100 is too small"):
        train_tokenizer(TEXTS, 100, 32)
    wrong = CONFIG | {"vision_config": CONFIG["vision_config"] | {"num_attention_heads": 5}}
    with pytest.raises(InputError, match=r"^clip: "):
        make_small_clip(train_tokenizer(TEXTS, 300, 32), wrong)
