"""The Python API: every way in, what it gives, and what is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

import clip3dreid
from clip3dreid.body.smpl import body_digest, load_body, read_arrays, shipped
from clip3dreid.data.images import TestView, read_rgb, to_unit
from clip3dreid.errors import InputError
from clip3dreid.inference.heads import ScoredWord
from clip3dreid.inference.model import ReidModel, load
from clip3dreid.model.student import Student
from clip3dreid.model.weights import save_weights
from clip3dreid.training.evaluation_module import EvaluationModule
from tests.conftest import STUDENT
from tests.inference.models import (
    BETAS,
    CARD,
    GROUPS,
    HEADS,
    HEIGHT,
    JOINT,
    PLAIN,
    WIDTH,
    Checkpoint,
    D,
    noise,
    seen,
)
from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[2]


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
    assert isinstance(found[0]["build"][0], ScoredWord)


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


def test_weights_without_heads_embed_and_say_what_would_teach_the_rest(
    checkpoint: Checkpoint, student: Student, pictures: list[Path], tmp_path: Path
) -> None:
    save_weights(student.state_dict(), PLAIN, tmp_path / "weights.safetensors")
    # `clip3dreid weights` keeps the card as it is and leaves heads out.
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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "has checkpoint version 2, this program reads 1"),
        (
            {"student": STUDENT["backbone"]},
            "wants to build .*ResNet, where only Student, ClipStudent may stand",
        ),
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
        *model(ready, maps=True),
    ):
        assert values is not None
        assert values.dtype == torch.float32
    assert F.cosine_similarity(found[0], exact[0]).min() > 0.999
    assert F.cosine_similarity(found[1], exact[1]).min() > 0.999
    # Of shapes that differ in the third digit, and not of a body that was rounded to millimetres.
    assert (found[2].vertices - exact[2].vertices).abs().max() < 0.02 * exact[2].betas.abs().max()
    assert model.describe(pictures)[0].keys() == GROUPS.keys()
    assert model.word_scores(found[1]).dtype == torch.float32


# Features of several parts.

TEACHER = {
    "teacher.weight": torch.linspace(-1, 1, JOINT * D).view(JOINT, D).sin(),
    "teacher.bias": torch.linspace(0, 1, JOINT),
}
STANDARD = {"shape.usual": torch.tensor([0.0, 1, -1, 2]), "shape.spread": torch.tensor([1.0, 2, 0, 3])}
COMPOSED = {"embedding": 1.0, "teacher": 0.5, "betas": 2.0}


@torch.no_grad()
def test_a_model_embeds_by_the_feature_of_its_card_or_by_the_one_asked_for(
    checkpoint: Checkpoint, student: Student, pictures: list[Path], tmp_path: Path
) -> None:
    heads = HEADS | TEACHER | STANDARD
    plain = load(checkpoint(CARD, heads, "plain.ckpt"))
    composed = load(checkpoint(CARD | {"feature": COMPOSED}, heads, "composed.ckpt"))
    assert plain.feature.weights == {"embedding": 1}
    assert (composed.feature.weights, composed.widths["embedding"]) == (COMPOSED, D + JOINT + 3)
    found = composed.embed(pictures)
    assert torch.equal(plain.embed(pictures, feature=COMPOSED), found)
    assert torch.equal(plain.with_feature(COMPOSED).embed(pictures), found)
    assert torch.equal(composed.embed(pictures, feature=["embedding"]), plain.embed(pictures))
    images = seen(pictures)
    both = student(images).embedding + student(images.flip(-1)).embedding
    assert torch.equal(plain.embed(pictures), both)
    shape = (both / 2 @ HEADS["shape.weight"].T + HEADS["shape.bias"] - STANDARD["shape.usual"])[:, [0, 1, 3]]
    shape = shape / STANDARD["shape.spread"][[0, 1, 3]]
    expected = [both, both / 2 @ TEACHER["teacher.weight"].T + TEACHER["teacher.bias"], shape]
    cosine = sum(
        weight * F.cosine_similarity(part[0], part[1], dim=0)
        for weight, part in zip(COMPOSED.values(), expected, strict=True)
    )
    torch.testing.assert_close(found[0] @ found[1], cosine / 3.5)
    # What a model is evaluated by is what it is used by.
    evaluation = EvaluationModule(
        student, protocols={}, metric="cosine", flip=True, feature=composed.feature, heads=heads
    )
    assert torch.equal(evaluation.embed(images), found)
    # Words and bodies are of the pictures as they are, whatever people are compared by.
    assert torch.equal(composed.joint(pictures), plain.joint(pictures))
    assert torch.equal(composed.shape(pictures).betas, plain.shape(pictures).betas)
    composed.save_pretrained(tmp_path / "copy")
    assert torch.equal(load(tmp_path / "copy").embed(pictures), found)
    assert "made of embedding + 0.5 teacher + 2 betas" in (tmp_path / "copy" / "README.md").read_text()


def test_another_feature_is_another_fingerprint_and_the_embedding_keeps_the_one_it_had(
    checkpoint: Checkpoint,
) -> None:
    plain = load(checkpoint(CARD, HEADS, "plain.ckpt"))
    named = load(checkpoint(CARD | {"feature": {"embedding": 1.0}}, HEADS, "named.ckpt"))
    assert named.fingerprint == plain.fingerprint
    others = [
        plain.with_feature(one) for one in (["embedding", "betas"], {"embedding": 1, "betas": 0.5}, "betas")
    ]
    assert len({plain.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert others[0].with_feature("embedding").fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("card", "heads", "said"),
    [
        ({"feature": ["embedding", "teacher"]}, {}, "does not know teacher, which loss.global"),
        ({"feature": {"nose": 1}}, {}, "its feature=nose is unknown"),
        ({"feature": 1}, {}, "its feature=1 must name parts"),
        ({}, {"teacher.weight": torch.ones(2, D)}, r"its teacher.bias is missing, but must be \(2,\)"),
        ({}, TEACHER | {"teacher.weight": torch.ones(JOINT, 3)}, "its teacher.weight is"),
        ({}, {"shape.usual": torch.ones(4)}, "its shape.spread is missing"),
        (
            {},
            STANDARD | {"shape.spread": torch.tensor([1, 1, 1, -1.0])},
            "shape.spread has a value that is no",
        ),
        ({}, STANDARD | {"shape.spread": torch.tensor([1, 1, 1, float("nan")])}, "shape.spread has a value"),
    ],
)
def test_features_and_heads_that_do_not_fit_are_refused_in_a_line(
    checkpoint: Checkpoint, card: dict[str, Any], heads: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(InputError, match=said) as error:
        load(checkpoint(CARD | card, HEADS | heads))
    assert "\n" not in str(error.value)


def test_a_part_that_a_model_has_not_learnt_is_refused_when_it_is_asked_for(
    checkpoint: Checkpoint, pictures: list[Path]
) -> None:
    model = load(checkpoint(PLAIN, {}))
    with pytest.raises(
        InputError, match=r"feature=embedding \+ betas: .*last.ckpt does not know betas, which"
    ):
        model.embed(pictures, feature=["embedding", "betas"])


def test_folders_patterns_and_tables_are_embedded_as_their_pictures(
    model: ReidModel, pictures: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "crops"
    folder.mkdir()
    for number, path in enumerate(pictures):
        Image.open(path).convert("RGB").save(folder / f"{number}.png")
    files = sorted(folder.iterdir())
    wanted = model.embed(files)
    (tmp_path / "table.csv").write_text("path\n" + "\n".join(f"crops/{path.name}" for path in files))
    for given in (folder, str(folder / "*.png"), tmp_path / "table.csv"):
        for workers in (0, 2):
            torch.testing.assert_close(model.embed(given, batch_size=1, workers=workers), wanted)
    torch.testing.assert_close(model(str(files[0])), wanted[:1])
    torch.testing.assert_close(model.embed(files, normalize=True), F.normalize(wanted, dim=1))
    cosines = F.normalize(wanted, dim=1) @ F.normalize(wanted[:2], dim=1).T
    torch.testing.assert_close(model.similarity(files, files[:2]), cosines)


def test_rows_of_what_cannot_be_read_are_nan_where_that_is_asked_for(
    model: ReidModel, pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    given = [pictures[0], tmp_path / "bad.png", pictures[1]]
    features = model.embed(given, on_error="skip")
    torch.testing.assert_close(features[[0, 2]], model.embed(pictures[:2]))
    assert features[1].isnan().all()
    assert "1 of 3 pictures could not be read" in caplog.text
    with pytest.raises(InputError, match=r"bad\.png"):
        model.embed(given)
    with pytest.raises(InputError, match=r"nowhere/\*\.jpg fits no file"):
        model.embed("nowhere/*.jpg")


def test_a_model_is_loaded_where_and_how_it_is_wanted(checkpoint: Checkpoint) -> None:
    model = load(checkpoint(), device="cpu", dtype="bfloat16")
    assert model.student.mean.dtype == torch.bfloat16
    assert model.embed(noise(2, HEIGHT, WIDTH)).dtype == torch.float32
    with pytest.raises(InputError, match="dtype=float8 is unknown; choose float32, bfloat16 or float16"):
        load(checkpoint(), dtype="float8")
    with pytest.raises(InputError, match="device=nowhere cannot be used"):
        load(checkpoint(), device="nowhere")


@torch.no_grad()
def test_layers_of_parts_are_made_once_and_anew_where_heads_were_written_to(
    checkpoint: Checkpoint, pictures: list[Path]
) -> None:
    model = load(checkpoint(CARD | {"feature": {"betas": 1.0}}, HEADS | STANDARD))
    before = model.embed(pictures)
    made = model._part_layers()
    assert model._part_layers() is made
    model.heads["shape"].get_buffer("bias").add_(1)
    assert not torch.equal(model.embed(pictures), before)
    assert model._part_layers() is not made
