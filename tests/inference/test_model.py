"""The Python API: every way in, every kind of picture, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import clip3dreid
from clip3dreid.body.smpl import body_digest, load_body, read_arrays, shipped
from clip3dreid.data.images import TestView, read_rgb, to_unit
from clip3dreid.errors import InputError
from clip3dreid.inference.heads import Word
from clip3dreid.inference.model import ReidModel, load
from clip3dreid.model.student import Student
from clip3dreid.model.weights import read_card, read_checkpoint, save_weights, student_from_checkpoint
from clip3dreid.training.module import EvaluationModule
from tests.conftest import STUDENT
from tests.processes import PATIENCE_S
from tests.small_disk import fill, small_disk

ROOT = Path(__file__).parents[2]
GROUPS = {"stature": ["tall", "average height", "short"], "build": ["slim", "heavy"]}
HEIGHT, WIDTH, CHANNELS, D, JOINT, BETAS = 64, 32, 64, 128, 6, 4
CARD: dict[str, Any] = {
    "version": 1,
    "student": STUDENT,
    "height": HEIGHT,
    "width": WIDTH,
    "data": ["ltcc"],
    "vocabulary": {"digest": "0123", "groups": GROUPS},
    "teacher": {"name": "body_clip", "fingerprint": "4567", "width": JOINT},
    "body": {"name": "anny_light", "sha256": body_digest("anny_light"), "num_betas": BETAS},
}
PLAIN = {key: CARD[key] for key in ("version", "student", "height", "width", "data")}


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HEADS = {
    "joint.weight": drawn(1, JOINT, CHANNELS),
    "joint.bias": drawn(2, JOINT),
    "joint.centre": drawn(3, JOINT),
    "joint.words": F.normalize(drawn(4, 5, JOINT), dim=1),
    "shape.weight": drawn(5, BETAS, D) / 10,
    "shape.bias": drawn(6, BETAS),
}


@pytest.fixture(scope="module")
def student() -> Student:
    """A student whose running statistics are not at their start; shared, so never to be changed."""
    torch.manual_seed(1)
    network: Student = instantiate(STUDENT)
    network(torch.rand(4, 3, HEIGHT, WIDTH))
    return network.eval()


Checkpoint = Callable[..., Path]


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


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = ((HEIGHT, WIDTH), (90, 41), (32, 20))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three files: of the model's size, larger, smaller."""
    paths = [tmp_path / f"{number}.png" for number in range(len(SIZES))]
    for seed, (path, size) in enumerate(zip(paths, SIZES, strict=True)):
        Image.fromarray(noise(seed, *size)).save(path)
    return paths


def seen(paths: list[Path]) -> torch.Tensor:
    view = TestView(HEIGHT, WIDTH)
    return to_unit(torch.from_numpy(np.stack([view(read_rgb(path)) for path in paths])))


def test_a_fingerprint_is_of_all_that_results_depend_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = load(checkpoint())
    first = model.fingerprint
    model.save_pretrained(tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == first == load(checkpoint()).fingerprint
    normalised = CARD | {"student": STUDENT | {"mean": [0.5, 0.5, 0.5]}}
    heads = HEADS | {"joint.bias": HEADS["joint.bias"] + 1}
    others = [
        load(checkpoint(*changed)) for changed in ((CARD | {"height": 32},), (normalised,), (CARD, heads))
    ]
    model.student.neck.weight.data[0] += 1
    prints = {first, model.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == 5


@torch.no_grad()
@pytest.mark.parametrize("flip", [True, False])
def test_features_are_those_of_evaluation(
    model: ReidModel, student: Student, pictures: list[Path], flip: bool
) -> None:
    evaluation = EvaluationModule(student, protocols={}, metric="cosine", flip=flip)
    found = model.embed(pictures, flip=flip)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, evaluation.embed(seen(pictures)))
    torch.testing.assert_close(model.embed(pictures, flip=flip, batch_size=2), found)


@torch.no_grad()
def test_a_model_of_padded_pictures_pads_whatever_it_is_shown(
    checkpoint: Checkpoint, student: Student, pictures: list[Path], tmp_path: Path
) -> None:
    size = {"height": HEIGHT, "width": HEIGHT}
    padded, squashed = load(checkpoint(CARD | size | {"square": True})), load(checkpoint(CARD | size))
    view = TestView(HEIGHT, HEIGHT, square=True)
    images = to_unit(torch.from_numpy(np.stack([view(read_rgb(path)) for path in pictures])))
    expected = EvaluationModule(student, protocols={}, metric="cosine", flip=True).embed(images)
    assert torch.equal(padded.embed(pictures), expected)
    assert not torch.allclose(squashed.embed(pictures), expected)
    assert padded.fingerprint != squashed.fingerprint
    padded.save_pretrained(tmp_path / "copy")
    assert torch.equal(load(tmp_path / "copy").embed(pictures), expected)


def test_every_kind_of_picture_gives_the_same_features(model: ReidModel, pictures: list[Path]) -> None:
    wanted = model.embed(pictures)
    arrays = [read_rgb(path) for path in pictures]
    tensors = [torch.tensor(array).permute(2, 0, 1) for array in arrays]
    kinds: list[Any] = [
        [str(path) for path in pictures],
        (path for path in pictures),
        [Image.open(path) for path in pictures],
        arrays,
        [array[..., ::-1].copy()[..., ::-1] for array in arrays],  # not contiguous
        tensors,
        [tensor.float() / 255 for tensor in tensors],
        [pictures[0], tensors[1].double() / 255, arrays[2]],
        seen(pictures),
        (seen(pictures) * 255).round().to(torch.uint8),
        np.stack([TestView(HEIGHT, WIDTH)(array).transpose(1, 2, 0) for array in arrays]),
    ]
    for number, kind in enumerate(kinds):
        assert torch.equal(model.embed(kind), wanted), number
    larger: list[Any] = [
        pictures[1], str(pictures[1]), Image.open(pictures[1]), arrays[1], tensors[1], tensors[1][None],
        tensors[1][None].float() / 255, arrays[1][None],
    ]  # fmt: skip
    for number, single in enumerate(larger):
        torch.testing.assert_close(model.embed(single), wanted[1:2], msg=str(number))


def test_a_pillow_image_is_read_as_its_file_is(model: ReidModel, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise(0, 32, 64)).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(noise(1, 64, 32)[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    Image.fromarray(noise(2, 64, 32)).convert("RGBA").save(tmp_path / "clear.png")
    for name in ("turned", "deep", "clear"):
        path = tmp_path / f"{name}.png"
        assert torch.equal(model.embed(Image.open(path)), model.embed(path)), name


def test_no_pictures_are_no_rows(model: ReidModel) -> None:
    assert model.embed([]).shape == (0, D)
    assert model.embed(torch.empty(0, 3, HEIGHT, WIDTH)).shape == (0, D)
    assert model.joint([]).shape == (0, JOINT)
    assert model.describe([]) == []
    assert model.shape([]).vertices.shape == (0, 1200, 3)
    with pytest.raises(InputError, match="no picture of the person"):
        model.describe_person([])


@torch.no_grad()
def test_the_joint_embedding_is_the_mean_of_the_projected_positions(
    model: ReidModel, student: Student, pictures: list[Path]
) -> None:
    positions = student(seen(pictures)).map.flatten(2).transpose(1, 2)
    projected = positions @ HEADS["joint.weight"].T + HEADS["joint.bias"]
    torch.testing.assert_close(model.joint(pictures), F.normalize(projected.mean(1), dim=1))


def test_words_are_scored_by_cosine_from_the_centre_and_sorted(
    model: ReidModel, pictures: list[Path]
) -> None:
    found = model.describe(pictures)
    assert len(found) == len(pictures)
    joint, flat = model.joint(pictures), [word for words in GROUPS.values() for word in words]
    for row, description in enumerate(found):
        assert list(description) == list(GROUPS)
        for group, words in description.items():
            assert {word.word for word in words} == set(GROUPS[group])
            assert [word.score for word in words] == sorted((word.score for word in words), reverse=True)
            for word, score in words:
                centred = HEADS["joint.words"][flat.index(word)] - HEADS["joint.centre"]
                assert score == pytest.approx(
                    float(F.cosine_similarity(joint[row], centred, dim=0)), abs=1e-5
                )
    assert isinstance(found[0]["build"][0], Word)


def test_a_person_is_described_by_the_mean_of_the_pictures(model: ReidModel, pictures: list[Path]) -> None:
    mean = model.joint(pictures).mean(0)
    flat = [word for words in GROUPS.values() for word in words]
    for words in model.describe_person(pictures).values():
        for word, score in words:
            centred = HEADS["joint.words"][flat.index(word)] - HEADS["joint.centre"]
            assert score == pytest.approx(float(F.cosine_similarity(mean, centred, dim=0)), abs=1e-5)
    alone, single = model.describe_person(pictures[0]), model.describe(pictures[0])[0]
    for group, words in single.items():
        assert [word.word for word in words] == [word.word for word in alone[group]]


@torch.no_grad()
def test_shapes_are_the_heads_betas_and_the_bodys_vertices(
    model: ReidModel, student: Student, pictures: list[Path]
) -> None:
    found = model.shape(pictures, batch_size=2)
    betas = student(seen(pictures)).embedding @ HEADS["shape.weight"].T + HEADS["shape.bias"]
    torch.testing.assert_close(found.betas, betas)
    body = load_body("anny_light", BETAS)
    torch.testing.assert_close(found.vertices, body(betas).vertices)
    assert torch.equal(found.faces, body.faces)


def test_training_mode_changes_neither_results_nor_statistics(model: ReidModel, pictures: list[Path]) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = model.embed(pictures)
    model.train()
    assert torch.equal(model.embed(pictures), wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def assert_same(found: ReidModel, wanted: ReidModel, pictures: list[Path]) -> None:
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert found.state_dict().keys() == wanted.state_dict().keys()
    assert torch.equal(found.embed(pictures), wanted.embed(pictures))
    assert found.describe(pictures) == wanted.describe(pictures)
    assert torch.equal(found.shape(pictures).vertices, wanted.shape(pictures).vertices)


def test_what_is_saved_is_loaded_bit_for_bit(model: ReidModel, pictures: list[Path], tmp_path: Path) -> None:
    assert model.save_pretrained(tmp_path / "deep" / "model") is None
    folder = tmp_path / "deep" / "model"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = load(folder)
    assert_same(again, model, pictures)
    # What a model was loaded from can be written over, and a second copy is the same to the byte.
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    again.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert_same(load(str(folder)), model, pictures)
    assert_same(load(folder / "model.safetensors"), model, pictures)
    assert_same(ReidModel.from_pretrained(folder), model, pictures)


def test_the_config_carries_everything_and_a_written_readme_stays(model: ReidModel, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config == {"library": "clip3dreid", "library_version": clip3dreid.__version__, **CARD}
    assert list(config["vocabulary"]["groups"]) == list(GROUPS)  # the words' flat order
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    names = set(load_file(tmp_path / "model" / "model.safetensors"))
    assert {name for name in names if name.startswith("heads.")} == {f"heads.{name}" for name in HEADS}


def test_evaluation_takes_the_saved_weights_by_themselves(
    model: ReidModel, student: Student, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    assert read_card(path) == CARD
    for name, tensor in student_from_checkpoint(path).state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name]), name


def test_the_model_card_says_what_is_there(model: ReidModel, checkpoint: Checkpoint) -> None:
    full = model.generate_model_card()
    assert full.data.to_dict()["library_name"] == "clip3dreid"
    assert "person-re-identification" in full.data.to_dict()["tags"]
    assert "Trained on: ltcc. Teacher: body_clip." in full.content
    assert "ResNet, 128 features" in full.content
    assert "model.describe" in full.content
    assert "4 shape coefficients" in full.content
    bare = load(checkpoint(PLAIN, None)).generate_model_card().content
    assert "model.describe" not in bare
    assert "model.shape" not in bare


def test_a_generated_readme_never_describes_another_model(
    model: ReidModel, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    assert "model.describe" in (tmp_path / "model" / "README.md").read_text()
    load(checkpoint(PLAIN, None)).save_pretrained(tmp_path / "model")
    assert "model.describe" not in (tmp_path / "model" / "README.md").read_text()


def test_a_run_folder_gives_its_last_checkpoint(
    checkpoint: Checkpoint, student: Student, pictures: list[Path], tmp_path: Path
) -> None:
    checkpoint(name="run/checkpoints/last.ckpt")
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes(b"not looked at")
    for place in ("run", "run/checkpoints", "run/checkpoints/last.ckpt"):
        assert load(tmp_path / place).describe(pictures)


def test_weights_without_heads_embed_and_say_what_would_teach_the_rest(
    checkpoint: Checkpoint, student: Student, pictures: list[Path], tmp_path: Path
) -> None:
    save_weights(student.state_dict(), PLAIN, tmp_path / "weights.safetensors")
    # `clip3dreid.cli.weights` keeps the card as it is and leaves heads out.
    save_weights(student.state_dict(), CARD, tmp_path / "converted.safetensors")
    for path in (
        tmp_path / "weights.safetensors",
        tmp_path / "converted.safetensors",
        checkpoint(PLAIN, None),
        checkpoint(PLAIN, {}, "empty.ckpt"),
    ):
        found = load(path)
        assert found.embed(pictures).shape == (3, D)
        for method in (found.describe, found.describe_person, found.joint):
            with pytest.raises(InputError, match=r"has not learnt .*loss\.local") as error:
                method(pictures)
            assert path.name in str(error.value)
        with pytest.raises(InputError, match=r"has not learnt body shapes.*loss\.body"):
            found.shape(pictures)
        found.save_pretrained(tmp_path / "bare")
        assert torch.equal(load(tmp_path / "bare").embed(pictures), found.embed(pictures))


def test_the_teachers_space_alone_has_no_words(checkpoint: Checkpoint, pictures: list[Path]) -> None:
    heads = {name: HEADS[name] for name in ("joint.weight", "joint.bias")}
    found = load(checkpoint({**PLAIN}, heads))
    assert found.joint(pictures).shape == (3, JOINT)
    with pytest.raises(InputError, match="no words"):
        found.describe(pictures)


def test_a_body_is_known_by_its_checksum_alone(
    checkpoint: Checkpoint, pictures: list[Path], tmp_path: Path
) -> None:
    other = tmp_path / "private" / "OTHER.npz"
    other.parent.mkdir()
    np.savez(other, **read_arrays("anny_light"))
    assert body_digest(other) != body_digest("anny_light") == body_digest(shipped("anny_light"))
    card = {**CARD, "body": {"name": str(other), "sha256": body_digest(other), "num_betas": BETAS}}
    path = checkpoint(card)
    # The file is there, at the place that the card names, which is nothing to go by.
    found = load(path)
    with pytest.raises(InputError, match=r"OTHER\.npz .* not in the package; give its file: load\(…, body="):
        found.shape(pictures)
    shaped = load(path, body=other).shape(pictures)
    assert torch.equal(shaped.vertices, load(checkpoint(name="b.ckpt")).shape(pictures).vertices)
    for wrong in ("anny", shipped("anny_light")):
        with pytest.raises(InputError, match=r"is not the body of .*OTHER\.npz .* give that file"):
            load(path, body=wrong)
    with pytest.raises(InputError, match="is not a file"):
        load(path, body=tmp_path / "nowhere.npz")
    with pytest.raises(InputError, match="leave body=anny out"):
        load(checkpoint(PLAIN, None, "plain.ckpt"), body="anny")
    load(path, body=other).save_pretrained(tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        assert b"private" not in file.read_bytes(), file
    assert torch.equal(load(tmp_path / "model", body=other).shape(pictures).vertices, shaped.vertices)


BAD_PICTURES: list[tuple[Any, str]] = [
    (["nowhere.png"], r"nowhere\.png"),
    ([noise(0, 8, 8), noise(0, 8, 8).astype(np.float32)], r"picture 1 is an array \(8, 8, 3\) of float32"),
    (noise(0, 8, 8)[..., 0], r"picture 0 is an array \(8, 8\)"),
    (noise(0, 8, 8)[:0], r"picture 0 is an array \(0, 8, 3\)"),
    (torch.rand(8, 8, 3), r"picture 0 is a tensor \(8, 8, 3\)"),
    (torch.rand(2, 1, 8, 8), r"picture 0 is a tensor \(1, 8, 8\)"),
    (torch.rand(3, 8, 8) * 255, r"picture 0 has values .* must be in 0\.\.1"),
    (torch.randn(70, 3, HEIGHT, WIDTH), r"picture from 0 on has values .* not normalised"),
    (torch.full((3, 8, 8), torch.nan), r"picture 0 has values from nan"),
    (torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.int64), "torch.int64, but must be uint8"),
    ([None], "picture 0 is a NoneType"),
    (7, "picture 0 is a int"),
]


@pytest.mark.parametrize(("images", "told"), BAD_PICTURES, ids=[told[:30] for _, told in BAD_PICTURES])
def test_what_is_no_picture_is_refused_by_number(model: ReidModel, images: Any, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        model.embed(images)
    assert "\n" not in str(error.value)


def test_a_damaged_pillow_image_and_a_batch_of_none_are_refused(
    model: ReidModel, pictures: list[Path], tmp_path: Path
) -> None:
    whole = pictures[1].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="picture 0 cannot be decoded"):
        model.embed(Image.open(tmp_path / "cut.png"))
    with pytest.raises(InputError, match="batch_size is 0"):
        model.embed(pictures, batch_size=0)


def test_places_without_a_model_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> str:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no model"):
        load(tmp_path / "empty")
    for wrong in (tmp_path / "a" / "b", "a/b/c", "model", "runs/last.ckpt", Path("user/name"), "user/na me"):
        with pytest.raises(InputError, match="is not there; give a run's folder, a checkpoint"):
            load(wrong)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "has checkpoint version 2, this program reads 1"),
        ({"student": STUDENT["backbone"]}, "wants to build .*ResNet, where only Student may stand"),
        ({"student": {**STUDENT, "pooling": {"_target_": "os.mkdir", "path": "ran"}}}, "is refused"),
        ({"student": {**STUDENT, "pooling": {"_target_": "torch.nn.Linear"}}}, "is refused"),
        ({"student": {**STUDENT, "backbone": {**STUDENT["backbone"], "width": 4}}}, "another architecture"),
        ({"height": 0}, "its height is 0"),
        ({"width": "wide"}, "its width is wide"),
        ({"square": "yes"}, "its square is yes"),
        ({"vocabulary": {"groups": {"build": "slim"}}}, "list of words"),
        ({"vocabulary": {"groups": {"build": ["slim"]}}}, r"joint\.words is \(5, 6\), but must be \(1, 6\)"),
        ({"vocabulary": None}, r"joint\.words is \(5, 6\), but must be \(0, 6\)"),
        ({"body": {"name": "anny"}}, "its body must have"),
        ({"body": {**CARD["body"], "num_betas": 9}}, r"shape\.weight is \(4, 128\), but must be \(9, 128\)"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
def test_a_bad_card_is_refused(
    checkpoint: Checkpoint,
    model: ReidModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    change: dict[str, Any],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "checkpoint":
        place = checkpoint({**CARD, **change}, name="bad.ckpt")
    else:
        place = tmp_path / "model"
        model.save_pretrained(place)
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=told) as error:
        load(place)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"joint.bias": None}, r"joint\.bias is missing"),
        ({"joint.weight": torch.zeros(JOINT, 3)}, r"joint\.weight is \(6, 3\), but must be \(6, 64\)"),
        ({"joint.weight": torch.zeros(())}, r"joint\.weight is \(\)"),
        ({"shape.bias": torch.zeros(1)}, r"shape\.bias is \(1,\), but must be \(4,\)"),
        ({"gait.weight": torch.zeros(1)}, r"does not know \(gait\.weight\)"),
        ({"shape.weight": None}, r"does not know \(shape\.bias\)"),
    ],
)
def test_heads_that_do_not_fit_are_refused(checkpoint: Checkpoint, change: dict[str, Any], told: str) -> None:
    heads = {name: tensor for name, tensor in {**HEADS, **change}.items() if tensor is not None}
    with pytest.raises(InputError, match=told):
        load(checkpoint(heads=heads))


def test_a_card_of_more_than_plain_values_is_refused(checkpoint: Checkpoint) -> None:
    for value in (torch.zeros(1), float("nan")):
        with pytest.raises(InputError, match="more than plain values"):
            load(checkpoint({**CARD, "extra": value}))


def test_files_of_others_are_refused(student: Student, model: ReidModel, tmp_path: Path) -> None:
    torch.save(student.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="does not say which student"):
        load(tmp_path / "bare.pth")
    model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"config\.json is not of this project"):
        load(tmp_path / "model")
    for text in ("{oops", "[]", "[" * 100_000, '{"height": ' + "9" * 5000 + "}", "\udcff"):
        config.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(
            InputError, match=r"config\.json cannot be read as the config of a model"
        ) as error:
            load(tmp_path / "model")
        assert "\n" not in str(error.value)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is not a file"):
        load(tmp_path / "model")


def test_names_that_begin_like_heads_stay_in_the_files_of_others(tmp_path: Path) -> None:
    save_file({"heads.weight": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    found = read_checkpoint(tmp_path / "theirs.safetensors")
    assert (list(found.state), found.heads) == (["heads.weight"], {})


@pytest.mark.parametrize("step", ["save_weights", "write_text", "write_json"])
def test_a_save_that_fails_leaves_the_model_that_was_there(
    model: ReidModel, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    before = contents(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"clip3dreid.inference.hub.{step}", full)
        with pytest.raises(InputError, match=rf"cannot write {folder}: No space left on device"):
            load(checkpoint(PLAIN, None)).save_pretrained(folder)
    assert contents(folder) == before
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another place"):
        model.save_pretrained(tmp_path / "file")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("leave", range(0, 90_000, 10_000))
def test_a_disk_that_fills_up_for_real_leaves_the_model_that_was_there(
    model: ReidModel, checkpoint: Checkpoint, tmp_path: Path, leave: int
) -> None:
    other = load(checkpoint(PLAIN, None))
    with small_disk(tmp_path / "disk", 4000) as disk:
        model.save_pretrained(disk / "model")
        before = contents(disk)
        filler = fill(disk, leave=leave)
        with pytest.raises(InputError, match="No space left on device") as error:
            other.save_pretrained(disk / "model")
        assert "\n" not in str(error.value)
        assert ".unfinished" not in str(error.value)
        filler.unlink()
        assert contents(disk) == before
        other.save_pretrained(disk / "model")
        assert load(disk / "model").fingerprint == other.fingerprint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_another_programs_model_is_not_written_over(model: ReidModel, tmp_path: Path, name: str) -> None:
    if name == "config.json":
        (tmp_path / name).write_text('{"model_type": "bert"}')
    else:
        save_file({"weight": torch.zeros(2)}, tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds a model that is not of this project"):
        model.save_pretrained(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_no_model_is_saved_through_a_link(model: ReidModel, tmp_path: Path, name: str) -> None:
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).rename(tmp_path / "precious")
    (tmp_path / "model" / name).symlink_to(tmp_path / "precious")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"model/{name} is a link"):
        model.save_pretrained(tmp_path / "model")
    assert contents(tmp_path) == before
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    model.save_pretrained(tmp_path / "linked")
    assert load(tmp_path / "disk").fingerprint == model.fingerprint


SAVE = """
import sys, clip3dreid
model = clip3dreid.load(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    model.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_processes_that_save_at_once_wait_for_one_another_and_leave_one_model(
    model: ReidModel, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    others = [model, load(checkpoint(PLAIN, None))]
    runs = []
    for number, other in enumerate(others):
        other.save_pretrained(tmp_path / str(number))
        command = [sys.executable, "-c", SAVE, str(tmp_path / str(number)), str(tmp_path / "both")]
        runs.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    assert [run.wait(PATIENCE_S) for run in runs] == [0, 0]
    found = load(tmp_path / "both").fingerprint
    assert found in {other.fingerprint for other in others}
    source = [other.fingerprint for other in others].index(found)
    assert contents(tmp_path / "both") == contents(tmp_path / str(source))


class Hub:
    """Stands for the Hugging Face hub: a folder for each model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[dict[str, Any]] = []
        self.pushed: dict[str, Any] = {}

    def download(self, repo_id: str, filename: str, **options: Any) -> str:
        self.asked.append({"repo_id": repo_id, "filename": filename, **options})
        path = self.root / repo_id / filename
        if not path.is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find it\nin the cache")
        return str(path)

    def create(self, _: Any, repo_id: str, **__: Any) -> huggingface_hub.RepoUrl:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(self, _: Any, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        ignored = shutil.ignore_patterns(*options["ignore_patterns"])
        shutil.copytree(folder_path, self.root / repo_id, ignore=ignored)
        self.pushed = options
        return "https://huggingface.co/commit"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found.download)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *a, **k: found.create(*a, **k))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda *a, **k: found.upload(*a, **k))
    return found


def test_a_model_goes_to_the_hub_and_comes_back(model: ReidModel, pictures: list[Path], hub: Hub) -> None:
    assert model.push_to_hub("user/name", private=True) == "https://huggingface.co/commit"
    names = sorted(path.name for path in (hub.root / "user" / "name").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert_same(load("user/name"), model, pictures)
    options = {
        "revision": "v1",
        "cache_dir": "/cache",
        "local_files_only": True,
        "force_download": False,
        "token": None,
    }
    hub.asked.clear()
    load("user/name", revision="v1", cache_dir="/cache", local_files_only=True)
    assert hub.asked == [
        {"repo_id": "user/name", "filename": name, **options} for name in ("config.json", "model.safetensors")
    ]
    assert_same(ReidModel.from_pretrained("user/name", revision="v1"), model, pictures)


def test_what_the_hub_does_not_have_is_one_line(hub: Hub) -> None:
    with pytest.raises(InputError, match="user/name is not there, and cannot be had") as error:
        load("user/name")
    assert "Cannot find it in the cache" in str(error.value)
    with pytest.raises(InputError, match="cannot be had"):
        load("user/na..me")


def test_a_hostile_model_of_the_hub_is_refused(
    model: ReidModel, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained(hub.root / "user" / "evil")
    path = hub.root / "user" / "evil" / "config.json"
    config = json.loads(path.read_text())
    config["student"]["backbone"] = {"_target_": "os.mkdir", "path": "ran"}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"student\.backbone wants to build os\.mkdir"):
        load("user/evil")
    assert not (tmp_path / "ran").exists()


def test_a_local_folder_comes_before_the_hub(
    model: ReidModel, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("user/name")
    assert torch.equal(load("user/name").embed(pictures), model.embed(pictures))
    assert hub.asked == []


def test_the_package_offers_both_names_and_loads_torch_only_for_them() -> None:
    code = (
        "import sys, clip3dreid; assert 'torch' not in sys.modules; clip3dreid.load; clip3dreid.ReidModel; "
        "from clip3dreid import load; assert 'torch' in sys.modules and 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clip3dreid.nothing  # noqa: B018


def test_the_example_of_the_documentation_runs(
    model: ReidModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("model")
    for seed, name in enumerate("ab"):
        Image.fromarray(noise(seed, 80, 40)).save(f"{name}.png")
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    assert example is not None
    scope: dict[str, Any] = {}
    exec(example[1], scope)
    assert scope["features"].shape == (2, D)
    assert -1 <= scope["similar"] <= 1
    with safe_open("copy/model.safetensors", "pt") as file:
        kept = json.loads(file.metadata()["clip3dreid"])
    assert kept.pop("checksum")
    assert kept == CARD


def test_what_cannot_be_read_is_no_matter_of_a_config_key(model: ReidModel, tmp_path: Path) -> None:
    for path in (tmp_path / "nope.jpg", tmp_path):
        with pytest.raises(InputError, match=r"; give one that can be read$") as caught:
            model.embed(path)
        assert "on_error" not in str(caught.value)


def test_cut_outs_that_look_the_same_have_the_same_features(model: ReidModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = np.zeros((64, 32, 4), np.uint8)
    layers[10:50, 8:24] = 255
    layers[10:50, 8:24, :3] = rng.integers(0, 255, (40, 16, 3))
    other = np.where(layers[..., 3:] == 0, np.array([255, 0, 255, 0], np.uint8), layers)
    for name, picture in (("a", layers), ("b", other)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    first, second = model.embed([tmp_path / "a.png", tmp_path / "b.png"])
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.embed(Image.fromarray(other))[0], first, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_are_float32_whatever_the_precision_of_the_model(
    model: ReidModel, pictures: list[Path], dtype: torch.dtype
) -> None:
    exact = model.embed(pictures), model.joint(pictures), model.shape(pictures)
    model.to(dtype)
    assert {parameter.dtype for parameter in model.student.parameters()} == {dtype}
    found = model.embed(pictures), model.joint(pictures), model.shape(pictures)
    ready = torch.rand(2, 3, HEIGHT, WIDTH)
    for values in (
        *found[:2],
        *found[2][:2],
        model.embed(ready),
        model.embed(ready.to(dtype)),
        *model(ready),
    ):
        assert values is not None
        assert values.dtype == torch.float32
    assert F.cosine_similarity(found[0], exact[0]).min() > 0.999
    assert F.cosine_similarity(found[1], exact[1]).min() > 0.999
    # Of shapes that differ in the third digit, and not of a body that was rounded to millimetres.
    assert (found[2].vertices - exact[2].vertices).abs().max() < 0.02 * exact[2].betas.abs().max()
    assert model.describe(pictures)[0].keys() == GROUPS.keys()
    assert model.word_scores(found[1]).dtype == torch.float32


def test_a_model_in_half_precision_is_saved_and_comes_back(
    model: ReidModel, pictures: list[Path], tmp_path: Path
) -> None:
    model.half().save_pretrained(tmp_path / "half")
    again = load(tmp_path / "half")
    assert {parameter.dtype for parameter in again.student.parameters()} == {torch.float32}
    assert F.cosine_similarity(again.embed(pictures), model.embed(pictures)).min() > 0.999


def test_a_config_that_is_not_that_of_the_weights_is_refused(model: ReidModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    config = folder / "config.json"
    whole = config.read_text()
    for old, new in ((f'"height": {HEIGHT}', '"height": 48'), ("tall", "tell"), ("0.485", "0.486")):
        assert old in whole
        config.write_text(whole.replace(old, new, 1))
        with pytest.raises(InputError, match=r"config\.json is damaged .*model\.safetensors says otherwise"):
            load(folder)
    # Which version of the program wrote it changes no result.
    config.write_text(re.sub(r'"library_version": "[^"]*"', '"library_version": "9"', whole))
    assert load(folder).fingerprint == model.fingerprint
