import json
from itertools import product

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from gen_unlearn.metrics import copying
from gen_unlearn.metrics.copying import (
    class_matched_control,
    copy_distances,
    median_estimate,
    nearest_images,
)


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("chunk", [1, 7, 2048])
@pytest.mark.parametrize("k", [1, 3, 29])
def test_agrees_with_scikit_learn_at_any_chunk(k: int, chunk: int) -> None:
    queries, gallery = noise(17, 4, 5, 3), noise(29, 4, 5, 3, seed=1)
    distances, indices = nearest_images(queries, gallery, k, chunk)
    flat = gallery.reshape(29, -1) / 255
    expected = (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(flat).kneighbors(queries.reshape(17, -1) / 255)
    )
    np.testing.assert_allclose(distances, expected[0], rtol=1e-10)
    np.testing.assert_array_equal(indices, expected[1])
    assert (distances.dtype, indices.dtype) == (np.float64, np.int64)


def test_large_images_make_smaller_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = noise(17, 4, 5, 3), noise(29, 4, 5, 3, seed=1)
    expected, shapes, search = nearest_images(queries, gallery, 3), [], copying._nearest_keys

    def record(rows: np.ndarray, gallery: np.ndarray, k: int, chunk: int) -> np.ndarray:
        shapes.append((len(rows), chunk))
        return search(rows, gallery, k, chunk)

    monkeypatch.setattr(copying, "_nearest_keys", record)
    for values, images in ((60 * 5, 5), (10, 1)):
        shapes.clear()
        monkeypatch.setattr(copying, "_TILE_VALUES", values)
        for found, wanted in zip(nearest_images(queries, gallery, 3), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert max(shapes) == (images, images)


def test_identical_images_are_exactly_at_zero() -> None:
    gallery = noise(50, 32, 32, 3)
    distances, indices = nearest_images(gallery[::-1], gallery)
    assert (distances == 0).all()
    np.testing.assert_array_equal(indices[:, 0], np.arange(50)[::-1])


@pytest.mark.parametrize("chunk", [2, 3, 100])
def test_ties_go_to_the_lowest_index(chunk: int) -> None:
    gallery = np.repeat(noise(4, 32, 32, 3), 3, axis=0)
    _, indices = nearest_images(gallery[::3], gallery, k=2, chunk=chunk)
    np.testing.assert_array_equal(indices, [[0, 1], [3, 4], [6, 7], [9, 10]])


def test_one_grey_level_is_told_apart() -> None:
    image = np.full((1, 64, 64, 3), 200, dtype=np.uint8)
    gallery = np.concatenate([image, image, image])
    gallery[0, 0, 0, 0] += 1
    gallery[1, 0, 0, 0] += 2
    distances, indices = nearest_images(image, gallery, k=3)
    np.testing.assert_array_equal(indices, [[2, 0, 1]])
    np.testing.assert_allclose(distances, [[0, 1 / 255, 2 / 255]])


def test_refuses_images_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"\(8, 8, 1\) and \(8, 8, 3\)"):
        nearest_images(noise(2, 8, 8, 1), noise(2, 8, 8, 3))
    with pytest.raises(ValueError, match="k 3"):
        nearest_images(noise(2, 8, 8, 1), noise(2, 8, 8, 1), k=3)
    with pytest.raises(ValueError, match="uint8"):
        nearest_images(noise(2, 8, 8, 1) / 255, noise(2, 8, 8, 1))


def test_copies_stand_out_from_the_control() -> None:
    forgotten, control, fresh = noise(6, 8, 8, 1), noise(5, 8, 8, 1, seed=1), noise(20, 8, 8, 1, seed=2)
    copies = np.concatenate([fresh, forgotten[:4]])
    found = copy_distances(copies, forgotten, control)
    np.testing.assert_array_equal(found.forgotten_nearest[:4], [20, 21, 22, 23])
    assert found.forgotten_distance.shape == (6,)
    assert found.control_nearest.shape == (5,)
    assert found.forgotten.minimum == found.forgotten.median == 0 < found.control.minimum
    assert found.control.images == 5
    assert json.loads(json.dumps(found.as_dict()))["forgotten"]["images"] == 6


@pytest.mark.parametrize("draw", ["normal", "exponential", "uniform", "distances"])
@pytest.mark.parametrize("count", [5, 20, 101])
def test_the_error_of_a_median_is_that_of_other_samples(draw: str, count: int) -> None:
    rng = np.random.default_rng([count, len(draw)])
    samples = {
        "normal": rng.normal(size=(1500, count)),
        "exponential": rng.exponential(size=(1500, count)),
        "uniform": rng.random(size=(1500, count)),
        "distances": np.sqrt(rng.chisquare(3, size=(1500, count))),
    }[draw]
    found = [median_estimate(sample) for sample in samples]
    np.testing.assert_array_equal([one.value for one in found], np.median(samples, axis=1))
    stated = np.mean([one.standard_error for one in found])
    assert stated == pytest.approx(np.median(samples, axis=1).std(), rel=0.15)


def test_the_error_of_a_median_is_that_of_all_bootstrap_samples() -> None:
    for values in (np.array([0.3, 5.0, 1.0]), np.array([2.0, 2.0, 7.0, 7.5, 1.0])):
        medians = [np.median(values[list(rows)]) for rows in product(range(len(values)), repeat=len(values))]
        assert median_estimate(values).standard_error == pytest.approx(np.std(medians))


def test_the_error_of_a_median_ignores_outliers_and_wants_two_values() -> None:
    values = np.random.default_rng(0).normal(size=201)
    plain = median_estimate(values)
    values[values.argmax()] = 1e6
    assert median_estimate(values).standard_error == pytest.approx(plain.standard_error)
    for wrong in (np.array([1.0]), np.array([1.0, np.nan]), np.ones((2, 2))):
        with pytest.raises(ValueError, match="at least two finite values"):
            median_estimate(wrong)


def ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


def test_the_control_has_the_classes_of_what_was_deleted() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 200)
    deleted = np.repeat([0, 3, 4], [7, 1, 12])
    rows = class_matched_control(deleted, ids(200), labels, "control", 0)
    np.testing.assert_array_equal(np.sort(labels[rows]), deleted)
    assert len(np.unique(rows)) == 20


def test_the_control_depends_on_ids_and_key_and_not_on_the_order_of_rows() -> None:
    labels, own = np.random.default_rng(0).integers(0, 3, 90), ids(90)
    deleted = np.repeat([0, 1, 9], 4)
    rows = class_matched_control(deleted, own, labels, "control", 0)
    shuffled = np.random.default_rng(1).permutation(90)
    again = class_matched_control(deleted, own[shuffled], labels[shuffled], "control", 0)
    np.testing.assert_array_equal(own[shuffled][again], own[rows])
    other = class_matched_control(deleted, own, labels, "control", 1)
    assert set(other.tolist()) != set(rows.tolist())


def test_a_class_without_retained_images_gets_others_in_its_place() -> None:
    labels = np.repeat([0, 1], [3, 40])
    rows = class_matched_control(np.repeat([0, 7], 5), ids(43), labels, "control")
    assert len(np.unique(rows)) == 10
    assert (labels[rows] == 0).sum() == 3
    assert len(class_matched_control(np.zeros(50, np.int64), ids(43), labels)) == 43
    assert len(class_matched_control(np.zeros(0, np.int64), ids(43), labels)) == 0
    with pytest.raises(ValueError, match="one label per retained image"):
        class_matched_control(labels, ids(42), labels)
