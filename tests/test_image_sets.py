"""Sets of images: read one at a time, whatever they come from, and known by content."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gen_unlearn.decoding import ImageDecodeError, decode_image
from gen_unlearn.image_sets import ImageArray, ImageSet, IndexedImageSet, open_images
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.lazy_images import LazyImages
from gen_unlearn.repro import image_ids


def picture(seed: int, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "deeper").mkdir(parents=True)
    picture(0).save(root / "a.png")
    picture(1, (20, 12)).save(root / "deeper" / "b.png")
    picture(2, mode="L").save(root / "c.png")
    (root / "notes.txt").write_text("no image")
    return root


def digests(images: ImageSet) -> list[bytes]:
    """Return the digests of a set, in no order."""
    return sorted(images.digest(row) for row in range(len(images)))


def test_a_folder_is_read_as_it_is(folder: Path) -> None:
    images = open_images(folder)
    assert images.name == "images"
    assert [images.read(row).shape for row in range(len(images))] == [(7, 9, 3), (7, 9, 1), (12, 20, 3)]
    np.testing.assert_array_equal(images.read(0), np.asarray(picture(0)))


def test_a_size_and_channels_are_converted_to(folder: Path) -> None:
    images = open_images(folder, (8, 8), 3)
    assert {images.read(row).shape for row in range(3)} == {(8, 8, 3)}
    expected = decode_image(folder / "deeper" / "b.png", size=(8, 8), channels=3)
    np.testing.assert_array_equal(images.read(2), expected)
    assert digests(images) != digests(open_images(folder)), "other pixels"


def test_a_table_holds_the_same_images(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files]
    pq.write_table(pa.table({"img": rows}), tmp_path / "table.parquet")
    table, images = open_images(tmp_path / "table.parquet"), open_images(folder)
    assert digests(table) == digests(images), "whatever the order"


def test_the_digest_is_of_the_content(folder: Path) -> None:
    before = digests(open_images(folder))
    (folder / "a.png").rename(folder / "z.png")
    assert digests(open_images(folder)) == before
    picture(9).save(folder / "z.png")
    assert digests(open_images(folder)) != before


def indexed(images: np.ndarray | LazyImages, ids: np.ndarray) -> IndexedImages:
    names = tuple(str(row) for row in range(len(ids)))
    return IndexedImages(images, np.zeros(len(ids), dtype=np.int64), ids, ("all",), names)


def test_an_array_and_a_data_set_hold_the_same_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    array = ImageArray("noise", pixels)
    data = IndexedImageSet("noise", indexed(pixels, image_ids(pixels)))
    assert len(array) == len(data) == 5
    for row in range(5):
        np.testing.assert_array_equal(array.read(row), pixels[row])
        np.testing.assert_array_equal(data.read(row), pixels[row])
        assert array.digest(row) == data.digest(row)
    assert len(set(digests(data))) == 5


def test_a_data_set_on_disk_is_read_one_image_at_a_time(folder: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    pixels = np.stack([decode_image(file, size=(8, 8), channels=3) for file in files])
    lazy = LazyImages(files, np.arange(3), image_ids(pixels), (8, 8), 3)
    images = IndexedImageSet("pictures", indexed(lazy, image_ids(pixels)).select(np.array([2, 0])))
    files[1].unlink()
    np.testing.assert_array_equal(images.read(0), pixels[2])
    np.testing.assert_array_equal(images.read(1), pixels[0])
    picture(9).save(files[0])
    assert images.digest(1) == image_ids(pixels)[0].tobytes(), "without a look at the file"
    with pytest.raises(ValueError, match="1 of 1 images changed on disk"):
        images.read(1)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected images below"):
        open_images(tmp_path)
    with pytest.raises(ValueError, match="nothing is downloaded"):
        open_images(tmp_path / "missing")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageDecodeError, match=r"broken\.png"):
        open_images(tmp_path).read(0)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("P", 3), ("RGBA", 3), ("I;16", 1)]
)
def test_native_channels(mode: str, channels: int) -> None:
    image = picture(3, mode="L").convert("I").convert("I;16") if mode == "I;16" else picture(3, mode=mode)
    file = io.BytesIO()
    image.save(file, format="PNG")
    assert decode_image(file.getvalue(), size=None, channels=None).shape == (7, 9, channels)
