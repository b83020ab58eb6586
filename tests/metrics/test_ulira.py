"""Tests of U-LiRA on normal margins, where the law of every value is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from gen_unlearn.metrics.ulira import Variance, ulira_loo, ulira_scores


def pools(shift: float, models: int, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw margins of models that differ by `shift` standard deviations; images differ widely."""
    generator = np.random.default_rng(seed)
    mean, scale = generator.normal(0, 5, images), generator.uniform(0.5, 3, images)
    unlearned, retrained = generator.normal(size=(2, models, images))
    return mean + scale * (unlearned + shift), mean + scale * retrained


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the area under the curve of pooled scores."""
    return float(stats.mannwhitneyu(positive.ravel(), negative.ravel()).statistic) / (
        positive.size * negative.size
    )


def fitted_scores(
    unlearned: np.ndarray, retrained: np.ndarray, exclude: tuple[bool, bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Score each index by explicit fits, leaving it out of the unlearned and of the retrained pool or not."""
    found = []
    for k in range(len(unlearned)):
        u = np.delete(unlearned, k, axis=0) if exclude[0] else unlearned
        r = np.delete(retrained, k, axis=0) if exclude[1] else retrained
        u_law = stats.norm(u.mean(axis=0), u.std(axis=0, ddof=1))
        r_law = stats.norm(r.mean(axis=0), r.std(axis=0, ddof=1))
        found.append([u_law.logpdf(m) - r_law.logpdf(m) for m in (unlearned[k], retrained[k])])
    positive, negative = np.moveaxis(np.array(found), 1, 0)
    return positive, negative


def test_scores_equal_explicit_fits() -> None:
    unlearned, retrained = pools(0.7, 6, 40)
    positive, negative = fitted_scores(unlearned, retrained, (True, True))
    found = ulira_scores(unlearned, retrained, "separate")
    np.testing.assert_allclose(found, (positive, negative), rtol=1e-9, atol=1e-9)


def test_averaged_variance_by_hand() -> None:
    # Without index 0: means 2 and 10, variances 2 and 8, both 5 when averaged.
    unlearned, retrained = np.array([[4.0], [1.0], [3.0]]), np.array([[7.0], [8.0], [12.0]])
    positive, negative = ulira_scores(unlearned, retrained)
    assert positive[0, 0] == pytest.approx(((4 - 10) ** 2 - (4 - 2) ** 2) / 10)
    assert negative[0, 0] == pytest.approx(((7 - 10) ** 2 - (7 - 2) ** 2) / 10)


@pytest.mark.parametrize("models", [5, 9, 32])
@pytest.mark.parametrize("variance", ["averaged", "separate"])
def test_null_reads_one_half(models: int, variance: Variance) -> None:
    unlearned, retrained = pools(0.0, models, 30_000 // models)
    assert auc(*ulira_scores(unlearned, retrained, variance)) == pytest.approx(0.5, abs=0.02)


def test_null_with_unequal_pools_reads_one_half() -> None:
    unlearned, retrained = pools(0.0, 16, 3_000)
    positive, negative = ulira_scores(unlearned[:4], retrained)
    assert positive.shape == negative.shape == (4, 3_000)
    assert auc(positive, negative) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("models", "expected"), [(4, 0.79), (8, 0.69), (16, 0.61)])
def test_models_in_their_own_fit_are_told_apart_without_a_leak(models: int, expected: float) -> None:
    unlearned, retrained = pools(0.0, models, 3_000)
    in_sample = auc(*fitted_scores(unlearned, retrained, (False, False)))
    assert in_sample == pytest.approx(expected, abs=0.02)
    left_out = auc(*ulira_scores(unlearned, retrained, "separate"))
    assert abs(left_out - 0.5) < 0.02 < in_sample - 0.5


def test_one_sided_exclusion_reads_less_than_one_half() -> None:
    unlearned, retrained = pools(0.0, 4, 5_000)
    positive, _ = fitted_scores(unlearned, retrained, (True, False))
    _, negative = fitted_scores(unlearned, retrained, (False, True))
    assert auc(positive, negative) < 0.48


@pytest.mark.parametrize(("variance", "expected"), [("separate", 0.665), ("averaged", 0.716)])
def test_shift_of_one_deviation(variance: Variance, expected: float) -> None:
    unlearned, retrained = pools(1.0, 5, 6_000)
    assert auc(*ulira_scores(unlearned, retrained, variance)) == pytest.approx(expected, abs=0.02)


def test_result_pools_scores_and_covers() -> None:
    unlearned, retrained = pools(1.0, 9, 1_200)
    positive, negative = ulira_scores(unlearned, retrained)
    result = ulira_loo(unlearned, retrained)
    assert result.auc.value == pytest.approx(auc(positive, negative), abs=1e-12)
    assert result.auc_interval[0] < result.auc.value < result.auc_interval[1]
    assert result.tpr_1 is not None
    threshold = np.quantile(negative, 0.99)
    assert result.tpr_1.value == pytest.approx((positive > threshold).mean(), abs=0.002)
    assert result.tpr_01 is not None
    assert 0.001 < result.tpr_01.value < result.tpr_1.value
    assert (result.scored, result.images) == (9, 1_200)
    assert json.loads(json.dumps(result.as_dict()))["auc"]["value"] == result.auc.value


def test_error_is_that_of_other_images() -> None:
    found = [ulira_loo(*pools(0.8, 4, 150, seed)) for seed in range(40)]
    spread = np.std([result.auc.value for result in found], ddof=1)
    assert np.mean([result.auc.standard_error for result in found]) == pytest.approx(spread, rel=0.3)


def test_model_error_covers_models_that_shift_all_images() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(25):
        common = generator.normal(0, 0.5, (2, 9, 1))
        unlearned, retrained = generator.normal(size=(2, 9, 60)) + common
        found.append(ulira_loo(unlearned + 1.0, retrained))
    spread = np.std([result.auc.value for result in found], ddof=1)
    errors = [result.model_error for result in found if result.model_error is not None]
    assert 0.8 * spread < np.sqrt(np.mean(np.square(errors))) < 2 * spread
    assert np.mean([result.auc.standard_error for result in found]) < spread / 2


def test_low_rates_need_negatives() -> None:
    assert ulira_loo(*pools(0.0, 4, 2_499)).tpr_01 is None
    assert ulira_loo(*pools(0.0, 4, 2_500)).tpr_01 is not None
    few = ulira_loo(*pools(0.0, 4, 24))
    assert few.tpr_1 is None
    assert few.model_error is not None
    assert ulira_loo(*pools(0.0, 3, 24)).model_error is None
    assert few.tpr_1_interval is None
    assert few.as_dict()["tpr_1"] is None


def test_equal_margins_tie_and_separate_ones_win() -> None:
    constant = ulira_loo(np.ones((4, 50)), np.ones((4, 50)))
    assert constant.auc.value == 0.5
    assert constant.tpr_1 is not None
    assert constant.tpr_1.value == 0
    assert constant.auc.standard_error == 1 / 51
    apart = ulira_loo(*pools(50.0, 4, 50))
    assert apart.auc.value == 1
    assert apart.auc_interval == (pytest.approx(0.025 ** (1 / 50)), 1.0)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="at least 3 models"):
        ulira_loo(np.zeros((2, 5)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="expected a variance"):
        ulira_loo(np.zeros((4, 5)), np.zeros((4, 5)), variance="fixed")  # type: ignore[arg-type]
