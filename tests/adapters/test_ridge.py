"""Ridge heads: the right weights, and sums that forget."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from small_ensembles import random_jobs, random_records
from threadpoolctl import threadpool_limits

from gen_unlearn.adapters import ridge
from gen_unlearn.adapters.family import FitJob, HeadShape, Subtractable, digest_adapter
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.ridge import RidgeHeads, Solver

SHAPE = HeadShape(12, 4)
LAPACK = RidgeHeads(3.0)


def fit(heads: RidgeHeads, records: Records, shape: HeadShape = SHAPE) -> dict[str, np.ndarray]:
    return dict(heads.fit([FitJob(0, records)], shape, 0)[0])


@pytest.mark.parametrize("solver", ["lapack", "portable"])
def test_weights_equal_those_of_a_solution_with_fifty_digits(solver: Solver) -> None:
    records = random_records(40)
    with mpmath.workdps(50):
        inputs = mpmath.matrix(np.c_[records.codes / 256, np.ones(40)].tolist())
        targets = mpmath.matrix(np.eye(4)[records.labels].tolist())
        matrix = inputs.T * inputs + mpmath.mpf("3") * mpmath.eye(13)
        expected = np.array((matrix**-1 * inputs.T * targets).tolist(), dtype=float)
    weights = fit(RidgeHeads(3.0, solver), records)["weights"]
    assert np.abs(weights - expected).max() < 1e-9


def test_weights_do_so_with_far_more_features_than_members() -> None:
    shape = HeadShape(150, 4)
    records = random_records(5, shape.features)
    fitted = [fit(RidgeHeads(1e-3, solver), records, shape)["weights"] for solver in ("lapack", "portable")]
    inputs = np.c_[records.codes / 256, np.ones(5)]
    dual = np.linalg.solve(inputs @ inputs.T + 1e-3 * np.eye(5), np.eye(4)[records.labels])
    for weights in fitted:
        assert np.abs(weights - inputs.T @ dual).max() < 1e-9


def test_sums_are_those_of_python_integers() -> None:
    records = random_records(9)
    state = fit(LAPACK, records)
    rows = [[int(code) for code in codes] + [256] for codes in records.codes]
    gram = [sum(row[i] * row[j] for row in rows) for i in range(13) for j in range(i + 1)]
    assert state["gram"].tolist() == gram
    for label in range(4):
        members = [row for row, other in zip(rows, records.labels, strict=True) if other == label]
        assert state["cross"][:, label].tolist() == [sum(row[i] for row in members) for i in range(13)]


def test_sums_are_exact_for_the_largest_codes_and_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    records = random_records(1000, features=2)
    records.codes[:] = 32767
    whole = fit(LAPACK, records, HeadShape(2, 4))
    assert whole["gram"][0] == 1000 * 32767**2
    monkeypatch.setattr(ridge, "_BLOCK", 7)
    assert digest_adapter(fit(LAPACK, records, HeadShape(2, 4))) == digest_adapter(whole)


def test_order_of_the_members_is_immaterial() -> None:
    records = random_records(300)
    expected = digest_adapter(fit(LAPACK, records))
    for seed in range(5):
        shuffled = records.select(np.random.default_rng(seed).permutation(300))
        assert digest_adapter(fit(LAPACK, shuffled)) == expected


@pytest.mark.parametrize("solver", ["lapack", "portable"])
def test_added_and_subtracted_equals_never(solver: Solver) -> None:
    heads, records = RidgeHeads(3.0, solver), random_records(60)
    assert isinstance(heads, Subtractable)
    some, rest = records.select(slice(0, 7)), records.select(slice(7, None))
    without = heads.update(fit(heads, records), some, -1, SHAPE)
    assert "weights" not in without
    assert digest_adapter(heads.complete(without)) == digest_adapter(fit(heads, rest))
    grown = heads.update(heads.update(None, rest, 1, SHAPE), some, 1, SHAPE)
    assert digest_adapter(heads.complete(grown)) == digest_adapter(fit(heads, records))


def test_floats_would_not_forget() -> None:
    records = random_records(60)
    inputs = np.c_[records.codes / 3.0, np.ones(60)]
    downdated = sum(np.outer(row, row) for row in inputs) - np.outer(inputs[0], inputs[0])
    assert not np.array_equal(downdated, sum(np.outer(row, row) for row in inputs[1:]))


def test_update_leaves_what_it_is_given() -> None:
    records = random_records(20)
    state = fit(LAPACK, records)
    before = digest_adapter(state)
    update = LAPACK.update(state, records.select(slice(0, 3)), -1, SHAPE)
    assert digest_adapter(state) == before
    assert not any(np.shares_memory(update[name], state[name]) for name in update)


def test_no_members_give_no_weights() -> None:
    records = random_records(4)
    for solver in ("lapack", "portable"):
        heads = RidgeHeads(3.0, solver)
        emptied = heads.complete(heads.update(fit(heads, records), records, -1, SHAPE))
        assert not emptied["weights"].any()
        assert not emptied["gram"].any()
        assert not heads.scores(emptied, records.codes).any()


def test_scores_are_the_linear_map() -> None:
    records = random_records(10)
    state = fit(LAPACK, records)
    by_hand = np.c_[records.codes / 256, np.ones(10)] @ state["weights"]
    scores = LAPACK.scores(state, records.codes)
    assert scores.dtype == np.float64
    assert np.allclose(scores, by_hand, atol=1e-12)


def test_portable_equals_lapack_closely_and_lapack_ignores_threads() -> None:
    shape = HeadShape(200, 4)
    records = random_jobs([500], shape)[0].members
    found = {}
    for solver in ("lapack", "portable"):
        heads = RidgeHeads(3.0, solver)
        for threads in (1, 2):
            with threadpool_limits(threads):
                found[solver, threads] = fit(heads, records, shape)
    for solver in ("lapack", "portable"):
        assert digest_adapter(found[solver, 1]) == digest_adapter(found[solver, 2])
    difference = found["lapack", 1]["weights"] - found["portable", 1]["weights"]
    assert 0 < np.abs(difference).max() < 1e-9


def test_weights_are_in_rows_in_memory() -> None:
    assert fit(LAPACK, random_records(10))["weights"].flags.c_contiguous


@pytest.mark.parametrize("penalty", [0.0, -1.0, 1e-12, 9e-7, float("nan"), float("inf")])
def test_the_penalty_is_a_number_that_is_not_too_small(penalty: float) -> None:
    with pytest.raises(ValueError, match=r"expected penalty of at least 1e-06, got .*; 100 is a good start"):
        RidgeHeads(penalty)
    assert RidgeHeads(1e-6).penalty == 1e-6


@pytest.mark.parametrize("solver", ["lapack", "portable"])
def test_sums_that_are_not_positive_with_the_penalty_are_refused(solver: Solver) -> None:
    once = LAPACK.update(None, random_records(30, 64), 1, HeadShape(64, 4))
    often = {name: array << 36 for name, array in once.items()}  # As if each record were there so often.
    with pytest.raises(ValueError, match=r"with penalty 1e-06; raise it, 100 is a good start"):
        RidgeHeads(1e-6, solver).complete(often)
    assert np.isfinite(RidgeHeads(100.0, solver).complete(often)["weights"]).all()


def test_the_solver_is_a_known_one() -> None:
    with pytest.raises(ValueError, match="lapack or portable, got 'qr'"):
        RidgeHeads(solver="qr")  # type: ignore[arg-type]


def test_each_member_is_read_once() -> None:
    assert LAPACK.visits(17) == 17
