"""Laws of the data sets: what is read from digits, folders and tables, and how it is split."""

from __future__ import annotations

import io
import pickle
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from gen_unlearn.data import (
    DataConfig,
    IndexedImages,
    LazyImages,
    load_digits_images,
    load_folder,
    load_images,
    load_split,
    stratified_split,
)
from gen_unlearn.decoding import ImageDecodeError
from gen_unlearn.forget import ForgetSet
from gen_unlearn.image_tables import load_table
from gen_unlearn.repro import id_keys, image_ids

CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE = (6, 6)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pixels(count: int, seed: int = 0) -> np.ndarray:
    """Return random images, uint8 ``(count, 6, 6, 3)``."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def indexed(
    images: np.ndarray, labels: list[int], class_names: tuple[str, ...] = ("a", "b", "c")
) -> IndexedImages:
    names = tuple(f"image {row}" for row in range(len(images)))
    return IndexedImages(images, np.array(labels, dtype=np.int64), image_ids(images), class_names, names)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def keys(data: IndexedImages) -> set[bytes]:
    return set(id_keys(data.ids).tolist())


# --- IndexedImages


def test_digits() -> None:
    data = load_digits_images()
    assert data.images.shape == (1797, 8, 8, 1)
    assert data.image_shape == (8, 8, 1)
    assert data.class_names == tuple("0123456789")
    assert data.names[17] == "digits/17"
    assert repr(data) == "IndexedImages(1797 images of shape (8, 8, 1), 10 classes)"
    rows = np.arange(5)
    np.testing.assert_array_equal(data.images[rows][..., 0], np.rint(load_digits().images[:5] * 255 / 16))
    np.testing.assert_array_equal(data.ids[:3], image_ids(data.images[rows])[:3])


def test_digits_in_another_size_and_colour() -> None:
    assert load_images(DataConfig("digits")).image_shape == (8, 8, 1)
    data = load_images(DataConfig("digits", image_size=12, channels=3))
    assert data.image_shape == (12, 12, 3)
    coloured = load_images(DataConfig("digits", channels=3))
    np.testing.assert_array_equal(
        coloured.images[np.arange(9)], np.repeat(load_digits_images().images[np.arange(9)], 3, axis=3)
    )


def test_select_by_rows_and_by_mask() -> None:
    data = indexed(pixels(4), [0, 1, 2, 0])
    chosen = data.select(np.array([3, 1]))
    assert chosen.names == ("image 3", "image 1")
    np.testing.assert_array_equal(chosen.labels, [0, 1])
    np.testing.assert_array_equal(chosen.images[np.arange(2)], pixels(4)[[3, 1]])
    assert data.select(np.array([True, False, False, True])).names == ("image 0", "image 3")
    assert len(data.select(np.array([], dtype=np.int64))) == 0


def test_digest_ignores_order_but_not_content_or_labels() -> None:
    data = indexed(pixels(4), [0, 1, 2, 0])
    assert data.select(np.array([2, 0, 3, 1])).digest == data.digest
    assert data.select(np.array([0, 1, 2])).digest != data.digest
    assert indexed(pixels(4), [0, 1, 2, 1]).digest != data.digest
    twice = data.select(np.array([0, 1, 2, 3, 3]))
    assert twice.digest != data.digest


def test_without_removes_every_copy_and_nothing_else() -> None:
    images = pixels(4)[[0, 1, 0, 2, 3, 0]]
    data = indexed(images, [0, 1, 2, 2, 1, 0])
    left = data.without(ForgetSet(data.ids[:1], "test"))
    assert left.names == ("image 1", "image 3", "image 4")
    assert left.class_names == data.class_names
    np.testing.assert_array_equal(data.rows_of(data.ids[[3, 0]]), [0, 2, 3, 5])
    strangers = ForgetSet(np.concatenate([data.ids[:1], image_ids(pixels(2, seed=1))]), "test")
    with pytest.raises(ValueError, match=r"2 of 3 ids are not in the data: .*the source may have changed"):
        data.without(strangers)


def test_class_index() -> None:
    data = indexed(pixels(1), [0], ("cat", "dog", "eel"))
    assert [data.class_index(name) for name in ("dog", 2, np.int64(0), "1")] == [1, 2, 0, 1]
    for wrong in ("Dog", 3, -1, "3", "-1"):
        with pytest.raises(ValueError, match=r"the classes are \['cat', 'dog', 'eel'\]"):
            data.class_index(wrong)
    assert indexed(pixels(1), [0], ("0", "1")).class_index(1) == 1
    with pytest.raises(ValueError, match="ambiguous"):
        indexed(pixels(1), [0], ("1", "2")).class_index(1)


def test_wrong_fields_are_refused() -> None:
    images, labels = pixels(2), np.array([0, 1])
    ids = image_ids(images)
    with pytest.raises(ValueError, match="expected uint8 images"):
        IndexedImages(images.astype(float), labels, ids, ("a", "b"), ("x", "y"))
    with pytest.raises(ValueError, match="expected int64 labels of shape"):
        IndexedImages(images, labels.astype(np.int32), ids, ("a", "b"), ("x", "y"))
    with pytest.raises(ValueError, match="expected labels from 0 to 0"):
        IndexedImages(images, labels, ids, ("a",), ("x", "y"))
    with pytest.raises(ValueError, match="expected distinct class names"):
        IndexedImages(images, labels, ids, ("a", "a"), ("x", "y"))
    with pytest.raises(ValueError, match="expected 2 ids and names"):
        IndexedImages(images, labels, ids, ("a", "b"), ("x",))


# --- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two classes with awkward names, and things to ignore."""
    root = tmp_path / "my images"
    names = ["ünï/z (1).png", "ünï/deep/er/a.png", "cat/ 1.PNG", "cat/2.png"]
    for name, image in zip(names, pixels(4), strict=True):
        write(root / name, png(image))
    for name in ("cat/notes.txt", ".cache/x.png", "cat/.hidden.png", "README.md", "empty/readme"):
        write(root / name, b"ignore me")
    return root


def test_folder_of_classes(folder: Path) -> None:
    data = load_images(DataConfig(str(folder), image_size=6))
    assert data.class_names == ("cat", "ünï")
    assert data.names == ("cat/ 1.PNG", "cat/2.png", "ünï/deep/er/a.png", "ünï/z (1).png")
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.images[np.arange(4)], pixels(4)[[2, 3, 1, 0]])
    np.testing.assert_array_equal(data.ids, image_ids(pixels(4)[[2, 3, 1, 0]]))


def test_folder_without_classes(tmp_path: Path) -> None:
    for row, image in enumerate(pixels(3)):
        write(tmp_path / "flat" / f"{row}.png", png(image))
    data = load_folder(tmp_path / "flat", size=SIZE, channels=1)
    assert (data.class_names, data.image_shape, len(data)) == (("all",), (6, 6, 1), 3)


def test_folder_mistakes(folder: Path, tmp_path: Path) -> None:
    write(folder / "stray.png", png(pixels(1)[0]))
    with pytest.raises(ValueError, match=r"got both \(1 directly: stray\.png\)"):
        load_folder(folder, size=SIZE, channels=3)
    with pytest.raises(ValueError, match=r"expected images below .*empty, got none"):
        load_folder(folder / "empty", size=SIZE, channels=3)
    with pytest.raises(ValueError, match="which is no folder"):
        load_folder(tmp_path / "nowhere", size=SIZE, channels=3)
    with pytest.raises(ValueError, match="nothing is downloaded implicitly: check the path"):
        load_images(DataConfig(str(tmp_path / "nowhere"), image_size=6))
    with pytest.raises(ValueError, match=r"ends in \.parquet or \.arrow, got .*README\.md"):
        load_images(DataConfig(str(folder / "README.md"), image_size=6))


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "secret.png", png(pixels(1)[0]))
    (folder / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="a link to a folder or out of"):
        load_folder(folder, size=SIZE, channels=3)


def test_broken_images_raise_or_are_skipped_and_recorded(folder: Path) -> None:
    write(folder / "cat" / "0 broken.png", png(pixels(1)[0])[:40])
    write(folder / "dog" / "empty.png", b"")
    with pytest.raises(ImageDecodeError, match=r"cannot decode cat/0 broken\.png: .*set on_error to 'skip'"):
        load_folder(folder, size=SIZE, channels=3)
    data = load_images(DataConfig(str(folder), image_size=6, on_error="skip"))
    assert data.names[0] == "cat/ 1.PNG"
    assert len(data) == 4
    assert [entry.partition(":")[0] for entry in data.skipped] == ["cat/0 broken.png", "dog/empty.png"]
    assert "zero bytes" in data.skipped[1]
    np.testing.assert_array_equal(data.ids, image_ids(data.images[np.arange(4)]))
    with pytest.raises(ValueError, match="none of 1 images can be decoded"):
        load_folder(folder / "dog", size=SIZE, channels=3, on_error="skip")
    with pytest.raises(ValueError, match="expected on_error"):
        load_folder(folder, size=SIZE, channels=3, on_error="ignore")  # type: ignore[arg-type]


def test_many_images_are_decoded_by_threads_in_their_order(tmp_path: Path) -> None:
    images = pixels(100)
    for row, image in enumerate(images):
        write(tmp_path / f"{row:03}.png", b"" if row in (40, 71) else png(image))
    kept = np.delete(np.arange(100), [40, 71])
    for limit in (0, 2**20):
        data = load_folder(tmp_path, size=SIZE, channels=3, on_error="skip", memory_limit=limit)
        np.testing.assert_array_equal(data.all_images(), images[kept])
        np.testing.assert_array_equal(data.ids, image_ids(images[kept]))
        assert data.names == tuple(f"{row:03}.png" for row in kept)
        assert [entry.partition(":")[0] for entry in data.skipped] == ["040.png", "071.png"]
    with pytest.raises(ImageDecodeError, match=r"040\.png"):
        load_folder(tmp_path, size=SIZE, channels=3)


def test_lazy_images_equal_images_in_memory(folder: Path) -> None:
    write(folder / "cat" / "1 broken.png", b"")
    eager = load_folder(folder, size=(4, 4), channels=3, on_error="skip")
    lazy = load_folder(folder, size=(4, 4), channels=3, on_error="skip", memory_limit=100)
    assert isinstance(lazy.images, LazyImages)
    assert (lazy.digest, lazy.names, lazy.image_shape) == (eager.digest, eager.names, eager.image_shape)
    for rows in (np.array([2, 0, 2]), np.array([], dtype=np.int64), np.array([True, False, False, True])):
        np.testing.assert_array_equal(lazy.images[rows], eager.images[rows])
        np.testing.assert_array_equal(
            lazy.select(rows).all_images()[np.arange(0)], eager.select(rows).images[np.arange(0)]
        )
    np.testing.assert_array_equal(lazy.all_images()[np.arange(4)], eager.images[np.arange(4)])
    clone = pickle.loads(pickle.dumps(lazy))
    np.testing.assert_array_equal(clone.images[np.arange(4)], eager.images[np.arange(4)])


def test_lazy_images_notice_a_changed_file(folder: Path) -> None:
    data = load_folder(folder, size=SIZE, channels=3, memory_limit=0)
    write(folder / "cat" / "2.png", png(pixels(1, seed=9)[0]))
    with pytest.raises(ValueError, match="1 of 4 images changed on disk"):
        data.all_images()


# --- tables


def image_rows(images: np.ndarray) -> list[dict[str, object]]:
    return [{"bytes": png(image), "path": f"{row}.png"} for row, image in enumerate(images)]


def write_typed_parquet(path: Path, images: np.ndarray, labels: list[int], names: list[str]) -> None:
    """Write Parquet as the hub does: Image and ClassLabel features in the schema's metadata."""
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict({"image": image_rows(images), "kind": labels}, features=features)
    pq.write_table(table.data.table, path)


def test_parquet_with_image_and_class_features(tmp_path: Path) -> None:
    path = tmp_path / "typed.parquet"
    write_typed_parquet(path, pixels(3), [1, 0, 1], ["cat", "dog", "eel"])
    data = load_images(DataConfig(str(path), image_size=6))
    assert data.class_names == ("cat", "dog", "eel")
    assert data.names == ("typed.parquet#0", "typed.parquet#1", "typed.parquet#2")
    np.testing.assert_array_equal(data.labels, [1, 0, 1])
    np.testing.assert_array_equal(data.images[np.arange(3)], pixels(3))


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 2, 10], ("2", "10"), [1, 0, 1]),
        (None, ("all",), [0, 0, 0]),
    ],
)
def test_parquet_with_plain_structs(tmp_path: Path, labels: list | None, names: tuple, indices: list) -> None:
    columns = {"caption": ["x", "y", "z"], "img": image_rows(pixels(3))}
    table = pa.table(columns if labels is None else {**columns, "label": labels})
    pq.write_table(table, tmp_path / "pläin [1] *.parquet")
    data = load_table(tmp_path / "pläin [1] *.parquet", size=SIZE, channels=3)
    assert data.class_names == names
    np.testing.assert_array_equal(data.labels, indices)
    np.testing.assert_array_equal(data.ids, image_ids(pixels(3)))


def test_arrow_file_folder_and_pattern(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"pixels": [png(image) for image in pixels(4)], "class": list("abab")})
    table.save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    for source in (arrow, tmp_path / "saved", tmp_path / "saved" / "*.arrow"):
        data = load_images(DataConfig(str(source), image_size=6))
        assert data.class_names == ("a", "b")
        assert data.names[3] == f"{arrow.name}#3"
        np.testing.assert_array_equal(data.ids, image_ids(pixels(4)))


def test_folder_of_parquet_files_and_relative_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(2):
        write_typed_parquet(tmp_path / "set" / f"train-{shard}.parquet", pixels(2, shard), [0, 1], ["a", "b"])
    data = load_images(DataConfig(str(tmp_path / "set"), image_size=6))
    assert data.names == ("train-0.parquet#0", "train-0.parquet#1", "train-1.parquet#0", "train-1.parquet#1")
    np.testing.assert_array_equal(data.ids, image_ids(np.concatenate([pixels(2, 0), pixels(2, 1)])))
    monkeypatch.chdir(tmp_path)
    assert len(load_images(DataConfig("set/train-[1].parquet", image_size=6))) == 2

    write_typed_parquet(tmp_path / "set" / "test-0.parquet", pixels(2, 5), [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match=r"of one split in .* choose with a pattern"):
        load_images(DataConfig("set", image_size=6))
    (tmp_path / "set" / "test-0.parquet").rename(tmp_path / "set" / "train-2.parquet")
    write(tmp_path / "set" / "cover.png", png(pixels(1)[0]))
    with pytest.raises(ValueError, match=r"got both: train-0.* beside cover\.png"):
        load_images(DataConfig("set", image_size=6))


def test_lazy_and_skipping_tables(tmp_path: Path) -> None:
    rows: list[dict[str, object] | None] = [*image_rows(pixels(3)), {"bytes": b"junk", "path": "j"}, None]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"img": pa.array(rows, struct), "label": [0] * 5}), tmp_path / "t.parquet")
    with pytest.raises(ImageDecodeError, match=r"cannot decode t\.parquet#3: not an image"):
        load_table(tmp_path / "t.parquet", size=SIZE, channels=3)
    data = load_table(tmp_path / "t.parquet", size=SIZE, channels=3, on_error="skip", memory_limit=0)
    assert isinstance(data.images, LazyImages)
    assert [entry.partition(":")[0] for entry in data.skipped] == ["t.parquet#3", "t.parquet#4"]
    np.testing.assert_array_equal(data.images[np.arange(3)], pixels(3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data)).images[np.arange(3)], pixels(3))


def test_table_mistakes(tmp_path: Path) -> None:
    images = image_rows(pixels(2))
    cases = {
        "two": (
            {"a": images, "b": images},
            "expected one column of images, got .'a', 'b'.* set image_column",
        ),
        "none": ({"text": ["x", "y"]}, "got none among"),
        "labels": ({"a": images, "label": [0, 1], "class": [0, 1]}, "expected one column of labels"),
        "floats": ({"a": images, "label": [0.5, 1.5]}, "integers or strings as labels, got double"),
        "nulls": ({"a": images, "label": [0, None]}, "got 1 nulls in 'label'"),
        "empty": ({"a": pa.array([], pa.binary())}, "cannot be read"),
    }
    for name, (columns, message) in cases.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=message):
            load_table(tmp_path / f"{name}.parquet", size=SIZE, channels=3)
    data = load_table(tmp_path / "two.parquet", size=SIZE, channels=3, image_column="b")
    assert len(data) == 2
    with pytest.raises(ValueError, match=r"one of the columns \['a', 'b'\], got 'c'"):
        load_table(tmp_path / "two.parquet", size=SIZE, channels=3, image_column="c")
    (tmp_path / "corrupt.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"corrupt\.parquet, which cannot be read") as caught:
        load_table(tmp_path / "corrupt.parquet", size=SIZE, channels=3)
    assert "\n" not in str(caught.value)


def test_hub_name_is_read_from_the_local_cache_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'someone/animals'.*nothing is downloaded implicitly"):
        load_images(DataConfig("someone/animals", image_size=6))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    table = datasets.Dataset.from_dict({"image": image_rows(pixels(2)), "label": [1, 0]}, features=features)
    cached = tmp_path / "cache" / "someone___animals" / "default" / "0.0.0" / "abc"
    table.save_to_disk(tmp_path / "saved")
    cached.mkdir(parents=True)
    next((tmp_path / "saved").glob("*.arrow")).rename(cached / "animals-train.arrow")
    info = datasets.DatasetInfo(
        features=features,
        dataset_name="animals",
        config_name="default",
        version="0.0.0",
        splits={"train": {"name": "train", "num_examples": 2, "dataset_name": "animals"}},
    )
    info.write_to_directory(cached)
    data = load_images(DataConfig("someone/animals", image_size=6))
    assert data.class_names == ("cat", "dog")
    assert data.names == ("someone/animals#0", "someone/animals#1")
    np.testing.assert_array_equal(data.ids, image_ids(pixels(2)))


@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10 (JPEG) is not beside the repository")
def test_cifar() -> None:
    data = load_images(DataConfig(str(CIFAR / "cifar10-jpeg-test.parquet"), image_size=32))
    assert data.images.shape == (10_000, 32, 32, 3)
    assert data.class_names[:2] == ("airplane", "automobile")
    np.testing.assert_array_equal(np.bincount(data.labels), [1000] * 10)
    with pytest.raises(ValueError, match="of one split"):
        load_images(DataConfig(str(CIFAR), image_size=32))


# --- splits


def test_split_counts_are_exact_and_sides_are_disjoint() -> None:
    data = load_digits_images()
    split = stratified_split(data, 0.2, seed=0)
    assert len(split.train) + len(split.test) == len(data)
    assert not keys(split.train) & keys(split.test)
    for label in range(10):
        distinct = len(keys(data.select(data.labels == label)))
        assert len(keys(split.test.select(split.test.labels == label))) == round(0.2 * distinct)


def test_split_ignores_the_order_of_rows_and_depends_on_the_seed() -> None:
    data = load_digits_images()
    shuffled = data.select(np.random.default_rng(0).permutation(len(data)))
    first, again = stratified_split(data, 0.3, seed=1), stratified_split(shuffled, 0.3, seed=1)
    assert (first.train.digest, first.test.digest) == (again.train.digest, again.test.digest)
    assert stratified_split(data, 0.3, seed=2).test.digest != first.test.digest
    assert keys(first.test) < keys(stratified_split(data, 0.5, seed=1).test)
    assert list(first.test.names) == sorted(first.test.names, key=lambda name: int(name.split("/")[1]))


def test_identical_images_land_on_one_side() -> None:
    images = pixels(10)[np.arange(40) % 10]
    labels = [0, 1, 0, 1, 0, 1, 0, 1, 0, 2]
    for seed in range(5):
        data = indexed(images, [labels[row % 10] if row < 30 else 2 for row in range(40)])
        split = stratified_split(data, 0.4, seed)
        assert not keys(split.train) & keys(split.test)
        assert len(keys(split.test)) == 4


def test_small_classes_keep_an_image_on_each_side() -> None:
    data = indexed(pixels(13), [0] * 2 + [1] * 10 + [2])
    for fraction in (0.01, 0.5, 0.99):
        split = stratified_split(data, fraction, seed=3)
        assert set(split.train.labels.tolist()) == {0, 1, 2}
        assert set(split.test.labels.tolist()) == {0, 1}
        assert np.count_nonzero(split.test.labels == 0) == 1
    with pytest.raises(ValueError, match="expected a class with two distinct images"):
        stratified_split(indexed(pixels(2), [0, 1]), 0.5, seed=0)
    with pytest.raises(ValueError, match="test_fraction above 0 and below 1"):
        stratified_split(data, 1.0, seed=0)


def test_split_of_fifty_thousand_images_is_fast() -> None:
    count = 50_000
    rng = np.random.default_rng(0)
    data = IndexedImages(
        np.zeros((count, 1, 1, 1), dtype=np.uint8),
        rng.integers(0, 100, count),
        rng.integers(0, 256, (count, 16), dtype=np.uint8),
        tuple(str(label) for label in range(100)),
        ("",) * count,
    )
    start = time.process_time()
    assert len(stratified_split(data, 0.1, seed=0).test) == pytest.approx(5000, abs=50)
    assert time.process_time() - start < 2


def test_load_split_with_a_separate_test_source(tmp_path: Path) -> None:
    write_typed_parquet(tmp_path / "train.parquet", pixels(3), [0, 1, 2], ["cat", "dog", "eel"])
    for name, image in zip(("dog/1.png", "eel/1.png"), pixels(2, seed=4), strict=True):
        write(tmp_path / "held out" / name, png(image))
    config = DataConfig(
        str(tmp_path / "train.parquet"), image_size=6, test_source=str(tmp_path / "held out"), channels=3
    )
    split = load_split(config)
    assert (len(split.train), len(split.test)) == (3, 2)
    assert split.test.class_names == ("cat", "dog", "eel")
    np.testing.assert_array_equal(split.test.labels, [1, 2])
    write(tmp_path / "held out" / "fox" / "1.png", png(pixels(1)[0]))
    with pytest.raises(ValueError, match=r"got \['fox'\] too"):
        load_split(config)


def test_load_split_of_digits_by_default() -> None:
    split = load_split(DataConfig("digits"))
    assert (len(split.train), len(split.test)) == (1438, 359)


def test_wrong_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="expected image_size for 'photos'"):
        DataConfig("photos")
    with pytest.raises(ValueError, match="expected image_size for 'photos'"):
        DataConfig("digits", test_source="photos")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        DataConfig("digits", image_size=0)
    with pytest.raises(ValueError, match="channels to be 1"):
        DataConfig("digits", channels=4)
    with pytest.raises(ValueError, match="test_fraction"):
        DataConfig("digits", test_fraction=0)
