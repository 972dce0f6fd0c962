import copy

import pytest
import torch
from torch import nn

from clip3dreid.errors import InputError
from clip3dreid.model.normalisation import freeze, use_ghost


def network() -> nn.Sequential:
    """A small network with both kinds of batch norm, one of them nested."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(stem, nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6)).double()


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("batch", "sizes"), [(8, [4, 4]), (12, [4, 4, 4]), (10, [4, 4, 2]), (4, [4])])
def test_groups_compute_what_separate_passes_compute(batch, sizes):
    plain = network()
    ghost = copy.deepcopy(plain)
    use_ghost(ghost, 4)
    images = pictures(batch)
    after_first = copy.deepcopy(plain)
    after_first(images[: sizes[0]])
    apart = torch.cat([copy.deepcopy(plain)(part) for part in images.split(sizes)])
    together = ghost(images)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    # The running statistics are those of the first process.
    for (name, buffer), (_, expected) in zip(ghost.named_buffers(), after_first.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)


def test_groups_give_the_summed_gradients_of_separate_passes():
    plain = network()
    ghost = copy.deepcopy(plain)
    use_ghost(ghost, 4)
    images = pictures(8)
    ghost(images).pow(3).sum().backward()
    for part in images.split(4):
        plain(part).pow(3).sum().backward()
    for (name, a), (_, b) in zip(ghost.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_groups_differ_from_batch_statistics():
    plain = network()
    ghost = copy.deepcopy(plain)
    use_ghost(ghost, 4)
    images = pictures(8)
    assert (plain(images) - ghost(images)).abs().max() > 0.05


def test_evaluation_is_that_of_plain_batch_norm():
    plain = network()
    plain(pictures(16))
    ghost = copy.deepcopy(plain)
    use_ghost(ghost, 2)
    images = pictures(8)
    assert torch.equal(plain.eval()(images), ghost.eval()(images))


@pytest.mark.parametrize("change", [freeze, lambda module: use_ghost(module, 4)])
def test_names_and_shapes_of_the_state_do_not_change(change):
    plain, changed = network(), network()
    change(changed)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in changed.state_dict().items()
    }
    changed.load_state_dict(plain.state_dict())


def test_frozen_norms_survive_training_unchanged():
    frozen = network()
    frozen(pictures(16))  # statistics worth keeping
    expected = copy.deepcopy(frozen).eval()
    freeze(frozen)
    frozen.train()
    images = pictures(8)
    # One picture at a time: nothing depends on the rest of the batch.
    torch.testing.assert_close(torch.cat([frozen(x) for x in images.split(1)]), expected(images))
    torch.testing.assert_close(frozen(images), expected(images))
    trained = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trained == {"0.0.weight", "0.0.bias", "2.weight", "2.bias"}


def test_a_parameter_kept_from_training_stays_so():
    module = network()
    module[3].bias.requires_grad_(False)
    use_ghost(module, 4)
    assert not module[3].bias.requires_grad
    assert module[3].weight.requires_grad


def test_a_group_of_one_is_refused():
    with pytest.raises(InputError, match="ghost_group 1"):
        use_ghost(network(), 1)
