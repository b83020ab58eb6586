"""Importance weights of SISS against densities, in closed form and by Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gen_unlearn.methods.diffusion.siss_weights import (
    importance_weights,
    interpolated,
    mixed,
    weight_entropy,
)

LAMBDAS = (0.0, 0.01, 0.3, 0.5, 0.99, 1.0)


def some_pairs(count: int, shape: tuple[int, ...] = (2, 3, 3)) -> tuple[Tensor, ...]:
    """Two images, noise, gamma, sigma, and which image is the source, in float64."""
    draws = torch.Generator().manual_seed(0)
    first, second = (torch.rand(count, *shape, generator=draws, dtype=torch.float64) * 2 - 1 for _ in "xa")
    noise = torch.randn(count, *shape, generator=draws, dtype=torch.float64)
    signal = torch.rand(count, generator=draws, dtype=torch.float64) * 0.9 + 0.05
    return first, second, noise, signal, (1 - signal**2).sqrt(), torch.arange(count) % 2 == 0


def constant(value: float, like: Tensor) -> Tensor:
    return torch.full_like(like, value)


def test_the_gap_in_closed_form_is_the_difference_of_distances() -> None:
    first, second, noise, signal, deviation, chosen = some_pairs(40)
    found = mixed(first, second, noise, signal, deviation, chosen)
    gamma, sigma = signal[:, None, None, None], deviation[:, None, None, None]
    for image, own in ((first, found.noise_first), (second, found.noise_second)):
        torch.testing.assert_close(own, (found.noisy - gamma * image) / sigma, rtol=1e-12, atol=1e-12)
    to_first, to_second = (
        ((found.noisy - gamma * image) ** 2).sum(dim=(1, 2, 3)) / (2 * deviation**2)
        for image in (first, second)
    )
    torch.testing.assert_close(found.gap, to_second - to_first, rtol=1e-11, atol=1e-11)
    source = torch.where(chosen[:, None, None, None], second, first)
    torch.testing.assert_close(found.noisy, gamma * source + sigma * noise)


@pytest.mark.parametrize("mixture", LAMBDAS)
def test_weights_are_ratios_of_densities(mixture: float) -> None:
    gap = torch.linspace(-20, 20, 81, dtype=torch.float64)
    of_first, of_second = importance_weights(gap, constant(mixture, gap))
    total = (1 - mixture) + mixture * torch.exp(-gap)
    torch.testing.assert_close(of_first, 1 / total, rtol=1e-10, atol=0)
    torch.testing.assert_close(of_second, torch.exp(-gap) / total, rtol=1e-10, atol=0)


@pytest.mark.parametrize("mixture", LAMBDAS)
def test_weights_have_the_mean_one_over_the_mixture(mixture: float) -> None:
    gap = torch.tensor([-torch.inf, -1e30, -500.0, -1.0, 0.0, 1.0, 500.0, 1e30, torch.inf])
    of_first, of_second = importance_weights(gap, constant(mixture, gap))
    assert of_first.isfinite().all()
    assert of_second.isfinite().all()
    if 0 < mixture < 1:
        whole = (1 - mixture) * of_first + mixture * of_second
        torch.testing.assert_close(whole, torch.ones_like(gap))


@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_large_images_have_finite_weights_and_losses_in_float32(mixture: float) -> None:
    """256 x 256 pixels, the noise of the first, of a middle and of the last timestep, far apart and equal."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    at = (1 - betas).cumprod(dim=0)[[0, 500, 999]].float()
    signal, deviation = at.sqrt(), (1 - at).sqrt()
    noise = torch.randn(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    first = torch.ones(3, 3, 256, 256)
    chosen = torch.tensor([mixture > 0.4, mixture > 0.6, mixture > 0.4])
    for second in (-first, first):
        found = mixed(first, second, noise, signal, deviation, chosen)
        weights = importance_weights(found.gap, constant(mixture, found.gap))
        prediction = torch.zeros_like(first, requires_grad=True)
        parts = zip(weights, (found.noise_first, found.noise_second), strict=True)
        losses = [weight * (prediction - own).square().mean(dim=(1, 2, 3)) for weight, own in parts]
        (gradient,) = torch.autograd.grad((losses[0] - losses[1]).sum(), prediction)
        for value in (found.gap, *weights, *losses, gradient):
            assert value.isfinite().all()


@pytest.mark.parametrize("mixture", [0.0, 0.2, 0.5, 1.0])
def test_the_loss_is_unbiased_for_what_is_retained(mixture: float) -> None:
    """One pixel, a linear denoiser, three images of which the last is to be forgotten."""
    images, gamma, sigma, slope, offset = torch.tensor([-0.5, 0.2, 0.6]).double(), 0.6, 0.8, 0.7, 0.1
    count = 300_000
    draws = torch.Generator().manual_seed(1)
    first = images[torch.randint(0, 3, (count,), generator=draws)].reshape(-1, 1, 1, 1)
    second = torch.full_like(first, 0.6)
    noise = torch.randn(first.shape, generator=draws, dtype=torch.float64)
    chosen = torch.rand(count, generator=draws) < mixture
    signal, deviation = torch.full((count,), gamma).double(), torch.full((count,), sigma).double()
    found = mixed(first, second, noise, signal, deviation, chosen)
    of_first, of_second = importance_weights(found.gap, constant(mixture, found.gap))
    predicted = (slope * found.noisy + offset).flatten()
    values = 3 / 2 * of_first * (found.noise_first.flatten() - predicted) ** 2
    values = values - 1 / 2 * of_second * (found.noise_second.flatten() - predicted) ** 2
    expected = ((1 - slope * sigma) ** 2 + (slope * gamma * images[:2] + offset) ** 2).mean()
    error = values.std() / math.sqrt(count)
    assert abs(values.mean() - expected) < 4 * error
    assert error < 0.01 * expected, "else the test could not fail"


def test_entropy_says_how_much_is_shared() -> None:
    gap = torch.tensor([-torch.inf, -200.0, 0.0, 200.0, torch.inf])
    entropy = weight_entropy(gap, constant(0.5, gap))
    torch.testing.assert_close(entropy, torch.tensor([0, 0, math.log(2), 0, 0]))
    for certain in (0.0, 1.0):
        assert not weight_entropy(gap, constant(certain, gap)).any()


def test_schedules_are_straight_lines_between_their_numbers() -> None:
    timesteps = torch.tensor([0, 25, 50, 75, 100])
    found = interpolated((0.0, 1.0, 0.5), timesteps, 101)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 1.0, 0.75, 0.5]))
    assert interpolated((0.3,), timesteps, 101).tolist() == pytest.approx([0.3] * 5)
