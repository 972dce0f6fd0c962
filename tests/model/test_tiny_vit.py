import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.model.normalisation import GhostBatchNorm2d
from clip3dreid.model.pooling import Average
from clip3dreid.model.student import Student
from clip3dreid.model.tiny_vit import TinyViT, _AttentionBlock, _DropPath
from clip3dreid.model.weights import load_pretrained

DEPTHS, WINDOWS = [2, 2, 6, 2], [7, 7, 14, 7]
PUBLISHED = {
    5.39: ([64, 128, 160, 320], [2, 4, 5, 10]),
    11.00: ([64, 128, 256, 448], [2, 4, 8, 14]),
    21.20: ([96, 192, 384, 576], [3, 6, 12, 18]),
}
"""Millions of parameters, with a classifier of 1,000 classes, of the three published networks at 224x224."""


def tiny(drop_path=0.0) -> TinyViT:
    torch.manual_seed(0)
    return TinyViT([4, 8, 8, 12], [1, 1, 2, 1], [1, 2, 2, 3], [2, 2, 3, 2], drop_path)


@pytest.mark.parametrize("millions", PUBLISHED)
def test_parameters_are_as_many_as_published(millions):
    widths, heads = PUBLISHED[millions]
    with torch.device("meta"):
        network = TinyViT(widths, DEPTHS, heads, WINDOWS)
    classifier = 1000 * (widths[-1] + 1)
    count = sum(parameter.numel() for parameter in network.parameters()) + classifier
    assert round(count / 1e6, 2) == millions


def test_the_network_of_21_million_has_the_published_names_and_shapes():
    widths, heads = PUBLISHED[21.20]
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in TinyViT(widths, DEPTHS, heads, WINDOWS).state_dict().items()}
    assert len(shapes) == 294
    for name, shape in {
        "patch_embed.seq.0.c.weight": (48, 3, 3, 3),
        "patch_embed.seq.2.bn.running_var": (96,),
        "layers.0.blocks.1.conv2.c.weight": (384, 1, 3, 3),
        "layers.0.downsample.conv3.bn.weight": (192,),
        "layers.1.blocks.0.attn.attention_biases": (6, 49),
        "layers.2.blocks.5.attn.qkv.weight": (1152, 384),
        "layers.2.blocks.0.attn.attention_biases": (12, 196),
        "layers.2.downsample.conv1.c.weight": (576, 384, 1, 1),
        "layers.3.blocks.1.local_conv.c.weight": (576, 1, 3, 3),
        "layers.3.blocks.1.mlp.fc1.weight": (2304, 576),
        "norm_head.bias": (576,),
    }.items():
        assert shapes[name] == shape, name


@pytest.mark.parametrize(("height", "width"), [(224, 224), (64, 32), (100, 52), (33, 31)])
def test_the_map_is_a_thirty_second_of_the_picture_rounded_up(height, width):
    found = tiny().eval()(torch.rand(2, 3, height, width))
    assert found.map.shape == (2, 12, math.ceil(height / 32), math.ceil(width / 32))
    assert found.token is None


def test_the_map_has_passed_the_last_norm():
    network = tiny().eval()
    with torch.no_grad():
        network.norm_head.weight.zero_()
        network.norm_head.bias.copy_(torch.arange(12.0))
        found = network(torch.rand(2, 3, 64, 64)).map
    assert torch.equal(found, torch.arange(12.0)[:, None, None].expand(2, 12, 2, 2))


def random_block(width=4, heads=2, window=2) -> _AttentionBlock:
    torch.manual_seed(1)
    block = _AttentionBlock(width, heads, window, 0.0).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
        block.local_conv.bn.running_var.uniform_(0.5, 2)
        block.local_conv.bn.running_mean.normal_()
    return block


@torch.no_grad()
def plain_attention(block, x):
    """Attention window by window, position by position and head by head; x (h, w, C), padded with zeros."""
    height, width, channels = x.shape
    attn, side = block.attn, block.window
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    padded = torch.zeros(rows * side, columns * side, channels, dtype=x.dtype)
    padded[:height, :width] = x
    size = channels // attn.heads
    found = torch.zeros_like(padded)
    for top in range(0, rows * side, side):
        for left in range(0, columns * side, side):
            places = [(top + i, left + j) for i in range(side) for j in range(side)]
            # Of each head its query, key and value lie together.
            parts = {place: attn.qkv(attn.norm(padded[place])).view(attn.heads, 3, size) for place in places}
            for here in places:
                mixed = []
                for head in range(attn.heads):
                    query = parts[here][head, 0]
                    scores = []
                    for there in places:
                        apart = abs(here[0] - there[0]) * side + abs(here[1] - there[1])
                        bias = attn.attention_biases[head, apart]
                        scores.append(query @ parts[there][head, 1] / math.sqrt(size) + bias)
                    shares = torch.stack(scores).softmax(0)
                    mixed.append(sum(s * parts[p][head, 2] for s, p in zip(shares, places, strict=True)))
                found[here] = attn.proj(torch.cat(mixed))
    return found[:height, :width]


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 6), (3, 5)])
def test_a_block_is_windowed_attention_a_convolution_and_a_perceptron(height, width):
    block = random_block()
    x = torch.randn(2, 4, height, width, dtype=torch.float64)
    found = block(x)
    for one, result in zip(x, found, strict=True):
        y = one + plain_attention(block, one.permute(1, 2, 0)).permute(2, 0, 1)
        y = block.local_conv(y[None])[0]
        tokens = y.permute(1, 2, 0)
        inner = nn.functional.gelu(block.mlp.fc1(block.mlp.norm(tokens)))
        expected = y + block.mlp.fc2(inner).permute(2, 0, 1)
        torch.testing.assert_close(result, expected)


def test_attention_looks_at_its_window_alone():
    block = random_block()
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64).permute(0, 2, 3, 1)
    before = block._attend(x)
    changed = x.clone()
    changed[0, 3, 3, 0] += 1
    difference = (block._attend(changed) - before).abs().sum(3)[0] > 1e-9
    assert difference[2:, 2:].all()
    assert difference.sum() == 4


def test_paths_are_dropped_by_picture_in_training_alone_and_keep_their_mean():
    drop, branch = _DropPath(0.25), torch.ones(4000, 2, 1, 1)
    assert drop.eval()(branch) is branch
    torch.manual_seed(0)
    dropped = drop.train()(branch)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)


def test_the_chance_of_dropping_a_path_rises_from_block_to_block():
    drops = [module.keep for module in tiny(0.2).modules() if isinstance(module, _DropPath)]
    assert drops == pytest.approx([1, 0.95, 0.9, 0.85, 0.8])


def test_every_parameter_is_trained_and_ghost_groups_reach_every_norm():
    student = Student(tiny(), Average(), [0.5] * 3, [0.5] * 3, ghost_group=2)
    student(torch.rand(4, 3, 64, 32)).embedding.square().sum().backward()
    without = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert not without
    norms = [module for module in student.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, GhostBatchNorm2d) for norm in norms)


def test_a_published_file_is_loaded_without_its_classifier(tmp_path):
    published = {name: torch.randn_like(value.float()) for name, value in tiny().state_dict().items()}
    extra = {
        "head.weight": torch.zeros(1000, 12),
        "head.bias": torch.zeros(1000),
        "layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(4, 4, dtype=torch.int64),
    }
    torch.save({"model": published | extra}, tmp_path / "tiny.pth")
    student = Student(tiny(), Average(), [0.5] * 3, [0.5] * 3)
    loaded = load_pretrained(student, tmp_path / "tiny.pth")
    assert loaded == {f"backbone.{name}" for name in published}
    state = student.state_dict()
    assert all(
        torch.equal(state[f"backbone.{name}"].float(), value)
        for name, value in published.items()
        if "num_batches" not in name
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": [4, 8, 8]}, r"TinyViT: widths is \[4, 8, 8\]; give 4 numbers"),
        ({"depths": [1, 0, 1, 1]}, r"TinyViT: depths is"),
        ({"heads": [1, 3, 2, 3]}, r"heads \[1, 3, 2, 3\] must divide widths \[4, 8, 8, 12\]"),
        ({"windows": []}, r"TinyViT: windows is \[\]"),
        ({"drop_path": 1.0}, r"TinyViT: drop_path is 1\.0"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(change, message):
    options = {
        "widths": [4, 8, 8, 12],
        "depths": [1, 1, 2, 1],
        "heads": [1, 2, 2, 3],
        "windows": [2, 2, 3, 2],
    }
    with pytest.raises(InputError, match=message) as caught:
        TinyViT(**(options | change))
    assert "\n" not in str(caught.value)


def test_the_release_s_student_has_512_features_of_224_pictures_and_no_neck():
    path = conf_dir() / "model" / "student" / "tiny_vit_21m_release.yaml"
    node, plain = (
        OmegaConf.create({"weights_dir": "w", "model": OmegaConf.load(file)}).model
        for file in (path, path.with_name("tiny_vit_21m.yaml"))
    )
    assert node.student.backbone == plain.student.backbone
    assert (node.pretrained, node.fetch) == (plain.pretrained, plain.fetch)
    with torch.device("meta"):
        student = instantiate(node.student)
    assert (student.channels, student.width) == (576, 512)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in student.modules())
