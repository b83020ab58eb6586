"""What is kept of deleted images: nothing without the key, recognition with it."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import numpy as np
import pytest

from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.sealing import RunKey, Tombstones


@pytest.fixture
def key() -> RunKey:
    return RunKey(bytes(range(32)))


@pytest.fixture
def other_key() -> RunKey:
    return RunKey(bytes(range(1, 33)))


# --- the key


def test_keys_are_drawn_anew_and_told_apart(key: RunKey, other_key: RunKey) -> None:
    fresh = {RunKey.fresh().secret for _ in range(20)}
    assert len(fresh) == 20
    assert {len(secret) for secret in fresh} == {32}
    assert key.fingerprint != other_key.fingerprint
    assert key.fingerprint == RunKey(key.secret).fingerprint
    assert key == RunKey(key.secret) != other_key


def test_the_secret_is_shown_nowhere(key: RunKey, few_images: IndexedImages) -> None:
    tombstones = Tombstones.of(ForgetSet(few_images.ids, "test"), key)
    shown = " ".join([repr(key), str(key), f"{tombstones!r}", key.fingerprint, tombstones.to_text()])
    for secret in (key.secret.hex(), repr(key.secret), str(key.secret)):
        assert secret not in shown
    assert key.fingerprint not in key.secret.hex()
    assert key.fingerprint not in hashlib.sha256(key.secret).hexdigest()


def test_only_its_owner_can_read_the_file(key: RunKey, tmp_path: Path) -> None:
    path = tmp_path / "ledger.key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert RunKey.from_file(path) == key
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.key"]
    path.chmod(0o644)
    (tmp_path / ".ledger.key.unfinished").write_text("left by a crash")
    RunKey.fresh().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "also in the place of a file that all could read"
    assert RunKey.from_file(path) != key


@pytest.mark.parametrize(
    "content", [b"", b"00" * 31, b"00" * 33, b"0" * 63, b"zz" * 32, b"\xff" * 64, b"00" * 16], ids=repr
)
def test_a_file_that_is_no_key_is_named_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.key"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ledger\.key") as refused:
        RunKey.from_file(path)
    assert len(content) < 10 or content[:10].decode("latin-1") not in str(refused.value)
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read the key of the run, .*ledger\.key"):
        RunKey.from_file(path)


# --- seals


def test_a_seal_depends_on_the_key_and_on_every_part(key: RunKey, other_key: RunKey) -> None:
    parts = [
        ("state", "salt", "digest"),
        ("state", "tlas", "digest"),
        ("state", "salt", "other"),
        ("entry", "salt", "digest"),
        ("state", "saltdigest"),
        ("statesalt", "digest"),
        ("state", "salt", "digest", ""),
        (),
    ]
    seals = [one.seal(*part) for one in (key, other_key) for part in parts]
    assert len(set(seals)) == len(seals)
    assert all(len(bytes.fromhex(seal)) == 32 for seal in seals)
    assert key.seal(*parts[0]) == seals[0]


# --- tombstones


def test_tombstones_recognise_an_image_with_the_key_and_not_with_another(
    key: RunKey, other_key: RunKey, few_images: IndexedImages
) -> None:
    gone = [0, 3, 29]
    tombstones = Tombstones.of(ForgetSet(few_images.ids[gone], "test"), key)
    assert len(tombstones) == 3
    assert np.flatnonzero(tombstones.mask(few_images.ids)).tolist() == gone
    assert tombstones.mask(few_images.ids[:0]).shape == (0,)
    assert not Tombstones(other_key, tombstones.marks).mask(few_images.ids).any()
    assert not Tombstones(key, frozenset()).mask(few_images.ids).any()
    ours, theirs = key.tombstones(few_images.ids), other_key.tombstones(few_images.ids)
    assert len(set(ours) | set(theirs)) == 60
    assert {len(mark) for mark in ours} == {32}


def test_tombstones_differ_from_the_ids_and_from_their_plain_digests(
    key: RunKey, few_images: IndexedImages
) -> None:
    text = Tombstones.of(ForgetSet(few_images.ids, "test"), key).to_text()
    for row, name in zip(few_images.ids, ids_to_hex(few_images.ids), strict=True):
        for plain in (row.tobytes(), name.encode()):
            assert name not in text
            for digest in (hashlib.sha256(plain), hashlib.blake2b(plain, digest_size=16), hashlib.md5(plain)):
                assert digest.hexdigest()[:32] not in text


def test_tombstones_are_kept_and_joined(
    key: RunKey, other_key: RunKey, few_images: IndexedImages, tmp_path: Path
) -> None:
    first = Tombstones.of(ForgetSet(few_images.ids[:3], "test"), key)
    second = Tombstones.of(ForgetSet(few_images.ids[2:5], "test"), key)
    path = tmp_path / "without.txt"
    path.write_text(first.to_text())
    assert first.to_text().splitlines() == sorted(first.marks)
    assert Tombstones.from_file(path, key) == first
    both = Tombstones.of(ForgetSet(few_images.ids[:5], "test"), key)
    assert first.union([second]) == both == second.union([first, second])
    assert first.union([]) == first
    assert both.digest != first.digest
    assert both.digest == second.union([first]).digest
    with pytest.raises(ValueError, match="got some with another key"):
        first.union([Tombstones.of(ForgetSet(few_images.ids[:3], "test"), other_key)])


# --- receipts


@pytest.fixture
def receipt(few_images: IndexedImages, tiny_store: ExemplarStore) -> DeletionReceipt:
    return tiny_store.delete(ForgetSet(few_images.ids[[0, 1, 4]], "test"))


def test_a_sealed_receipt_says_what_happened_and_not_to_whom(
    receipt: DeletionReceipt, key: RunKey, tmp_path: Path
) -> None:
    sealed = receipt.sealed(key)
    said = ("artefact", "level", "reason", "removed", "removed_per_class", "remaining", "seconds", "created")
    assert all(getattr(sealed, name) == getattr(receipt, name) for name in said)
    assert sealed.ids == ()
    assert sealed.sealed_with == key.fingerprint
    text = sealed.to_json()
    hidden = [*receipt.ids, receipt.forget_digest, receipt.digest_before, receipt.digest_after]
    assert not [name for name in hidden if name in text]
    path = tmp_path / "0001.json"
    path.write_text(text, encoding="utf-8")
    assert DeletionReceipt.from_file(path) == sealed
    assert sealed.forget_digest == Tombstones.of(receipt.forget_set, key).digest


def test_a_sealed_receipt_gives_no_ids(
    receipt: DeletionReceipt, key: RunKey, tiny_store: ExemplarStore
) -> None:
    sealed = receipt.sealed(key)
    with pytest.raises(ValueError, match="a sealed receipt holds no ids"):
        _ = sealed.forget_set
    with pytest.raises(ValueError, match="a sealed receipt holds no ids"):
        sealed.verify(tiny_store)
    receipt.verify(tiny_store)


def test_receipts_of_two_runs_do_not_look_alike(
    receipt: DeletionReceipt, key: RunKey, other_key: RunKey
) -> None:
    """The same images in the same state: without the keys nobody can tell."""
    one, other = receipt.sealed(key), receipt.sealed(other_key)
    for name in ("forget_digest", "digest_before", "digest_after", "sealed_with"):
        assert getattr(one, name) != getattr(other, name)
    assert one.digest_before != one.digest_after
