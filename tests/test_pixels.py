"""The mapping between stored pixels and what networks see loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gen_unlearn.pixels import LARGEST_PLAUSIBLE_VALUE, to_model_input, to_uint8

ALL_VALUES = np.arange(256, dtype=np.uint8)


def pixel(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """One grey image of one pixel."""
    return torch.full((1, 1, 1, 1), value, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_value_survives_the_round_trip(dtype: torch.dtype) -> None:
    images = ALL_VALUES.reshape(4, 8, 8, 1)
    samples = to_model_input(images).to(dtype)
    assert np.array_equal(to_uint8(samples), images)


def test_input_is_channels_first_from_minus_one_to_one() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    samples = to_model_input(images)
    assert (samples.shape, samples.dtype) == ((2, 3, 3, 5), torch.float32)
    for image, row, column, channel in np.ndindex(images.shape):
        expected = images[image, row, column, channel] / 127.5 - 1
        assert abs(samples[image, channel, row, column].item() - expected) < 1e-6
    assert np.array_equal(to_uint8(samples), images)
    grey = to_model_input(ALL_VALUES.reshape(1, 16, 16, 1))
    assert (grey.min(), grey.max()) == (-1, 1)


def test_conversion_does_not_touch_the_stored_pixels() -> None:
    images = ALL_VALUES.reshape(1, 16, 16, 1).copy()
    to_model_input(images).zero_()
    assert np.array_equal(images.ravel(), ALL_VALUES)


@pytest.mark.parametrize("value", ALL_VALUES[1:-1:23].tolist())
def test_values_between_two_pixels_go_to_the_nearest(value: int) -> None:
    for offset, expected in ((-0.49, value), (0.49, value), (0.51, value + 1), (-0.51, value - 1)):
        assert to_uint8(pixel((value + offset) / 127.5 - 1)).item() == expected


@pytest.mark.parametrize(("value", "expected"), [(-1.04, 0), (-7.9, 0), (1.03, 255), (7.9, 255)])
def test_overshoot_is_clamped_and_never_wraps(value: float, expected: int) -> None:
    assert to_uint8(pixel(value)).item() == expected


@pytest.mark.parametrize("value", [LARGEST_PLAUSIBLE_VALUE + 0.1, -9.0, 664.0, float("inf"), float("nan")])
def test_a_diverged_sampler_is_an_error(value: float) -> None:
    samples = torch.zeros(2, 1, 4, 4)
    samples[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match="the sampler diverged: values reach"):
        to_uint8(samples)


def test_no_images_are_no_error() -> None:
    assert to_uint8(to_model_input(np.empty((0, 8, 8, 1), dtype=np.uint8))).shape == (0, 8, 8, 1)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 8, 8, 1), dtype=np.float32), np.zeros((8, 8, 1), dtype=np.uint8)]
)
def test_other_arrays_are_refused(images: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"expected uint8 images of shape \(n, height, width, channels\), got"
    ):
        to_model_input(images)
