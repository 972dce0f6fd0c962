"""Textureless bodies as guides."""

import numpy as np
import torch

from clip3dreid.guidance.bodies import moments


def test_moments_are_those_of_the_bodies_and_not_of_a_sample() -> None:
    mean, deviation = moments(np.array([[1, 10], [3, 10], [5, 40], [7, 40]], np.float32))
    # Deviations -3 -1 1 3 and -15 -15 15 15, variances 20 / 4 and 225.
    torch.testing.assert_close(mean, torch.tensor([4.0, 25.0]))
    torch.testing.assert_close(deviation, torch.tensor([5**0.5, 15.0]))


def test_a_coefficient_that_never_varies_has_a_deviation_of_one() -> None:
    mean, deviation = moments(np.array([[0.1, 1], [0.1, 2], [0.1, 3]], np.float32))
    torch.testing.assert_close(mean, torch.tensor([0.1, 2.0]))
    torch.testing.assert_close(deviation, torch.tensor([1.0, (2 / 3) ** 0.5]))


def test_moments_of_many_bodies_keep_their_precision() -> None:
    # In float32, sums of as many numbers around 1000 lose the deviation.
    betas = 1000 + np.random.default_rng(0).normal(0, 0.5, (50_000, 1))
    mean, deviation = moments(betas.astype(np.float32))
    assert abs(mean.item() - betas.mean()) < 1e-3
    assert abs(deviation.item() - betas.std()) < 1e-4
