"""What a deletion receipt states, and what it notices."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.receipts import NOT_COVERED, OUTSIDE, PROMISES, DeletionReceipt, Level


def forget(data: IndexedImages, *rows: int) -> ForgetSet:
    return ForgetSet.from_ids(data, data.ids[list(rows)], "test")


def test_receipt_states_what_was_done(
    few_images: IndexedImages, tiny_store: ExemplarStore, tmp_path: Path
) -> None:
    before = tiny_store.digest
    receipt = tiny_store.delete(forget(few_images, 0, 1, 4))
    assert receipt.level == "bit-exact"
    assert receipt.forget_set == forget(few_images, 4, 1, 0)
    assert (receipt.removed_per_class, receipt.remaining) == ({"a": 1, "b": 2}, 27)
    assert (receipt.digest_before, receipt.digest_after) == (before, tiny_store.digest)
    path = tmp_path / "receipt.json"
    path.write_text(receipt.to_json(), encoding="utf-8")
    assert DeletionReceipt.from_file(path) == receipt
    explained = {
        "promise": PROMISES["bit-exact"],
        "not_covered": NOT_COVERED["bit-exact"],
        "outside": OUTSIDE,
    }
    assert json.loads(receipt.to_json()) == json.loads(json.dumps(asdict(receipt))) | explained
    DeletionReceipt.from_file(path).verify(tiny_store)


def test_receipt_notices_that_it_was_altered(few_images: IndexedImages, tiny_store: ExemplarStore) -> None:
    receipt = tiny_store.delete(forget(few_images, 0, 1))
    with pytest.raises(ValueError, match="altered"):
        replace(receipt, ids=receipt.ids[:1]).verify(tiny_store)
    with pytest.raises(ValueError, match="altered"):
        replace(receipt, forget_digest="0" * 64).verify(tiny_store)
    with pytest.raises(ValueError, match="changed after this deletion"):
        replace(receipt, digest_after="0" * 64).verify(tiny_store)
    with pytest.raises(ValueError, match="expected a level out of bit-exact"):
        replace(receipt, level="exact")


@pytest.mark.parametrize("altered", [{"removed": 3}, {"remaining": 3}, {"removed_per_class": {"a": 9}}])
def test_receipt_notices_numbers_that_contradict_each_other(
    few_images: IndexedImages, tiny_store: ExemplarStore, altered: dict[str, Any]
) -> None:
    receipt = tiny_store.delete(forget(few_images, 0, 1))
    with pytest.raises(ValueError, match="altered"):
        replace(receipt, **altered).verify(tiny_store)


def test_receipt_notices_a_returned_image_and_a_later_deletion(
    few_images: IndexedImages, tiny_store: ExemplarStore
) -> None:
    receipt = tiny_store.delete(forget(few_images, 0, 1))
    tiny_store.add(few_images.select(np.array([1])))
    with pytest.raises(ValueError, match="1 of 2 deleted images are still in the exemplar store"):
        receipt.verify(tiny_store)
    tiny_store.delete(forget(few_images, 1))
    receipt.verify(tiny_store)
    tiny_store.delete(forget(few_images, 2))
    with pytest.raises(ValueError, match="changed after this deletion"):
        receipt.verify(tiny_store)


def test_receipt_notices_a_deleted_image_under_the_id_of_another(
    few_images: IndexedImages, tiny_store: ExemplarStore
) -> None:
    receipt = tiny_store.delete(forget(few_images, 0))
    tiny_store.pixels[0] = torch.from_numpy(few_images.images[0])
    with pytest.raises(ValueError, match="exemplar store"):
        receipt.verify(tiny_store)


def test_a_file_that_is_no_receipt_is_named(
    tmp_path: Path, tiny_store: ExemplarStore, few_images: IndexedImages
) -> None:
    receipt = tiny_store.delete(forget(few_images, 0))
    path = tmp_path / "receipt.json"
    for text in (
        "",
        "[1]",
        "{}",
        receipt.to_json().replace('"reason"', '"why"'),
        receipt.to_json().replace("bit-exact", "exact"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"receipt\.json is not a deletion receipt"):
            DeletionReceipt.from_file(path)


@pytest.mark.parametrize("level", ["bit-exact", "distributional", "influence-free"])
def test_levels_that_exclude_traces_name_weights_from_elsewhere(level: Level) -> None:
    assert "what weights from elsewhere saw" in NOT_COVERED[level]
