"""Tests of the membership scores of logits, against values worked out by hand and mpmath."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from gen_unlearn.metrics.margins import SCORES, ScoreName, margins, require_margin_pools, score

EXAMPLE = np.log([[0.7, 0.2, 0.1]])
FIRST = np.array([0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("margin", 0.847298),
        ("modified_entropy", -0.162167),
        ("loss", -0.356675),
        ("confidence", 0.7),
        ("entropy", -0.801819),
    ],
)
def test_worked_example(name: ScoreName, expected: float) -> None:
    for shift in (0.0, 3.0, -700.0):
        assert score(name, EXAMPLE + shift, FIRST) == pytest.approx([expected], abs=1e-6)


def test_probabilities_that_round_to_one_keep_their_digits() -> None:
    logits = np.array([[60.0, 0.0, -3.0], [60.0, 0.0, -3.0]])
    labels = np.array([0, 1])
    with mpmath.workdps(60):
        z = [mpmath.mpf(v) for v in logits[0]]
        p = [mpmath.exp(v) / sum(mpmath.exp(w) for w in z) for v in z]
        for row, y in enumerate(labels):
            expected: dict[ScoreName, mpmath.mpf] = {
                "margin": mpmath.log(p[y] / (1 - p[y])),
                "loss": mpmath.log(p[y]),
                "entropy": sum(q * mpmath.log(q) for q in p),
                "modified_entropy": (1 - p[y]) * mpmath.log(p[y])
                + sum(p[i] * mpmath.log(1 - p[i]) for i in range(3) if i != y),
            }
            for name, value in expected.items():
                found = SCORES[name](logits, labels)[row]
                assert found == pytest.approx(float(value), rel=1e-9, abs=0), (name, y)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_surer_right_answers_score_higher(name: ScoreName) -> None:
    sure, unsure = np.array([[5.0, 0.0, 0.0]]), np.array([[1.0, 0.0, 0.0]])
    assert score(name, sure, FIRST) > score(name, unsure, FIRST)


def test_surely_wrong_answers_tell_modified_entropy_from_entropy() -> None:
    wrong, unsure = np.array([[0.0, 9.0, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    assert score("modified_entropy", wrong, FIRST) < score("modified_entropy", unsure, FIRST)
    assert score("entropy", wrong, FIRST) > score("entropy", unsure, FIRST)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_pools_share_labels(name: ScoreName) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 4, (3, 5, 7)).astype(np.float32), generator.integers(7, size=5)
    pool = score(name, logits, labels)
    assert pool.dtype == np.float64
    np.testing.assert_allclose(pool, [score(name, own, labels) for own in logits], rtol=1e-12)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="expected logits"):
        margins(np.zeros((2, 1)), np.array([0, 0]))
    with pytest.raises(ValueError, match="expected logits"):
        margins(np.zeros((3, 2, 4)), np.array([0, 0, 0]))
    with pytest.raises(ValueError, match=r"expected labels in 0\.\.3"):
        margins(np.zeros((2, 4)), np.array([0, -1]))
    with pytest.raises(ValueError, match="expected finite logits, got 1"):
        margins(np.array([[0.0, np.nan]]), FIRST)
    with pytest.raises(ValueError, match="expected a score"):
        score("mia", EXAMPLE, FIRST)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same images"):
        require_margin_pools(np.zeros((4, 3)), np.zeros((4, 2)), 1)
    with pytest.raises(ValueError, match="at least 3 models"):
        require_margin_pools(np.zeros((4, 3)), np.zeros((2, 3)), 3)
    with pytest.raises(ValueError, match="finite margins"):
        require_margin_pools(np.full((4, 3), np.inf), np.zeros((4, 3)), 3)
