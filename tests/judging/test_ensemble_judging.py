"""Attacks on adapter ensembles as measures: they find what is there, and leave the ensemble as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from small_ensembles import digits_problem

from gen_unlearn.adapters.attacks import training_keys
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import AdapterFamily, AdapterState, HeadShape
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import public_keys
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.judging import ensembles
from gen_unlearn.judging.ensembles import Findings, Target, attack
from gen_unlearn.metrics.scorecard import Measure

SEQUENCES = ("adaptive_sequence", "bit_identical")
RECONSTRUCTIONS = tuple(f"reconstruction_{kind}" for kind in ("single", "batched")) + tuple(
    f"reconstruction_{kind}_kept" for kind in ("single", "batched")
)


def target(family: AdapterFamily | None = None, images: int = 1000, minimum_batch: int = 20) -> Target:
    records, public, unseen = digits_problem()
    keys = public_keys(public.codes, public.ids, 20, "public-samples", 0)
    recipe = EnsembleRecipe(keys, family or RidgeHeads(), 3, tuple("0123456789"), 0)
    ensemble = AdapterEnsemble.fit(recipe, records.select(slice(0, images)))
    return Target(ensemble, public, unseen, minimum_batch, 0)


def by_name(found: Findings) -> Mapping[str, Measure]:
    return {measure.name: measure for measure in found.measures}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short attacks, where it does not matter how much they find."""
    monkeypatch.setattr(ensembles, "_TRIALS", {"single": 10, "batched": 10})
    monkeypatch.setattr(ensembles, "_STEPS", 30)


@pytest.fixture(scope="module")
def attacked() -> tuple[Target, str, Findings]:
    aim = target()
    before = aim.ensemble.digest
    return aim, before, attack(aim)


def test_every_attack_is_measured_with_error_floor_and_definition(
    attacked: tuple[Target, str, Findings],
) -> None:
    *_, found = attacked
    measures = by_name(found)
    assert set(measures) == {"key_source_auc", *RECONSTRUCTIONS, *SEQUENCES}
    assert found.notes == ()
    for name, measure in measures.items():
        assert measure.definition
        assert measure.floor is not None
        assert measure.floor_definition
        assert (measure.standard_error is None) == (name in SEQUENCES)


def test_they_find_what_there_is_to_find(attacked: tuple[Target, str, Findings]) -> None:
    measures = by_name(attacked[2])
    keys = measures["key_source_auc"]
    assert keys.details["interval_low"] <= keys.floor == 0.5 <= keys.details["interval_high"]
    single, batched = measures["reconstruction_single"], measures["reconstruction_batched"]
    assert single.value >= 0.9 > batched.value > single.floor == 0.05
    assert single.value == max(single.details[name] for name in ("subspace", "residuals", "influence"))
    assert single.details["p_value"] < 1e-9
    assert "held-out images" in single.definition
    assert (
        "Batching does not hide which members were deleted"
        in measures["reconstruction_batched_kept"].definition
    )


def test_after_200_deletions_all_adapters_are_a_fresh_fit(attacked: tuple[Target, str, Findings]) -> None:
    measures = by_name(attacked[2])
    adaptive, random = (measures[name] for name in SEQUENCES)
    assert adaptive.value == adaptive.floor == random.value == random.floor == 20
    assert adaptive.details == {"steps": 200, "images_deleted": 200}
    assert random.details["steps"] == 200
    assert 300 < random.details["images_deleted"] < 500


@pytest.mark.usefixtures("few")
def test_the_ensemble_stays_as_it_was(attacked: tuple[Target, str, Findings]) -> None:
    aim, before, _ = attacked
    assert aim.ensemble.digest == before
    aim.ensemble.verify()
    assert len(aim.ensemble) == 1000
    found = attack(aim)
    assert by_name(attack(replace(aim))) == by_name(found)
    assert aim.ensemble.digest == before


@dataclass(frozen=True)
class Forgetless(RidgeHeads):
    """Ridge heads that subtract nothing."""

    def update(
        self, state: AdapterState | None, change: Records, sign: int, shape: HeadShape
    ) -> AdapterState:
        if sign < 0 and state is not None:
            return {name: array for name, array in state.items() if name != "weights"}
        return super().update(state, change, sign, shape)


@pytest.mark.usefixtures("few")
def test_what_is_left_in_adapters_is_counted() -> None:
    measures = by_name(attack(target(Forgetless(), images=300)))
    for name in SEQUENCES:
        assert measures[name].value < measures[name].floor


@pytest.mark.usefixtures("few")
def test_keys_from_training_images_are_found_out() -> None:
    aim = target()
    records, _ = aim.ensemble.left
    keys, rows = training_keys(records.codes, 100, 0.05, seed=0)
    leaky = replace(aim.ensemble.recipe, keys=keys)
    sources = AdapterEnsemble.fit(leaky, records.select(np.sort(rows)))
    found = by_name(attack(replace(aim, ensemble=sources)))["key_source_auc"]
    assert found.value >= 0.99
    assert found.details["interval_low"] > 0.9


@pytest.mark.usefixtures("few")
def test_classes_that_are_gone_do_not_count_as_a_difference() -> None:
    """Held-out images of a class are compared with records of that class alone."""
    aim = target()
    records, _ = aim.ensemble.left
    few = AdapterEnsemble.fit(aim.ensemble.recipe, records.select(np.isin(records.labels, [1, 8])))
    found = by_name(attack(replace(aim, ensemble=few)))["key_source_auc"]
    assert abs(found.value - 0.5) < 3 * found.standard_error


@pytest.mark.usefixtures("few")
def test_adapters_too_small_for_the_batch_are_said() -> None:
    found = attack(target(images=300, minimum_batch=250))
    assert not {"reconstruction_batched", "reconstruction_batched_kept"} & set(by_name(found))
    assert [note.partition(":")[0] for note in found.notes] == [
        "reconstruction_batched",
        "reconstruction_batched_kept",
    ]
    assert "No adapter has more members than the 250 deletions" in found.notes[0]


@pytest.mark.usefixtures("few")
def test_too_few_candidates_are_said() -> None:
    aim = target(images=300)
    found = attack(replace(aim, unseen=aim.unseen.select(slice(0, 20))))
    assert "reconstruction_single" not in by_name(found)
    assert "reconstruction_single_kept" in by_name(found)
    assert "got none" in found.notes[0]


def test_trained_heads_are_not_reconstructed_but_deleted_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensembles, "_MOST_VISITS", 1000)
    found = attack(target(SgdHeads(epochs=1), images=300))
    assert set(by_name(found)) == {"key_source_auc", *SEQUENCES}
    assert sorted(note.partition(":")[0] for note in found.notes) == sorted(RECONSTRUCTIONS)
    assert "SgdHeads" in found.notes[0]
    for name in SEQUENCES:
        measure = by_name(found)[name]
        assert measure.value == measure.floor
        assert 1 <= measure.details["steps"] < 20


@pytest.mark.parametrize("images", [1, 2, 5])
def test_few_images_give_short_sequences(images: int) -> None:
    found = attack(target(images=images))
    measures = by_name(found)
    if images == 1:
        assert not set(SEQUENCES) & set(measures)
    else:
        assert {measures[name].details["steps"] for name in SEQUENCES} == {images - 1}


@pytest.mark.usefixtures("few")
def test_without_public_or_held_out_images_the_rest_is_measured() -> None:
    aim = target(images=200)
    nothing = aim.public.select(slice(0, 0))
    found = attack(replace(aim, public=nothing, unseen=nothing))
    assert set(by_name(found)) == set(SEQUENCES)
    assert len(found.notes) == 1 + len(RECONSTRUCTIONS)
