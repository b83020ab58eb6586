"""Rebuilt adapters are published in batches, and what waits stays outside of the model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from adapter_problems import random_records

from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.release import Held, HeldBack, ReleaseConfig, label_only
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import public_keys
from gen_unlearn.forget import ForgetSet

NOW = datetime(2026, 1, 31, tzinfo=UTC)
ROUTES = np.array([[0, 3], [3, 5], [3, 0]], dtype=np.int16)


def test_counts_deletions_since_the_first_of_them() -> None:
    later = NOW + timedelta(days=3)
    held = HeldBack().after(ROUTES, NOW).after(ROUTES[:1], later).after(np.array([[9, 0]]), later)
    assert held.adapters == {
        0: Held(4, NOW.isoformat()),
        3: Held(4, NOW.isoformat()),
        5: Held(1, NOW.isoformat()),
        9: Held(1, later.isoformat()),
    }
    assert HeldBack().adapters == {}


def test_an_adapter_is_due_with_enough_deletions_or_at_the_deadline() -> None:
    held = HeldBack().after(ROUTES, NOW)
    assert held.due(ReleaseConfig(4), NOW) == ()
    assert held.due(ReleaseConfig(3), NOW) == (3,)
    assert held.due(ReleaseConfig(2), NOW) == (0, 3)
    assert held.due(ReleaseConfig(99, deadline_days=7), NOW + timedelta(days=6.9)) == ()
    assert held.due(ReleaseConfig(99, deadline_days=7), NOW + timedelta(days=7)) == (0, 3, 5)


def test_a_release_starts_the_count_again() -> None:
    held = HeldBack().after(ROUTES, NOW).released([3, 0])
    assert held.adapters == {5: Held(1, NOW.isoformat())}
    assert held.after(ROUTES[:1], NOW + timedelta(days=1)).adapters[3].deletions == 1
    with pytest.raises(ValueError, match=r"expected adapters that are held back, got \[0\]"):
        held.released([0, 5])


def test_is_saved_and_read(tmp_path: Path) -> None:
    path = tmp_path / "held_back.json"
    assert HeldBack.load(path) == HeldBack()
    held = HeldBack().after(ROUTES, NOW)
    held.save(path)
    assert HeldBack.load(path) == held


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"0": 3}', '{"0": {"deletions": 0, "since": "2026-01-01T00:00:00+00:00"}}',
     '{"0": {"deletions": 1, "since": "2026-01-01T00:00:00"}}'],
)  # fmt: skip
def test_refuses_another_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "held_back.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected held-back adapters in .*held_back\.json"):
        HeldBack.load(path)


def test_refuses_settings_that_mean_nothing() -> None:
    for settings in ((0, 1.0), (5, -1.0), (5, float("nan"))):
        with pytest.raises(ValueError, match="expected minimum_batch of at least 1"):
            ReleaseConfig(*settings)


def test_labels_alone_keep_the_choice_and_nothing_else() -> None:
    scores = np.array([[0.2, 0.7, 0.1], [-3.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    given = label_only(scores)
    assert given.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert np.array_equal(label_only(scores * 5), given)


def test_the_model_does_not_know_how_its_deletions_were_batched() -> None:
    """What is held back differs; the bytes of the model do not."""
    public, records = random_records(30, 1), random_records(60, 0)
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
