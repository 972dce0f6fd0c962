import json
import os
import shutil
import socket

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification, ViTModel

from clip3dreid.errors import InputError
from clip3dreid.model.pooling import Average, ClassToken
from clip3dreid.model.student import Student
from clip3dreid.model.transformer import TransformersBackbone
from clip3dreid.model.weights import load_pretrained

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
    "image_size": 32,
}
SWIN = {
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 7,
    "patch_size": 4,
    "image_size": 56,
}
# Family: its config, further arguments, C, map of a 64x32 picture, whether it has a class token.
FAMILIES = {
    "vit": (VIT, {}, 16, (8, 4), True),
    "clip_vision_model": (VIT, {"final_norm": "post_layernorm"}, 16, (8, 4), True),
    "dinov2": ({**VIT, "mlp_ratio": 2}, {}, 16, (8, 4), True),
    "dinov2_with_registers": ({**VIT, "mlp_ratio": 2, "num_register_tokens": 3}, {}, 16, (8, 4), True),
    "swin": (SWIN, {"forward": {"always_partition": True}}, 16, (8, 4), False),
    "convnext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, {}, 16, (8, 4), False),
    "resnet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        {},
        16,
        (8, 4),
        False,
    ),
}


def backbone(family: str) -> TransformersBackbone:
    torch.manual_seed(0)
    config, options, *_ = FAMILIES[family]
    return TransformersBackbone({"model_type": family, **config}, **options)


def student(family: str = "vit", **changes: object) -> Student:
    pooling = ClassToken() if FAMILIES[family][-1] else Average()
    config, options, *_ = FAMILIES[family]
    return Student(
        TransformersBackbone({"model_type": family, **config, **changes}, **options),
        pooling,
        [0.5] * 3,
        [0.5] * 3,
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_pictures_taller_than_wide_give_a_map_of_their_shape(family):
    *_, channels, grid, has_token = FAMILIES[family]
    output = backbone(family).eval()(torch.randn(2, 3, 64, 32))
    assert output.map.shape == (2, channels, *grid)
    assert (output.token is not None) == has_token
    if has_token:
        assert output.token.shape == (2, channels)


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_parameters_that_training_reaches_are_trained(family):
    trained = student(family, **({"hidden_dropout_prob": 0.0} if family == "vit" else {}))
    features = trained(torch.rand(4, 3, 64, 32))
    (features.map.sum() + features.embedding.pow(3).sum()).backward()
    for name, parameter in trained.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    frozen = {name for name, parameter in trained.named_parameters() if not parameter.requires_grad}
    heads = {
        "vit": {"pooler.dense.weight", "pooler.dense.bias"},
        "dinov2": {"embeddings.mask_token"},
        "dinov2_with_registers": {"embeddings.mask_token"},
        "convnext": {"layernorm.weight", "layernorm.bias"},
    }
    assert frozen == {f"backbone.model.{name}" for name in heads.get(family, ())}


@torch.no_grad()
def test_patches_lie_in_the_map_row_by_row_and_the_class_token_is_not_in_it():
    ours = backbone("vit").eval()
    images = torch.randn(1, 3, 32, 32)  # the size the positions were made for
    tokens = ours.model(images).last_hidden_state
    output = ours(images)
    torch.testing.assert_close(output.token, tokens[:, 0])
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(output.map[:, :, row, column], tokens[:, 1 + 4 * row + column])


@torch.no_grad()
def test_registers_are_left_out_of_the_map():
    ours = backbone("dinov2_with_registers").eval()
    images = torch.randn(1, 3, 32, 32)
    tokens = ours.model(images).last_hidden_state
    assert tokens.shape[1] == 1 + 3 + 16
    torch.testing.assert_close(ours(images).map.flatten(2).transpose(1, 2), tokens[:, 4:])


@torch.no_grad()
def test_clips_map_gets_the_norm_of_its_class_token():
    ours = backbone("clip_vision_model").eval()
    torch.nn.init.normal_(ours.model.post_layernorm.weight)
    images = torch.randn(2, 3, 32, 32)
    published = ours.model(images)
    output = ours(images)
    torch.testing.assert_close(output.token, published.pooler_output)
    normed = ours.model.post_layernorm(published.last_hidden_state[:, 1:])
    torch.testing.assert_close(output.map.flatten(2).transpose(1, 2), normed)


@torch.no_grad()
def test_positions_are_interpolated_to_the_pictures_shape():
    ours = backbone("vit").eval()
    ours.model.embeddings.position_embeddings.zero_()
    flat = ours(torch.zeros(1, 3, 64, 32)).map
    # One constant picture, no positions: all patches alike.
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))
    ours.model.embeddings.position_embeddings[:, 1:, 0] = torch.arange(4.0).repeat_interleave(4)
    rows = ours(torch.zeros(1, 3, 64, 32)).map
    assert (rows[:, :, 0] - rows[:, :, 7]).abs().max() > 0.01
    torch.testing.assert_close(rows, rows[..., :1].expand_as(rows))


@torch.no_grad()
def test_swin_takes_maps_narrower_than_its_window():
    ours = backbone("swin").eval()
    # 40x24 pixels: 10x6 patches, then 5x3, windows of 7.
    assert ours(torch.randn(1, 3, 40, 24)).map.shape == (1, 16, 5, 3)


@pytest.fixture
def no_network(monkeypatch):
    tried = []

    def refuse(*arguments):
        tried.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not tried


@torch.no_grad()
def test_a_published_folder_gives_the_published_models_features(tmp_path, no_network):
    torch.manual_seed(1)
    published = ViTForImageClassification(ViTConfig(**VIT)).eval()
    published.save_pretrained(tmp_path)
    ours = student().eval()
    loaded = load_pretrained(ours, tmp_path)
    images = torch.rand(2, 3, 32, 32)
    expected = published.vit((images - 0.5) / 0.5).last_hidden_state[:, 0]
    torch.testing.assert_close(ours(images).pooled, expected)
    assert all(name.startswith("backbone.model.") for name in loaded)


@torch.no_grad()
def test_the_image_side_is_taken_from_a_whole_clip(tmp_path, no_network):
    text = {k: v for k, v in VIT.items() if k not in ("patch_size", "image_size")} | {"vocab_size": 99}
    torch.manual_seed(1)
    published = CLIPModel(CLIPConfig(vision_config=VIT, text_config=text, projection_dim=8)).eval()
    published.save_pretrained(tmp_path)
    ours = student("clip_vision_model").eval()
    load_pretrained(ours, tmp_path)
    images = torch.rand(2, 3, 32, 32)
    expected = published.vision_model(pixel_values=(images - 0.5) / 0.5).pooler_output
    torch.testing.assert_close(ours(images).pooled, expected)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 1}, "left over: layers.1"),
        ({"num_hidden_layers": 3}, "missing: layers.2"),
        ({"intermediate_size": 48}, "of another shape: layers.0"),
        ({"num_attention_heads": 4}, "num_attention_heads=2, the student's config num_attention_heads=4"),
        ({"hidden_act": "relu"}, "hidden_act=gelu, the student's config hidden_act=relu"),
    ],
)
def test_a_published_model_of_another_architecture_is_refused_by_name(tmp_path, changes, told):
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        load_pretrained(student(**changes), tmp_path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_published_weights_name_the_command_and_touch_no_network(tmp_path, no_network):
    for where in (tmp_path / "vit-tiny", "somebody/vit-tiny"):
        path = type(tmp_path)(where)
        command = f"hf download somebody/vit-tiny --local-dir {path}"
        with pytest.raises(InputError, match="no weights at") as error:
            load_pretrained(student(), path, command)
        assert command in str(error.value)


def test_a_folder_that_is_no_published_model_is_refused(tmp_path):
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    for folder in (tmp_path, tmp_path / "half"):
        with pytest.raises(InputError, match="cannot be read as a model of transformers"):
            load_pretrained(student(), folder)


@pytest.mark.parametrize(
    "key", ["auto_map", "attn_implementation", "_attn_implementation_internal", "_name_or_path"]
)
def test_config_keys_that_could_bring_in_code_are_refused(key):
    with pytest.raises(InputError, match=f"must not set {key}"):
        TransformersBackbone({"model_type": "vit", **VIT, "nested": [{key: "somebody/kernel"}]})


@pytest.mark.parametrize(
    ("config", "told"), [({}, "needs model_type"), ({"model_type": "vitt"}, "no backbone for 'vitt'")]
)
def test_a_config_that_names_no_model_is_refused(config, told):
    with pytest.raises(InputError, match=told):
        TransformersBackbone(config)


def test_a_final_norm_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="final_norm=norm is not a part"):
        TransformersBackbone({"model_type": "vit", **VIT}, final_norm="norm")


def test_the_configuration_survives_json():
    # What a checkpoint stores of it must rebuild the same network.
    config = json.loads(json.dumps({"model_type": "swin", **SWIN}))
    rebuilt = TransformersBackbone(config).state_dict()
    assert {k: v.shape for k, v in rebuilt.items()} == {
        k: v.shape for k, v in backbone("swin").state_dict().items()
    }


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_published_folder_whose_weights_are_damaged_or_would_run_code_is_refused(tmp_path):
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be read as a model of transformers") as error:
        load_pretrained(student(), tmp_path)
    assert "\n" not in str(error.value)
    weights.unlink()
    torch.save({"layernorm.weight": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read as a model of transformers") as error:
        load_pretrained(student(), tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"Ns.")
    with pytest.raises(InputError, match="nested more than") as error:
        load_pretrained(student(), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_published_pytorch_file_is_read_where_there_are_no_safetensors(tmp_path):
    published = ViTModel(ViTConfig(**VIT))
    published.config.save_pretrained(tmp_path)
    torch.save(published.state_dict(), tmp_path / "pytorch_model.bin")
    ours = student()
    load_pretrained(ours, tmp_path)
    assert torch.equal(ours.backbone.model.layernorm.weight, published.layernorm.weight)
    assert torch.equal(ours.backbone.model.embeddings.cls_token, published.embeddings.cls_token)


def test_a_momentum_that_is_no_share_is_refused():
    with pytest.raises(InputError, match="batch_norm_momentum=2 must be a number from 0 to 1"):
        TransformersBackbone({"model_type": "mobilenet_v2"}, batch_norm_momentum=2)
