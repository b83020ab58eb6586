import numpy as np
import pytest

from gen_unlearn.metrics.mia_efficacy import mia_efficacy


def confidences(a: float, b: float, images: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).beta(a, b, images)


SURE, UNSURE = confidences(60, 1, 600, 0), confidences(2, 3, 200, 1)


def test_forgotten_images_are_judged_by_whom_they_resemble() -> None:
    like_members = mia_efficacy(SURE, UNSURE, confidences(60, 1, 100, 2))
    like_test = mia_efficacy(SURE, UNSURE, confidences(2, 3, 100, 3))
    assert like_members.percent.value < 5
    assert like_test.percent.value > 90
    assert like_members.training_accuracy > 95
    assert like_members.images_per_side == 200
    assert like_members.percent.standard_error > 0


def test_a_forgotten_class_is_never_a_member() -> None:
    assert mia_efficacy(SURE, UNSURE, np.full(50, 1e-4)).percent.value == 100


def test_overlapping_sets_have_a_threshold_between_the_modes() -> None:
    """Members lie at 0.9, the rest at 0.1: a radial kernel of unit width splits them near 0.5."""
    retain, test = np.full(40, 0.9), np.full(40, 0.1)
    forget = np.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
    assert mia_efficacy(retain, test, forget).percent.value == pytest.approx(50)


def test_as_many_retained_as_test_images_are_drawn_by_seed_or_id() -> None:
    mixed, forget = confidences(1.0, 0.8, 400, 4), confidences(1, 1, 300, 5)
    test = confidences(0.8, 1.0, 60, 6)
    values = {mia_efficacy(mixed, test, forget, seed=seed).percent.value for seed in range(6)}
    assert len(values) > 1
    assert mia_efficacy(mixed, test, forget, seed=2) == mia_efficacy(mixed, test, forget, seed=2)
    ids = np.random.default_rng(7).integers(0, 256, (400, 16), dtype=np.uint8)
    rows = np.random.default_rng(8).permutation(400)
    one = mia_efficacy(mixed, test, forget, retain_ids=ids)
    two = mia_efficacy(mixed[rows], test, forget, retain_ids=ids[rows])
    assert one.percent.value == two.percent.value
    assert mia_efficacy(mixed[:30], test, forget).images_per_side == 30


@pytest.mark.parametrize(
    ("retain", "test", "forget"),
    [
        (SURE[:1], UNSURE, SURE),
        (SURE, UNSURE[:, None], SURE),
        (SURE, UNSURE, SURE[:0]),
        (SURE * 3, UNSURE, SURE),
        (np.full(9, np.nan), UNSURE, SURE),
    ],
)
def test_refuses_what_are_no_confidences(retain: np.ndarray, test: np.ndarray, forget: np.ndarray) -> None:
    with pytest.raises(ValueError, match="confidences"):
        mia_efficacy(retain, test, forget)


def test_refuses_ids_of_other_images() -> None:
    with pytest.raises(ValueError, match="one id"):
        mia_efficacy(SURE, UNSURE, SURE, retain_ids=np.zeros((3, 16), dtype=np.uint8))
