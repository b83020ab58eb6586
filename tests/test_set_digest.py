"""The set digest and the class sums are functions of the set of rows alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from gen_unlearn.set_digest import LANES, ClassSums, SetDigest


def random_rows(seed: int, count: int = 40, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(count, width), dtype=np.uint8)


def digest_of(*parts: np.ndarray) -> SetDigest:
    digest = SetDigest()
    for part in parts:
        digest.add_rows(part)
    return digest


def by_hand(rows: list[bytes]) -> str:
    """Sum the lanes as Python integers."""
    lanes = [0] * LANES
    for row in rows:
        stream = hashlib.shake_128(len(row).to_bytes(8, "little") + row).digest(2 * LANES)
        for lane in range(LANES):
            lanes[lane] += stream[2 * lane] + 256 * stream[2 * lane + 1]
    return hashlib.sha256(b"".join((lane % 2**16).to_bytes(2, "little") for lane in lanes)).hexdigest()


@pytest.mark.parametrize("seed", range(5))
def test_order_and_grouping_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(seed)
    shuffled = rows[rng.permutation(len(rows))]
    cut = int(rng.integers(len(rows)))
    grouped = digest_of(shuffled[:cut], shuffled[cut:])
    assert digest_of(rows) == grouped
    assert digest_of(rows).hexdigest == grouped.hexdigest


@pytest.mark.parametrize("seed", range(5))
def test_removing_gives_the_state_without(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(seed)
    removed = rng.permutation(len(rows))[: rng.integers(len(rows))]
    digest = digest_of(rows)
    for row in removed:
        digest.remove_rows(rows[[row]])
    assert digest == digest_of(np.delete(rows, removed, axis=0))
    digest.remove_rows(np.delete(rows, removed, axis=0))
    assert digest == SetDigest()


@pytest.mark.parametrize(("count", "width"), [(0, 5), (1, 0), (3, 1), (255, 2), (256, 2), (600, 2)])
def test_equals_sums_by_hand(count: int, width: int) -> None:
    rows = random_rows(0, count, width)
    assert digest_of(rows).hexdigest == by_hand([row.tobytes() for row in rows])


def test_every_bit_every_length_and_every_copy_counts() -> None:
    rows = random_rows(1, count=3, width=4)
    states = {digest_of(rows).hexdigest, digest_of(rows, rows[:1]).hexdigest, SetDigest().hexdigest}
    for bit in range(8 * rows.size):
        changed = rows.copy()
        changed.reshape(-1)[bit // 8] ^= 1 << (bit % 8)
        states.add(digest_of(changed).hexdigest)
    padded = np.pad(rows, [(0, 0), (0, 1)])
    states.add(digest_of(padded).hexdigest)
    assert len(states) == 4 + 8 * rows.size


def test_takes_rows_of_any_memory_order_and_leaves_them_alone() -> None:
    rows = random_rows(2)
    kept = rows.copy()
    assert digest_of(np.asfortranarray(rows)) == digest_of(rows[::2], rows[1::2]) == digest_of(rows)
    assert np.array_equal(rows, kept)


def test_equality_is_that_of_states() -> None:
    digest, other = digest_of(random_rows(3)), digest_of(random_rows(3))
    assert digest == other
    other.add_rows(random_rows(4))
    assert other != digest == digest_of(random_rows(3))
    assert digest != digest.hexdigest
    with pytest.raises(TypeError, match="unhashable"):
        hash(digest)


@pytest.mark.parametrize(
    "rows", [np.zeros((2, 3), np.int8), np.zeros(3, np.uint8), np.zeros((1, 2, 3), np.uint8)]
)
def test_refuses_what_is_no_table_of_bytes(rows: np.ndarray) -> None:
    digest = SetDigest()
    for change in (digest.add_rows, digest.remove_rows):
        with pytest.raises(ValueError, match=r"expected rows as uint8 of shape \(n, width\)"):
            change(rows)


@pytest.mark.parametrize("shape", [(7,), (2, 5), ()])
def test_no_rows_change_nothing(shape: tuple[int, ...]) -> None:
    none = np.empty((0, *shape), np.int16), np.empty(0, np.int64), np.empty((0, 16), np.uint8)
    one = np.ones((1, *shape), np.int16), np.array([1]), np.zeros((1, 16), np.uint8)
    sums, expected = ClassSums(3, shape), ClassSums(3, shape)
    sums.add(*none)
    assert sums.rows == SetDigest()
    assert not sums.counts.any()
    sums.add(*one)
    sums.add(*none)
    sums.remove(*none)
    expected.add(*one)
    assert sums.rows == expected.rows
    assert np.array_equal(sums.counts, expected.counts)
    assert np.array_equal(sums.sums, expected.sums)


@pytest.mark.parametrize("seed", range(5))
def test_class_sums_are_those_of_each_class_and_undo_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-32768, 32768, size=(60, 2, 5), dtype=np.int16)
    labels, ids = rng.integers(0, 4, size=60), random_rows(seed, count=60, width=16)
    sums = ClassSums(5, (2, 5))
    sums.add(codes, labels, ids)
    for label in range(5):
        assert sums.counts[label] == (labels == label).sum()
        assert np.array_equal(sums.sums[label], codes[labels == label].astype(np.int64).sum(axis=0))
    one = ids[0].tobytes() + int(labels[0]).to_bytes(8, "little") + codes[0].astype("<i2").tobytes()
    alone = ClassSums(5, (2, 5))
    alone.add(codes[:1], labels[:1], ids[:1])
    assert alone.rows.hexdigest == by_hand([one])
    sums.remove(codes[1:], labels[1:], ids[1:])
    assert sums.rows == alone.rows
    assert np.array_equal(sums.counts, alone.counts)
    assert np.array_equal(sums.sums, alone.sums)
