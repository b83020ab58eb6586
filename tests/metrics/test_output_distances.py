import numpy as np
import pytest
import scipy.special

from gen_unlearn.metrics.output_distances import output_distances, probabilities, zrf, zrf_legacy
from gen_unlearn.metrics.prediction_gap import MODEL_PROBABILITY_FLOOR

P = np.log([[0.7, 0.2, 0.1]] * 2)
Q = np.log([[0.5, 0.3, 0.2]] * 2)


def logits(seed: int, images: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(images, 4)) * 3


def test_values_by_hand() -> None:
    found = output_distances(Q, P)
    assert found.pg_s.value == pytest.approx(0.085123, abs=5e-7), "KL(p_R || p_U) with R = p"
    assert output_distances(P, Q).pg_s.value == pytest.approx(0.092033, abs=5e-7)
    assert found.js.value == pytest.approx(0.021901, abs=5e-7)
    assert found.actdist.value == pytest.approx(np.sqrt(0.04 + 0.01 + 0.01))
    assert found.pg_h.value == 0


def test_the_zero_retrain_score_by_hand() -> None:
    assert zrf(P, Q).value == pytest.approx(0.978099, abs=5e-7)
    assert zrf(Q, P).value == pytest.approx(zrf(P, Q).value, abs=1e-15)
    assert zrf_legacy(P, Q).value == pytest.approx(0.992537, abs=5e-7)


def test_a_model_has_no_distance_to_itself() -> None:
    model = logits(0)
    for name, value in output_distances(model, model).named("test").items():
        assert value.value == 0, name
    assert zrf(model, model).value == 1


def test_means_over_images_with_their_errors() -> None:
    one, other = logits(1), logits(2)
    found = output_distances(one, other)
    p, q = scipy.special.softmax(one, axis=1), scipy.special.softmax(other, axis=1)
    assert found.pg_h.value == pytest.approx(100 * np.mean(one.argmax(1) != other.argmax(1)))
    distances = np.sqrt(np.square(p - q).sum(axis=1))
    assert found.actdist.value == pytest.approx(distances.mean())
    assert found.actdist.standard_error == pytest.approx(distances.std(ddof=1) / np.sqrt(50))
    kl = (q * np.log(q / p)).sum(axis=1)
    assert found.pg_s.value == pytest.approx(kl.mean(), rel=1e-9)
    assert set(found.named("forget")) == {"pg_h.forget", "pg_s.forget", "js.forget", "actdist.forget"}


def test_shifts_of_logits_and_half_precision_change_little() -> None:
    one, other = logits(3), logits(4)
    moved = output_distances(one + 1000, other - 500)
    assert moved.js.value == pytest.approx(output_distances(one, other).js.value, abs=1e-10)
    coarse = output_distances(one.astype(np.float16), other.astype(np.float16))
    assert coarse.js.value == pytest.approx(moved.js.value, abs=1e-2)


def test_opposite_models_reach_the_largest_distances() -> None:
    one, other = np.eye(3)[[0, 1]] * 1e4, np.eye(3)[[1, 2]] * 1e4
    found = output_distances(one, other)
    assert found.pg_h.value == 100
    assert found.pg_h.standard_error > 0
    assert found.js.value == pytest.approx(np.log(2))
    assert found.actdist.value == pytest.approx(np.sqrt(2))
    assert found.pg_s.value == pytest.approx(-np.log(MODEL_PROBABILITY_FLOOR))
    assert zrf(one, other).value == pytest.approx(1 - np.log(2))


def test_refuses_what_are_no_logits() -> None:
    for broken in (np.full((3, 2), np.nan), np.zeros(3), np.zeros((3, 2), dtype=np.int64)):
        with pytest.raises(ValueError, match="logits"):
            probabilities(broken)
    with pytest.raises(ValueError, match="one shape"):
        output_distances(logits(0, 5), logits(0, 6))
