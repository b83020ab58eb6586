"""Altered copies of real images are found, and unrelated images are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance, ImageOps

from gen_unlearn.data import load_digits_images
from gen_unlearn.decoding import decode_image
from gen_unlearn.lazy_images import LazyImages
from gen_unlearn.near_duplicates import DEFAULT_SIMILARITY, find_near_duplicates, nearest_candidates
from gen_unlearn.repro import image_ids

CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg-test.parquet"
DIGITS_SIMILARITY = 0.96
SAMPLE = np.arange(0, 400, 20)


def picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def altered(images: np.ndarray, alter: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(alter(picture(image))).reshape(image.shape) for image in images])


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality)
    return Image.open(encoded).convert(image.mode)


def resize(image: Image.Image, factor: float) -> Image.Image:
    small = image.resize((round(image.width * factor), round(image.height * factor)))
    return small.resize(image.size)


def crop(image: Image.Image, keep: float, x: float, y: float) -> Image.Image:
    """Keep a share of each side; x and y from 0 to 1 say where."""
    left, top = x * (1 - keep) * image.width, y * (1 - keep) * image.height
    return image.resize(image.size, box=(left, top, left + keep * image.width, top + keep * image.height))


def everything(image: Image.Image) -> Image.Image:
    return jpeg(ImageEnhance.Brightness(crop(ImageOps.mirror(image), 0.92, 0.2, 0.7)).enhance(1.1), 70)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the image": lambda image: image,
    "jpeg 95": lambda image: jpeg(image, 95),
    "jpeg 75": lambda image: jpeg(image, 75),
    "jpeg 50": lambda image: jpeg(image, 50),
    "half size": lambda image: resize(image, 0.5),
    "double size": lambda image: resize(image, 2),
    "mirrored": ImageOps.mirror,
    "crop of the centre": lambda image: crop(image, 0.95, 0.5, 0.5),
    "crop of a corner": lambda image: crop(image, 0.9, 1, 0),
    "crop of an edge": lambda image: crop(image, 0.97, 0, 0.6),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "everything": everything,
}


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return load_digits_images(size=(32, 32)).all_images()[:400]


@pytest.fixture(scope="module")
def cifar() -> np.ndarray:
    if not CIFAR.is_file():
        pytest.skip("CIFAR-10 (JPEG) is not beside the repository")
    rows = next(pq.ParquetFile(CIFAR).iter_batches(400, columns=["img"]))["img"].to_pylist()
    return np.stack([decode_image(row["bytes"], size=(32, 32), channels=3) for row in rows])


# --- copies


@pytest.mark.parametrize("kind", COPIES)
def test_finds_every_copy_of_a_digit(digits: np.ndarray, kind: str) -> None:
    copies = altered(digits[SAMPLE], COPIES[kind])
    found = find_near_duplicates(copies, digits, DIGITS_SIMILARITY)
    original = SAMPLE[found.queries] == found.images
    assert original.sum() == len(SAMPLE)
    assert original.mean() > 0.8


@pytest.mark.parametrize("kind", COPIES)
def test_finds_every_copy_of_a_photograph_and_nothing_else(cifar: np.ndarray, kind: str) -> None:
    found = find_near_duplicates(altered(cifar[SAMPLE], COPIES[kind]), cifar)
    assert sorted(zip(found.queries, found.images, strict=True)) == list(enumerate(SAMPLE))
    assert found.similarities.min() >= DEFAULT_SIMILARITY


def test_unrelated_photographs_do_not_match(cifar: np.ndarray) -> None:
    assert len(find_near_duplicates(cifar[:200], cifar[200:])) == 0
    similarities, _ = nearest_candidates(cifar[:200], cifar[200:], 1)
    assert 0 < similarities.min() < similarities.max() < DEFAULT_SIMILARITY


def test_a_grey_copy_of_other_contrast_is_a_copy(cifar: np.ndarray) -> None:
    copies = altered(cifar[SAMPLE], lambda image: ImageOps.grayscale(image).convert("RGB"))
    copies = (copies // 2 + 60).astype(np.uint8)
    assert len(find_near_duplicates(copies, cifar)) == len(SAMPLE)


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 7, 3), (20, 48, 3), (100, 100, 1)])
def test_any_shape(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, *shape), dtype=np.uint8)
    found = find_near_duplicates(images[:, :, ::-1], images)
    assert found.images[found.queries.argsort()].tolist() == list(range(30))
    np.testing.assert_array_equal(found.similarities, 1)


# --- laws


def test_an_image_is_wholly_similar_to_itself_and_to_its_mirror_image(digits: np.ndarray) -> None:
    for copies in (digits, digits[:, :, ::-1]):
        similarities, rows = nearest_candidates(copies, digits, 1)
        np.testing.assert_array_equal(similarities, 1)
        np.testing.assert_array_equal(rows[:, 0], np.arange(len(digits)))


def test_mirroring_both_sides_changes_nothing(digits: np.ndarray) -> None:
    plain = nearest_candidates(digits[:20], digits[20:], 5)
    mirrored = nearest_candidates(digits[:20, :, ::-1], digits[20:, :, ::-1], 5)
    np.testing.assert_allclose(plain[0], mirrored[0], atol=2e-4)


def test_matches_are_the_candidates_above_the_threshold_best_first(digits: np.ndarray) -> None:
    found = find_near_duplicates(digits[:30], digits, 0.9)
    similarities, rows = nearest_candidates(digits[:30], digits, len(digits))
    query, rank = np.nonzero(similarities >= 0.9)
    expected = zip(-similarities[query, rank], query, rows[query, rank], strict=True)
    assert list(zip(-found.similarities, found.queries, found.images, strict=True)) == sorted(expected)
    assert len(found) > 30


def test_decoding_on_demand_and_the_size_of_batches_change_nothing(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for row, image in enumerate(digits[:100]):
        files.append(tmp_path / f"{row}.png")
        picture(image).save(files[-1])
    lazy = LazyImages(files, np.arange(100), image_ids(digits[:100]), size=(32, 32), channels=1)
    copies = altered(digits[:10], everything)
    from_array = find_near_duplicates(copies, digits[:100], 0.5)
    from_files = find_near_duplicates(copies, lazy, 0.5)
    monkeypatch.setattr("gen_unlearn.near_duplicates._BATCH_IMAGES", 7)
    in_batches = find_near_duplicates(copies, lazy, 0.5)
    again = find_near_duplicates(copies, digits[:100], 0.5)
    for name in ("queries", "images", "similarities"):
        np.testing.assert_array_equal(getattr(from_array, name), getattr(from_files, name))
        np.testing.assert_array_equal(getattr(from_array, name), getattr(again, name))
    np.testing.assert_allclose(in_batches.similarities, from_array.similarities, atol=2e-4)
    batched = nearest_candidates(copies, lazy, 3)[1]
    monkeypatch.undo()
    np.testing.assert_array_equal(batched, nearest_candidates(copies, lazy, 3)[1])


def test_equal_candidates_come_in_the_order_of_rows(digits: np.ndarray) -> None:
    images = np.concatenate([digits[:3], digits[:3]])
    similarities, rows = nearest_candidates(digits[:3], images, 2)
    assert similarities.tolist() == [[1, 1]] * 3
    assert rows.tolist() == [[0, 3], [1, 4], [2, 5]]
    found = find_near_duplicates(digits[:3], images, 1.0)
    assert found.queries.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.images.tolist() == [0, 3, 1, 4, 2, 5]


# --- edges


def test_pictures_without_structure_match_their_identical_copies_only(digits: np.ndarray) -> None:
    plain = np.stack([np.full((32, 32, 1), grey, dtype=np.uint8) for grey in (0, 1, 128, 255)])
    found = find_near_duplicates(plain, np.concatenate([digits, plain]), 0.01)
    assert found.queries.tolist() == [0, 1, 2, 3]
    assert found.images.tolist() == [400, 401, 402, 403]
    assert found.similarities.tolist() == [1, 1, 1, 1]
    assert nearest_candidates(plain, digits, 1)[0].tolist() == [[0]] * 4
    assert set(find_near_duplicates(digits[:5], plain, 0.01).images) == set()


def test_nothing_found_is_an_empty_result(digits: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    for found in (
        find_near_duplicates(noise, digits),
        find_near_duplicates(noise[:0], digits),
        find_near_duplicates(noise, digits[:0]),
    ):
        assert len(found) == 0
        assert found.queries.dtype == found.images.dtype == np.int64
        assert found.similarities.dtype == np.float64
    assert nearest_candidates(noise[:0], digits, 3)[0].shape == (0, 3)


@pytest.mark.parametrize("similarity", [0.0, -0.5, 1.01, float("nan"), float("inf")])
def test_refuses_a_similarity_out_of_range(digits: np.ndarray, similarity: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and at most 1, got .*the default is 0\.9"):
        find_near_duplicates(digits[:1], digits, similarity)


@pytest.mark.parametrize("k", [0, 401])
def test_refuses_more_candidates_than_images(digits: np.ndarray, k: int) -> None:
    with pytest.raises(ValueError, match=f"expected k from 1 to 400 images, got {k}"):
        nearest_candidates(digits[:1], digits, k)


@pytest.mark.parametrize(
    "queries",
    [
        np.zeros((2, 8, 8, 1), dtype=np.uint8),
        np.zeros((2, 32, 32, 3), dtype=np.uint8),
        np.zeros((32, 32, 1), dtype=np.uint8),
        np.zeros((2, 32, 32, 1), dtype=np.float32),
    ],
)
def test_refuses_queries_of_another_shape(digits: np.ndarray, queries: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"images of shape \(32, 32, 1\).*convert them with decode_image"):
        find_near_duplicates(queries, digits)
