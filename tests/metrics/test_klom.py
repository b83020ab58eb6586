"""Tests of KLoM on normal margins and against its definition."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gen_unlearn.metrics.klom import Smoothing, klom_gauss, klom_hist20, model_errors, permutation_floor


def pools(shift: float, models: int, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw margins of two pools that differ by `shift` standard deviations; images differ."""
    generator = np.random.default_rng(seed)
    mean, scale = generator.normal(0, 5, images), generator.uniform(0.5, 3, images)
    unlearned, retrained = generator.normal(size=(2, models, images))
    return mean + scale * (unlearned + shift), mean + scale * retrained


def test_equals_its_definition() -> None:
    unlearned, retrained = pools(0.5, 12, 30)
    unlearned[0, 0] = 400.0
    expected = []
    for u, r in zip(np.clip(unlearned, -100, 100).T, np.clip(retrained, -100, 100).T, strict=True):
        ends = (min(u.min(), r.min()), max(u.max(), r.max()))
        p, q = (np.histogram(m, bins=20, range=ends)[0] / 12 + 1e-5 for m in (u, r))
        p, q = p / p.sum(), q / q.sum()
        expected.append((p * np.log(p / q)).sum())
    result = klom_hist20(unlearned, retrained)
    np.testing.assert_allclose(result.per_image, expected, rtol=1e-9)
    assert result.mean.value == pytest.approx(np.mean(expected))
    assert result.p95.value == pytest.approx(np.percentile(expected, 95))


def test_divergence_is_of_unlearned_from_retrained() -> None:
    unlearned, retrained = np.zeros((2, 2)), np.array([[0.0, 0.0], [1.0, 1.0]])
    forward, reverse = klom_hist20(unlearned, retrained), klom_hist20(retrained, unlearned)
    assert forward.mean.value == pytest.approx(np.log(2), abs=1e-3)
    assert reverse.mean.value == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5e5), abs=1e-3)


@pytest.mark.parametrize(
    ("models", "mean", "p95", "half_count"),
    [
        (16, 3.87, 5.93, 0.43),
        (32, 1.69, 3.04, 0.34),
        (50, 0.88, 1.73, 0.26),
        (100, 0.35, 0.69, 0.16),
        (200, 0.15, 0.29, 0.08),
    ],
)
def test_null_of_normal_pools(models: int, mean: float, p95: float, half_count: float) -> None:
    unlearned, retrained = pools(0.0, models, 1_500)
    result = klom_hist20(unlearned, retrained)
    tolerance = 0.05 if models >= 100 else 0.1
    assert result.mean.value == pytest.approx(mean, abs=tolerance)
    assert result.p95.value == pytest.approx(p95, abs=2 * tolerance)
    smoothed = klom_hist20(unlearned, retrained, smoothing="half_count")
    assert smoothed.mean.value == pytest.approx(half_count, abs=0.03)


def test_shift_of_one_deviation() -> None:
    unlearned, retrained = pools(1.0, 100, 2_000)
    assert klom_hist20(unlearned, retrained).mean.value == pytest.approx(1.21, abs=0.05)
    assert klom_gauss(unlearned, retrained).mean.value == pytest.approx(0.5, abs=0.05)


def test_normal_divergence_by_hand() -> None:
    unlearned, retrained = np.tile([[0.0], [2.0]], (1, 3)), np.tile([[1.0], [5.0]], (1, 3))
    # Means 1 and 3, variances 2 and 8.
    expected = 0.5 * np.log(4) + (2 + 4) / 16 - 0.5
    np.testing.assert_allclose(klom_gauss(unlearned, retrained).per_image, expected)


def test_floor_is_that_of_new_pools_of_one_law() -> None:
    unlearned, retrained = pools(0.0, 24, 600)
    floor = permutation_floor(unlearned, retrained, permutations=40)
    value = klom_hist20(unlearned, retrained)
    assert floor.mean.value == pytest.approx(value.mean.value, abs=4 * floor.mean.standard_error)
    assert floor.p95.value == pytest.approx(value.p95.value, abs=4 * floor.p95.standard_error)
    assert floor.mean_interval[0] < floor.mean.value < floor.mean_interval[1]
    json.dumps(floor.as_dict())


@pytest.mark.parametrize("form", ["hist20", "hist20_half_count", "gauss"])
def test_floor_is_below_a_shift(form: str) -> None:
    unlearned, retrained = pools(1.5, 16, 300)
    value = {
        "hist20": lambda: klom_hist20(unlearned, retrained),
        "hist20_half_count": lambda: klom_hist20(unlearned, retrained, smoothing="half_count"),
        "gauss": lambda: klom_gauss(unlearned, retrained),
    }[form]()
    floor = permutation_floor(unlearned, retrained, form, permutations=40)  # type: ignore[arg-type]
    assert value.form == floor.form == form
    assert value.mean.value > floor.mean_interval[1]


def test_permutations_keep_models_whole() -> None:
    generator = np.random.default_rng(0)
    # Margins move together in every image: whole models give a floor that varies as few models do.
    together = np.repeat(generator.normal(size=(16, 1)), 200, axis=1)
    floor = permutation_floor(together[:8], together[8:], "gauss", permutations=60)
    apart = permutation_floor(*pools(0.0, 8, 200), "gauss", permutations=60)
    assert floor.mean.standard_error > 4 * apart.mean.standard_error


@pytest.mark.parametrize("smoothing", ["epsilon", "half_count"])
def test_constant_margins_do_not_diverge(smoothing: Smoothing) -> None:
    result = klom_hist20(np.ones((5, 4)), np.ones((5, 4)), smoothing)
    assert result.per_image.tolist() == [0.0] * 4
    json.dumps(result.as_dict())


def test_wrong_arguments_raise() -> None:
    margins = np.zeros((4, 3))
    with pytest.raises(ValueError, match="at least 2 models"):
        klom_gauss(margins[:1], margins)
    with pytest.raises(ValueError, match="expected smoothing"):
        klom_hist20(margins, margins, smoothing="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a form"):
        permutation_floor(margins, margins, form="kde")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two permutations"):
        permutation_floor(margins, margins, permutations=1)
    with pytest.raises(ValueError, match="two images"):
        klom_hist20(margins[:, :1], margins[:, :1])


def test_an_image_on_which_retrained_models_agree_does_not_outweigh_the_others() -> None:
    unlearned, retrained = pools(0.0, 10, 50)
    before = klom_gauss(unlearned, retrained)
    unlearned[:, 0] = retrained[:, 0] = 27.6  # the least log-probability, to the last bit
    assert klom_gauss(unlearned, retrained).per_image[0] == 0
    unlearned[0, 0] += 1e-6
    assert klom_gauss(unlearned, retrained).per_image[0] < 1e-3, "rounding is no divergence"
    unlearned[0, 0] -= 5
    after = klom_gauss(unlearned, retrained)
    assert after.per_image[0] == pytest.approx(np.log(1e5))
    np.testing.assert_array_equal(after.per_image[1:], before.per_image[1:])


def test_errors_of_other_models_are_not_too_small_where_models_move_together() -> None:
    generator = np.random.default_rng(0)

    def pool() -> np.ndarray:
        return generator.normal(size=(8, 100)) + generator.normal(size=(8, 1))

    drawn = [(pool(), pool()) for _ in range(60)]
    spread = float(np.std([klom_gauss(*pair).mean.value for pair in drawn]))
    errors = [model_errors(*pair, "gauss")[0] for pair in drawn]
    assert np.median(errors) > 0.7 * spread
    assert np.median([klom_gauss(*pair).mean.standard_error for pair in drawn]) < 0.5 * spread
    with pytest.raises(ValueError, match="at least 4 models"):
        model_errors(*(each[:3] for each in drawn[0]))
