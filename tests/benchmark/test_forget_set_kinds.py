"""Forget sets of every kind, the splits they are drawn from, and the scores of memorisation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gen_unlearn.benchmark.classifier_training import TrainingRecipe
from gen_unlearn.benchmark.forget_sets import (
    ForgetCase,
    ForgetSetConfig,
    draw_forget_set,
    read_forget_set,
    write_forget_set,
)
from gen_unlearn.benchmark.memorisation import (
    MemorisationScores,
    memorisation,
    pool_memorisation,
    read_scores,
    write_scores,
)
from gen_unlearn.benchmark.networks import NetworkConfig
from gen_unlearn.benchmark.splits import SplitConfig, Splits, build_splits, with_wrong_labels
from gen_unlearn.data import IndexedImages, load_digits_images
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.repro import id_keys, ids_to_hex

CONFIG = SplitConfig(heldout=397, test=400, seed=1, wrong_labels=100)


@pytest.fixture(scope="module")
def digits() -> IndexedImages:
    return load_digits_images()


@pytest.fixture(scope="module")
def splits(digits: IndexedImages) -> Splits:
    return build_splits(digits, CONFIG)


@pytest.fixture(scope="module")
def clean(digits: IndexedImages) -> Splits:
    return build_splits(digits, replace(CONFIG, wrong_labels=0))


def true_labels(digits: IndexedImages, ids: np.ndarray) -> np.ndarray:
    order = np.argsort(id_keys(digits.ids))
    return digits.labels[order[np.searchsorted(id_keys(digits.ids)[order], id_keys(ids))]]


def test_splits_have_exact_sizes_share_nothing_and_give_each_class_its_share(
    digits: IndexedImages, clean: Splits
) -> None:
    sizes = {"train": 1000, "heldout": 397, "test": 400}
    ids = [getattr(clean, part).ids for part in sizes]
    np.testing.assert_array_equal(unique_ids(np.concatenate(ids)), unique_ids(digits.ids))
    for part, size in sizes.items():
        assert len(getattr(clean, part)) == size
        counts = np.bincount(getattr(clean, part).labels)
        np.testing.assert_allclose(counts, np.bincount(digits.labels) * size / 1797, atol=2)


def test_the_test_images_depend_on_the_seed_but_not_on_the_held_out_number_or_the_order_of_rows(
    digits: IndexedImages, clean: Splits
) -> None:
    config = replace(CONFIG, wrong_labels=0)
    backwards = build_splits(digits.select(np.arange(len(digits))[::-1]), config)
    assert backwards.digest == clean.digest
    assert build_splits(digits, replace(config, heldout=50)).test.digest == clean.test.digest
    assert build_splits(digits, replace(config, seed=2)).test.digest != clean.test.digest


def test_wrong_labels_are_all_wrong_uniform_and_only_in_training(
    digits: IndexedImages, splits: Splits
) -> None:
    wrong = splits.train.labels != true_labels(digits, splits.train.ids)
    np.testing.assert_array_equal(unique_ids(splits.train.ids[wrong]), splits.mislabelled)
    assert len(splits.mislabelled) == 100
    for part in (splits.heldout, splits.test):
        np.testing.assert_array_equal(part.labels, true_labels(digits, part.ids))
    noisy, chosen = with_wrong_labels(digits, 1797, seed=0)
    shifts = np.bincount((noisy.labels - digits.labels) % 10, minlength=10)
    assert shifts[0] == 0
    assert shifts[1:].min() > 150
    assert len(chosen) == 1797


def test_byte_identical_images_stay_together_and_get_the_same_wrong_label(digits: IndexedImages) -> None:
    twice = digits.select(np.repeat(np.arange(200), 2))
    parts = build_splits(twice, SplitConfig(heldout=40, test=60, wrong_labels=100))
    assert [len(part) for part in (parts.train, parts.heldout, parts.test)] == [200, 80, 120]
    order = np.argsort(id_keys(parts.train.ids), kind="stable")
    labels = parts.train.labels[order]
    np.testing.assert_array_equal(labels[::2], labels[1::2])
    assert (parts.train.labels != true_labels(digits, parts.train.ids)).all()


def test_a_test_source_of_its_own_is_kept_whole_and_its_images_are_refused_or_left_out_of_training(
    digits: IndexedImages,
) -> None:
    first, second = digits.select(np.arange(500)), digits.select(np.arange(490, 700))
    with pytest.raises(ValueError, match=r"training and test images to be disjoint, got .* leave-out"):
        build_splits(first, SplitConfig(heldout=50), second)
    parts = build_splits(first, SplitConfig(heldout=50, duplicates="leave-out"), second)
    assert [len(part) for part in (parts.train, parts.heldout, parts.test)] == [440, 50, 210]
    with pytest.raises(ValueError, match="source of their own or by number"):
        build_splits(first, SplitConfig(heldout=50, test=10), second)
    with pytest.raises(ValueError, match="source of their own or by number"):
        build_splits(first, SplitConfig(heldout=50))
    with pytest.raises(ValueError, match="more than 600 distinct"):
        build_splits(first, SplitConfig(heldout=600, test=10))


def test_splits_that_share_an_image_are_refused(clean: Splits) -> None:
    with pytest.raises(ValueError, match="training and held-out images to be disjoint, got 1 "):
        Splits(clean.train, clean.train.select(np.array([3])), clean.test, clean.mislabelled)


def require_partition(case: ForgetCase) -> None:
    """The images to forget and to retain are the training images, and a method gets no test image."""
    train = case.splits.train
    assert len(case.forget_images) + len(case.retain_images) == len(train)
    assert not case.retain_images.holds(case.forget.ids).any()
    seen = case.unlearn_data()
    for part in (seen.forget, seen.retain, seen.heldout):
        assert not case.splits.test.holds(part.ids).any()


def test_a_class_is_all_training_images_of_its_labels_and_divides_the_test_images(splits: Splits) -> None:
    case = draw_forget_set(ForgetSetConfig("class", classes=("3", "5")), splits, seed=0)
    require_partition(case)
    assert set(case.forget_images.labels) == {3, 5}
    assert not np.isin(case.retain_images.labels, [3, 5]).any()
    np.testing.assert_array_equal(case.test_forgotten, np.isin(splits.test.labels, [3, 5]))
    np.testing.assert_array_equal(case.heldout_forgotten, np.isin(splits.heldout.labels, [3, 5]))


def test_a_subclass_is_a_fine_class_while_all_labels_are_coarse(splits: Splits) -> None:
    coarse = {"even": ("0", "2", "4", "6", "8"), "odd": ("1", "3", "5", "7", "9")}
    case = draw_forget_set(ForgetSetConfig("subclass", classes=("3",), coarse=coarse), splits, seed=0)
    require_partition(case)
    assert case.splits.train.class_names == ("even", "odd")
    np.testing.assert_array_equal(case.splits.train.labels, splits.train.labels % 2)
    np.testing.assert_array_equal(case.splits.test.labels, splits.test.labels % 2)
    np.testing.assert_array_equal(case.forget.ids, unique_ids(splits.train.ids[splits.train.labels == 3]))
    np.testing.assert_array_equal(case.test_forgotten, splits.test.labels == 3)
    lacking = {"even": coarse["even"], "odd": coarse["odd"][1:]}
    with pytest.raises(ValueError, match="in one coarse class"):
        draw_forget_set(ForgetSetConfig("subclass", classes=("3",), coarse=lacking), splits, seed=0)


def test_random_sets_depend_on_the_seed_alone_and_grow(splits: Splits) -> None:
    hundred = draw_forget_set(ForgetSetConfig("random", count=100), splits, seed=0)
    require_partition(hundred)
    assert len(hundred.forget) == 100
    assert not hundred.test_forgotten.any()
    assert draw_forget_set(ForgetSetConfig("random", fraction=0.1), splits, seed=0).forget == hundred.forget
    larger = draw_forget_set(ForgetSetConfig("random", count=200), splits, seed=0).forget
    assert larger.mask(hundred.forget.ids).all()
    other = draw_forget_set(ForgetSetConfig("random", count=100), splits, seed=1).forget
    assert hundred.forget.mask(other.ids).sum() < 40
    with pytest.raises(ValueError, match="at most 1000"):
        draw_forget_set(ForgetSetConfig("random", count=1001), splits, seed=0)
    with pytest.raises(ValueError, match="images to retain"):
        draw_forget_set(ForgetSetConfig("random", count=1000), splits, seed=0)


def test_canaries_get_a_wrong_label_and_are_exactly_what_is_forgotten(
    digits: IndexedImages, splits: Splits
) -> None:
    case = draw_forget_set(ForgetSetConfig("canary", count=30), splits, seed=0)
    require_partition(case)
    changed = case.splits.train.labels != splits.train.labels
    np.testing.assert_array_equal(unique_ids(case.splits.train.ids[changed]), case.forget.ids)
    assert len(case.forget) == 30
    assert (case.forget_images.labels != true_labels(digits, case.forget_images.ids)).all()
    assert len(case.splits.mislabelled) == 130
    assert case.splits.train.digest != splits.train.digest


def test_a_file_gives_back_the_set_that_was_written_and_only_for_the_same_images_and_labels(
    splits: Splits, clean: Splits, tmp_path: Path
) -> None:
    path = tmp_path / "forget.json"
    forget = ForgetSet(splits.train.ids[[5, 2, 9]], "three")
    write_forget_set(path, forget, splits.train)
    case = draw_forget_set(ForgetSetConfig("file", path=str(path)), splits, seed=0)
    require_partition(case)
    assert case.forget == forget
    assert case.forget.reason == "three"
    with pytest.raises(ValueError, match=r"expected forget.json of the data"):
        read_forget_set(path, clean.train)
    unknown = {"data": splits.train.digest, "ids": ids_to_hex(splits.test.ids[:1])}
    path.write_text(json.dumps(unknown), encoding="utf-8")
    with pytest.raises(ValueError, match="1 of 1 ids are not in the data"):
        read_forget_set(path, splits.train)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="expected JSON with data and ids"):
        read_forget_set(path, splits.train)


def test_memorisation_is_accuracy_with_the_image_minus_accuracy_without_it() -> None:
    trained = np.array([[True, False, True], [True, True, False], [False, True, False], [False, False, True]])
    correct = np.array([[True, True, True], [True, True, False], [False, False, True], [False, True, False]])
    np.testing.assert_allclose(memorisation(correct, trained), [1.0, -0.5, 0.0])
    with pytest.raises(ValueError, match="1 images that all or none"):
        memorisation(correct, trained | np.array([True, False, False]))


def test_the_most_memorised_images_are_the_mislabelled_ones_and_come_from_a_pool_or_its_file(
    splits: Splits, tmp_path: Path
) -> None:
    recipe = TrainingRecipe(epochs=60, batch_size=50, learning_rate=0.1)
    scores = pool_memorisation(splits.train, NetworkConfig("mlp", 64), recipe, models=16, seed=0)
    config = ForgetSetConfig("memorised", fraction=0.1)
    case = draw_forget_set(config, splits, seed=0, scores=scores)
    require_partition(case)
    assert len(case.forget) == 100
    assert case.forget.mask(splits.mislabelled).mean() > 0.6
    path = tmp_path / "scores.json"
    write_scores(path, scores)
    from_file = draw_forget_set(replace(config, path=str(path)), splits, seed=0)
    assert from_file.forget == case.forget
    np.testing.assert_array_equal(read_scores(path).scores, scores.scores)
    with pytest.raises(ValueError, match="either from the caller or from path"):
        draw_forget_set(config, splits, seed=0)
    with pytest.raises(ValueError, match="scores of memorisation of the data"):
        draw_forget_set(config, splits, seed=0, scores=replace(scores, data="0" * 64))


def test_equal_scores_are_ranked_by_id(splits: Splits) -> None:
    ids = unique_ids(splits.train.ids)[:10]
    scores = MemorisationScores(ids, np.array([0.0, 1, 1, 1, 0, 0, 0, 0, 0, 2]), "data")
    np.testing.assert_array_equal(scores.most_memorised(0.3), ids[[1, 2, 9]])
    with pytest.raises(ValueError, match="share"):
        scores.most_memorised(0.01)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "everything"},
        {"kind": "class"},
        {"kind": "class", "classes": ("1",), "count": 5},
        {"kind": "random"},
        {"kind": "random", "count": 5, "fraction": 0.1},
        {"kind": "random", "count": 0},
        {"kind": "random", "fraction": 1.0},
        {"kind": "subclass", "classes": ("1",)},
        {"kind": "memorised", "path": "scores.json"},
        {"kind": "canary", "fraction": 0.1},
        {"kind": "file"},
    ],
)
def test_settings_that_do_not_fit_the_kind_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ForgetSetConfig(**settings)  # type: ignore[arg-type]
