import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clip3dreid.errors import InputError
from clip3dreid.model import normalisation
from clip3dreid.model.normalisation import freeze, statistics_kept, use_ghost


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


def norm_of(kind: type[nn.Module], **how) -> nn.Module:
    """A norm with weights and running statistics that are not those it starts with."""
    torch.manual_seed(0)
    module = nn.Sequential(kind(5, **how))
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return module


LAYOUTS = {
    "rows": (nn.BatchNorm1d, (13, 5)),
    "sequences": (nn.BatchNorm1d, (13, 5, 7)),
    "maps": (nn.BatchNorm2d, (13, 5, 4, 3)),
    "channels last": (nn.BatchNorm2d, (13, 5, 4, 3)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [12, 14, 10, 6])
@pytest.mark.parametrize("how", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize("few", [1, normalisation.FEW])
def test_either_way_gives_values_gradients_statistics_and_layout_of_one_a_group(
    layout, batch, how, few, monkeypatch
):
    monkeypatch.setattr(normalisation, "FEW", few)
    kind, shape = LAYOUTS[layout]
    ghost = norm_of(kind, **how)
    apart = copy.deepcopy(ghost)
    use_ghost(ghost, 4)
    images = 2 + torch.randn(batch, *shape[1:], generator=torch.Generator().manual_seed(1))
    if layout == "channels last":
        images = images.to(memory_format=torch.channels_last)
    one, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    for _ in range(2):
        found = ghost(one)
        groups = other.split(4)
        first = apart(groups[0])
        with statistics_kept(apart):
            expected = torch.cat([first, *(apart(group) for group in groups[1:])])
    assert found.stride() == images.stride()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6)
    for (name, a), (_, b) in zip(ghost.named_parameters(), apart.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6, msg=name)
    for (name, a), (_, b) in zip(ghost.named_buffers(), apart.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("few", [1, normalisation.FEW])
def test_half_precision_inside_autocast_stays_so_and_agrees(few, monkeypatch):
    monkeypatch.setattr(normalisation, "FEW", few)
    ghost = norm_of(nn.BatchNorm2d)
    apart = copy.deepcopy(ghost)
    use_ghost(ghost, 4)
    images = torch.randn(8, 5, 4, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ghost(images)
        expected = torch.cat([apart(group) for group in images.split(4)])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


class Kernels(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not any(result.alias_info for result in func._schema.returns) or func._schema.is_mutable
        return func(*args, **(kwargs or {}))


def test_kernels_do_not_grow_with_the_number_of_groups_where_there_are_many():
    counts = {}
    for batch in (4 * (normalisation.FEW + 1), 32, 64):
        module = network()
        use_ghost(module, 4)
        with Kernels() as kernels:
            module(pictures(batch)).pow(3).sum().backward()
        counts[batch] = kernels.count
    assert len(set(counts.values())) == 1, counts


@pytest.mark.parametrize("few", [1, normalisation.FEW])
def test_groups_compile_without_a_break_in_the_graph(few, monkeypatch):
    monkeypatch.setattr(normalisation, "FEW", few)
    module = network().float()
    use_ghost(module, 4)
    plain = copy.deepcopy(module)
    images = pictures(8).float()
    found = torch.compile(module, backend="aot_eager", fullgraph=True)(images)
    torch.testing.assert_close(found, plain(images))
    for (name, a), (_, b) in zip(module.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


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


def as_it_is(module: nn.Module) -> None:
    """No change."""


CHANGES = [as_it_is, lambda module: use_ghost(module, 4), freeze]


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def prepared(change) -> nn.Sequential:
    """A network in training whose running statistics are no longer those it started with."""
    module = network()
    module(3 + pictures(16))
    change(module)
    return module.train()


@pytest.mark.parametrize("change", CHANGES)
def test_kept_statistics_and_counters_stay_to_the_bit(change):
    module = prepared(change)
    before = state(module)
    assert {name.rsplit(".", 1)[1] for name in before} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    with statistics_kept(module):
        for _ in range(3):
            module(pictures(8))
    after = state(module)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("change", CHANGES)
def test_kept_statistics_change_neither_outputs_nor_gradients(change):
    module = prepared(change)
    plain = copy.deepcopy(module)
    images = pictures(8)
    with statistics_kept(module):
        found = module(images)
    expected = plain(images)
    assert torch.equal(found, expected)
    found.pow(3).sum().backward()
    expected.pow(3).sum().backward()
    for (name, a), (_, b) in zip(module.named_parameters(), plain.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("change", CHANGES)
def test_statistics_move_again_after_the_block(change):
    module = prepared(change)
    plain = copy.deepcopy(module)
    with statistics_kept(module):
        module(pictures(8))
    module(5 + pictures(8))
    plain(5 + pictures(8))
    for (name, a), (_, b) in zip(module.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_statistics_move_again_after_an_exception():
    module = prepared(as_it_is)
    with pytest.raises(RuntimeError, match="in the block"), statistics_kept(module):
        raise RuntimeError("in the block")
    before = state(module)
    module(pictures(8))
    assert not any(torch.equal(before[name], buffer) for name, buffer in module.named_buffers())


def test_a_norm_that_never_tracked_anything_still_does_not():
    module = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    with statistics_kept(module):
        assert [norm.track_running_stats for norm in module] == [False, False]
    assert [norm.track_running_stats for norm in module] == [False, True]


def test_evaluation_inside_the_block_is_by_running_statistics():
    module = prepared(as_it_is).eval()
    expected = module(pictures(4))
    with statistics_kept(module):
        torch.testing.assert_close(module(pictures(4)), expected, rtol=0, atol=0)
