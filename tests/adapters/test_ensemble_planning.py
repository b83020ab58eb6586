"""The planner counts what deletions really touch and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from small_ensembles import clustered_records, digits_problem

from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.planning import (
    PlanConfig,
    change_of,
    imbalance_of,
    measure,
    plan,
    touched_adapters,
)
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import public_keys, route
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.forget import ForgetSet

SMALL = PlanConfig(count=40, neighbours=4, images=400, features=6, classes=3)


@dataclass(frozen=True)
class Counting(SgdHeads):
    """Counts every record that training reads."""

    def fit(self, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:
        READ.append(sum(self.epochs * len(job.members) for job in jobs))
        return super().fit(jobs, shape, seed)


READ: list[int] = []


def test_visits_and_touched_are_those_of_a_real_deletion() -> None:
    public, records = clustered_records(40, 1), clustered_records(150, 0)
    keys = public_keys(public.codes, public.ids, 12, "public-samples", 0)
    family = Counting(epochs=2)
    ensemble = AdapterEnsemble.fit(EnsembleRecipe(keys, family, 2, ("a", "b", "c"), 0), records)
    assert ensemble.level == "bit-exact"  # Fits small problems of its own, once.
    for rows in ([3], [0, 40, 149], list(range(50, 90))):
        forget = ForgetSet(records.ids[rows], "planned")
        held, routes = ensemble.left
        gone = np.flatnonzero(forget.mask(held.ids))
        planned = change_of(routes, gone, 12, family)
        assert planned.touched == len(ensemble.touched(forget))
        READ.clear()
        ensemble.delete(forget)
        assert sum(READ) == planned.visits


def test_expected_visits_are_the_mean_over_deletions_of_single_images() -> None:
    public, records, _ = digits_problem()
    keys = public_keys(public.codes, public.ids, 50, "public-samples", 0)
    routes = route(records.codes, keys, 5)
    config = replace(SMALL, count=50, neighbours=5, images=len(records), imbalance=imbalance_of(routes, 50))
    family = SgdHeads(epochs=3)
    counted = [change_of(routes, np.array([row]), 50, family).visits for row in range(len(records))]
    itself = 5 * 3  # A deleted image is not read again by its own adapters.
    assert np.isclose(plan(config, family).visits, np.mean(counted) + itself, rtol=1e-9)


@pytest.mark.parametrize("deletions", [1, 10, 60])
def test_touched_formula_matches_a_simulation(deletions: int) -> None:
    draw = np.random.default_rng(0)
    touched = [
        len(np.unique(np.concatenate([draw.choice(100, 5, replace=False) for _ in range(deletions)])))
        for _ in range(300)
    ]
    error = np.std(touched) / np.sqrt(len(touched))
    assert abs(np.mean(touched) - touched_adapters(100, 5, deletions)) <= 4 * error + 1e-9


def test_touched_agrees_with_the_published_figures() -> None:
    for adapters, neighbours, figures in (
        (1000, 10, (10, 96, 634)),
        (1000, 3, (3, 30, 260)),
        (100, 10, (10, 65, 100)),
    ):
        found = [round(touched_adapters(adapters, neighbours, count)) for count in (1, 10, 100)]
        assert np.allclose(found, figures, atol=1)


def test_imbalance_is_one_for_equal_adapters() -> None:
    assert imbalance_of(np.array([[0, 1], [2, 3], [1, 0], [3, 2]], dtype=np.int16), 4) == 1
    assert imbalance_of(np.array([[0, 1], [0, 1]], dtype=np.int16), 4) == 2


def test_an_ensemble_is_cheaper_than_shards_from_the_square_of_neighbours_on() -> None:
    config = replace(SMALL, count=1000, neighbours=10, images=50000, imbalance=2.0)
    planned = plan(config)
    assert planned.shards_beaten == 5
    assert planned.visits == 50000 / planned.shards_beaten
    assert planned.members == 500


def test_storage_is_that_of_real_adapters() -> None:
    planned = plan(replace(SMALL, family="ridge"))
    state = RidgeHeads().fit([FitJob(0, clustered_records(20, 0))], HeadShape(6, 3), 0)[0]
    assert planned.adapters_bytes == 40 * sum(array.nbytes for array in state.values())
    assert planned.ledger_bytes == 400 * 2 * (6 + 4)


def test_time_grows_with_what_is_touched() -> None:
    measured = measure(SgdHeads(epochs=1), HeadShape(6, 3), 4000)
    half = measure(SgdHeads(epochs=1), HeadShape(6, 3), 100)
    assert measured.seconds > half.seconds > 0
    planned = plan(replace(SMALL, batch=10, requests_per_day=20))
    assert np.isclose(planned.seconds_per_day, 2 * planned.seconds)
    assert planned.touched > 4


@pytest.mark.parametrize(
    ("minimum_batch", "requests", "days", "said"),
    [
        (20, 10.0, 19.0, "20 per adapter, reached after 19 days"),  # One deletion per adapter and day.
        (2, 10.0, 1.0, "2 per adapter, reached after 1 day"),
        (20, 5.0, 30.0, "20 per adapter, reached after 38 days; the deadline of 30 days decides"),
        (41, 5.0, 30.0, "41 per adapter, never reached: adapters have 40 members; the deadline of 30 days "
         "decides"),
        (1, 5.0, 0.0, "1 per adapter, nothing is held back"),
    ],
)  # fmt: skip
def test_says_how_long_a_minimum_batch_takes(
    minimum_batch: int, requests: float, days: float, said: str
) -> None:
    planned = plan(replace(SMALL, minimum_batch=minimum_batch, requests_per_day=requests))
    assert planned.days_to_release == days
    assert planned.level == "bit-exact"
    assert planned.rows()["minimum batch"] == said


def test_a_deadline_of_no_days_holds_nothing_back() -> None:
    planned = plan(replace(SMALL, minimum_batch=20, deadline_days=0.0))
    assert planned.rows()["minimum batch"] == "20 per adapter, nothing is held back"


def test_numbers_are_written_for_people() -> None:
    rows = replace(plan(SMALL), ledger_bytes=1_140_000_000, adapters_bytes=999_700).rows()
    assert (rows["ledger"], rows["adapters on disk"]) == ("1.14 GB", "1 MB")
    assert rows["touched"].endswith(" by 1 deletion")
    few = replace(plan(replace(SMALL, batch=2)), ledger_bytes=999).rows()
    assert (few["ledger"], few["touched"].partition(" by ")[2]) == ("999 B", "2 deletions at once")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "expected images of at least 1, got 0"),
        ({"neighbours": 41}, r"expected neighbours of at most count \(40\), got 41"),
        ({"batch": 401}, r"expected batch of at most images \(400\), got 401"),
        ({"imbalance": 0.9}, "expected imbalance from 1 to count"),
        ({"imbalance": float("nan")}, "expected imbalance from 1 to count"),
        ({"deadline_days": -1.0}, "expected adapters.deadline_days from 0 to 36500, got -1"),
        ({"requests_per_day": 0.0}, "expected requests_per_day above 0"),
    ],
)
def test_refuses_numbers_that_mean_nothing(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
