"""Laws of LoRA ensembles: after a deletion every adapter has the bytes of a fresh fit on the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from faulty_lora import GlobalClip, GlobalNoise, MeanOverTheBatch, with_stacks
from small_denoisers import pixel_records, tiny_lora
from small_ensembles import digits_problem

from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import FitJob, digest_adapter
from gen_unlearn.adapters.lora import _Stack
from gen_unlearn.adapters.purity import EnsembleMethod
from gen_unlearn.adapters.purity_processes import fit_in_processes
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.routing import Keys, members_of, public_keys, route
from gen_unlearn.adapters.sharing import share_adapters
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import id_keys, keyed_order

RECORDS, TWICE, ADAPTERS = 28, 3, 7
"""Images, those of them that are there with two labels, and adapters."""

FAMILIES = {
    "one": (1, tiny_lora(learning_rate=0.01, batch_size=4)),
    "three": (
        3,
        tiny_lora(
            channels=(8,), targets=("conv1", "time_emb_proj"), horizontal_flip=True, stack=3, batch_size=8
        ),
    ),
}
"""Adapters for each record, and their family."""


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def all_records() -> Records:
    return pixel_records(RECORDS, seed=0, twice=TWICE)


@cache
def recipe_of(name: str) -> EnsembleRecipe:
    public, (neighbours, family) = pixel_records(30, seed=1), FAMILIES[name]
    keys = public_keys(public.codes, public.ids, ADAPTERS, "public-samples", 0)
    return EnsembleRecipe(keys, family, neighbours, ("a", "b", "c"), 0)


@cache
def fitted(name: str) -> AdapterEnsemble:
    return AdapterEnsemble.fit(recipe_of(name), all_records())


def fresh(name: str) -> AdapterEnsemble:
    """Return an ensemble of all records that a test may change."""
    whole = fitted(name)
    return AdapterEnsemble(whole.recipe, *whole.left, whole.states)


def images() -> np.ndarray:
    return np.unique(id_keys(all_records().ids)).view(np.uint8).reshape(-1, 16)


def forget(*rows: int) -> ForgetSet:
    return ForgetSet(images()[list(rows)], "test")


def never(name: str, *requests: ForgetSet) -> AdapterEnsemble:
    """Fit an ensemble that never saw what the requests ask to forget."""
    records = all_records()
    gone = np.concatenate([id_keys(request.ids) for request in requests])
    return AdapterEnsemble.fit(recipe_of(name), records.select(~np.isin(id_keys(records.ids), gone)))


def digests_of(ensemble: AdapterEnsemble) -> dict[int, str]:
    return {adapter: digest_adapter(state) for adapter, state in sorted(ensemble.states.items())}


def everything(ensemble: AdapterEnsemble) -> tuple[object, ...]:
    """Return all that an ensemble consists of, in bytes."""
    records, routes = ensemble.left
    assert records.pixels is not None
    held = records.digest, records.pixels.tobytes(), routes.tobytes()
    return ensemble.digest, digests_of(ensemble), held, len(ensemble), sorted(ensemble.waiting)


def test_the_problem_is_a_fair_one(name: str) -> None:
    whole = fitted(name)
    assert len(whole.states) >= 5
    assert len(set(digests_of(whole).values())) == len(whole.states)
    assert whole.replay() == []
    sizes = [len(rows) for rows in whole.members.values()]
    assert sum(sizes) == whole.recipe.neighbours * (RECORDS + TWICE)
    assert max(sizes) > whole.recipe.family.config.batch_size  # type: ignore[attr-defined]


def test_deleting_single_images_equals_never_having_held_them(name: str) -> None:
    for row in np.random.default_rng(0).choice(RECORDS, 4, replace=False):
        ensemble, request = fresh(name), forget(int(row))
        ensemble.delete(request)
        assert everything(ensemble) == everything(never(name, request))


def test_deleting_a_class_does_too(name: str) -> None:
    ensemble, records = fresh(name), all_records()
    request = ForgetSet(
        np.unique(id_keys(records.ids[records.labels == 1])).view(np.uint8).reshape(-1, 16), "b"
    )
    receipt = ensemble.delete(request)
    assert everything(ensemble) == everything(never(name, request))
    assert 1 not in ensemble.labels
    assert receipt.removed_per_class["b"] == (records.labels == 1).sum()


@pytest.mark.parametrize("kind", [GlobalNoise, GlobalClip, MeanOverTheBatch])
def test_a_fault_in_a_stack_breaks_the_law(kind: type[_Stack]) -> None:
    recipe = replace(recipe_of("one"), family=with_stacks(FAMILIES["one"][1], kind))
    ensemble, request = AdapterEnsemble.fit(recipe, all_records()), forget(12)
    ensemble.delete(request)
    rest = all_records().select(~np.isin(id_keys(all_records().ids), id_keys(request.ids)))
    assert digests_of(ensemble) != digests_of(AdapterEnsemble.fit(recipe, rest))
    assert ensemble.level == "distributional", "the promise says so"


@pytest.mark.parametrize("draw", range(2))
def test_deleting_a_tenth_at_random_does_too(name: str, draw: int) -> None:
    rows = np.random.default_rng(draw).choice(RECORDS, RECORDS // 10, replace=False)
    ensemble, request = fresh(name), forget(*rows)
    ensemble.delete(request)
    assert everything(ensemble) == everything(never(name, request))


def test_one_batch_equals_one_after_the_other_in_any_order(name: str) -> None:
    rows, found = [3, 17, 8], []
    for order in [[rows], [[row] for row in rows], [rows[:0:-1], rows[:1]]]:
        ensemble = fresh(name)
        for request in order:
            ensemble.delete(forget(*request))
        found.append(everything(ensemble))
    assert found == [everything(never(name, forget(*rows)))] * len(found)


def test_everything_is_deleted(name: str) -> None:
    ensemble, request = fresh(name), forget(*range(RECORDS))
    receipt = ensemble.delete(request)
    assert (receipt.removed, receipt.remaining, len(ensemble)) == (RECORDS + TWICE, 0, 0)
    assert everything(ensemble) == everything(never(name, request))
    assert ensemble.states == {}
    receipt.verify(ensemble)


def test_an_image_with_two_labels_goes_with_both(name: str) -> None:
    ids, counts = np.unique(id_keys(all_records().ids), return_counts=True)
    assert (counts == 2).sum() == TWICE
    twice = int(np.flatnonzero(counts == 2)[0])
    ensemble = fresh(name)
    receipt = ensemble.delete(forget(twice))
    assert (receipt.removed, len(receipt.removed_per_class)) == (2, 2)
    assert ids[twice] not in id_keys(ensemble.ids)
    assert everything(ensemble) == everything(never(name, forget(twice)))


def test_unknown_ids_and_a_second_deletion_change_nothing(name: str) -> None:
    ensemble = fresh(name)
    unknown = ForgetSet(np.r_[images()[:3], np.full((1, 16), 9, dtype=np.uint8)], "test")
    ensemble.delete(forget(8))
    before = everything(ensemble)
    for request in (unknown, forget(8), forget(7, 8)):
        for method in (ensemble.delete, ensemble.quarantine, ensemble.touched):
            with pytest.raises(
                ValueError, match=r"1 of \d ids are not in the adapter ensemble: .*nothing was"
            ):
                method(request)
        assert everything(ensemble) == before
    ensemble.verify()


def test_quarantined_adapters_are_gone_until_they_are_rebuilt_to_the_same(name: str) -> None:
    ensemble, requests = fresh(name), [forget(5), forget(6, 21)]
    touched = ensemble.touched(forget(5, 6, 21))
    receipts = [ensemble.quarantine(request) for request in requests]
    assert receipts[-1].level == ensemble.level == "influence-free"
    assert ensemble.waiting == set(touched.tolist())
    assert ensemble.waiting.isdisjoint(ensemble.states), "weights that saw a deleted image are dropped"
    receipts[-1].verify(ensemble)
    again = AdapterEnsemble(ensemble.recipe, *ensemble.left, ensemble.states)
    assert ensemble.rebuild() == len(touched)
    assert everything(ensemble) == everything(never(name, *requests))
    assert ensemble.level == "bit-exact"
    assert ensemble.rebuild() == 0
    again.rebuild()
    assert everything(again) == everything(ensemble), "a restart in between changes nothing"


def test_other_adapters_are_left_alone(name: str) -> None:
    ensemble, whole, request = fresh(name), fitted(name), forget(8)
    touched = set(ensemble.touched(request).tolist())
    assert 0 < len(touched) <= 2 * whole.recipe.neighbours
    ensemble.delete(request)
    before, after = digests_of(whole), digests_of(ensemble)
    assert {adapter for adapter in before if before[adapter] != after.get(adapter)} == touched
    assert all(ensemble.states[a] is whole.states[a] for a in ensemble.states.keys() - touched)


def test_what_the_caller_handed_in_is_left_alone(name: str) -> None:
    whole = fitted(name)
    records, routes = whole.left
    assert records.pixels is not None
    states = {adapter: dict(state) for adapter, state in whole.states.items()}
    before = [column.tobytes() for column in (*records.columns, routes)]
    ensemble = AdapterEnsemble(whole.recipe, records, routes, states)
    ensemble.delete(forget(*range(0, RECORDS, 4)))
    assert [column.tobytes() for column in (*records.columns, routes)] == before
    assert {a: digest_adapter(state) for a, state in states.items()} == digests_of(whole)
    kept = ensemble.digest
    records.codes[:], records.pixels[:], routes[:] = 0, 0, 0
    assert ensemble.digest == kept
    ensemble.verify()
    assert ensemble.replay() == []


def test_deleted_pixels_are_zeroed(name: str) -> None:
    ensemble = fresh(name)
    ensemble.quarantine(forget(8, 20))
    gone = ~ensemble._held
    assert gone.sum() >= 2
    for column in (*ensemble.records.columns, ensemble.routes):
        assert not column[gone].any()
    assert ensemble.records.pixels is not None
    assert ensemble.records.pixels[~gone].any(axis=(1, 2, 3)).all()
    assert ensemble.left[0].pixels is not None
    ensemble.rebuild()
    ensemble.verify()


def test_receipts_promise_bits_and_fit_the_state_after(name: str) -> None:
    ensemble, request = fresh(name), forget(10, 11)
    before = ensemble.digest
    receipt = ensemble.delete(request)
    receipt.verify(ensemble)
    assert receipt.level == "bit-exact"
    assert (receipt.digest_before, receipt.digest_after) == (before, ensemble.digest)
    ensemble.delete(forget(12))
    with pytest.raises(ValueError, match="changed after this deletion"):
        receipt.verify(ensemble)


def test_keys_from_deletable_images_promise_nothing_but_exemplars() -> None:
    whole = fitted("one")
    recipe = replace(whole.recipe, keys=Keys(whole.recipe.keys.codes, "training-samples"))
    ensemble = AdapterEnsemble(recipe, *whole.left, whole.states)
    assert ensemble.quarantine(forget(8)).level == "exemplar-only"


def test_false_adapters_fail_the_replay(name: str) -> None:
    whole = fitted(name)
    adapter, other = sorted(whole.states)[1:3]
    state = whole.states[adapter]
    part = sorted(state)[-1]
    smallest = np.nextafter(state[part].flat[0], np.float32(1))
    changed = state[part].copy()
    changed.flat[0] = smallest
    for false_state in ({**state, part: changed}, whole.states[other]):
        states = {**whole.states, adapter: false_state}
        false = AdapterEnsemble(whole.recipe, *whole.left, states)
        false.verify()
        assert false.replay() == [adapter]
        assert false.replay([adapter]) == [adapter]
        assert false.replay([other]) == []


@pytest.mark.parametrize("part", ["pixels", "labels", "codes", "weights", "routes"])
def test_an_ensemble_that_was_tampered_with_is_found_out(part: str) -> None:
    ensemble = fresh("one")
    receipt = ensemble.delete(forget(8))
    row = int(np.flatnonzero(ensemble._held)[0])
    adapter, state = next(iter(ensemble.states.items()))
    if part == "weights":
        ensemble.states[adapter] = {key: array * np.float32(1.001) for key, array in state.items()}
    elif part == "routes":
        ensemble.routes[row] = (ensemble.routes[row] + 1) % ADAPTERS
    else:
        column: np.ndarray = getattr(ensemble.records, part)
        column[row] += 1
    expected = {"weights": "adapters", "routes": "routes", "pixels": "pixels"}.get(part, "records")
    with pytest.raises(ValueError, match=f"got changed .*{expected}"):
        receipt.verify(ensemble)


def test_a_replay_reads_the_pixels() -> None:
    whole = fitted("one")
    records, routes = whole.left
    assert records.pixels is not None
    records.pixels[5] = 255 - records.pixels[5]
    altered = AdapterEnsemble(whole.recipe, records, routes, whole.states)
    assert altered.replay() == sorted(set(routes[5].tolist()))


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_of_several_processes_are_those_of_one(name: str, processes: int) -> None:
    whole, recipe, records = fitted(name), recipe_of(name), all_records()
    members = {adapter: rows for adapter, rows in whole.members.items() if len(rows)}
    sizes = {adapter: len(rows) for adapter, rows in members.items()}
    found: dict[int, str] = {}
    for share in share_adapters(sizes, processes, recipe.family.stack):
        mine = [FitJob(adapter, records.select(members[adapter])) for adapter in share]
        states = recipe.family.fit(mine, recipe.shape, recipe.seed)
        found |= {job.adapter: digest_adapter(state) for job, state in zip(mine, states, strict=True)}
    assert found == digests_of(whole)


@dataclass(frozen=True)
class Deletion(EnsembleMethod):
    """A deletion in an ensemble that was fit by as many processes as there are."""

    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> dict[int, str]:
        ensemble = AdapterEnsemble.fit(self.recipe(public), records)
        ensemble.delete(ForgetSet(records.ids[: len(adapters)], "test"))
        return digests_of(ensemble)


@pytest.mark.slow
def test_a_deletion_by_two_processes_is_that_of_one() -> None:
    method = Deletion(FAMILIES["three"][1], ADAPTERS, 3, 3)
    records, public = all_records(), pixel_records(30, seed=1)
    expected = method.fit(records, public, range(5))
    rest = ~np.isin(id_keys(records.ids), id_keys(records.ids[:5]))
    assert expected == digests_of(AdapterEnsemble.fit(method.recipe(public), records.select(rest)))
    assert fit_in_processes(method, records, public, range(5), 2) == [expected] * 2


def test_a_deletion_costs_less_than_a_fiftieth_of_all() -> None:
    """With one of 100 adapters for each image; keys are public digits, as routed in the examples."""
    problem = digits_problem()
    keys = public_keys(problem.public.codes, problem.public.ids, 100, "public-samples", 0)
    recipe = EnsembleRecipe(keys, FAMILIES["one"][1], 1, tuple("0123456789"), 0)
    routes = route(problem.records.codes, keys, 1)
    members = members_of(routes, 100)
    whole = recipe.visits(members)
    assert whole == recipe.family.visits(1) * len(problem.records)
    costs = []
    for row in keyed_order(problem.records.ids, "deletions")[:200]:
        left = [rows[rows != row] for rows in (members[adapter] for adapter in routes[row])]
        costs.append(recipe.visits(left) / whole)
    assert 0.002 < np.mean(costs) < 0.02


def test_records_must_have_the_pixels_that_adapters_are_rebuilt_from() -> None:
    whole = fitted("one")
    records, routes = whole.left
    assert records.pixels is not None
    for pixels, got in ((None, "none"), (records.pixels[:, :7], r"some of shape \(7, 8, 1\)")):
        other = replace(records, pixels=pixels)
        with pytest.raises(ValueError, match=rf"pixels of shape \(8, 8, 1\), got {got}"):
            AdapterEnsemble(whole.recipe, other, routes, whole.states)
        with pytest.raises(ValueError, match="expected records with pixels"):
            AdapterEnsemble.fit(whole.recipe, other)


def test_lora_adapters_do_not_classify() -> None:
    with pytest.raises(ValueError, match="expected adapters that classify, got LoraAdapters"):
        fitted("one").scores(all_records().codes)


@pytest.mark.parametrize("setting", ["seed", "neighbours", "rank", "backbone"])
def test_every_setting_is_in_the_digest(setting: str) -> None:
    recipe, family = recipe_of("one"), FAMILIES["one"][1]
    changed = {
        "seed": {"seed": 1},
        "neighbours": {"neighbours": 2},
        "rank": {"family": replace(family, config=replace(family.config, rank=3))},
        "backbone": {"family": replace(family, backbone="0" * 64)},
    }[setting]
    assert replace(recipe, **changed).digest != recipe.digest  # type: ignore[arg-type]
