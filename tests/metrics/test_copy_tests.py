from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.lazy_images import LazyImages
from gen_unlearn.metrics.copy_tests import (
    carlini_copies,
    carlini_ratio,
    count_copies,
    embedding_copies,
    paired_change,
    training_neighbours,
    yoon_copies,
)
from gen_unlearn.metrics.copying import TrainingGallery
from gen_unlearn.metrics.estimate import proportion
from gen_unlearn.repro import image_ids

Rule = Callable[[np.ndarray], np.ndarray]


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)


def indexed(images: np.ndarray, labels: np.ndarray) -> IndexedImages:
    names = tuple(str(row) for row in range(len(images)))
    return IndexedImages(images, labels.astype(np.int64), image_ids(images), ("a", "b", "c"), names)


def nudged(images: np.ndarray) -> np.ndarray:
    """Return images with one grey level changed in a tenth of the pixels: copies, but not to the byte."""
    change = np.random.default_rng(9).random(images.shape) < 0.1
    return np.where(change & (images < 255), images + 1, images).astype(np.uint8)


@pytest.fixture(scope="module")
def training() -> tuple[IndexedImages, IndexedImages]:
    """12 deleted images of classes 0 and 1, and 120 retained ones of 1 and 2."""
    deleted = indexed(noise(12, 0), np.repeat([0, 1], 6))
    return deleted, indexed(noise(120, 1), np.repeat([1, 2], 60))


@pytest.fixture(scope="module")
def gallery(training: tuple[IndexedImages, IndexedImages]) -> TrainingGallery:
    return TrainingGallery.of(*training, "copies", 0)


def test_the_gallery_holds_everything_once(training: tuple[IndexedImages, IndexedImages]) -> None:
    deleted, retained = training
    plain = TrainingGallery.of(deleted, retained, "copies", 0)
    assert plain.images.shape == (132, 6, 6, 3)
    assert (plain.deleted.sum(), plain.control.sum(), plain.unmatched) == (12, 12, 6)
    assert not (plain.deleted & plain.control).any()
    labels = np.concatenate([deleted.labels, retained.labels])
    assert (labels[plain.control] == 1).sum() >= 6
    twice = TrainingGallery.of(
        deleted.select(np.tile(np.arange(12), 2)), retained.select(np.tile(np.arange(120), 3)), "copies", 0
    )
    np.testing.assert_array_equal(twice.images, plain.images)
    np.testing.assert_array_equal(twice.control, plain.control)
    mixed = indexed(
        np.concatenate([retained.images, deleted.images]), np.concatenate([retained.labels, deleted.labels])
    )
    np.testing.assert_array_equal(TrainingGallery.of(deleted, mixed).deleted, plain.deleted)


def test_few_retained_images_make_a_small_control(training: tuple[IndexedImages, IndexedImages]) -> None:
    deleted, retained = training
    small = TrainingGallery.of(deleted, retained.select(np.arange(4)))
    assert (small.deleted.sum(), small.control.sum(), small.unmatched) == (12, 4, 8)


@pytest.mark.parametrize("largest", [7, 20, 120])
def test_a_gallery_of_a_part_holds_its_control(
    training: tuple[IndexedImages, IndexedImages], gallery: TrainingGallery, largest: int
) -> None:
    deleted, retained = training
    part = TrainingGallery.of(deleted, retained, "copies", 0, largest=largest)
    few = min(12, largest)
    assert (part.deleted.sum(), part.control.sum(), part.distinct) == (few, few, 132)
    assert len(part.images) == few + largest
    assert not (part.deleted & part.control).any()
    if largest >= 12:
        np.testing.assert_array_equal(part.images[part.control], gallery.images[gallery.control])
    shuffled = np.random.default_rng(0).permutation(120)
    again = TrainingGallery.of(deleted, retained.select(shuffled), "copies", 0, largest=largest)
    assert {image.tobytes() for image in again.images} == {image.tobytes() for image in part.images}


def test_only_what_a_part_holds_is_decoded(
    training: tuple[IndexedImages, IndexedImages], tmp_path: Path
) -> None:
    """Of 120 retained images on disk all but 12 may be gone."""
    deleted, retained = training
    for row, image in enumerate(retained.all_images()):
        Image.fromarray(image).save(tmp_path / f"{row}.png")
    files = [tmp_path / f"{row}.png" for row in range(120)]
    lazy = replace(retained, images=LazyImages(files, np.arange(120), retained.ids, (6, 6), 3))
    expected = TrainingGallery.of(deleted, retained, "copies", 0, largest=12)
    wanted = {image.tobytes() for image in expected.images}
    for row, image in enumerate(retained.all_images()):
        if image.tobytes() not in wanted:
            files[row].unlink()
    assert len(list(tmp_path.iterdir())) == 12
    found = TrainingGallery.of(deleted, lazy, "copies", 0, largest=12)
    np.testing.assert_array_equal(found.images, expected.images)


@pytest.mark.parametrize("rule", [carlini_copies, yoon_copies])
def test_planted_copies_are_found_and_attributed(gallery: TrainingGallery, rule: Rule) -> None:
    of_deleted = gallery.images[gallery.deleted][[0, 3, 3]]
    of_control = gallery.images[gallery.control][:2]
    of_others = gallery.images[~gallery.deleted & ~gallery.control][:4]
    generated = np.concatenate([nudged(np.concatenate([of_deleted, of_control, of_others])), noise(21, 2)])
    near = training_neighbours(generated, gallery)
    found = count_copies(near, rule(near.distances))
    assert found.images == 30
    assert found.of_deleted == proportion(3, 30)
    assert found.of_control == proportion(2, 30)
    assert found.of_retained == proportion(6, 30)
    assert found.deleted_copied == 2
    np.testing.assert_array_equal(np.flatnonzero(found.copies_of_deleted), [0, 1, 2])
    np.testing.assert_array_equal(np.flatnonzero(found.copies_of_control), [3, 4])


@pytest.mark.parametrize("rule", [carlini_copies, yoon_copies])
def test_fresh_images_are_no_copies(gallery: TrainingGallery, rule: Rule) -> None:
    near = training_neighbours(noise(200, 3), gallery)
    found = count_copies(near, rule(near.distances))
    assert (
        found.of_deleted.value
        == found.of_control.value
        == found.of_retained.value
        == found.deleted_copied
        == 0
    )
    assert found.of_deleted.standard_error > 0
    assert near.deleted.any(), "an image nearest to a deleted one is not yet a copy"


def test_a_copy_is_seen_although_its_image_was_there_twice(gallery: TrainingGallery) -> None:
    deleted = gallery.images[gallery.deleted]
    doubled = np.concatenate([deleted, deleted])
    retained = indexed(gallery.images[~gallery.deleted], np.zeros(120))
    both = TrainingGallery.of(indexed(doubled, np.zeros(24)), retained)
    near = training_neighbours(nudged(deleted), both)
    assert count_copies(near, yoon_copies(near.distances)).of_deleted.value == 1
    repeated = np.repeat(np.linspace(0.1, 5, 25)[None], 2, axis=1)
    assert not yoon_copies(np.sort(repeated, axis=1)).any(), "the same image twice hides the copy"


def test_near_duplicates_hide_a_copy_from_one_rule_only(gallery: TrainingGallery) -> None:
    deleted, retained = gallery.images[gallery.deleted], gallery.images[~gallery.deleted]
    changed = deleted.copy()
    changed[:, 0, 0, 0] ^= 1
    twins = indexed(np.concatenate([deleted, changed]), np.zeros(24))
    near = training_neighbours(nudged(deleted), TrainingGallery.of(twins, indexed(retained, np.zeros(120))))
    assert not yoon_copies(near.distances).any()
    assert carlini_copies(near.distances).all()


def test_neighbours_agree_with_scikit_learn(gallery: TrainingGallery) -> None:
    generated = noise(25, 4)
    near = training_neighbours(generated, gallery, k=9)
    search = NearestNeighbors(n_neighbors=9, algorithm="brute").fit(gallery.images.reshape(132, -1) / 255)
    distances, indices = search.kneighbors(generated.reshape(25, -1) / 255)
    np.testing.assert_allclose(near.distances, distances, rtol=1e-10)
    np.testing.assert_array_equal(near.nearest, indices[:, 0])
    np.testing.assert_array_equal(near.deleted, indices[:, 0] < 12)
    np.testing.assert_array_equal(near.control, gallery.control[indices[:, 0]])
    with pytest.raises(ValueError, match="k 133"):
        training_neighbours(generated, gallery, k=133)


def test_the_ratio_has_its_closed_cases() -> None:
    distances = np.array([[0.0] + [2.0] * 49, [3.0] * 50, [1.0] + [9.0] * 49])
    np.testing.assert_allclose(carlini_ratio(distances), [0, 2, 1 / (0.5 * (1 + 9 * 49) / 50)])
    np.testing.assert_allclose(carlini_ratio(distances, alpha=1.0), carlini_ratio(distances) / 2)
    np.testing.assert_array_equal(carlini_copies(distances), [True, False, True])
    np.testing.assert_array_equal(carlini_copies(distances, threshold=0.1), [True, False, False])
    np.testing.assert_array_equal(
        yoon_copies(np.array([[1.0, 3.0], [1.0, 3.1], [0.0, 0.1]])), [False, True, True]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 2)),
        np.ones((3, 1)),
        np.ones(3),
        np.array([[2.0, 1.0]]),
        np.array([[-1.0, 1.0]]),
        np.array([[np.nan, 1.0]]),
        np.array([[1.0, 2.0, np.nan]]),
    ],
)
def test_distances_are_checked(wrong: np.ndarray) -> None:
    for rule in (carlini_ratio, yoon_copies):
        with pytest.raises(ValueError, match="expected"):
            rule(wrong)


def test_paired_change_by_hand() -> None:
    before, after = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool), np.array([0, 0, 1, 1, 0, 0, 0, 0], bool)
    found = paired_change(before, after)
    assert found.value == pytest.approx(-1 / 8)
    assert found.standard_error == pytest.approx(np.sqrt((3 - 1 / 8) / 64))
    same = paired_change(before, before)
    assert (same.value, same.standard_error) == (0, pytest.approx(1 / 9))
    assert paired_change(np.ones(8, bool), np.zeros(8, bool)).value == -1
    for wrong in (before[:3], before.astype(int)):
        with pytest.raises(ValueError, match="bool arrays of one shape"):
            paired_change(wrong, after)


def test_the_error_of_a_paired_change_is_that_of_other_pairs() -> None:
    rng = np.random.default_rng(0)
    shared = rng.random((4000, 300))
    before, after = shared < 0.12, (shared < 0.08) | (rng.random((4000, 300)) < 0.02)
    found = [paired_change(*pair) for pair in zip(before, after, strict=True)]
    values = np.array([one.value for one in found])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(values.std(), rel=0.05)
    apart = np.hypot(proportion(36, 300).standard_error, proportion(30, 300).standard_error)
    assert values.std() < 0.75 * apart, "pairing pays"


def units(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 16))


@pytest.mark.parametrize("chunk", [1, 7, 2048])
def test_similarities_agree_with_brute_force(chunk: int) -> None:
    generated, deleted, control = units(23, 0), 5 * units(11, 1), units(9, 2)
    found = embedding_copies(generated.astype(np.float32), deleted, control, chunk=chunk)
    for gallery, similarity, nearest in (
        (deleted, found.deleted_similarity, found.deleted_nearest),
        (control, found.control_similarity, found.control_nearest),
    ):
        cosines = (generated @ gallery.T) / np.outer(
            *(np.linalg.norm(x, axis=1) for x in (generated, gallery))
        )
        np.testing.assert_allclose(similarity, cosines.max(axis=1), atol=1e-6)
        np.testing.assert_array_equal(nearest, cosines.argmax(axis=1))
    assert found.of_deleted == proportion(int((found.deleted_similarity > 0.5).sum()), 23)
    assert found.of_control == proportion(int((found.control_similarity > 0.5).sum()), 23)


def test_planted_similar_images_are_counted_for_the_set_they_resemble() -> None:
    deleted, control = np.eye(16)[:4], np.eye(16)[4:8]
    generated = np.concatenate([deleted[:3] + 0.3 * np.eye(16)[8], control[:1], np.eye(16)[9:15]])
    found = embedding_copies(generated, deleted, control)
    assert found.of_deleted == proportion(3, 10)
    assert found.of_control == proportion(1, 10)
    np.testing.assert_array_equal(found.deleted_nearest[:3], [0, 1, 2])
    assert embedding_copies(generated, deleted, control, threshold=0.99).of_deleted.value == 0
    assert embedding_copies(deleted, deleted, control).deleted_similarity.max() == 1


def test_features_are_checked() -> None:
    good = np.eye(3)
    with pytest.raises(ValueError, match="one dimension, got 3 and 4"):
        embedding_copies(good, np.eye(4), good)
    for wrong in (np.zeros((2, 3)), np.full((2, 3), np.nan), np.empty((0, 3))):
        with pytest.raises(ValueError, match="expected"):
            embedding_copies(good, wrong, good)
    for wrong_threshold in (np.nan, 50.0):
        with pytest.raises(ValueError, match="a cosine in"):
            embedding_copies(good, good, good, threshold=wrong_threshold)
