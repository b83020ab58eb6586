import json

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from gen_unlearn.metrics import neighbours
from gen_unlearn.metrics.manifold import ManifoldMetrics, manifold_metrics
from gen_unlearn.metrics.neighbours import nearest_features, nearest_others

NAMES = ("precision", "recall", "density", "coverage")


def features(count: int, seed: int, dim: int = 6, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)) + shift


def values(metrics: ManifoldMetrics) -> dict[str, float]:
    return {name: getattr(metrics, name).value for name in NAMES}


def by_matrices(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    """Compute the four as in Naeem et al. 2020, from whole matrices of distances."""
    real_radii = np.sort(cdist(real, real), axis=1)[:, k]
    generated_radii = np.sort(cdist(generated, generated), axis=1)[:, k]
    between = cdist(real, generated)
    inside = between < real_radii[:, None]
    return {
        "precision": inside.any(axis=0).mean(),
        "recall": (between < generated_radii).any(axis=1).mean(),
        "density": inside.sum(axis=0).mean() / k,
        "coverage": inside.any(axis=1).mean(),
    }


@pytest.mark.parametrize("tile", [3, 7, 64, 2048])
@pytest.mark.parametrize(("k", "shift"), [(1, 0.0), (3, 0.7), (5, 1.5)])
def test_agrees_with_whole_matrices_at_any_tile(
    k: int, shift: float, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "TILE", tile)
    real, generated = features(60, 0), features(45, 1, shift=shift)
    found = values(manifold_metrics(real=real, generated=generated, k=k))
    assert found == pytest.approx(by_matrices(real, generated, k), rel=1e-12)
    found = values(manifold_metrics(real=real.astype(np.float32), generated=generated, k=k))
    assert found == pytest.approx(by_matrices(real, generated, k), rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("dim", [1, 2, 50])
def test_a_set_covers_itself_exactly(dim: int, offset: float) -> None:
    rows = features(300, 0, dim=dim) + offset
    found = values(manifold_metrics(real=rows, generated=rows[::-1].copy(), k=4))
    assert found == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}  # own centre, k - 1 neighbours


def test_the_ball_of_a_duplicated_image_is_empty() -> None:
    real = np.concatenate([np.zeros((3, 2)), [[10.0, 0.0], [11.0, 0.0], [12.5, 0.0]]])
    copies = np.zeros((4, 2))
    found = values(manifold_metrics(real=real, generated=copies, k=2))
    assert found == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    found = values(manifold_metrics(real=real, generated=copies, k=3))  # radius 10 around each of the three
    assert found == {"precision": 1, "recall": 0, "density": 1, "coverage": 0.5}


def test_a_point_on_the_edge_is_outside() -> None:
    real = np.array([[0.0], [1.0], [3.0], [7.0]])  # radii at k = 1: 1, 1, 2, 4
    generated = np.array([[-1.0], [1.0], [5.0], [11.0]])
    found = manifold_metrics(real=real, generated=generated, k=1)
    assert found.density.value == 2 / 4  # 1 in its own ball; 5 in that of 7
    assert found.precision.value == 2 / 4
    assert found.coverage.value == 2 / 4
    assert found.recall.value == 4 / 4  # radii 2, 2, 4, 6


def test_precision_sees_poor_images_and_recall_missing_ones() -> None:
    both = np.concatenate([features(200, 0), features(200, 1, shift=20)])
    one, other = features(200, 2), np.concatenate([features(200, 3), features(200, 4, shift=-20)])
    missing = values(manifold_metrics(real=both, generated=one))
    assert missing["precision"] > 0.7
    assert missing["recall"] < 0.5
    assert missing["coverage"] < 0.51
    poor = values(manifold_metrics(real=one, generated=other))
    assert poor["precision"] < 0.5
    assert poor["recall"] > 0.7
    assert poor["coverage"] > 0.8
    swapped = values(manifold_metrics(real=one, generated=both))
    assert (swapped["precision"], swapped["recall"]) == (missing["recall"], missing["precision"])


@pytest.mark.parametrize(("shift", "generated"), [(0.0, 200), (0.6, 250), (0.0, 40)])
def test_standard_errors_match_monte_carlo(shift: float, generated: int) -> None:
    real, fixed = features(200, 0), features(generated, 1, shift=shift)
    drawn = [
        manifold_metrics(real=real, generated=features(generated, i, shift=shift)) for i in range(10, 260)
    ]
    redrawn = [manifold_metrics(real=features(200, i), generated=fixed) for i in range(10, 260)]
    for name, draws in zip(NAMES, (drawn, redrawn, drawn, drawn), strict=True):
        estimates = [getattr(metrics, name) for metrics in draws]
        spread = np.std([estimate.value for estimate in estimates], ddof=1)
        predicted = np.mean([estimate.standard_error for estimate in estimates])
        assert predicted == pytest.approx(spread, rel=0.15), name


def test_standard_errors_are_never_zero() -> None:
    far = manifold_metrics(real=features(50, 0), generated=features(50, 1, shift=100))
    assert values(far) == dict.fromkeys(NAMES, 0.0)
    assert all(getattr(far, name).standard_error > 0 for name in NAMES)
    assert manifold_metrics(real=features(50, 0), generated=features(50, 0)).coverage.standard_error >= 1 / 51


def test_is_json_able() -> None:
    found = manifold_metrics(real=features(20, 0), generated=features(20, 1))
    assert json.loads(json.dumps(found.as_dict()))["density"]["value"] == found.density.value


def test_roles_are_keywords_and_mistakes_are_named() -> None:
    rows = features(20, 0)
    with pytest.raises(TypeError):
        manifold_metrics(rows, rows)  # type: ignore[misc]
    with pytest.raises(ValueError, match="k between 1 and 4"):
        manifold_metrics(real=rows, generated=rows[:5])
    with pytest.raises(ValueError, match="finite features"):
        manifold_metrics(real=rows, generated=rows + np.inf)
    with pytest.raises(ValueError, match=r"floats of shape \(n, d\), got int64"):
        manifold_metrics(real=rows, generated=np.zeros((9, 6), dtype=np.int64))


@pytest.mark.parametrize("tile", [1, 7, 2048])
@pytest.mark.parametrize("k", [1, 3, 29])
def test_neighbours_agree_with_scikit_learn_at_any_tile(
    k: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "TILE", tile)
    queries, gallery = features(17, 0), features(30, 1)
    reference = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(gallery)
    for found, expected in (
        (nearest_features(queries, gallery, k), reference.kneighbors(queries)),
        (nearest_others(gallery, k), reference.kneighbors()),
    ):
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-10)
        np.testing.assert_array_equal(found[1], expected[1])
        assert (found[0].dtype, found[1].dtype) == (np.float64, np.int64)


def test_neighbours_of_duplicates_are_at_zero() -> None:
    rows = np.repeat(features(5, 0, dim=300) + 1e3, 3, axis=0).astype(np.float32)
    distances, indices = nearest_others(rows, 3)
    assert (distances[:, :2] == 0).all()
    assert (distances[:, 2] > 1).all()
    np.testing.assert_array_equal(indices[:3, :2], [[1, 2], [0, 2], [0, 1]])
    assert (nearest_features(rows[::-1], rows)[0] == 0).all()


def test_near_neighbours_are_told_apart_where_products_round() -> None:
    clusters = np.repeat([[-1000.0], [1000.0]], 5, axis=0)
    rows = clusters + 1e-7 * np.random.default_rng(0).permutation(10)[:, None]
    distances, indices = nearest_others(rows, 1)
    apart = cdist(rows, rows) + np.diag(np.full(10, np.inf))
    np.testing.assert_array_equal(distances[:, 0], apart.min(axis=1))
    np.testing.assert_array_equal(np.take_along_axis(apart, indices, axis=1), distances)
