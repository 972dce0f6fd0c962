import re

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from clip3dreid.errors import InputError
from clip3dreid.model.pooling import ClassToken
from clip3dreid.model.student import Student
from clip3dreid.model.vision_transformer import VisionTransformer

SIZES = {"channels": 12, "depth": 2, "heads": 3, "patch": 4}
THEIRS = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
# The library's names of the parts -> ours, whatever it calls the blocks around them.
KINDS = (
    (r".*layers?\.(\d+)\..*\.(q|k|v)_proj\.", r"blocks.\1.attn.qkv.\2."),
    (r".*layers?\.(\d+)\..*\.(o|out)_proj\.", r"blocks.\1.attn.proj."),
    (r".*layers?\.(\d+)\.(layer_norm1|layernorm_before)\.", r"blocks.\1.norm1."),
    (r".*layers?\.(\d+)\.(layer_norm2|layernorm_after)\.", r"blocks.\1.norm2."),
    (r".*layers?\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r".*(class_embedding|cls_token)$", "cls_token"),
    (r".*(position_embedding\.weight|position_embeddings)$", "pos_embed"),
    (r".*(patch_embedding|projection)\.(weight|bias)$", r"patch_embed.\2"),
    (r"pre_layrnorm\.", "norm_pre."),
    (r"^(post_)?layernorm\.", "norm."),
)


def small(height: int = 16, width: int = 16, stride: int = 4, **how: object) -> VisionTransformer:
    torch.manual_seed(0)
    network = VisionTransformer(height, width, **SIZES, stride=stride, **how)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network.double().eval()


def fill(theirs: torch.nn.Module, ours: VisionTransformer) -> torch.nn.Module:
    """Our weights under the library's names, where queries, keys and values are apart."""
    state = ours.state_dict()
    used = set()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            here = name
            for pattern, kind in KINDS:
                here = re.sub(pattern, kind, here)
            part = re.search(r"qkv\.([qkv])\.", here)
            here = here.replace(part[0], "qkv.") if part else here
            tensor = state[here].chunk(3)["qkv".index(part[1])] if part else state[here]
            parameter.copy_(tensor.reshape(parameter.shape))
            used.add(here)
    assert used == state.keys()
    return theirs.double().eval()


@pytest.mark.parametrize("clip", [False, True])
@torch.no_grad()
def test_on_a_square_grid_it_is_the_network_of_transformers(clip: bool) -> None:
    ours = small(clip=clip, eps=1e-5)
    theirs = (
        CLIPVisionModel(CLIPVisionConfig(**THEIRS, hidden_act="quick_gelu", layer_norm_eps=1e-5))
        if clip
        else ViTModel(ViTConfig(**THEIRS, layer_norm_eps=1e-5), add_pooling_layer=False)
    )
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    tokens = fill(theirs, ours)(pixel_values=images).last_hidden_state
    if clip:  # which norms its class token alone
        tokens = ours.norm(tokens)
    found = ours(images)
    torch.testing.assert_close(found.token, tokens[:, 0])
    torch.testing.assert_close(found.map, tokens[:, 1:].mT.unflatten(2, (4, 4)))


@pytest.mark.parametrize(
    ("height", "width", "stride", "grid"),
    [(32, 16, 4, (8, 4)), (32, 16, 3, (10, 5)), (256, 128, 4, (64, 32)), (33, 18, 4, (8, 4))],
)
def test_the_grid_need_not_be_square_and_patches_may_overlap(
    height: int, width: int, stride: int, grid: tuple[int, int]
) -> None:
    network = VisionTransformer(height, width, **SIZES, stride=stride)
    assert network.pos_embed.shape == (1, grid[0] * grid[1] + 1, 12)
    found = network(torch.rand(2, 3, height, width))
    assert found.map.shape == (2, 12, *grid)
    assert found.token is not None
    assert found.token.shape == (2, 12)


@torch.no_grad()
def test_positions_of_another_size_are_those_learnt_resized() -> None:
    network = small(32, 16)
    assert network._positions((8, 4)) is network.pos_embed
    found = network._positions((6, 6))
    learnt = network.pos_embed[0, 1:].T.reshape(1, 12, 8, 4)
    expected = F.interpolate(learnt, size=(6, 6), mode="bicubic")
    assert torch.equal(found[0, 0], network.pos_embed[0, 0])
    torch.testing.assert_close(found[0, 1:].T.reshape(1, 12, 6, 6), expected)
    assert network(torch.rand(1, 3, 24, 24, dtype=torch.float64)).map.shape == (1, 12, 6, 6)


def test_every_parameter_is_trained() -> None:
    student = Student(VisionTransformer(32, 16, **SIZES), ClassToken(), [0.5] * 3, [0.5] * 3, neck_bias=False)
    features = student(torch.rand(4, 3, 32, 16))
    (features.embedding.square().sum() + features.map.sum()).backward()
    without = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert without == ["neck.bias"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 5}, "heads=5 must divide channels=12"),
        ({"depth": 0}, "VisionTransformer: depth=0"),
        ({"stride": 2.5}, "VisionTransformer: stride=2.5"),
        ({"height": 3}, "no patch of 4x4 fits into a picture of 3x16"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        VisionTransformer(**({"height": 16, "width": 16} | SIZES | change))
    assert "\n" not in str(caught.value)


def test_a_picture_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(InputError, match="no patch of 4x4 fits into a picture of 16x3"):
        small().float()(torch.rand(1, 3, 16, 3))
