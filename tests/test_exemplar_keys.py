"""Keys of exemplars: an image's own, whatever its company; and stores from which images can be deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gen_unlearn import shards
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplar_changes import StoreChange, stage_addition, stage_deletion
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.exemplar_keys import BLOCK, encode_exemplars, image_keys, save_exemplars
from gen_unlearn.key_bank import encode_keys
from gen_unlearn.models.classifier import SemiParametricClassifier, build_classifier
from gen_unlearn.models.classifier_config import ClassifierConfig
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.pixels import resize_images
from gen_unlearn.repro import digest_arrays, digest_json, id_keys, image_ids
from gen_unlearn.shards import CONFIG, SUMS, Rows, digest_of_rows, sha256, store_digest, sums_text

SIZE = (8, 8)
NAMES = ("a", "b", "c")
COUNT = 150


@pytest.fixture(scope="module")
def network() -> SemiParametricClassifier:
    """A network with running statistics of its own, in evaluation mode."""
    torch.manual_seed(0)
    config = ClassifierConfig(encoder=EncoderConfig(width=8, depth=1), key_dim=8, experts=2)
    built = build_classifier(config, (8, 8, 1), len(NAMES))
    assert isinstance(built, SemiParametricClassifier)
    with torch.no_grad():
        built.train()(torch.randn(32, 1, 8, 8))
    return built.eval()


@pytest.fixture(scope="module")
def data() -> IndexedImages:
    """Random images; row 3 is there twice, and rows 10 and 11 are one image in two classes."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, *SIZE, 1), dtype=np.uint8)
    labels = np.arange(COUNT, dtype=np.int64) % 3
    images[103], labels[103] = images[3], labels[3]
    images[11] = images[10]
    names = tuple(f"random/{row}" for row in range(COUNT))
    return IndexedImages(images, labels, image_ids(images), NAMES, names)


@pytest.fixture(scope="module")
def everything(network: SemiParametricClassifier, data: IndexedImages) -> Rows:
    return encode_exemplars(network, data, SIZE)


def by_key(rows: Rows) -> dict[tuple[bytes, int], bytes]:
    assert rows.codes is not None
    keys = [(one.tobytes(), int(label)) for one, label in zip(rows.ids, rows.labels, strict=True)]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, (code.tobytes() for code in rows.codes), strict=True))


def equal(one: Rows, other: Rows) -> bool:
    return all(map(np.array_equal, one, other))


# --- an image's keys are its own


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 100, COUNT])
@pytest.mark.parametrize("seed", [0, 1])
def test_keys_do_not_depend_on_the_company(
    network: SemiParametricClassifier, data: IndexedImages, everything: Rows, size: int, seed: int
) -> None:
    chosen = np.random.default_rng([seed, size]).permutation(COUNT)[:size]
    found, whole = by_key(encode_exemplars(network, data.select(chosen), SIZE)), by_key(everything)
    assert found == {key: whole[key] for key in found}
    assert len(found) == len({(data.ids[row].tobytes(), int(data.labels[row])) for row in chosen})


def test_a_place_in_the_block_does_not_matter(network: SemiParametricClassifier, data: IndexedImages) -> None:
    image = np.asarray(data.images)[0]
    alone = image_keys(network, image[None])[0]
    for place in range(BLOCK):
        images = np.asarray(data.images)[1 : BLOCK + 1].copy()
        images[place] = image
        assert torch.equal(image_keys(network, images)[place], alone), place


def test_a_block_has_an_upper_limit(network: SemiParametricClassifier, data: IndexedImages) -> None:
    with pytest.raises(ValueError, match=r"at most 64 images, got 65"):
        image_keys(network, np.asarray(data.images)[: BLOCK + 1])


def test_codes_are_those_of_the_network_up_to_a_step(
    network: SemiParametricClassifier, data: IndexedImages, everything: Rows
) -> None:
    """A plain pass of all images at once gives the same keys, to a rounding step or two."""
    rows = np.array([int(np.flatnonzero(id_keys(data.ids) == key)[0]) for key in id_keys(everything.ids)])
    inputs = torch.from_numpy(np.asarray(data.images)[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        keys = network.keys(network.encoder(inputs))
    assert everything.codes is not None
    expected = encode_keys(keys).reshape(len(keys), -1)
    assert np.abs(expected.astype(int) - everything.codes).max() <= 2


# --- what an exemplar is


def test_exemplars_are_sorted_and_repeated_ones_count_once(data: IndexedImages, everything: Rows) -> None:
    assert len(everything.ids) == COUNT - 1
    keys = [(one.tobytes(), int(label)) for one, label in zip(everything.ids, everything.labels, strict=True)]
    assert keys == sorted(keys)
    twice = everything.labels[(everything.ids == data.ids[10]).all(axis=1)]
    assert twice.tolist() == sorted(data.labels[[10, 11]].tolist()), "one image under two labels"
    assert np.array_equal(image_ids(everything.pixels), everything.ids)
    assert everything.codes is not None
    assert (everything.codes.dtype, everything.codes.shape) == (np.int16, (COUNT - 1, 16))


def test_pictures_may_be_smaller_and_change_no_key(
    network: SemiParametricClassifier, data: IndexedImages, everything: Rows
) -> None:
    small = encode_exemplars(network, data, (4, 5))
    assert small.pixels.shape == (COUNT - 1, 4, 5, 1)
    assert np.array_equal(small.pixels, resize_images(everything.pixels, (4, 5)))
    assert equal(small._replace(pixels=everything.pixels), everything)


def test_no_image_makes_no_exemplar(network: SemiParametricClassifier, data: IndexedImages) -> None:
    rows = encode_exemplars(network, data.select(np.arange(0)), SIZE)
    assert equal(rows, Rows.none((*SIZE, 1), 16))


# --- on disk


@pytest.fixture(params=[4, 40, 10**6], ids=["many shards", "some shards", "one shard"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    def bounded(shape: object, code_length: int = 0) -> int:
        assert shape
        assert code_length == 16
        return int(request.param)

    for module in ("exemplar_changes", "exemplar_folder"):
        monkeypatch.setattr(f"gen_unlearn.{module}.shard_limit", bounded)
    return int(request.param)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(rows: Rows, folder: Path) -> dict[str, bytes]:
    save_exemplars(rows, NAMES, SIZE, folder)
    return contents(folder)


def apply(change: StoreChange, staging: Path, store: Path) -> None:
    """Bring a change into force, as `gen_unlearn.changes` does."""
    for name in change.new:
        (staging / name).rename(store / name)
    (store / SUMS).write_text(change.sums)
    for name in change.obsolete:
        (store / name).unlink()
    shutil.rmtree(staging)


@pytest.mark.parametrize("picture", [SIZE, (4, 4)], ids=["whole", "small"])
def test_deleting_equals_never_having_held(
    network: SemiParametricClassifier,
    data: IndexedImages,
    limit: int,
    picture: tuple[int, int],
    tmp_path: Path,
) -> None:
    """On disk: the store of all images after a deletion, and one whose images were encoded without them."""
    random = np.random.default_rng(limit)
    rows = encode_exemplars(network, data, picture)
    complete = saved(rows, tmp_path / "store")
    gone = np.unique(data.ids[random.permutation(COUNT)[:40]], axis=0)
    kept = data.select(np.flatnonzero(~np.isin(id_keys(data.ids), id_keys(gone))))
    never = saved(encode_exemplars(network, kept, picture), tmp_path / "never")
    for part in np.array_split(random.permutation(gone), 3):
        (tmp_path / "staging").mkdir()
        change = stage_deletion(ExemplarFolder.open(tmp_path / "store"), part, tmp_path / "staging")
        apply(change, tmp_path / "staging", tmp_path / "store")
    assert contents(tmp_path / "store") == never
    ExemplarFolder.open(tmp_path / "store").verify()
    (tmp_path / "staging").mkdir()
    again = rows.select(np.isin(id_keys(rows.ids), id_keys(gone)))
    change = stage_addition(ExemplarFolder.open(tmp_path / "store"), again, tmp_path / "staging")
    apply(change, tmp_path / "staging", tmp_path / "store")
    assert contents(tmp_path / "store") == complete


def test_comes_back_from_disk(everything: Rows, limit: int, tmp_path: Path) -> None:
    files = saved(everything, tmp_path / "store")
    assert len(files) == 3 or limit < COUNT
    folder = ExemplarFolder.open(tmp_path / "store")
    folder.verify()
    assert (folder.code_length, folder.decoded_size, folder.class_names) == (16, SIZE, NAMES)
    assert equal(folder.all_rows(), everything)
    without = folder.all_rows(pixels=False)
    assert equal(without._replace(pixels=everything.pixels), everything)
    assert without.pixels.size == len(everything.ids)
    assert equal(folder.select(everything.ids[5:9]), everything.select(slice(5, 9)))


def test_pictures_smaller_than_the_images_are_told_apart_from_changed_ones(
    network: SemiParametricClassifier, data: IndexedImages, tmp_path: Path
) -> None:
    saved(encode_exemplars(network, data, (4, 4)), tmp_path / "store")
    folder = ExemplarFolder.open(tmp_path / "store")
    folder.verify()
    assert (folder.image_shape, folder.decoded_size) == ((4, 4, 1), SIZE)


def test_a_changed_code_is_noticed(everything: Rows, tmp_path: Path) -> None:
    saved(everything, tmp_path / "store")
    (shard,) = (tmp_path / "store").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    assert everything.codes is not None
    place = bytes(content).index(everything.codes[0].tobytes())
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="was changed: its SHA-256 is not the one listed"):
        ExemplarFolder.open(tmp_path / "store").verify()


@pytest.mark.parametrize("picture", [SIZE, (4, 4)], ids=["whole", "small"])
@pytest.mark.parametrize("part", ["codes", "pixels"])
def test_a_store_written_again_with_other_votes_has_another_digest(
    network: SemiParametricClassifier,
    data: IndexedImages,
    picture: tuple[int, int],
    part: str,
    tmp_path: Path,
) -> None:
    rows = encode_exemplars(network, data, picture)
    saved(rows, tmp_path / "store")
    before = ExemplarFolder.open(tmp_path / "store").digest
    saved(rows._replace(**{part: np.roll(getattr(rows, part), 1, axis=0)}), tmp_path / "store")
    assert ExemplarFolder.open(tmp_path / "store").digest != before
    saved(rows, tmp_path / "store")
    assert ExemplarFolder.open(tmp_path / "store").digest == before


def test_what_the_configuration_says_of_codes_and_images_is_in_the_digest(
    everything: Rows, tmp_path: Path
) -> None:
    saved(everything, tmp_path / "store")
    folder = ExemplarFolder.open(tmp_path / "store")
    plain = {name: folder.config[name] for name in ("height", "width", "channels", "class_names")}
    keyed = plain | {"code_length": 16, "decoded_size": [8, 8]}
    others = [plain, keyed | {"code_length": 8}, keyed | {"decoded_size": [8, 9]}]
    digests = {store_digest(folder.top, config) for config in (keyed, *others)}
    assert len(digests) == 4
    assert folder.digest == store_digest(folder.top, keyed)


def test_without_codes_ids_and_labels_are_the_digest(everything: Rows) -> None:
    plain, shape = everything._replace(codes=None), (*SIZE, 1)
    name = f"all.{COUNT - 1}.{digest_arrays(plain.ids, plain.labels)[:32]}.safetensors"
    expected = {"class_names": list(NAMES), "image_shape": list(shape), "pieces": [name]}
    assert digest_of_rows(plain, shape, NAMES) == digest_json(expected)


def test_names_are_checked_for_what_is_read(everything: Rows, tmp_path: Path) -> None:
    """Ids and labels alone tell a change of ids and labels; a change of codes is noticed with the codes."""
    assert everything.codes is not None
    changed = {
        "codes": everything._replace(codes=everything.codes[::-1]),
        "pixels": everything._replace(pixels=everything.pixels[::-1]),
        "labels": everything._replace(labels=np.roll(everything.labels, 1)),
    }
    for part, rows in changed.items():
        saved(everything, tmp_path / part)
        (shard,) = (tmp_path / part).glob("*.safetensors")
        shard.write_bytes(rows.to_bytes())
        sums = {path.name: sha256(path.read_bytes()) for path in (shard, tmp_path / part / CONFIG)}
        (tmp_path / part / SUMS).write_text(sums_text(sums))
        folder = ExemplarFolder.open(tmp_path / part)
        (piece,) = folder.shards()
        with pytest.raises(ValueError, match="does not hold what its name says"):
            folder.rows_of(piece)
        if part == "labels":
            with pytest.raises(ValueError, match="does not hold what its name says"):
                folder.index_of(piece)
        else:
            assert np.array_equal(folder.index_of(piece).ids, everything.ids)
        (tmp_path / f"staging {part}").mkdir()
        with pytest.raises(ValueError, match="does not hold what its name says"):
            stage_deletion(folder, everything.ids[:1], tmp_path / f"staging {part}")


def test_codes_count_for_the_size_of_a_shard() -> None:
    assert shards.shard_limit((8, 8, 1), 0) > shards.shard_limit((8, 8, 1), 64)


def test_rows_without_pixels_keep_no_file_in_memory() -> None:
    rows = Rows(
        np.zeros((3, 8, 8, 1), np.uint8),
        np.arange(3),
        np.arange(48, dtype=np.uint8).reshape(3, 16),
        np.arange(12, dtype=np.int16).reshape(3, 4),
    )
    read = Rows.from_bytes(rows.to_bytes(), "shard")
    kept = read.without_pixels()
    assert kept.codes is not None
    assert all(part.base is None for part in (kept.labels, kept.ids, kept.codes)), "views would hold the file"
    np.testing.assert_array_equal(kept.codes, rows.codes)
    np.testing.assert_array_equal(kept.ids, rows.ids)
    assert kept.pixels.shape == (3,)
    assert Rows(rows.pixels, rows.labels, rows.ids).without_pixels().codes is None
