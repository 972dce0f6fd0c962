import copy
import json
import os
import pickle
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from lightning.pytorch import LightningModule, Trainer
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.errors import InputError
from clip3dreid.io.files import identify
from clip3dreid.model import places
from clip3dreid.model import teacher as teacher_module
from clip3dreid.model import teacher_files as module
from clip3dreid.model.embedding_cache import EmbeddingCache, TeacherEmbeddings
from clip3dreid.model.teacher import Teacher, load_teacher
from clip3dreid.model.teacher_view import Letterbox, Native, Squash
from clip3dreid.model.transformer import TransformersBackbone
from clip3dreid.types import Batch

TEXTS = [
    "a tall person with broad shoulders",
    "a heavy person",
    "long legs, narrow hips and thin arms",
    "short",
]
CONTEXT = 24
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MEAN, STD = [0.48, 0.45, 0.40], [0.26, 0.25, 0.27]
FAMILIES = ("clip", "siglip")
VIEWS = [Letterbox(32), Squash(32), Squash(48), Native(64, 32)]


def tokenizer() -> PreTrainedTokenizerFast:
    """A BPE of a few sentences, with tokens that begin, end and pad a text."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def network(family: str, words: int, **vision: Any) -> CLIPModel | SiglipModel:
    torch.manual_seed(7)
    text = {**TOWER, "vocab_size": words, "max_position_embeddings": CONTEXT}
    text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    image = {**TOWER, "patch_size": 8, "image_size": 32, **vision}
    if family == "clip":
        model = CLIPModel(CLIPConfig(vision_config=image, text_config=text, projection_dim=12))
    else:
        model = SiglipModel(SiglipConfig(vision_config=image, text_config=text))
    # Positions and norms as strong as a trained network's, so that forgetting one shows.
    for name, value in model.named_parameters():
        if "position" in name or "norm" in name:
            nn.init.normal_(value, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family, as its makers would publish it."""
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp(family)
        words = tokenizer()
        network(family, len(words)).save_pretrained(folders[family])
        words.save_pretrained(folders[family])
        CLIPImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(folders[family])
    return folders


@pytest.fixture
def folder(published: dict[str, Path], tmp_path: Path) -> Path:
    """A CLIP to damage."""
    return Path(shutil.copytree(published["clip"], tmp_path / "clip"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Any:
    tried = []

    def refuse(*arguments: Any) -> None:
        tried.append(arguments)
        raise OSError("no network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not tried


def pictures(height: int = 50, width: int = 21) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8, generator=generator)


def prepared(view: Any, images: Tensor) -> Tensor:
    return (view(images / 255) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def by_hand(folder: Path, family: str) -> Any:
    return (CLIPModel if family == "clip" else SiglipModel).from_pretrained(folder).eval()


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        Teacher(*arguments, **{"name": "tiny", **options})
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.describe())
@torch.no_grad()
def test_pictures_get_the_embedding_that_transformers_gives(published, family, view):
    teacher = Teacher(str(published[family]), view, name="tiny")
    pixels = prepared(view, pictures())
    model = by_hand(published[family], family)
    other_size = view.size != (32, 32)
    expected = model.get_image_features(pixels, interpolate_pos_encoding=other_size).pooler_output
    torch.testing.assert_close(teacher(pictures()), F.normalize(expected, dim=1))
    torch.testing.assert_close(teacher(pictures()), teacher(pictures() / 255), rtol=0, atol=0)
    assert teacher(pictures()).shape == (3, teacher.width)
    assert teacher.grid == (view.size[0] // 8, view.size[1] // 8)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_patches_go_the_way_of_the_pooled_state_and_lie_row_by_row(published, family):
    teacher = Teacher(str(published[family]), Native(64, 32), name="tiny")
    found = teacher.embed_images(pictures(), patches=True)
    model = by_hand(published[family], family)
    pixels = prepared(Native(64, 32), pictures())
    states = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert found.patches.shape == (3, 8 * 4, teacher.width)
    for row in range(8):
        for column in range(4):
            patch = row * 4 + column
            if family == "clip":
                normed = model.vision_model.post_layernorm(states[:, 1 + patch])
                expected = model.visual_projection(normed)
            else:
                expected = model.vision_model.head(states[:, patch : patch + 1])
            torch.testing.assert_close(found.patches[:, patch], F.normalize(expected, dim=-1))
    torch.testing.assert_close(found.embedding, teacher(pictures()))
    assert teacher.embed_images(pictures()).patches is None


@torch.no_grad()
def test_a_patch_of_the_first_row_is_of_the_top_of_the_picture(published):
    teacher = Teacher(str(published["clip"]), Native(64, 32), name="tiny")
    # Without attention and with equal positions, a patch's state depends on its own pixels alone.
    for layer in teacher.model.vision_model.encoder.layers:
        layer.self_attn.out_proj.weight.zero_()
    teacher.model.vision_model.embeddings.position_embedding.weight.zero_()
    images = torch.zeros(1, 3, 64, 32)
    images[:, :, :8, 8:16] = 1
    patches = teacher.embed_images(images, patches=True).patches[0].unflatten(0, teacher.grid)
    differs = (patches - patches[7, 3]).abs().amax(-1) > 1e-4
    assert differs.nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_texts_get_the_embedding_that_transformers_gives(published, family):
    teacher = Teacher(str(published[family]), VIEWS[0], name="tiny")
    words = PreTrainedTokenizerFast.from_pretrained(published[family])
    if family == "clip":
        inputs = words(TEXTS, padding=True, return_tensors="pt")
    else:
        # Trained on texts padded to the whole context, the padding read as well.
        inputs = words(TEXTS, padding="max_length", max_length=CONTEXT, return_tensors="pt")
        del inputs["attention_mask"]
    inputs.pop("token_type_ids", None)
    expected = by_hand(published[family], family).get_text_features(**inputs).pooler_output
    found = teacher.embed_texts(TEXTS)
    torch.testing.assert_close(found, F.normalize(expected, dim=1))
    assert found.dtype == torch.float32
    # What stands beside a text in its batch is nothing to it.
    torch.testing.assert_close(
        Teacher(str(published[family]), VIEWS[0], name="x").embed_texts(TEXTS[3:]), found[3:]
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_tokens_are_projected_states_and_the_mask_leaves_the_words(published, family):
    teacher = Teacher(str(published[family]), VIEWS[0], name="tiny")
    words = PreTrainedTokenizerFast.from_pretrained(published[family])
    model = by_hand(published[family], family)
    found = teacher.embed_tokens(TEXTS)
    assert found.mask.dtype == torch.bool
    assert found.states.shape == (*found.mask.shape, teacher.width)
    assert (found.mask.shape[1] == CONTEXT) == (family == "siglip")
    for text, states, mask in zip(TEXTS, *found, strict=True):
        plain = words(text)["input_ids"]
        assert mask.tolist() == [0 < place < len(plain) - 1 for place in range(len(mask))]
        padded = plain if family == "clip" else plain + [0] * (CONTEXT - len(plain))
        last = model.text_model(torch.tensor([padded])).last_hidden_state[0]
        expected = (model.text_projection if family == "clip" else model.text_model.head)(last)
        torch.testing.assert_close(states[mask], F.normalize(expected, dim=1)[1 : len(plain) - 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_that_shares_its_number_with_the_padding_is_a_word(published, family, tmp_path):
    folder = Path(shutil.copytree(published[family], tmp_path / family))
    words = tokenizer()
    number = words("short", add_special_tokens=False)["input_ids"][0]
    edit(folder / "tokenizer_config.json", pad_token=words.convert_ids_to_tokens(number))
    teacher = Teacher(str(folder), VIEWS[0], name="tiny")
    assert teacher.tokenizer.pad_token_id == number
    expected = Teacher(str(published[family]), VIEWS[0], name="tiny").embed_tokens(TEXTS).mask
    assert torch.equal(teacher.embed_tokens(TEXTS).mask, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_half_precision_is_the_networks_and_outputs_stay_float32(published, dtype):
    half = Teacher(str(published["clip"]), Native(64, 32), name="tiny", dtype=dtype)
    whole = Teacher(str(published["clip"]), Native(64, 32), name="tiny")
    model = by_hand(published["clip"], "clip").to(getattr(torch, dtype))
    pixels = prepared(Native(64, 32), pictures()).to(getattr(torch, dtype))
    expected = model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output.float()
    torch.testing.assert_close(half(pictures()), F.normalize(expected, dim=1))
    for name in ("embed_texts", "embed_tokens"):
        found, exact = getattr(half, name)(TEXTS), getattr(whole, name)(TEXTS)
        found, exact = (found[0], exact[0]) if name == "embed_tokens" else (found, exact)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, atol=0.05, rtol=0)
        assert not torch.equal(found, exact)


def test_every_output_has_length_one_and_no_gradient(published):
    teacher = Teacher(str(published["clip"]), VIEWS[0], name="tiny")
    images = (pictures() / 255).requires_grad_()
    found = teacher.embed_images(images, patches=True)
    texts, tokens = teacher.embed_texts(TEXTS), teacher.embed_tokens(TEXTS)
    for value in (*found, texts, tokens.states):
        assert not value.requires_grad
        torch.testing.assert_close(value.norm(dim=-1), torch.ones(value.shape[:-1]))


def test_pictures_of_whole_numbers_beyond_bytes_are_refused(published):
    teacher = Teacher(str(published["clip"]), VIEWS[0], name="tiny")
    with pytest.raises(TypeError, match=r"not torch\.int64"):
        teacher(pictures().long())


def test_a_trainers_autocast_changes_nothing(published):
    teacher = Teacher(str(published["clip"]), VIEWS[0], name="tiny")
    plain = teacher(pictures()), teacher.embed_tokens(TEXTS).states
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(pictures()), plain[0])
        assert torch.equal(teacher.embed_tokens(TEXTS).states, plain[1])


def test_texts_first_embedded_in_validation_serve_a_training_step(published):
    teacher = Teacher(str(published["clip"]), VIEWS[0], name="tiny")
    with torch.inference_mode():
        teacher.embed_texts(TEXTS)
    weight = torch.ones(teacher.width, requires_grad=True)
    (teacher.embed_texts(TEXTS) * weight).sum().backward()
    assert weight.grad is not None


def test_a_text_is_computed_once(published, monkeypatch):
    teacher = Teacher(str(published["clip"]), VIEWS[0], name="tiny")
    calls = []
    original = teacher.model.get_text_features

    def counted(**inputs: Any) -> Any:
        calls.append(len(inputs["input_ids"]))
        return original(**inputs)

    monkeypatch.setattr(teacher.model, "get_text_features", counted)
    monkeypatch.setattr(teacher_module, "TEXTS_AT_ONCE", 2)
    first = teacher.embed_texts([*TEXTS[:3], TEXTS[0]])
    assert torch.equal(first[0], first[3])
    assert torch.equal(teacher.embed_texts(TEXTS[2::-1]), first[[2, 1, 0]])
    teacher.embed_texts(TEXTS)
    assert calls == [2, 1, 1]
    assert teacher.embed_texts([]).shape == (0, teacher.width)


def test_a_text_beyond_the_context_is_refused_by_name(published):
    teacher = Teacher(str(published["clip"]), VIEWS[0], name="tiny")
    long = "tall\n" * 30
    for embed in (teacher.embed_texts, teacher.embed_tokens):
        with pytest.raises(
            InputError, match=r"at most 24 tokens, this one has \d+; shorten it: 'tall tall"
        ) as error:
            embed(["short", long])
        assert "\n" not in str(error.value)


class Owner(nn.Module):
    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.head = nn.Linear(teacher.width, 2)
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.teacher(images))


def test_one_folder_of_clip_serves_the_teacher_and_a_student(published):
    folder = published["clip"]
    assert module.lacking(folder) == []
    teacher = Teacher(str(folder), VIEWS[0], name="tiny")
    config = {"model_type": "clip_vision_model", **TOWER, "patch_size": 8, "image_size": 32}
    student = TransformersBackbone(config, final_norm="post_layernorm")
    student.load_published(str(folder))
    theirs = teacher.model.vision_model.state_dict()
    ours = {name.removeprefix("vision_model."): value for name, value in student.model.state_dict().items()}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.fixture
def owner(published: dict[str, Path]) -> Owner:
    return Owner(Teacher(str(published["clip"]), VIEWS[0], name="tiny"))


def test_the_network_is_no_part_of_its_owners_parameters_buffers_or_state(owner):
    own = {"head.weight", "head.bias"}
    assert set(owner.state_dict()) == own
    assert {name for name, _ in owner.named_parameters()} == own
    assert not list(owner.buffers())
    owner.load_state_dict(owner.state_dict())
    owner.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in owner.teacher.model.parameters())


def test_an_owners_training_leaves_every_bit_of_the_network(owner):
    before = copy.deepcopy(owner.teacher.model.state_dict())
    expected = owner.teacher(pictures())
    owner.train()
    optimizer = torch.optim.AdamW(owner.parameters(), lr=1.0, weight_decay=0.5)
    owner(pictures()).square().sum().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in owner.teacher.model.parameters())
    for name, value in owner.teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(owner.teacher(pictures()), expected)


def test_the_network_stays_in_evaluation_mode(owner):
    owner.train()
    owner.teacher.train()
    assert not any(part.training for part in (owner.teacher, *owner.teacher.model.modules()))


def test_a_cast_of_the_owner_does_not_reach_the_network(owner):
    expected = owner.teacher(pictures())
    for cast in (owner.half, owner.double, lambda: owner.to(torch.bfloat16)):
        cast()
        assert {value.dtype for value in owner.teacher.model.parameters()} == {torch.float32}
        assert torch.equal(owner.teacher(pictures()), expected)


def test_the_network_its_pixels_and_its_texts_move_with_the_owner(owner):
    owner.teacher.embed_texts(TEXTS)
    owner.to("meta")
    assert owner.teacher.device.type == "meta"
    assert {value.device.type for value in owner.teacher.model.buffers()} == {"meta"}
    assert owner.teacher(pictures()).device.type == "meta"
    assert owner.teacher.embed_texts(TEXTS).device.type == "meta"


def test_copies_and_pickles_of_the_owner_embed_the_same(owner):
    expected = owner.teacher(pictures())
    texts = owner.teacher.embed_texts(TEXTS)
    for other in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):  # noqa: S301
        assert torch.equal(other.teacher(pictures()), expected)
        assert torch.equal(other.teacher.embed_texts(TEXTS), texts)
        assert other.teacher.model is not owner.teacher.model
        assert other.teacher.fingerprint == owner.teacher.fingerprint


class Lit(LightningModule):
    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.owner = owner

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        assert not self.owner.teacher.model.training
        loss: Tensor = self.owner(batch).square().sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_the_owner_and_its_checkpoint_has_no_network_in_it(owner, tmp_path):
    trainer = Trainer(
        max_steps=2,
        max_epochs=2,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Lit(owner), DataLoader([*pictures() / 255], batch_size=3))
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {"owner.head.weight", "owner.head.bias"}


def test_the_fingerprint_tells_files_view_and_dtype_and_not_where_they_lie(published, folder):
    def mark(path: Path, view: Any = VIEWS[0], **options: Any) -> str:
        return Teacher(str(path), view, name="tiny", **options).fingerprint

    original = mark(folder)
    assert mark(published["clip"]) == original
    assert int(original, 16) > 0
    (folder / "README.md").write_text("no part of it")
    assert mark(folder) == original
    seen = {original, mark(folder, VIEWS[1]), mark(folder, dtype="bfloat16"), mark(published["siglip"])}
    changes = (
        ("preprocessor_config.json", "0.48", "0.49"),
        ("tokenizer.json", '"add_prefix_space":true', '"add_prefix_space":false'),
        ("config.json", '"quick_gelu"', '"gelu"'),
    )
    for name, before, after in changes:
        text = (folder / name).read_text()
        compact = text.replace(": ", ":")
        assert before in compact
        (folder / name).write_text(compact.replace(before, after))
        seen.add(mark(folder))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    seen.add(mark(folder))
    assert len(seen) == 8


def test_the_scale_of_the_logits_is_a_number(published):
    for family in FAMILIES:
        teacher = Teacher(str(published[family]), VIEWS[0], name="tiny")
        expected = float(by_hand(published[family], family).logit_scale.detach().exp())
        assert teacher.logit_scale == pytest.approx(expected)


def test_a_torch_file_is_read_where_there_are_no_safetensors_and_code_in_it_is_not_run(published, folder):
    expected = Teacher(str(folder), VIEWS[0], name="tiny")
    safe = expected.fingerprint
    state = by_hand(folder, "clip").state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    found = Teacher(str(folder), VIEWS[0], name="tiny")
    assert torch.equal(found(pictures()), expected(pictures()))
    assert found.fingerprint != safe

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(folder / "ran"),)

    torch.save({**state, "logit_scale": Bomb()}, folder / "pytorch_model.bin")
    assert "cannot be read" in refused(str(folder), VIEWS[0])
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["config.json"], "no config (config.json)"),
        (["tokenizer.json"], "no tokenizer (tokenizer.json)"),
        (["preprocessor_config.json"], "no pixel statistics (preprocessor_config.json)"),
        (["model.safetensors"], "no weights (model.safetensors)"),
        (["config.json", "model.safetensors"], "no config (config.json) and no weights"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_its_name(folder, names, told):
    for name in names:
        (folder / name).unlink()
    message = refused(str(folder), VIEWS[0])
    assert told in message
    assert str(folder) in message


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        node, *rest = key.split("__")
        if rest:
            content[node][rest[0]] = value
        else:
            content[node] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vision_config__num_hidden_layers": 3}, "missing: vision_model.encoder.layers.2"),
        ({"vision_config__num_hidden_layers": 1}, "left over: vision_model.encoder.layers.1"),
        ({"text_config__intermediate_size": 48}, "of another shape: text_model.encoder.layers.0"),
        ({"projection_dim": 13}, "of another shape: text_projection.weight, visual_projection.weight"),
        ({"text_config__eos_token_id": 5}, "eos_token_id 5 in config.json, 3 in the tokenizer"),
        ({"text_config__eos_token_id": 2}, "they must agree, and not on 2"),
        ({"vision_config__num_hidden_layers": "two"}, "cannot be read as the config of a clip model"),
        ({"model_type": "resnet"}, "holds a model of type resnet"),
        ({"model_type": None}, "give one of type clip or siglip"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, changes, told):
    edit(folder / "config.json", **changes)
    assert told in refused(str(folder), VIEWS[0])


def test_a_model_without_a_text_tower_is_refused_by_its_type(folder):
    vision = CLIPVisionModel(CLIPVisionConfig(**TOWER, patch_size=8, image_size=32))
    vision.save_pretrained(folder)
    assert "model of type clip_vision_model" in refused(str(folder), VIEWS[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"image_mean": None},
        {"image_mean": [0.5, 0.5]},
        {"image_std": [0.5, "a", 0.5]},
        {"image_std": [0.5, 0, 0.5]},
        {"rescale_factor": 1.0},
        {"do_normalize": False},
    ],
)
def test_pixel_statistics_that_are_none_are_refused(folder, changes):
    edit(folder / "preprocessor_config.json", **changes)
    message = refused(str(folder), VIEWS[0])
    assert "preprocessor_config.json" in message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", "config.json cannot be read"),
        ("preprocessor_config.json", "preprocessor_config.json cannot be read"),
        ("tokenizer.json", "the tokenizer in"),
        ("model.safetensors", "the weights in"),
    ],
)
def test_damaged_files_are_refused_by_name(folder, name, told):
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    assert told in refused(str(folder), VIEWS[0])
    (folder / name).write_text("[1]")
    assert told in refused(str(folder), VIEWS[0])


def test_a_tokenizer_that_needs_another_package_names_it(folder, monkeypatch):
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("SiglipTokenizer requires the SentencePiece library\nbut it was not found")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    assert "pip install sentencepiece protobuf" in refused(str(folder), VIEWS[0])


def test_another_models_tokenizer_is_refused(folder):
    words = tokenizer()
    words.add_tokens(["person"])
    words.save_pretrained(folder)
    assert "another model's" in refused(str(folder), VIEWS[0])


def test_config_keys_that_could_bring_in_code_are_left_out(published, folder):
    edit(
        folder / "config.json",
        auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
        _attn_implementation_internal="somebody/kernel",
        attn_implementation="somebody/kernel",
        vision_config___attn_implementation="somebody/kernel",
    )
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(folder / 'ran')!r})\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    expected = Teacher(str(published["clip"]), VIEWS[0], name="tiny")
    assert torch.equal(Teacher(str(folder), VIEWS[0], name="tiny")(pictures()), expected(pictures()))
    assert not (folder / "ran").exists()


def test_a_view_smaller_than_a_patch_and_an_unknown_dtype_are_refused(published):
    assert "smaller than a patch" in refused(str(published["clip"]), Native(32, 4))
    assert "model.teacher.dtype=int8 is unknown; choose float32, bfloat16 or float16" in refused(
        str(published["clip"]), VIEWS[0], dtype="int8"
    )


def test_a_model_that_is_not_here_names_the_command_that_gets_it(tmp_path):
    message = refused("openai/clip-tiny", VIEWS[0], name="clip_tiny")
    assert message.startswith("clip_tiny (openai/clip-tiny) is not found locally")
    assert "`hf download openai/clip-tiny --local-dir weights/clip-tiny`" in message
    assert message.endswith("then give model.teacher.path=weights/clip-tiny")

    folder = tmp_path / "clip-tiny"
    fetch = f"hf download openai/clip-tiny --local-dir {folder}"
    for path in (str(folder), "openai/clip-tiny"):
        message = refused(path, VIEWS[0], fetch=fetch)
        assert f"`{fetch}`" in message
        assert message.endswith(f"then give model.teacher.path={folder}")
    # A command that gets another model is no help.
    assert fetch not in refused("openai/clip-huge", VIEWS[0], fetch=fetch)
    assert "--local-dir /nowhere/clip" in refused("/nowhere/clip", VIEWS[0], fetch=fetch)


def test_a_path_that_means_this_disk_is_never_looked_up_on_the_hub(monkeypatch, tmp_path):
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name))
    refused("weights/clip-tiny", VIEWS[0], fetch="hf download openai/clip-tiny --local-dir weights/clip-tiny")
    refused("openai", VIEWS[0], name="no name on a hub")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    refused("weights/clip-tyni", VIEWS[0])
    assert not asked
    refused("somebody/clip-tiny", VIEWS[0])
    assert asked == ["somebody/clip-tiny"] * 2


def test_a_name_on_the_hub_is_looked_for_in_the_cache_then_on_the_network(published, monkeypatch, tmp_path):
    asked = []

    def download(repository: str, **options: Any) -> str:
        asked.append(options)
        if options.get("local_files_only"):
            raise FileNotFoundError("not cached")
        return str(published["clip"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert Teacher("somebody/clip", VIEWS[0], name="tiny").folder == published["clip"]
    assert [bool(options.get("local_files_only")) for options in asked] == [True, False]
    patterns = asked[1]["allow_patterns"]
    assert {"config.json", "tokenizer.json", "preprocessor_config.json", "model*.safetensors"} <= set(
        patterns
    )
    assert not [pattern for pattern in patterns if pattern.endswith((".bin", ".py", ".msgpack", ".h5"))]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(published["clip"]))
    shutil.copytree(published["siglip"], tmp_path / "somebody" / "clip")
    assert Teacher("somebody/clip", VIEWS[0], name="tiny").folder == Path("somebody/clip")


def test_a_model_half_of_which_is_in_the_hubs_cache_is_asked_for_again(published, folder, monkeypatch):
    (folder / "model.safetensors").unlink()

    def download(repository: str, **options: Any) -> str:
        return str(folder if options.get("local_files_only") else published["clip"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert Teacher("somebody/clip", VIEWS[0], name="tiny").folder == published["clip"]


def test_a_packaged_teacher_that_is_not_shipped_is_named():
    for path in ("package:no_such", "package:../../model", "package:"):
        message = refused(path, VIEWS[0])
        assert f"this installation has no {path}" in message


def test_a_packaged_teacher_is_found_in_the_package(published, monkeypatch, tmp_path):
    shutil.copytree(published["clip"], tmp_path / "assets" / "small_clip")
    monkeypatch.setattr(places.resources, "files", lambda package: tmp_path)
    assert Teacher("package:small_clip", VIEWS[0], name="tiny").folder == tmp_path / "assets" / "small_clip"


def config(name: str, *overrides: str) -> Any:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("train", [f"model/teacher={name}", "data=ltcc", "data.root=/nowhere", *overrides])


IMAGES_ALONE = {"image_network", "onnx", "openvino"}  # tests/model/test_image_teacher.py


@pytest.mark.parametrize(
    "name",
    sorted({path.stem for path in (conf_dir() / "model" / "teacher").glob("*.yaml")} - IMAGES_ALONE),
)
def test_every_teachers_config_makes_a_teacher(name, published):
    cfg = config(name)
    node = cfg.model.teacher
    assert node.name == name
    assert node.cache == "disk"
    assert config(name, "model.teacher.cache=off").model.teacher.cache == "off"
    assert Path(node.cache_dir).parts[-2:] == (name, "ltcc")
    assert get_class(node._target_) is Teacher
    family = "siglip" if name.startswith("siglip") else "clip"
    cfg = config(name, f"model.teacher.path={published[family]}", "model.teacher.cache=disk")
    teacher = load_teacher(cfg.model.teacher)
    assert teacher(pictures()).shape == (3, teacher.width)
    assert teacher.view.size == instantiate(node.view).size
    if node.fetch is not None:
        words = shlex.split(node.fetch)
        assert words[:2] == ["hf", "download"]
        assert words[words.index("--local-dir") + 1] == node.path
        # With nothing downloaded, the message is the command.
        with pytest.raises(InputError, match="is not found locally") as error:
            load_teacher(config(name, "weights_dir=/nowhere/weights").model.teacher)
        assert "--local-dir /nowhere/weights/" in str(error.value)


def test_a_node_that_makes_no_teacher_is_refused():
    with pytest.raises(InputError, match="makes a Letterbox"):
        load_teacher({"_target_": "clip3dreid.model.teacher_view.Letterbox", "size": 8, "cache": "off"})
    node = OmegaConf.create({"_target_": "clip3dreid.model.teacher_view.Letterbox", "size": 0})
    with pytest.raises(InputError, match="is empty"):
        load_teacher(node)


def test_cached_embeddings_are_those_of_an_uncached_run(published, tmp_path):
    teacher = Teacher(str(published["clip"]), Letterbox(32), name="tiny")
    images = pictures()
    for row in range(3):
        (tmp_path / f"{row}.jpg").write_bytes(b"x")
    cache = EmbeddingCache(
        tmp_path / "cache",
        identify(tmp_path, [f"{row}.jpg" for row in range(3)]),
        teacher=teacher.name,
        fingerprint=teacher.fingerprint,
        width=teacher.width,
        rows_per_part=2,
    )
    for rows in cache.missing():
        cache.put(rows, teacher(images[rows.start : rows.stop]))
    labels = torch.zeros(3, dtype=torch.int64)
    batch = Batch(images / 255, labels, labels, labels, row=torch.arange(3))
    fresh, cached = TeacherEmbeddings(teacher), TeacherEmbeddings(teacher, cache)
    torch.testing.assert_close(cached(batch), fresh(batch), rtol=0, atol=1e-6)
    assert not cached.state_dict()


LEGACY = {
    "add_cross_attention": False,
    "bad_words_ids": None,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
}
"""Keys that configs published in 2021 still carry."""


@pytest.mark.slow
@torch.no_grad()
def test_a_network_of_the_true_shape_of_vit_b16_is_a_teacher(tmp_path):
    words = tokenizer()
    shape = CLIPConfig(
        vision_config={
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "patch_size": 16,
            "image_size": 224,
        },
        text_config={"vocab_size": 49408, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0},
        projection_dim=512,
    )
    torch.manual_seed(1)
    model = CLIPModel(shape).eval()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content |= {"text_config_dict": None, "vision_config_dict": None, "torch_dtype": "float32"}
    for part in ("text_config", "vision_config"):
        content[part] |= {**LEGACY, "_name_or_path": "", "torch_dtype": None}
    (tmp_path / "config.json").write_text(json.dumps(content))

    teacher = Teacher(str(tmp_path), Letterbox(224), name="b16")
    assert sum(value.numel() for value in model.parameters()) == 149_620_737
    assert (teacher.width, teacher.grid, teacher.context) == (512, (14, 14), 77)
    images = pictures(256, 128)[:2]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = (Letterbox(224)(images / 255) - mean) / std
    expected = model.get_image_features(pixels).pooler_output
    found = teacher.embed_images(images, patches=True)
    torch.testing.assert_close(found.embedding, F.normalize(expected, dim=1))
    assert found.patches.shape == (2, 196, 512)
    inputs = words(TEXTS, padding=True, return_tensors="pt")
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    torch.testing.assert_close(teacher.embed_texts(TEXTS), F.normalize(text, dim=1))
