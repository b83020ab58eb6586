"""Distances to the images of an adapter, and their ratio to those of held-out images."""

from __future__ import annotations

import numpy as np
import pytest

from gen_unlearn.metrics.adapter_copying import AdaptedImages, median_ratios, own_distances


def grey(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(-1, 1, 1, 1)


def of(*adapters: list[int]) -> np.ndarray:
    return np.array(adapters, dtype=np.int64)


def test_distances_are_to_images_of_the_same_adapter_alone() -> None:
    training = AdaptedImages(grey(0, 51, 255), of([0], [1], [1]))
    images = AdaptedImages(grey(0, 0, 204, 5), of([0], [1], [1], [2]))
    np.testing.assert_allclose(own_distances(images, training), [0, 0.2, 0.2, np.inf])


def test_the_nearest_of_several_adapters_counts() -> None:
    training = AdaptedImages(grey(0, 51), of([0, 2], [1, 2]))
    images = AdaptedImages(grey(51, 51, 102), of([0, 1], [0, -1], [2, -1]))
    np.testing.assert_allclose(own_distances(images, training), [0, 0.2, 0.2])


def test_each_adapter_counts_once() -> None:
    distances, adapters = np.array([1.0, 1.0, 1.0, 9.0, 5.0]), np.array([0, 0, 0, 1, 2])
    others, of_others = np.array([2.0, 3.0, 4.0]), np.array([0, 1, 3])
    np.testing.assert_allclose(median_ratios(distances, adapters, others, of_others), [0.5, 3])


def test_adapters_without_a_comparison_are_left_out() -> None:
    distances = np.array([1.0, np.inf, 1.0])
    others = np.array([0.0, 1.0, np.inf])
    rows = np.arange(3)
    assert median_ratios(distances, rows, others, rows).shape == (0,)


def test_other_numbers_of_adapters_are_refused() -> None:
    with pytest.raises(ValueError, match="adapters of 2 images"):
        AdaptedImages(grey(0, 1), of([0]))
