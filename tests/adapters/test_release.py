"""Changed adapters are published in batches, and what waits stays outside of the model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from small_ensembles import clustered_records

from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.families import AdaptersConfig
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.release import Held, HeldBack, ReleaseConfig, label_only
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import public_keys
from gen_unlearn.forget import ForgetSet

NOW = datetime(2026, 1, 31, tzinfo=UTC)
ROUTES = np.array([[0, 3], [3, 5], [3, 0]], dtype=np.int16)


def test_counts_changes_since_the_first_of_them() -> None:
    later = NOW + timedelta(days=3)
    held = HeldBack().after(ROUTES, NOW).after(ROUTES[:1], later).after(np.array([[9, 0]]), later)
    assert held.adapters == {
        0: Held(4, NOW.isoformat()),
        3: Held(4, NOW.isoformat()),
        5: Held(1, NOW.isoformat()),
        9: Held(1, later.isoformat()),
    }
    assert HeldBack().adapters == {}


def test_an_adapter_is_due_with_enough_changes_or_at_the_deadline() -> None:
    held = HeldBack().after(ROUTES, NOW)
    assert held.due(ReleaseConfig(4), NOW) == ()
    assert held.due(ReleaseConfig(3), NOW) == (3,)
    assert held.due(ReleaseConfig(2), NOW) == (0, 3)
    assert held.due(ReleaseConfig(99, deadline_days=7), NOW + timedelta(days=6.9)) == ()
    assert held.due(ReleaseConfig(99, deadline_days=7), NOW + timedelta(days=7)) == (0, 3, 5)
    assert held.settled(ReleaseConfig(2), NOW) == HeldBack({5: Held(1, NOW.isoformat())})


def test_a_release_starts_the_count_again() -> None:
    held = HeldBack().after(ROUTES, NOW).released([3, 0])
    assert held.adapters == {5: Held(1, NOW.isoformat())}
    assert held.after(ROUTES[:1], NOW + timedelta(days=1)).adapters[3].changes == 1
    with pytest.raises(ValueError, match=r"expected adapters that are held back, got \[0\]"):
        held.released([0, 5])


def test_a_change_after_the_deadline_is_held_back_for_itself() -> None:
    """What was due before it is out; published with it, a single deletion would be seen."""
    config, later = ReleaseConfig(99, deadline_days=7), NOW + timedelta(days=8)
    held = HeldBack().changed(ROUTES, config, NOW).changed(ROUTES[:1], config, later)
    assert held.adapters == {0: Held(1, later.isoformat()), 3: Held(1, later.isoformat())}


@pytest.mark.parametrize("config", [ReleaseConfig(1), ReleaseConfig(99, deadline_days=0)])
def test_holding_back_can_be_turned_off(config: ReleaseConfig) -> None:
    assert HeldBack().changed(ROUTES, config, NOW) == HeldBack()


def test_the_last_one_is_released_at_the_latest_after_the_deadline() -> None:
    config, later = ReleaseConfig(99, deadline_days=7), NOW + timedelta(days=3)
    held = HeldBack().after(ROUTES, NOW).after(np.array([[9, 0]]), later)
    latest = held.until(config)
    assert latest == "2026-02-10T00:00:00+00:00"
    assert held.settled(config, datetime.fromisoformat(latest)).adapters == {}
    assert HeldBack().until(config) is None


def test_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "held_back.json"
    assert HeldBack.load(path) == HeldBack()
    held = HeldBack().after(ROUTES, NOW)
    path.write_text(held.to_json(), encoding="utf-8")
    assert HeldBack.load(path) == held


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"0": 3}', '{"0": {"changes": 0, "since": "2026-01-01T00:00:00+00:00"}}',
     '{"0": {"changes": 1, "since": "2026-01-01T00:00:00"}}', "[" * 100_000],
)  # fmt: skip
def test_refuses_another_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "held_back.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected held-back adapters in .*held_back\.json"):
        HeldBack.load(path)


def test_what_cannot_be_read_holds_nothing_free(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read which adapters are held back"):
        HeldBack.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((0, 1.0), "minimum_batch of at least 1, got 0"),
        ((5, -1.0), "deadline_days from 0 to 36500, got -1"),
        ((5, float("nan")), "deadline_days from 0 to 36500, got nan"),
        ((5, float("inf")), "deadline_days from 0 to 36500, got inf"),
    ],
)
def test_refuses_settings_that_mean_nothing(settings: tuple[int, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReleaseConfig(*settings)
    with pytest.raises(ValueError, match=said):
        AdaptersConfig(minimum_batch=settings[0], deadline_days=settings[1])


def test_the_longest_deadline_is_a_time() -> None:
    config = ReleaseConfig(5, 36500)
    held = HeldBack().changed(ROUTES, config, NOW)
    assert held.settled(config, NOW) == held
    assert held.until(config) == "2126-01-07T00:00:00+00:00"


def test_labels_alone_keep_the_choice_and_nothing_else() -> None:
    scores = np.array([[0.2, 0.7, 0.1], [-3.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    given = label_only(scores)
    assert given.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert np.array_equal(label_only(scores * 5), given)


def test_the_model_does_not_know_how_its_deletions_were_batched() -> None:
    """What is held back differs; the bytes of the model do not."""
    public, records = clustered_records(30, 1), clustered_records(60, 0)
    keys = public_keys(public.codes, public.ids, 8, "public-samples", 0)
    recipe = EnsembleRecipe(keys, RidgeHeads(), 2, ("a", "b", "c"), 0)
    first, second = (AdapterEnsemble.fit(recipe, records) for _ in range(2))
    one, both = HeldBack(), HeldBack()
    for row in (4, 9):
        one = one.after(first.routes[row : row + 1], NOW + timedelta(days=row))
        first.delete(ForgetSet(records.ids[row : row + 1], "one by one"))
    both = both.after(second.routes[[4, 9]], NOW)
    second.delete(ForgetSet(records.ids[[4, 9]], "at once"))
    assert one != both
    assert first.digest == second.digest
