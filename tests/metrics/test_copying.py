import json

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from gen_unlearn.metrics.copying import copy_distances, nearest_images, share_nearest_forgotten


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


def test_share_counts_the_generated_images_nearest_to_a_forgotten_one() -> None:
    forgotten, retained = noise(6, 8, 8, 1), noise(30, 8, 8, 1, seed=1)
    generated = np.concatenate([forgotten[:2], retained[:6]])
    assert share_nearest_forgotten(generated, forgotten, retained).value == 2 / 8
    assert share_nearest_forgotten(generated, forgotten, np.concatenate([retained, forgotten])).value == 2 / 8
    assert share_nearest_forgotten(retained, forgotten, retained).value == 0
