"""Choice of adapters: exact proportions, waiting adapters never, and deletions that change few images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from gen_unlearn.adapters.family import AdapterState
from gen_unlearn.adapters.serving import NO_ADAPTER, ServedAdapters, count_members

STATE: AdapterState = {"layer.lora_A.weight": np.ones((1, 1), dtype=np.float32)}
MEMBERS = np.array([[10, 0, 4], [0, 5, 1], [30, 5, 0], [6, 0, 0], [0, 0, 0]], dtype=np.int64)


def served(answering: tuple[int, ...] = (0, 1, 2, 3), members: np.ndarray = MEMBERS) -> ServedAdapters:
    return ServedAdapters(dict.fromkeys(answering, STATE), members)


def test_counts_are_those_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    labels, routes = draw.integers(0, 3, 50), draw.integers(0, 7, (50, 2)).astype(np.int16)
    expected = np.zeros((9, 3), dtype=np.int64)
    for label, adapters in zip(labels, routes, strict=True):
        for adapter in adapters:
            expected[adapter, label] += 1
    np.testing.assert_array_equal(count_members(labels, routes, 9, 3), expected)
    assert expected.sum() == 100
    none = count_members(labels[:0], routes[:0], 9, 3)
    assert none.shape == (9, 3)
    assert not none.any()


def test_shares_are_those_of_the_members_of_adapters_that_answer() -> None:
    np.testing.assert_allclose(served().shares(None), [14 / 61, 6 / 61, 35 / 61, 6 / 61, 0])
    np.testing.assert_allclose(served().shares(0), [10 / 46, 0, 30 / 46, 6 / 46, 0])
    without = served((0, 1, 3))
    np.testing.assert_allclose(without.shares(0), [10 / 16, 0, 0, 6 / 16, 0])
    assert without.masked_share(0) == 30 / 46
    assert without.masked_share(2) == 0
    assert without.masked_share(None) == 35 / 61
    assert served().served_classes == [0, 1, 2]
    assert served((3,)).served_classes == [0]
    assert served(()).masked_share(1) == 1
    assert served((), np.zeros((2, 3), dtype=np.int64)).masked_share(1) == 0


def test_an_adapter_that_is_complete_without_members_does_not_answer() -> None:
    assert served((0, 4)).serving.tolist() == [True, False, False, False, False]


def test_what_nobody_answers_for_is_refused() -> None:
    with pytest.raises(ValueError, match="all images of class 1 are in adapters that wait to be rebuilt"):
        served((0, 3)).choose(1, [0])
    with pytest.raises(ValueError, match="all images are in adapters that wait"):
        served(()).shares(None)
    with pytest.raises(ValueError, match="got none: all images were deleted, or it was not loaded"):
        ServedAdapters({}, np.zeros_like(MEMBERS)).shares(None)
    without = MEMBERS.copy()
    without[:, 1] = 0
    with pytest.raises(ValueError, match="no image of class 1 is left in any adapter"):
        replace(served(), members=without).shares(1)
    with pytest.raises(ValueError, match="from 0 to 2, got 3"):
        served().shares(3)
    with pytest.raises(ValueError, match=r"adapters from 0 to 4, got \[9\]"):
        served((9,))
    with pytest.raises(ValueError, match=r"got \[2\] without"):
        ServedAdapters({2: {}}, MEMBERS)
    with pytest.raises(ValueError, match="members as int64"):
        ServedAdapters({}, MEMBERS.astype(float))
    with pytest.raises(ValueError, match="at least 1 adapter"):
        served().choose(0, [0], 0)


@pytest.mark.parametrize("answering", [(0, 1, 2, 3), (0, 1, 3)])
@pytest.mark.parametrize("label", [None, 0])
def test_draws_match_the_shares(answering: tuple[int, ...], label: int | None) -> None:
    adapters = served(answering)
    drawn = adapters.choose(label, range(6000))[:, 0]
    shares = adapters.shares(label)
    counts = np.bincount(drawn, minlength=5)
    there = shares > 0
    assert not counts[~there].any()
    assert chisquare(counts[there], 6000 * shares[there]).pvalue > 0.001
    even = np.full(int(there.sum()), 6000 / there.sum())
    assert chisquare(counts[there], even).pvalue < 1e-6


def test_several_are_drawn_without_replacement() -> None:
    adapters = served()
    drawn = adapters.choose(0, range(4000), 5)
    assert drawn.shape == (4000, 5)
    assert (drawn[:, 3:] == NO_ADAPTER).all()
    assert {tuple(sorted(row)) for row in drawn[:, :3].tolist()} == {(0, 2, 3)}
    np.testing.assert_array_equal(drawn[:, :1], adapters.choose(0, range(4000)))
    shares = adapters.shares(0)
    second = drawn[drawn[:, 0] == 2, 1]
    rest = np.array([shares[0], shares[3]]) / (shares[0] + shares[3])
    counts = np.array([(second == 0).sum(), (second == 3).sum()])
    assert chisquare(counts, len(second) * rest).pvalue > 0.001


def test_a_deletion_changes_only_images_of_the_adapter_that_shrinks() -> None:
    before = served().choose(None, range(3000))[:, 0]
    fewer = MEMBERS.copy()
    fewer[2, 0] -= 1
    after = served(members=fewer).choose(None, range(3000))[:, 0]
    changed = before != after
    assert (before[changed] == 2).all()
    assert 0 < changed.sum() < 60
    masked = served((0, 1, 3)).choose(None, range(3000))[:, 0]
    np.testing.assert_array_equal(masked != before, before == 2)
    empty = MEMBERS.copy()
    empty[2] = 0
    np.testing.assert_array_equal(served((0, 1, 3), empty).choose(None, range(3000))[:, 0], masked)


def test_an_image_has_its_own_choice() -> None:
    adapters = served()
    alone = [adapters.choose(None, [seed])[0, 0] for seed in range(50)]
    np.testing.assert_array_equal(adapters.choose(None, range(50))[:, 0], alone)
    assert adapters.choose(None, [], 2).shape == (0, 2)


def test_the_nearest_that_answer_are_taken_in_order() -> None:
    order = np.array([[2, 1, 0, 4, 3], [4, 3, 2, 1, 0]], dtype=np.int16)
    assert served().nearest(None, order, 2).tolist() == [[2, 1], [3, 2]]
    assert served((0, 1, 3)).nearest(0, order, 3).tolist() == [[0, 3, NO_ADAPTER], [3, 0, NO_ADAPTER]]


def test_one_adapter_is_replaced_in_a_copy() -> None:
    first = served()
    waiting = first.replaced(2, None, np.array([29, 5, 0]))
    assert sorted(waiting.states) == [0, 1, 3]
    assert waiting.masked_share(0) == 29 / 45
    rebuilt = waiting.replaced(2, STATE, np.array([29, 5, 0]))
    assert sorted(rebuilt.states) == [0, 1, 2, 3]
    assert first.members[2, 0] == 30
    assert sorted(first.states) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="an adapter from 0 to 4"):
        first.replaced(5, None, np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match="3 classes"):
        first.replaced(1, None, np.zeros(2, dtype=np.int64))
