"""Laws of deletion: a store after a deletion is a store that never held the images, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gen_unlearn import digest_tree, shards
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import ids_to_hex, image_ids
from gen_unlearn.shards import digest_of_rows

SaveBytes = Callable[[ExemplarStore], dict[str, bytes]]


@pytest.fixture
def saved(tmp_path: Path) -> SaveBytes:
    """Return a function that saves a store and gives back every file's bytes."""

    def save(store: ExemplarStore) -> dict[str, bytes]:
        folder = tmp_path / f"save-{len(list(tmp_path.iterdir()))}"
        store.save_pretrained(folder)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    return save


def forget(data: IndexedImages, *rows: int) -> ForgetSet:
    return ForgetSet.from_ids(data, data.ids[list(rows)], "test")


def state(store: ExemplarStore) -> tuple[bytes, bytes, bytes, int]:
    return store.images.tobytes(), store.labels.tobytes(), store.ids.tobytes(), len(store)


@pytest.mark.parametrize("rows", [[7], [0, 1, 29], list(range(0, 30, 3)), list(range(29)), list(range(30))])
def test_deleting_equals_never_having_held(
    few_images: IndexedImages, saved: SaveBytes, rows: list[int]
) -> None:
    request = forget(few_images, *rows)
    store = ExemplarStore.from_images(few_images)
    store.delete(request)
    never = ExemplarStore.from_images(few_images.without(request))
    files = saved(store)
    assert files == saved(never)
    shards = [name for name in files if name not in ("SHA256SUMS", "config.json")]
    assert {Path(name).suffix for name in shards} <= {".safetensors"}
    assert bool(shards) == (len(rows) < 30)
    assert store.digest == never.digest


def test_so_it_does_when_the_store_was_loaded_from_disk(
    few_images: IndexedImages, tiny_store: ExemplarStore, saved: SaveBytes, tmp_path: Path
) -> None:
    request = forget(few_images, 3, 4)
    never = ExemplarStore.from_images(few_images.without(request))
    tiny_store.save_pretrained(tmp_path / "a folder")
    loaded = ExemplarStore.from_pretrained(tmp_path / "a folder")
    assert saved(loaded) == saved(tiny_store)
    loaded.delete(request)
    assert saved(loaded) == saved(never)


def test_a_store_saved_over_itself_holds_the_remaining_images_only(
    few_images: IndexedImages, tiny_store: ExemplarStore, tmp_path: Path
) -> None:
    tiny_store.save_pretrained(tmp_path)
    loaded = ExemplarStore.from_pretrained(tmp_path)
    loaded.delete(forget(few_images, 3, 4))
    loaded.save_pretrained(tmp_path)
    assert state(ExemplarStore.from_pretrained(tmp_path)) == state(loaded)
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for row, image in enumerate(few_images.images):
        assert (image.tobytes() in everything) == (row not in (3, 4))


def test_order_and_grouping_of_deletions_do_not_matter(few_images: IndexedImages, saved: SaveBytes) -> None:
    first, second = forget(few_images, 1, 2, 3), forget(few_images, 10, 29)
    histories = [[first, second], [second, first], [first.union(second)]]
    results = []
    for history in histories:
        store = ExemplarStore.from_images(few_images)
        for request in history:
            store.delete(request)
        results.append(saved(store))
    assert results[0] == results[1] == results[2]


def test_order_and_repetition_of_the_input_do_not_matter(few_images: IndexedImages, saved: SaveBytes) -> None:
    straight = saved(ExemplarStore.from_images(few_images))
    shuffled = np.random.default_rng(1).permutation(30)
    assert saved(ExemplarStore.from_images(few_images.select(shuffled))) == straight
    assert saved(ExemplarStore.from_images(few_images.select(np.append(shuffled, [0, 5, 5])))) == straight
    relabelled = replace(few_images, labels=(few_images.labels + 1) % 3)
    one_way, other_way = ExemplarStore.from_images(few_images), ExemplarStore.from_images(relabelled)
    assert (one_way.add(relabelled), other_way.add(few_images)) == (30, 30)
    assert saved(one_way) == saved(other_way)


def test_adding_and_deleting_are_inverse(few_images: IndexedImages, saved: SaveBytes) -> None:
    part, rest = few_images.select(np.arange(20)), few_images.select(np.arange(20, 30))
    store = ExemplarStore.from_images(part)
    before, digest = saved(store), store.digest
    assert store.add(rest) == 10
    assert saved(store) == saved(ExemplarStore.from_images(few_images))
    assert store.add(few_images) == 0
    store.delete(forget(few_images, *range(20, 30)))
    assert (saved(store), store.digest) == (before, digest)


def test_rows_keep_their_image_label_and_id_together(
    few_images: IndexedImages, tiny_store: ExemplarStore
) -> None:
    tiny_store.delete(forget(few_images, 0, 1))
    described = dict(
        zip(ids_to_hex(few_images.ids), zip(few_images.images, few_images.labels, strict=True), strict=True)
    )
    hexadecimal = ids_to_hex(tiny_store.ids)
    assert hexadecimal == sorted(hexadecimal)
    for row, name in enumerate(hexadecimal):
        image, label = described[name]
        assert np.array_equal(tiny_store.images[row], image)
        assert tiny_store.labels[row] == label


def test_unknown_ids_are_named_and_nothing_changes(
    few_images: IndexedImages, tiny_store: ExemplarStore
) -> None:
    unknown = np.full((1, 16), 171, dtype=np.uint8)
    request = ForgetSet(np.concatenate([few_images.ids[:2], unknown]), "test")
    before, digest = state(tiny_store), tiny_store.digest
    with pytest.raises(
        ValueError, match=f"1 of 3 ids are not in the store: {'ab' * 16}; nothing was deleted"
    ):
        tiny_store.delete(request)
    assert (state(tiny_store), tiny_store.digest) == (before, digest)
    receipt = tiny_store.delete(forget(few_images, 0))
    with pytest.raises(ValueError, match=receipt.ids[0]):
        tiny_store.delete(forget(few_images, 0))


def test_foreign_images_are_not_added(few_images: IndexedImages, tiny_store: ExemplarStore) -> None:
    before = state(tiny_store)
    for foreign in (
        replace(few_images, class_names=("a", "b", "d")),
        replace(few_images, images=few_images.images[:, :4]),
    ):
        with pytest.raises(ValueError, match="nothing was added"):
            tiny_store.add(foreign)
    assert state(tiny_store) == before


def test_digest_tells_contents_apart(few_images: IndexedImages, tiny_store: ExemplarStore) -> None:
    relabelled = replace(few_images, labels=np.roll(few_images.labels, 1))
    renamed = replace(few_images, class_names=("a", "b", "d"))
    others = [relabelled, renamed, few_images.select(np.arange(29))]
    digests = {tiny_store.digest, *(ExemplarStore.from_images(other).digest for other in others)}
    assert len(digests) == 4
    assert ExemplarStore.from_images(few_images).digest == tiny_store.digest


def test_a_class_can_be_left_empty(few_images: IndexedImages, tiny_store: ExemplarStore) -> None:
    receipt = tiny_store.delete(ForgetSet.from_classes(few_images, ["b"], "test"))
    assert (receipt.removed, receipt.removed_per_class, receipt.remaining) == (10, {"b": 10}, 20)
    assert tiny_store.class_names == ("a", "b", "c")
    assert [len(tiny_store.by_class(label)) for label in range(3)] == [10, 0, 10]
    assert len(tiny_store.draw(1, 5, 0)) == 0


@pytest.mark.parametrize("labels", [[0, 0], [0, 1]], ids=["under one label", "under two labels"])
def test_identical_images_leave_together(
    few_images: IndexedImages, saved: SaveBytes, labels: list[int]
) -> None:
    twice = few_images.select(np.append(np.arange(30), 0))
    twice.labels[[0, 30]] = labels
    store = ExemplarStore.from_images(twice)
    held = len(set(labels))
    assert len(store) == 29 + held
    receipt = store.delete(forget(twice, 0))
    assert (receipt.removed, len(receipt.ids)) == (held, 1)
    assert receipt.removed_per_class == {"ab"[label]: 1 for label in set(labels)}
    assert saved(store) == saved(ExemplarStore.from_images(few_images.select(np.arange(1, 30))))
    receipt.verify(store)


def test_deleting_from_a_pipeline_promises_the_exemplars_only(
    few_images: IndexedImages, tiny_pipeline: SemiParametricDDPMPipeline
) -> None:
    weights = [parameter.clone() for parameter in tiny_pipeline.unet.parameters()]
    receipt = tiny_pipeline.delete(forget(few_images, 0))
    assert (receipt.level, receipt.removed) == ("exemplar-only", 1)
    assert all(
        torch.equal(now, then) for now, then in zip(tiny_pipeline.unet.parameters(), weights, strict=True)
    )
    receipt.verify(tiny_pipeline.exemplars)
    bare = SemiParametricDDPMPipeline(tiny_pipeline.unet, tiny_pipeline.scheduler)
    with pytest.raises(ValueError, match="holds no exemplars"):
        bare.delete(forget(few_images, 1))


def in_shards_of_two(monkeypatch: pytest.MonkeyPatch, data: IndexedImages) -> None:
    """Put at most two images in a shard, and shards with prefixes of more than two bits in groups."""
    size = int(np.prod(data.image_shape)) + 8 + 16
    monkeypatch.setattr(shards, "_TARGET_BYTES", 2 * size)
    for module in (shards, digest_tree):
        monkeypatch.setattr(module, "GROUP_BITS", 2)


@pytest.mark.parametrize("seed", range(6))
def test_the_digest_follows_every_sequence_of_changes(
    few_images: IndexedImages, saved: SaveBytes, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Changes of one image or of many, with looks at the rows between them or without."""
    in_shards_of_two(monkeypatch, few_images)
    twice = replace(few_images, labels=(few_images.labels + 1) % 3)
    store, random = ExemplarStore.from_images(few_images), np.random.default_rng(seed)
    for _ in range(25):
        count = int(random.choice([1, 2, 5, 20]))
        if len(store) and random.random() < 0.6:
            store.delete(ForgetSet(random.permutation(store.ids)[:count], "test"))
        else:
            chosen = random.permutation(30)[:count]
            store.add((few_images if random.random() < 0.7 else twice).select(chosen))
        digest, held = store.digest, store.holds(few_images.ids)
        if random.random() < 0.5:
            store.verify()
            assert np.array_equal(held, np.isin(ids_to_hex(few_images.ids), ids_to_hex(store.ids)))
            assert len(store) == len(store.ids) == len(store.images) == len(store.labels)
        assert digest == store.digest
    assert digest == digest_of_rows(store.rows, store.image_shape, store.class_names)
    assert any(name.endswith(".sums") for name in saved(ExemplarStore.from_images(few_images)))


def test_several_deletions_in_a_row_leave_nothing_in_the_gaps(few_images: IndexedImages) -> None:
    store = ExemplarStore.from_images(few_images)
    pixels, ids = store.images, store.ids
    rows = np.argsort(ids_to_hex(few_images.ids))
    for gone in ([0], [1, 2], [3], [29], [10, 12], [11]):
        store.delete(forget(few_images, *rows[gone].tolist()))
        assert len(store) + np.count_nonzero(~pixels.any(axis=(1, 2, 3))) == 30
        assert not np.isin(ids_to_hex(few_images.ids[rows[gone]]), ids_to_hex(ids)).any()
        assert not store.holds(few_images.ids[rows[gone]]).any()
        assert not store.holds(np.zeros((1, 16), dtype=np.uint8)).any()
    kept = np.delete(rows, [0, 1, 2, 3, 10, 11, 12, 29])
    assert state(store) == state(ExemplarStore.from_images(few_images.select(kept)))


def test_a_label_that_was_changed_by_hand_is_noticed(tiny_store: ExemplarStore) -> None:
    digest = tiny_store.digest
    tiny_store.labels[0] = (tiny_store.labels[0] + 1) % 3
    assert tiny_store.digest == digest
    with pytest.raises(ValueError, match="changed by other means"):
        tiny_store.verify()


def test_nothing_comes_back_to_those_who_look_while_it_is_deleted() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4000, 16, 16, 3), dtype=np.uint8)
    labels, names = np.arange(len(images)) % 3, tuple(map(str, range(len(images))))
    data = IndexedImages(images, labels, image_ids(images), ("a", "b", "c"), names)
    store, leaving = ExemplarStore.from_images(data), np.arange(0, len(images), 40)

    def delete() -> None:
        for row in leaving:
            store.delete(forget(data, row))

    with ThreadPoolExecutor(2) as threads:
        deleting = threads.submit(delete)
        while not deleting.done():
            rows = store.rows
            assert len(rows.pixels) == len(rows.labels) == len(rows.ids)
        deleting.result()
    store.verify()
    assert not store.holds(data.ids[leaving]).any()
    assert len(store) == len(images) - len(leaving)
