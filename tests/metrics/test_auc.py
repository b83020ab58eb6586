import numpy as np
import pytest
from scipy import stats

from gen_unlearn.metrics.auc import area_under_curve, auc_difference, strata_within_classes
from gen_unlearn.metrics.estimate import Estimate

CASES = {
    "one class": [(60, 90)],
    "few classes": [(40, 20), (10, 60), (25, 25)],
    "classes with one member": [(1, 30)] * 20,
}


def labels_of(sizes: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    members, outsiders = zip(*sizes, strict=True)
    return np.repeat(np.arange(len(sizes)), members), np.repeat(np.arange(len(sizes)), outsiders)


def scores_of_two(
    labels: np.ndarray, effects: tuple[float, float], shared: float, generator: np.random.Generator
) -> np.ndarray:
    """Draw normal scores of images by two models, correlated by `shared`, ``(2, n)``."""
    common, own = generator.normal(size=len(labels)), generator.normal(size=(2, len(labels)))
    return np.array(effects)[:, None] + 5 * labels + np.sqrt(shared) * common + np.sqrt(1 - shared) * own


def area(
    members: np.ndarray, member_labels: np.ndarray, outsiders: np.ndarray, labels: np.ndarray
) -> Estimate:
    return area_under_curve(strata_within_classes(members, member_labels, outsiders, labels))[0]


def simulate(sizes: list[tuple[int, int]], shared: float, runs: int) -> tuple[list[Estimate], np.ndarray]:
    """Return differences of two areas, and what their errors would be in quadrature."""
    generator = np.random.default_rng(0)
    labels = labels_of(sizes)
    found, apart = [], []
    for _ in range(runs):
        members = scores_of_two(labels[0], (1.0, 0.4), shared, generator)
        outsiders = scores_of_two(labels[1], (0.0, 0.0), shared, generator)
        found.append(auc_difference(members[0], outsiders[0], members[1], outsiders[1], *labels))
        errors = [
            area(members[model], labels[0], outsiders[model], labels[1]).standard_error for model in (0, 1)
        ]
        apart.append(np.hypot(*errors))
    return found, np.array(apart)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_the_error_of_a_difference_is_that_of_other_images(case: str, shared: float) -> None:
    found, apart = simulate(CASES[case], shared, runs=300)
    values = np.array([one.value for one in found])
    errors = np.array([one.standard_error for one in found])
    truth = stats.norm.cdf(1 / np.sqrt(2)) - stats.norm.cdf(0.4 / np.sqrt(2))
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / np.sqrt(300))
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)
    if shared:
        assert errors.mean() < 0.6 * apart.mean(), "pairing pays"
    else:
        assert errors.mean() == pytest.approx(apart.mean(), rel=0.05)


def test_the_difference_is_that_of_the_areas_and_its_error_delongs() -> None:
    generator = np.random.default_rng(1)
    members, outsiders = generator.integers(0, 12, (2, 25)), generator.integers(0, 9, (2, 40))
    zeros = np.zeros(25, dtype=np.int64), np.zeros(40, dtype=np.int64)
    agrees = [(m[:, None] > o) + 0.5 * (m[:, None] == o) for m, o in zip(members, outsiders, strict=True)]
    covariance = (
        np.cov([pairs.mean(axis=1) for pairs in agrees]) / 25
        + np.cov([pairs.mean(axis=0) for pairs in agrees]) / 40
    )
    found = auc_difference(members[0], outsiders[0], members[1], outsiders[1], *zeros)
    assert found.value == pytest.approx(agrees[0].mean() - agrees[1].mean(), abs=1e-12)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert found.standard_error == pytest.approx(np.sqrt(variance), rel=1e-12)
    reverse = auc_difference(members[1], outsiders[1], members[0], outsiders[0], *zeros)
    assert reverse == Estimate(-found.value, found.standard_error)


def test_classes_weigh_as_in_the_area() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 4, 60), generator.integers(1, 5, 80)
    members, outsiders = generator.normal(size=(2, 60)), generator.normal(size=(2, 80))
    first, second = (area(members[model], labels[0], outsiders[model], labels[1]).value for model in (0, 1))
    found = auc_difference(members[0], outsiders[0], members[1], outsiders[1], *labels)
    assert found.value == pytest.approx(first - second, abs=1e-12)


def test_equal_differences_do_not_claim_certainty() -> None:
    scores, zeros = np.arange(20.0), np.zeros(20, dtype=np.int64)
    assert auc_difference(scores, scores, scores, scores, zeros, zeros) == Estimate(0, 1 / 21)
    apart = auc_difference(scores + 50, scores, scores - 50, scores, zeros, zeros)
    assert apart == Estimate(1, 1 / 21)
    one = zeros[:1]
    lone = auc_difference(np.array([9.0]), scores, np.array([4.5]), scores, one, zeros)
    assert 0 < lone.standard_error <= 1


def test_refuses_what_cannot_be_compared() -> None:
    scores, labels = np.arange(4.0), np.zeros(4, dtype=np.int64)
    with pytest.raises(ValueError, match=r"member scores \(n,\)"):
        auc_difference(scores, scores, scores[:3], scores, labels, labels)
    with pytest.raises(ValueError, match=r"members of \[0\] and outsiders of \[1\]"):
        auc_difference(scores, scores, scores, scores, labels, labels + 1)
