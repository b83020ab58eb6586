"""Laws of the forget set, and the messages for requests that cannot be met."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen_unlearn.data import IndexedImages, load_digits_images
from gen_unlearn.decoding import ImageDecodeError
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import id_keys, ids_from_hex, ids_to_hex, image_ids


@pytest.fixture(scope="module")
def digits() -> IndexedImages:
    return load_digits_images()


@pytest.fixture
def small(digits: IndexedImages) -> IndexedImages:
    """Return six digits, 0 to 5, of which the last is a copy of the first."""
    return digits.select(np.array([0, 1, 2, 3, 4, 0]))


def save(data: IndexedImages, row: int, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.images[np.array([row])][0, ..., 0]).save(path)
    return path


# --- the set


def test_ids_are_sorted_distinct_and_read_only() -> None:
    ids = np.random.default_rng(0).integers(0, 256, (5, 16), dtype=np.uint8)
    ids[1, 8:] = 0  # Zero bytes at either end are part of an id.
    ids[2] = 0
    ids[3, :8] = 0
    request = ForgetSet(ids[[4, 3, 2, 1, 0, 0, 3]], "test")
    assert len(request) == 5
    assert ids_to_hex(request.ids) == sorted(ids_to_hex(ids))
    with pytest.raises(ValueError, match="read-only"):
        request.ids[0] = 0
    with pytest.raises(FrozenInstanceError):
        request.reason = "other"  # type: ignore[misc]


def test_the_callers_array_stays_its_own() -> None:
    ids = np.arange(32, dtype=np.uint8).reshape(2, 16)
    request = ForgetSet(ids, "test")
    ids[:] = 0
    assert len(request) == 2
    assert request.ids[1, 0] == 16


def test_equality_and_digest_ignore_order_and_reason() -> None:
    ids = np.arange(48, dtype=np.uint8).reshape(3, 16)
    first, second = ForgetSet(ids, "GDPR"), ForgetSet(ids[::-1], "licence")
    assert first == second
    assert hash(first) == hash(second)
    assert first.digest == second.digest
    assert first != ForgetSet(ids[:2], "GDPR")
    assert first != "GDPR"
    assert first.digest != ForgetSet(ids[:2], "GDPR").digest
    assert len(bytes.fromhex(first.digest)) == hashlib.sha256().digest_size


def test_empty_and_malformed_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image to forget, got none; nothing was deleted"):
        ForgetSet(np.empty((0, 16), dtype=np.uint8), "test")
    with pytest.raises(ValueError, match="expected ids as uint8"):
        ForgetSet(np.zeros((2, 15), dtype=np.uint8), "test")


def test_union_and_mask() -> None:
    ids = np.arange(64, dtype=np.uint8).reshape(4, 16)
    both = ForgetSet(ids[:2], "a").union(ForgetSet(ids[1:3], "b"))
    assert (len(both), both.reason) == (3, "a; b")
    assert both.union(both) == both
    assert ForgetSet(ids[:1], "a").union(ForgetSet(ids[1:], "a")).reason == "a"
    np.testing.assert_array_equal(both.mask(ids[[3, 0, 2, 0]]), [False, True, True, True])
    assert both.mask(ids[:0]).shape == (0,)


# --- from ids and classes


def test_from_ids_takes_text_in_either_case_and_arrays(small: IndexedImages) -> None:
    texts = [text.upper() for text in ids_to_hex(small.ids[[2, 0]])]
    request = ForgetSet.from_ids(small, iter(texts), "GDPR")
    assert request == ForgetSet.from_ids(small, small.ids[[0, 2]], "GDPR")
    np.testing.assert_array_equal(request.mask(small.ids), [True, False, True, False, False, True])


def test_unknown_ids_are_counted_and_named(small: IndexedImages) -> None:
    strangers = ids_to_hex(np.arange(64, dtype=np.uint8).reshape(4, 16))
    with pytest.raises(
        ValueError,
        match=r"^4 of 5 ids are not in the data: (\w{32}, ){3}\.\.\.; nothing was deleted \(images",
    ):
        ForgetSet.from_ids(small, [*strangers, *ids_to_hex(small.ids[:1])], "test")
    with pytest.raises(ValueError, match=rf"^1 of 1 ids are not in the data: {strangers[0]}; nothing"):
        ForgetSet.from_ids(small, ids_from_hex(strangers[:1]), "test")
    with pytest.raises(ValueError, match="32 hexadecimal digits, got 'cafe'"):
        ForgetSet.from_ids(small, ["cafe"], "test")
    with pytest.raises(ValueError, match="got none"):
        ForgetSet.from_ids(small, [], "test")


def test_from_classes_takes_names_and_indices(digits: IndexedImages) -> None:
    request = ForgetSet.from_classes(digits, ["3", 7], "licence")
    np.testing.assert_array_equal(request.mask(digits.ids), np.isin(digits.labels, [3, 7]))
    left = digits.without(request)
    assert set(left.labels.tolist()) == set(range(10)) - {3, 7}


def test_unknown_and_empty_classes(small: IndexedImages) -> None:
    with pytest.raises(ValueError, match=r"got 'cat'; the classes are \['0', '1'"):
        ForgetSet.from_classes(small, ["cat"], "test")
    with pytest.raises(
        ValueError, match="2 of 3 classes have no images in the data: 8, 9; nothing was deleted"
    ):
        ForgetSet.from_classes(small, ["8", "1", 9], "test")
    with pytest.raises(ValueError, match="got none"):
        ForgetSet.from_classes(small, [], "test")


# --- from a fraction


def test_fraction_is_exact_nested_and_independent_of_order(digits: IndexedImages) -> None:
    shuffled = digits.select(np.random.default_rng(1).permutation(len(digits)))
    distinct = len(np.unique(id_keys(digits.ids)))
    request = ForgetSet.from_fraction(digits, 0.1, seed=5)
    assert len(request) == round(0.1 * distinct)
    assert request == ForgetSet.from_fraction(shuffled, 0.1, seed=5)
    assert request != ForgetSet.from_fraction(digits, 0.1, seed=6)
    larger = ForgetSet.from_fraction(digits, 0.25, seed=5)
    assert larger.mask(request.ids).all()
    assert len(ForgetSet.from_fraction(digits, 1.0, seed=5)) == distinct


def test_fraction_of_some_classes(digits: IndexedImages) -> None:
    request = ForgetSet.from_fraction(digits, 0.5, seed=0, classes=["3", 4], reason="test")
    chosen = request.mask(digits.ids)
    assert set(digits.labels[chosen].tolist()) == {3, 4}
    assert chosen.sum() == round(0.5 * np.isin(digits.labels, [3, 4]).sum())


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_fractions(small: IndexedImages, fraction: float) -> None:
    with pytest.raises(ValueError, match="expected a fraction above 0 and at most 1"):
        ForgetSet.from_fraction(small, fraction, seed=0)
    with pytest.raises(ValueError, match=r"got fraction 0\.01 of 5; nothing was deleted"):
        ForgetSet.from_fraction(small, 0.01, seed=0)


# --- from images


def test_from_images_matches_files_folders_and_arrays(small: IndexedImages, tmp_path: Path) -> None:
    single = save(small, 1, tmp_path / "one picture.png")
    for row in (2, 3):
        save(small, row, tmp_path / "folder" / "dëep" / f"{row}.png")
    array = small.images[np.array([4])][0]
    request = ForgetSet.from_images(small, [single, tmp_path / "folder", array], "private")
    np.testing.assert_array_equal(request.mask(small.ids), [False, True, True, True, True, False])


def test_images_that_are_not_in_the_data_are_named(small: IndexedImages, tmp_path: Path) -> None:
    known = save(small, 0, tmp_path / "known.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "stranger.png")
    with pytest.raises(
        ValueError, match=r"2 of 3 images are not in the data: .*stranger\.png, array 2; nothing"
    ):
        ForgetSet.from_images(
            small, [known, tmp_path / "stranger.png", np.zeros((8, 8, 1), dtype=np.uint8)], "test"
        )
    with pytest.raises(ValueError, match=r"shape \(8, 8, 1\), got uint8 \(8, 8\)"):
        ForgetSet.from_images(small, [np.zeros((8, 8), dtype=np.uint8)], "test")
    with pytest.raises(ImageDecodeError, match=r"missing\.png: No such file"):
        ForgetSet.from_images(small, [tmp_path / "missing.png"], "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="got none"):
        ForgetSet.from_images(small, [tmp_path / "empty"], "test")


# --- from a list file


def test_from_text_file_with_ids_files_comments_and_blanks(small: IndexedImages, tmp_path: Path) -> None:
    save(small, 3, tmp_path / "pictures" / "a, b é.png")
    text = f"\ufefffile\n# a comment\n\n  {ids_to_hex(small.ids)[1].upper()}  \r\npictures/a, b é.png\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    request = ForgetSet.from_file(small, tmp_path / "list.txt", "GDPR")
    np.testing.assert_array_equal(request.mask(small.ids), [False, True, False, True, False, False])


def test_from_csv_takes_the_first_column(small: IndexedImages, tmp_path: Path) -> None:
    save(small, 2, tmp_path / "a, b.png")
    text = f'ID,who\n{ids_to_hex(small.ids)[0]},"Doe, Jane"\n# x\n"a, b.png",x\n'
    (tmp_path / "list.csv").write_text(text)
    request = ForgetSet.from_file(small, tmp_path / "list.csv", "GDPR")
    np.testing.assert_array_equal(request.mask(small.ids), [True, False, True, False, False, True])


def test_lists_that_cannot_be_met(small: IndexedImages, tmp_path: Path) -> None:
    path = tmp_path / "lists" / "list.txt"
    known = ids_to_hex(small.ids)[0]
    save(small, 1, tmp_path / "outside.png")
    path.parent.mkdir()
    (path.parent / "link.png").symlink_to(tmp_path / "outside.png")
    cases = {
        f"{known}\nno.png\nnot there.png\n": r"2 of 3 entries of .* are neither ids nor files: no\.png, not",
        f"{known}\n{'ab' * 16}\n": rf"1 of 2 entries are not in the data: {'ab' * 16}; nothing was deleted",
        "../outside.png\n": r"expected files inside .*, got '\.\./outside\.png'",
        f"{tmp_path}/outside.png\n": "expected files inside",
        "link.png\n": r"got 'link\.png' in the list",
        "# nothing\n\nid\n": "at least one image to forget, got none",
        "": "got none",
    }
    for text, message in cases.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            ForgetSet.from_file(small, path, "test")
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"expected a list in UTF-8 text, got .*list\.txt"):
        ForgetSet.from_file(small, path, "test")
    with pytest.raises(ValueError, match="No such file"):
        ForgetSet.from_file(small, tmp_path / "missing.txt", "test")


def test_request_matches_data_decoded_at_another_size(tmp_path: Path) -> None:
    """A file is converted exactly as the data was, so it is found in data of any size."""
    data = load_digits_images(size=(5, 5), channels=3)
    original = load_digits_images()
    request = ForgetSet.from_images(data, [save(original, 12, tmp_path / "12.png")], "test")
    np.testing.assert_array_equal(np.flatnonzero(request.mask(data.ids)), [12])
    np.testing.assert_array_equal(request.ids, image_ids(data.images[np.array([12])]))
