"""A key bank after deletions is the bank that never held the rows, whatever the order of the requests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gen_unlearn.forget import ForgetSet
from gen_unlearn.key_bank import KeyBank, decode_keys, encode_keys, key_scale
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import id_keys, ids_to_hex, software_versions

CLASSES = ("ant", "bee", "cat", "dog", "empty")
EXPERTS, KEY_DIM = 2, 6


class Rows:
    """Random rows of four of the five classes; some images have two labels."""

    def __init__(self, seed: int, count: int = 60) -> None:
        rng = np.random.default_rng(seed)
        self.codes = rng.integers(-13377, 13378, size=(count, EXPERTS, KEY_DIM), dtype=np.int16)
        self.labels = rng.integers(0, 4, size=count)
        self.ids = rng.integers(0, 256, size=(count, 16), dtype=np.uint8)
        twice = rng.choice(count, size=(count // 10, 2), replace=False)
        self.ids[twice[:, 1]] = self.ids[twice[:, 0]]
        self.labels[twice[:, 1]] = (self.labels[twice[:, 0]] + 1) % 4
        self.distinct = np.unique(self.ids, axis=0)

    def bank(self, without: np.ndarray | None = None) -> KeyBank:
        """Build a bank of the rows, or of those whose ids are not in `without`."""
        keep = np.ones(len(self.ids), bool)
        if without is not None:
            keep = ~np.isin(id_keys(self.ids), id_keys(without))
        return KeyBank(self.codes[keep], self.labels[keep], self.ids[keep], CLASSES)


def asked(ids: np.ndarray) -> ForgetSet:
    return ForgetSet(ids, "test")


def canonical(bank: KeyBank) -> tuple[bytes, ...]:
    """Return codes, labels, ids, keys and labels tensor in an order that the rows alone decide."""
    order = np.lexsort((bank.labels, id_keys(bank.ids)))
    tables = (bank.codes, bank.labels, bank.ids, bank.keys.numpy(), bank.labels_tensor.numpy())
    return tuple(table[order].tobytes() for table in tables)


def summary(bank: KeyBank) -> tuple[object, ...]:
    arrays = (bank.sums, bank.counts, bank.prototypes.numpy(), bank.present.numpy())
    return (bank.digest, len(bank), *(array.tobytes() for array in arrays))


def arrays_of(owner: object) -> Iterator[np.ndarray]:
    """Yield all memory that an object holds, whole allocations where it keeps a view of one."""
    for value in vars(owner).values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, torch.Tensor):
                yield torch.empty(0, dtype=torch.uint8).set_(part.untyped_storage()).numpy()
            elif isinstance(part, np.ndarray):
                yield part if part.base is None else part.base
            elif type(part).__module__.startswith("gen_unlearn"):
                yield from arrays_of(part)


@pytest.mark.parametrize("made", [True, False], ids=["served before", "not served before"])
@pytest.mark.parametrize("seed", range(8))
def test_deleting_equals_never_having_held(seed: int, made: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = Rows(seed)
    bank = rows.bank()
    if made:
        assert len(bank.keys) == len(bank.labels_tensor) == len(bank)
        assert len(bank.prototypes) == len(CLASSES)
    leaving = rng.permutation(rows.distinct)[: rng.integers(1, len(rows.distinct))]
    for request in np.array_split(leaving, rng.integers(1, 1 + len(leaving))):
        bank.delete(asked(request))
        bank.verify()
    never = rows.bank(without=leaving)
    assert summary(bank) == summary(never)
    assert canonical(bank) == canonical(never)
    assert not bank.holds(leaving).any()
    assert bank.holds(bank.ids).all()
    bank.verify()


@pytest.mark.parametrize("seed", range(4))
def test_prototypes_are_means_of_what_is_left(seed: int) -> None:
    rows = Rows(seed)
    bank = rows.bank()
    prototypes = bank.prototypes
    bank.delete(asked(rows.distinct[::3]))
    assert bank.prototypes is prototypes, "a tensor handed out before holds nothing of the deleted"
    for label, name in enumerate(CLASSES):
        members = bank.codes[bank.labels == label].astype(np.float64)
        assert bool(bank.present[label]) == bool(len(members)) == (name != "empty")
        mean = members.mean(axis=0) / key_scale(KEY_DIM) if len(members) else np.zeros((EXPERTS, KEY_DIM))
        assert prototypes[label].numpy() == pytest.approx(mean, rel=1e-6, abs=1e-7)
        keys = bank.keys[bank.labels_tensor == label]
        assert torch.equal(keys, decode_keys(bank.codes[bank.labels == label]))
    assert prototypes.dtype == bank.keys.dtype == torch.float32


def test_a_class_left_empty_is_not_present_and_has_prototype_zero() -> None:
    rows = Rows(1)
    bank = rows.bank()
    assert bool(bank.present[2])
    assert bank.prototypes[2].abs().min() > 0
    bank.delete(asked(rows.ids[rows.labels == 2]))
    assert bank.present.tolist() == [True, True, False, True, False]
    assert not bank.prototypes[2].any()
    assert not bank.sums[2].any()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_of_a_deleted_image_stays_in_memory(seed: int) -> None:
    rows = Rows(seed)
    bank = rows.bank()
    assert len(bank.keys) == len(bank)
    assert len(bank.prototypes) == len(CLASSES)
    rng = np.random.default_rng(seed)
    leaving = rng.permutation(rows.distinct)[:25]
    gone = np.flatnonzero(np.isin(id_keys(rows.ids), id_keys(leaving)))
    keys = decode_keys(rows.codes).numpy()
    # Four bytes of an id, and the first expert's code and key, are long enough to be nowhere by chance.
    pieces = [rows.ids[row, at : at + 4].tobytes() for row in gone for at in range(0, 16, 4)]
    pieces += [piece for row in gone for piece in (rows.codes[row, 0].tobytes(), keys[row, 0].tobytes())]
    before = b"|".join(array.tobytes() for array in arrays_of(bank))
    assert all(piece in before for piece in pieces), "the search finds what is there"
    bank.delete(asked(leaving[:12]))
    bank.delete(asked(leaving[12:]))
    after = b"|".join(array.tobytes() for array in arrays_of(bank))
    assert len(after) == len(before), "the search covers whole allocations"
    assert not [piece for piece in pieces if piece in after]
    assert bank.rows_of(bank.ids[:1]).size


def test_rows_of_follow_the_ids_and_every_label_of_one() -> None:
    rows = Rows(2)
    bank = rows.bank()
    bank.delete(asked(rows.distinct[5:20]))
    ids = np.unique(bank.ids, axis=0)[::-1]
    found = bank.rows_of(ids)
    assert found.dtype == np.int64
    assert sorted(found) == list(range(len(bank)))
    expected = np.repeat(ids, [(bank.ids == one).all(axis=1).sum() for one in ids], axis=0)
    assert np.array_equal(bank.ids[found], expected)
    assert len(found) > len(ids), "some images have two labels"


def test_lookup_tells_ids_apart_that_share_a_bucket_or_end_in_zeros() -> None:
    ids = np.zeros((300, 16), np.uint8)
    ids[:, 0], ids[:, 15] = np.arange(300) % 256, np.arange(300) // 256
    bank = KeyBank(np.ones((300, 1, 1), np.int16), np.zeros(300, np.int64), ids, ("one",))
    bank.delete(asked(ids[:200]))
    assert np.array_equal(bank.holds(ids), np.arange(300) >= 200)
    assert np.array_equal(bank.ids[bank.rows_of(ids[200:])], ids[200:])
    assert bank.holds(np.zeros((0, 16), np.uint8)).shape == (0,)
    with pytest.raises(ValueError, match="expected ids as uint8"):
        bank.holds(np.zeros((1, 8), np.uint8))


def test_an_unknown_id_changes_nothing() -> None:
    rows = Rows(3)
    bank = rows.bank()
    bank.delete(asked(rows.distinct[:2]))
    before, content = summary(bank), canonical(bank)
    unknown = np.concatenate([rows.distinct[:2], np.zeros((2, 16), np.uint8), rows.distinct[2:5]])
    with pytest.raises(ValueError, match=r"3 of 6 ids are not in the key bank: .*; nothing was deleted"):
        bank.delete(asked(unknown))
    assert summary(bank) == before
    assert canonical(bank) == content
    bank.verify()


def test_deleting_everything_leaves_an_empty_bank() -> None:
    rows = Rows(4)
    bank = rows.bank()
    assert len(bank.keys) == len(bank)
    receipt = bank.delete(asked(rows.distinct))
    assert (len(bank), receipt.removed, receipt.remaining) == (0, 60, 0)
    assert bank.keys.shape == bank.codes.shape == (0, EXPERTS, KEY_DIM)
    assert not bank.present.any()
    assert summary(bank) == summary(rows.bank(without=rows.distinct))
    assert not any(array.any() for array in (bank.sums, bank.counts, bank.prototypes.numpy()))
    assert not bank.holds(rows.ids).any()
    receipt.verify(bank)
    with pytest.raises(ValueError, match="1 of 1 ids are not in the key bank"):
        bank.delete(asked(rows.ids[:1]))


def test_rows_in_any_order_have_one_digest_and_any_other_content_another() -> None:
    rows = Rows(5)
    order = np.random.default_rng(0).permutation(60)
    bank = rows.bank()
    assert KeyBank(rows.codes[order], rows.labels[order], rows.ids[order], CLASSES).digest == bank.digest
    codes, labels, ids = rows.codes.copy(), rows.labels.copy(), rows.ids.copy()
    codes[7, 1, 3] += 1
    labels[7] = (labels[7] + 1) % 4
    ids[7, 15] ^= 1
    digests = {
        bank.digest,
        KeyBank(codes, rows.labels, rows.ids, CLASSES).digest,
        KeyBank(rows.codes, labels, rows.ids, CLASSES).digest,
        KeyBank(rows.codes, rows.labels, ids, CLASSES).digest,
        KeyBank(rows.codes, rows.labels, rows.ids, (*CLASSES, "more")).digest,
        KeyBank(rows.codes.reshape(60, 1, -1), rows.labels, rows.ids, CLASSES).digest,
    }
    assert len(digests) == 6


def test_the_bank_owns_its_rows() -> None:
    rows = Rows(6)
    bank = rows.bank()
    before = canonical(bank)
    for array in (rows.codes, rows.labels, rows.ids):
        array[:] = 0
    assert canonical(bank) == before
    bank.verify()


def test_receipt_states_what_was_done_and_notices_what_was_not() -> None:
    rows = Rows(7)
    bank = rows.bank()
    before = bank.digest
    receipt = bank.delete(asked(rows.distinct[:9]))
    gone = np.isin(id_keys(rows.ids), id_keys(rows.distinct[:9]))
    expected = {name: int((rows.labels[gone] == label).sum()) for label, name in enumerate(CLASSES)}
    assert receipt.removed_per_class == {name: count for name, count in expected.items() if count}
    assert (receipt.removed, receipt.remaining) == (gone.sum(), 60 - gone.sum())
    assert (receipt.digest_before, receipt.digest_after) == (before, bank.digest)
    assert receipt.ids == tuple(ids_to_hex(rows.distinct[:9]))
    assert receipt.forget_digest == asked(rows.distinct[:9]).digest
    assert (receipt.reason, receipt.versions) == ("test", software_versions())
    assert receipt.created.endswith("+00:00")
    assert 0 < receipt.seconds < 5
    assert (receipt.artefact, receipt.level) == ("exemplars of a semi-parametric classifier", "exemplar-only")
    receipt.verify(bank)
    with pytest.raises(ValueError, match="10 of 10 deleted images are still in the exemplars of"):
        receipt.verify(rows.bank())
    with pytest.raises(ValueError, match="changed after this deletion"):
        replace(receipt, digest_after="0" * 64).verify(bank)


def test_a_public_core_promises_equal_bytes(tmp_path: Path) -> None:
    rows = Rows(8)
    bank = KeyBank(rows.codes, rows.labels, rows.ids, CLASSES, core="public")
    receipt = bank.delete(asked(rows.distinct[:1]))
    assert receipt.artefact == "semi-parametric classifier with a public core"
    assert receipt.level == "bit-exact"
    path = tmp_path / "receipt.json"
    path.write_text(receipt.to_json(), encoding="utf-8")
    assert DeletionReceipt.from_file(path) == receipt
    assert receipt.digest_after == rows.bank(without=rows.distinct[:1]).digest


def test_keys_made_while_predicting_can_still_be_deleted_from() -> None:
    rows = Rows(9)
    bank = rows.bank()
    with torch.inference_mode():
        scores = torch.einsum("nek,cek->nc", bank.keys, bank.prototypes)
        assert scores.shape == (60, 5)
        bank.delete(asked(rows.distinct[:7]))
    bank.delete(asked(rows.distinct[7:12]))
    with torch.inference_mode():
        bank.delete(asked(rows.distinct[12:13]))
        assert len(bank.keys) == len(bank)
    bank.delete(asked(rows.distinct[13:20]))
    assert canonical(bank) == canonical(rows.bank(without=rows.distinct[:20]))


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("codes", "sums, rows"),
        ("labels", "counts, sums, rows"),
        ("ids", "rows, lookup"),
        ("counts", "counts"),
        ("sums", "sums"),
        ("keys", "keys"),
        ("labels_tensor", "labels"),
        ("prototypes", "prototypes"),
    ],
)
def test_verify_catches_tampering(part: str, named: str) -> None:
    rows = Rows(10)
    bank = rows.bank()
    assert len(bank.keys) == len(bank)
    assert len(bank.prototypes) == len(CLASSES)
    bank.verify()
    bank.delete(asked(rows.distinct[:5]))
    bank.verify()
    target = getattr(bank, part)
    target[3] = (target[3] + 1) % 4 if part.startswith("labels") else target[3] + 1
    with pytest.raises(ValueError, match=f"got changed .*{named}.*; build it again"):
        bank.verify()


def test_verify_catches_two_ids_that_were_exchanged() -> None:
    rows = Rows(11)
    bank = rows.bank()
    bank.ids[[0, 1]] = bank.ids[[1, 0]]
    with pytest.raises(ValueError, match="rows"):
        bank.verify()


def test_serving_tensors_are_made_only_on_demand() -> None:
    rows = Rows(12)
    bank = rows.bank()
    held = sum(array.nbytes for array in arrays_of(bank))
    bank.verify()
    assert len(bank.prototypes) == len(CLASSES)
    bank.delete(asked(rows.distinct[:3]))
    prototypes = 4 * len(CLASSES) * EXPERTS * KEY_DIM
    assert sum(array.nbytes for array in arrays_of(bank)) == held + prototypes
    assert len(bank.keys) == len(bank)
    assert sum(array.nbytes for array in arrays_of(bank)) > held + prototypes


@pytest.mark.parametrize("key_dim", [1, 2, 3, 16, 64, 128, 512])
def test_codes_keep_keys_to_half_a_step(key_dim: int) -> None:
    scale = key_scale(key_dim)
    assert scale == math.floor(32767 / math.sqrt(key_dim))
    keys = torch.randn(20, 3, key_dim, generator=torch.Generator().manual_seed(key_dim))
    keys[0, 0], keys[1, 0] = 0, 0
    keys[0, 0, 0], keys[1, 0, -1] = 1, -1
    keys = keys / keys.norm(dim=2, keepdim=True) * math.sqrt(key_dim)
    codes = encode_keys(keys)
    assert (codes.dtype, codes.shape) == (np.int16, (20, 3, key_dim))
    error = (decode_keys(codes).double() - keys.double()).abs().max()
    assert error <= 0.5 / scale + 2**-24 * math.sqrt(key_dim)
    assert np.array_equal(encode_keys(decode_keys(codes)), codes)
    assert np.array_equal(encode_keys(keys.double()), codes)
    assert np.array_equal(encode_keys(-keys), -codes)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0001, -2.0001])
def test_refuses_keys_without_a_code(value: float) -> None:
    keys = torch.zeros(5, 1, 4)
    keys[3, 0, 2] = value
    with pytest.raises(ValueError, match=r"magnitude up to 2\.\d+, got .*; normalise each key"):
        encode_keys(keys)


def test_refuses_keys_of_another_kind() -> None:
    for keys in (torch.zeros(2, 3), torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(2, 3, 0)):
        with pytest.raises(ValueError, match="expected float keys"):
            encode_keys(keys)
    assert encode_keys(torch.zeros(0, 3, 4)).shape == (0, 3, 4)


def test_refuses_rows_that_do_not_fit() -> None:
    rows = Rows(13)
    codes, labels, ids = rows.codes, rows.labels, rows.ids
    for wrong in (
        (codes.astype(np.int32), labels, ids),
        (codes[:, 0], labels, ids),
        (codes[:, :, :0], labels, ids),
        (codes, labels[1:], ids),
        (codes, labels.astype(np.int32), ids),
        (codes, labels, ids[:, :8]),
        (codes, labels, ids[1:]),
    ):
        with pytest.raises(ValueError, match=r"expected codes int16\[n, experts, key_dim\], labels"):
            KeyBank(*wrong, CLASSES)
    for label in (-1, 5):
        with pytest.raises(ValueError, match="expected labels from 0 to 4"):
            KeyBank(codes, np.where(labels == 1, label, labels), ids, CLASSES)
    with pytest.raises(ValueError, match="expected a core out of joint, public"):
        KeyBank(codes, labels, ids, CLASSES, core="private")
