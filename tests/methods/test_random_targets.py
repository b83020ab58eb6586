"""Random labels: pure functions of the image, the seed and the time."""

from __future__ import annotations

import numpy as np
import pytest
from small_requests import small_images

from gen_unlearn.methods.random_targets import Relabel, random_targets

IDS = np.random.default_rng(0).integers(0, 256, (3000, 16), dtype=np.uint8)
LABELS = np.arange(3000, dtype=np.int64) % 5


def draw(mode: Relabel, time: int = 0, seed: int = 0) -> np.ndarray:
    return random_targets(IDS, LABELS, 5, mode, seed=seed, time=time, excluded=(1, 3))


def test_parts_get_the_labels_of_the_whole() -> None:
    whole = draw("exclude_true")
    for process in range(2):
        rows = np.random.default_rng(process).permutation(np.arange(process, 3000, 2))
        part = random_targets(IDS[rows], LABELS[rows], 5, "exclude_true", seed=0, time=0)
        assert np.array_equal(part, whole[rows])


def test_allows_what_the_mode_says() -> None:
    assert set(draw("include_true")) == set(range(5))
    assert (draw("include_true") == LABELS).any()
    assert not (draw("exclude_true") == LABELS).any()
    assert set(draw("exclude_classes")) == {0, 2, 4}


@pytest.mark.parametrize("mode", ["include_true", "exclude_true", "exclude_classes"])
def test_is_uniform(mode: Relabel) -> None:
    drawn = draw(mode)
    for own in range(5):
        counts = np.bincount(drawn[own == LABELS], minlength=5)
        allowed = {"include_true": 5, "exclude_true": 4, "exclude_classes": 3}[mode]
        assert np.count_nonzero(counts) == allowed
        expected = 600 / allowed
        assert (np.abs(counts[counts > 0] - expected) < 5 * np.sqrt(expected)).all()


def test_time_and_seed_give_other_labels() -> None:
    first = draw("include_true")
    assert np.array_equal(first, draw("include_true"))
    for other in (draw("include_true", time=1), draw("include_true", seed=1)):
        assert abs((first == other).mean() - 0.2) < 0.04
    assert not np.array_equal(draw("include_true", time=2**32), draw("include_true", time=1))


def test_there_must_be_a_label() -> None:
    images = small_images(3, seed=0)
    with pytest.raises(ValueError, match="none of 3 classes"):
        random_targets(images.ids, images.labels, 3, "exclude_classes", seed=0, time=0, excluded=(0, 1, 2))
    with pytest.raises(ValueError, match="none of 1 classes"):
        random_targets(images.ids, images.labels * 0, 1, "exclude_true", seed=0, time=0)
