import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from gen_unlearn.metrics.membership import MembershipResult, membership_result


def one_class(members: np.ndarray, outsiders: np.ndarray) -> MembershipResult:
    zeros = np.zeros(max(len(members), len(outsiders)), dtype=np.int64)
    return membership_result(members, zeros[: len(members)], outsiders, zeros[: len(outsiders)])


def simulate(sizes: list[tuple[int, int]], effect: float, runs: int) -> list[MembershipResult]:
    """Draw normal scores, members `effect` higher, for classes of members and outsiders far apart."""
    generator = np.random.default_rng(0)
    member_labels = np.repeat(np.arange(len(sizes)), [members for members, _ in sizes])
    outsider_labels = np.repeat(np.arange(len(sizes)), [outsiders for _, outsiders in sizes])
    return [
        membership_result(
            generator.normal(effect + 5 * member_labels),
            member_labels,
            generator.normal(5 * outsider_labels),
            outsider_labels,
        )
        for _ in range(runs)
    ]


def test_area_of_one_class_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    for levels in (3, 10, 10**6):  # many ties, some, none
        members, outsiders = generator.integers(1, levels + 1, 40), generator.integers(0, levels, 70)
        expected = roc_auc_score(np.repeat([1, 0], [40, 70]), np.concatenate([members, outsiders]))
        assert one_class(members, outsiders).auc.value == pytest.approx(expected, abs=1e-12)


def test_area_pools_the_pairs_within_classes() -> None:
    generator = np.random.default_rng(1)
    members, outsiders = generator.integers(0, 8, 30), generator.integers(0, 6, 50)
    member_labels, outsider_labels = generator.integers(0, 3, 30), generator.integers(0, 3, 50)
    pairs = [
        float(members[i] > outsiders[j]) + 0.5 * float(members[i] == outsiders[j])
        for i in range(30)
        for j in range(50)
        if member_labels[i] == outsider_labels[j]
    ]
    result = membership_result(members, member_labels, outsiders, outsider_labels)
    assert result.auc.value == pytest.approx(np.mean(pairs), abs=1e-12)


def test_standard_error_is_delongs() -> None:
    generator = np.random.default_rng(2)
    members, outsiders = generator.normal(1, 1, 25), generator.normal(0, 1, 40)
    agrees = members[:, None] > outsiders
    expected = np.var(agrees.mean(axis=1), ddof=1) / 25 + np.var(agrees.mean(axis=0), ddof=1) / 40
    assert one_class(members, outsiders).auc.standard_error == pytest.approx(np.sqrt(expected), rel=1e-12)


CASES = {
    "one class": ([(60, 90)], 0.8),
    "few classes": ([(40, 20), (10, 60), (25, 25)], 0.5),
    "classes with one member": ([(1, 30)] * 20, 0.8),
}


@pytest.mark.parametrize("case", CASES)
def test_standard_errors_and_intervals_agree_with_simulation(case: str) -> None:
    sizes, effect = CASES[case]
    results = simulate(sizes, effect, runs=200)
    area = stats.norm.cdf(effect / np.sqrt(2))
    found = np.array([result.auc.value for result in results])
    errors = np.array([result.auc.standard_error for result in results])
    assert found.mean() == pytest.approx(area, abs=4 * found.std() / np.sqrt(200))
    assert errors.mean() == pytest.approx(found.std(), rel=0.15)
    covered = np.mean([low <= area <= high for low, high in (result.auc_interval for result in results)])
    assert 0.92 <= covered <= 0.98

    rate = stats.norm.sf(stats.norm.isf(0.01) - effect)
    covered = np.mean([low <= rate <= high for low, high in (result.tpr_interval for result in results)])
    assert covered >= 0.93


@pytest.mark.parametrize("effect", [0.0, 1.0, 4.0])
def test_rate_agrees_with_simulation_where_outsiders_are_many(effect: float) -> None:
    results = simulate([(100, 1000)], effect, runs=80)
    rate = stats.norm.sf(stats.norm.isf(0.01) - effect)
    found = np.array([result.tpr.value for result in results])
    errors = np.array([result.tpr.standard_error for result in results])
    assert found.mean() == pytest.approx(rate, abs=0.015)
    assert errors.mean() == pytest.approx(found.std(), rel=0.35)
    covered = np.mean([low <= rate <= high for low, high in (result.tpr_interval for result in results)])
    assert covered >= 0.93
    assert np.mean([high - low for low, high in (result.tpr_interval for result in results)]) < 0.2


def test_few_outsiders_cannot_show_that_many_members_are_caught() -> None:
    """Of 36 outsiders none may lie beyond the threshold; what lies beyond all of them is unknown."""
    (result,) = simulate([(200, 36)], 5.0, runs=1)
    assert result.tpr.value > 0.9
    assert result.tpr_interval[0] == 0
    assert result.tpr_interval[1] > result.tpr.value


def test_a_class_that_scores_higher_as_a_whole_does_not_count_as_members() -> None:
    generator = np.random.default_rng(3)
    member_labels, outsider_labels = np.repeat([0, 1], [250, 50]), np.repeat([0, 1], [50, 250])
    members = generator.normal(np.where(member_labels == 0, 10, 0))
    outsiders = generator.normal(np.where(outsider_labels == 0, 10, 0))
    assert one_class(members, outsiders).auc.value > 0.8
    result = membership_result(members, member_labels, outsiders, outsider_labels)
    assert abs(result.auc.value - 0.5) < 3 * result.auc.standard_error < 0.15
    assert result.tpr.value < 0.05


def test_a_shift_of_a_class_changes_nothing() -> None:
    generator = np.random.default_rng(4)
    member_labels, outsider_labels = generator.integers(0, 3, 60), generator.integers(0, 3, 300)
    members, outsiders = generator.integers(0, 100, 60), generator.integers(0, 90, 300)
    shift = np.array([0, 1000, -70])
    result = membership_result(members, member_labels, outsiders, outsider_labels)
    moved = membership_result(
        members + shift[member_labels], member_labels, outsiders + shift[outsider_labels], outsider_labels
    )
    assert moved.as_dict() == result.as_dict()


@pytest.mark.parametrize("outsiders", [1, 36, 99, 100, 199, 700, 2900])
@pytest.mark.parametrize("levels", [5, 10**9])
def test_no_more_than_one_percent_of_outsiders_is_caught(outsiders: int, levels: int) -> None:
    generator = np.random.default_rng(5)
    others, members = generator.integers(0, levels, outsiders), generator.integers(0, 2 * levels, 50)
    result = one_class(members, others)
    thresholds = [level for level in np.unique(others) if (others > level).mean() <= 0.01]
    assert result.tpr.value == (members > min(thresholds)).mean()
    if outsiders < 100:
        assert result.tpr.value == (members > others.max()).mean()
    assert result.tpr_interval[0] <= result.tpr.value <= result.tpr_interval[1]
    false, true = result.roc
    assert true[false <= 0.01].max() == result.tpr.value


def test_curve_is_short_and_lies_on_the_full_curve() -> None:
    generator = np.random.default_rng(6)
    members, outsiders = generator.normal(1, 1, 500), generator.normal(0, 1, 5000)
    false, true = one_class(members, outsiders).roc
    assert 100 < len(false) == len(true) <= 200
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert (false < 0.01).sum() > 20
    all_false, all_true, _ = roc_curve(
        np.repeat([1, 0], [500, 5000]), np.concatenate([members, outsiders]), drop_intermediate=False
    )
    full = set(zip(all_false.round(9), all_true.round(9), strict=True))
    assert full.issuperset(zip(false.round(9), true.round(9), strict=True))


@pytest.mark.parametrize("outsiders", [1, 20, 400])
def test_perfect_scores_do_not_claim_certainty(outsiders: int) -> None:
    members = np.arange(20.0) + 100
    result, reverse = one_class(members, np.arange(outsiders) / 10), one_class(-members, np.arange(outsiders))
    pairs = min(20, outsiders)
    assert (result.auc.value, reverse.auc.value) == (1, 0)
    assert result.auc.standard_error == reverse.auc.standard_error == 1 / (pairs + 1)
    assert result.auc_interval == (pytest.approx(0.025 ** (1 / pairs)), 1)
    assert reverse.auc_interval == (0, pytest.approx(1 - 0.025 ** (1 / pairs)))
    assert (result.tpr.value, result.tpr.standard_error) == (1, 1 / 21)
    assert (reverse.tpr.value, reverse.tpr.standard_error) == (0, 1 / 21)
    assert reverse.tpr_interval[0] == 0 < reverse.tpr_interval[1]


def test_equal_scores_tell_nothing() -> None:
    result = one_class(np.ones(30), np.ones(50))
    assert (result.auc.value, result.tpr.value) == (0.5, 0)
    assert result.auc.standard_error == 1 / 31


def test_classes_without_outsiders_are_left_out_and_counted() -> None:
    generator = np.random.default_rng(7)
    members, outsiders = generator.normal(0, 1, 40), generator.normal(0, 1, 80)
    member_labels, outsider_labels = np.arange(40) % 4, np.arange(80) % 8 + 1
    result = membership_result(members, member_labels, outsiders, outsider_labels)
    assert (result.members, result.outsiders, result.left_out) == (30, 30, 10)
    inside, outside = member_labels > 0, outsider_labels < 4
    alone = membership_result(
        members[inside], member_labels[inside], outsiders[outside], outsider_labels[outside]
    )
    assert {**alone.as_dict(), "left_out": 10} == result.as_dict()


def test_the_result_is_reproducible_and_writes_to_json() -> None:
    generator = np.random.default_rng(8)
    arguments = (
        generator.normal(1, 1, 50),
        np.arange(50) % 2,
        generator.normal(0, 1, 150),
        np.arange(150) % 2,
    )
    result = membership_result(*arguments).as_dict()
    assert json.loads(json.dumps(result)) == result == membership_result(*arguments).as_dict()
    other = membership_result(*arguments, seed=1).as_dict()
    assert {**other, "tpr": 0} == {**result, "tpr": 0}
    assert other["tpr"]["standard_error"] == pytest.approx(result["tpr"]["standard_error"], rel=0.2)


def test_refuses_what_cannot_be_compared() -> None:
    scores, labels = np.arange(4.0), np.zeros(4, dtype=np.int64)
    for message, arguments in [
        (r"member scores \(n,\)", (scores, labels[:3], scores, labels)),
        (r"outsider scores \(n,\)", (scores, labels, scores[:0], labels[:0])),
        ("integer labels", (scores, labels * 1.0, scores, labels)),
        ("1 of 4 with NaN", (scores, labels, np.array([0, 1, np.nan, 2]), labels)),
        (r"members of \[0\] and outsiders of \[1\]", (scores, labels, scores, labels + 1)),
    ]:
        with pytest.raises(ValueError, match=message):
            membership_result(*arguments)
    with pytest.raises(ValueError, match="rate in"):
        membership_result(scores, labels, scores, labels, fpr=1.0)
