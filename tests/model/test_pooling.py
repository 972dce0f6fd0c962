import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.model.backbone import BackboneOutput
from clip3dreid.model.pooling import (
    Average,
    ClassToken,
    FullyConnected,
    GeneralisedMean,
    Maximum,
    MaximumAverage,
    ProjectedToken,
    WeighedPositions,
)

# One picture, two channels, a map of 1 x 2 positions.
SMALL = BackboneOutput(torch.tensor([[[[1.0, 3.0]], [[2.0, 8.0]]]]), torch.tensor([[7.0, 9.0]]))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Average(), [2.0, 5.0]),
        (Maximum(), [3.0, 8.0]),
        (MaximumAverage(), [3.0, 8.0, 2.0, 5.0]),
        (GeneralisedMean(p=2), [5.0**0.5, 34.0**0.5]),
        (ClassToken(), [7.0, 9.0]),
    ],
)
def test_poolings_give_the_values_worked_by_hand(pooling, expected):
    torch.testing.assert_close(pooling(SMALL), torch.tensor([expected]))


def test_generalised_mean_is_the_mean_at_one_and_nears_the_maximum_at_a_hundred():
    features = BackboneOutput(torch.rand(2, 5, 4, 3) + 0.1, None)
    torch.testing.assert_close(GeneralisedMean(p=1)(features), features.map.mean((2, 3)))
    # 12 positions: the maximum is reached up to a factor of 12 ** (1 / 100).
    pooled, maximum = GeneralisedMean(p=100)(features), features.map.amax((2, 3))
    assert ((pooled <= maximum * 1.0001) & (pooled >= maximum * 12**-0.01 * 0.9999)).all()


def test_generalised_mean_learns_p_and_survives_zeros_and_half_precision():
    pooling = GeneralisedMean().half()
    activations = torch.zeros(1, 2, 2, 2, dtype=torch.half)
    activations[0, 0] = 90.0  # its cube leaves the range of half precision
    pooled = pooling(BackboneOutput(activations.requires_grad_(), None))
    assert pooled[0, 0].item() == pytest.approx(90.0, rel=1e-4)
    pooled.sum().backward()
    assert torch.isfinite(pooling.p.grad).all()


def test_class_token_of_a_backbone_without_one_is_an_input_error():
    with pytest.raises(InputError, match="class token"):
        ClassToken()(BackboneOutput(SMALL.map, None))


def test_weighed_positions_sum_places_and_reduce_channels():
    pooling = WeighedPositions(positions=2, channels=2, width=3)
    with torch.no_grad():
        pooling.weight.copy_(torch.tensor([10.0, -1.0]))
        pooling.reduce.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
        pooling.reduce.bias.copy_(torch.tensor([0.0, 0, 5]))
    # Channels: 10 x 1 - 3 = 7 and 10 x 2 - 8 = 12.
    torch.testing.assert_close(pooling(SMALL), torch.tensor([[7.0, 12.0, 24.0]]))


def test_weighed_positions_refuse_a_map_of_another_size():
    with pytest.raises(
        InputError, match=r"2 channels and 49 positions, the map has 2 and 2.*datamodule\.height"
    ):
        WeighedPositions(positions=49, channels=2, width=3)(SMALL)
    with pytest.raises(InputError, match="at least 1"):
        WeighedPositions(positions=0, channels=2, width=3)


@torch.no_grad()
def test_fully_connected_is_the_mean_a_linear_layer_a_norm_and_no_less_than_zero():
    pooling = FullyConnected(channels=2, width=3).eval()
    pooling.linear.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    pooling.linear.bias.copy_(torch.tensor([0.0, 0, 5]))
    pooling.norm.running_mean.copy_(torch.tensor([1.0, 9, 0]))
    pooling.norm.running_var.fill_(4.0 - pooling.norm.eps)
    # Means of the map's channels are 2 and 5: (2 - 1) / 2, (5 - 9) / 2 and (2 + 5 + 5) / 2.
    torch.testing.assert_close(pooling(SMALL), torch.tensor([[0.5, 0.0, 6.0]]))


@torch.no_grad()
def test_a_projected_token_stands_beside_the_token():
    pooling = ProjectedToken(channels=2, width=3)
    pooling.projection.copy_(torch.tensor([[1.0, 0, 2], [0, 1, 3]]))
    token = torch.tensor([[10.0, 1.0]])
    torch.testing.assert_close(
        pooling(SMALL._replace(token=token)), torch.tensor([[10.0, 1.0, 10.0, 1.0, 23.0]])
    )
    with pytest.raises(InputError, match="class token"):
        pooling(SMALL._replace(token=None))


@pytest.mark.parametrize("pooling", [FullyConnected, ProjectedToken])
def test_widths_that_hold_nothing_are_refused(pooling):
    with pytest.raises(InputError, match=f"{pooling.__name__}: channels 2 and width 0 must be at least 1"):
        pooling(2, 0)
