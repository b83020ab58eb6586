"""Laws of adapter ensembles: what is left after a deletion is, byte for byte, what a fresh fit gives."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from small_ensembles import digits, digits_recipe, in_order

from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import AdapterFamily, digest_adapter
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import Keys, route
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import id_keys

FAMILIES: dict[str, AdapterFamily] = {
    "ridge": RidgeHeads(10.0),
    "sgd": SgdHeads(epochs=3, batch_size=16),
    "perceptron": SgdHeads(hidden=7, epochs=2, batch_size=16),
    "adamw": SgdHeads(epochs=2, optimizer="adamw", learning_rate=0.01, stack=3),
}

RECORDS = 160
TWICE = 6
"""Images that are there with two labels."""


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def all_records() -> Records:
    some = digits()[0].select(slice(0, RECORDS))
    again = some.select(slice(0, TWICE))
    parts = [some, Records(again.codes, (again.labels + 1) % 10, again.ids)]
    codes, labels, ids = (
        np.concatenate([getattr(part, column) for part in parts]) for column in ("codes", "labels", "ids")
    )
    return in_order(Records(codes, labels, ids))


@cache
def fitted(name: str) -> AdapterEnsemble:
    return AdapterEnsemble.fit(digits_recipe(FAMILIES[name]), all_records())


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
    return AdapterEnsemble.fit(fitted(name).recipe, records.select(~np.isin(id_keys(records.ids), gone)))


def everything(ensemble: AdapterEnsemble) -> tuple[object, ...]:
    """Return all that an ensemble answers with, in bytes."""
    states = {adapter: digest_adapter(state) for adapter, state in sorted(ensemble.states.items())}
    records, routes = ensemble.left
    return ensemble.digest, states, records.digest, routes.tobytes(), len(ensemble), sorted(ensemble.waiting)


def random_requests(count: int) -> list[ForgetSet]:
    """Single images and batches, the sizes of which grow to half of all."""
    draw = np.random.default_rng(0)
    sizes = [1 if number % 2 else int(draw.integers(2, RECORDS // 2)) for number in range(count)]
    return [forget(*draw.choice(RECORDS, size, replace=False)) for size in sizes]


@pytest.mark.parametrize("part", range(4))
def test_deleting_equals_never_having_held(name: str, part: int) -> None:
    for request in random_requests(52)[part::4]:
        ensemble = fresh(name)
        ensemble.delete(request)
        assert everything(ensemble) == everything(never(name, request))


def test_a_long_sequence_of_deletions_does_too(name: str) -> None:
    order = np.random.default_rng(1).permutation(RECORDS)
    ensemble, requests = fresh(name), [forget(*rows) for rows in np.array_split(order[:120], 40)]
    for number, request in enumerate(requests):
        ensemble.delete(request)
        if number % 10 == 9:
            assert everything(ensemble) == everything(never(name, *requests[: number + 1]))
    assert ensemble.replay() == []


def test_deletions_chosen_by_the_last_answers_do_too() -> None:
    ensemble, gone = fresh("ridge"), []
    for _ in range(30):
        scores = ensemble.scores(digits()[1][:20]).scores
        held = np.unique(id_keys(ensemble.ids)).view(np.uint8).reshape(-1, 16)
        gone.append(ForgetSet(held[[int(abs(scores).sum() * 1e6) % len(held)]], "chosen"))
        ensemble.delete(gone[-1])
    assert everything(ensemble) == everything(never("ridge", *gone))


def test_two_deletions_equal_one_in_either_order(name: str) -> None:
    first, second, both = forget(3, 50, 7), forget(120, 0), forget(0, 3, 7, 50, 120)
    found = []
    for requests in ([first, second], [second, first], [both], [forget(120, 50, 7, 3, 0)]):
        ensemble = fresh(name)
        for request in requests:
            ensemble.delete(request)
        found.append(everything(ensemble))
    assert found == [everything(never(name, both))] * 4


def test_a_class_is_deleted(name: str) -> None:
    ensemble, records = fresh(name), all_records()
    request = ForgetSet(records.ids[records.labels == 4], "class 4")
    receipt = ensemble.delete(request)
    assert everything(ensemble) == everything(never(name, request))
    assert 4 not in ensemble.labels
    assert receipt.removed_per_class["4"] == (records.labels == 4).sum()


def test_everything_is_deleted(name: str) -> None:
    ensemble, request = fresh(name), forget(*range(RECORDS))
    receipt = ensemble.delete(request)
    assert everything(ensemble) == everything(never(name, request))
    assert (receipt.removed, receipt.remaining, len(ensemble)) == (RECORDS + TWICE, 0, 0)
    assert ensemble.states == {}
    assert ensemble.level == "bit-exact"
    answers = ensemble.scores(digits()[1])
    assert not answers.scores.any()
    assert not answers.answering.any()
    receipt.verify(ensemble)


def test_an_image_with_two_labels_goes_with_both(name: str) -> None:
    records = all_records()
    ids, counts = np.unique(id_keys(records.ids), return_counts=True)
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


def test_quarantined_adapters_never_answer_and_are_rebuilt_to_the_same(name: str) -> None:
    ensemble, request, codes = fresh(name), forget(5, 60, 61), digits()[1]
    touched = ensemble.touched(request)
    before = ensemble.scores(codes)
    receipt = ensemble.quarantine(request)
    assert receipt.level == ensemble.level == "influence-free"
    assert ensemble.waiting == set(touched.tolist())
    receipt.verify(ensemble)
    routes = route(codes, ensemble.recipe.keys, 2)
    masked, answers = np.isin(routes, touched), ensemble.scores(codes)
    assert masked.any()
    assert np.array_equal(answers.answering, before.answering - masked.sum(axis=1))
    assert not answers.scores[masked.all(axis=1)].any()
    untouched = ~masked.any(axis=1)
    assert np.array_equal(answers.scores[untouched], before.scores[untouched])
    assert ensemble.rebuild() == len(touched)
    assert everything(ensemble) == everything(never(name, request))
    assert ensemble.level == "bit-exact"
    assert ensemble.rebuild() == 0


def test_quarantines_add_up_and_a_deletion_completes_them(name: str) -> None:
    ensemble, requests = fresh(name), [forget(5), forget(6, 9), forget(70)]
    ensemble.quarantine(requests[0])
    ensemble.quarantine(requests[1])
    ensemble.delete(requests[2])
    assert everything(ensemble) == everything(never(name, *requests))


def test_waiting_adapters_are_still_masked_when_the_parts_are_put_together_again(name: str) -> None:
    ensemble, request = fresh(name), forget(5, 60)
    ensemble.quarantine(request)
    again = AdapterEnsemble(ensemble.recipe, *ensemble.left, ensemble.states)
    assert everything(again) == everything(ensemble)
    codes = digits()[1]
    assert np.array_equal(again.scores(codes).answering, ensemble.scores(codes).answering)
    again.rebuild()
    assert everything(again) == everything(never(name, request))


def test_what_the_caller_handed_in_is_left_alone(name: str) -> None:
    whole = fitted(name)
    records, routes = whole.left
    states = {adapter: dict(state) for adapter, state in whole.states.items()}
    before = (records.digest, routes.tobytes(), [digest_adapter(state) for state in states.values()])
    ensemble = AdapterEnsemble(whole.recipe, records, routes, states)
    ensemble.delete(forget(*range(0, RECORDS, 3)))
    assert (records.digest, routes.tobytes(), [digest_adapter(state) for state in states.values()]) == before
    assert len(states) == len(whole.states)
    kept = ensemble.digest
    records.codes[:], routes[:] = 0, 0
    assert ensemble.digest == kept
    ensemble.verify()


def test_deleted_rows_are_zeroed(name: str) -> None:
    ensemble = fresh(name)
    ensemble.quarantine(forget(8, 30))
    ensemble.delete(forget(31))
    ensemble.rebuild()
    gone = ~ensemble._held
    assert gone.sum() >= 3
    for column in (ensemble.records.codes, ensemble.records.ids, ensemble.records.labels, ensemble.routes):
        assert not column[gone].any()
    for rows in ensemble.members.values():
        assert not np.isin(np.flatnonzero(gone), rows).any()
        assert rows.base is None, "a view would keep the members of all adapters from before"
    ensemble.verify()
    ensemble.delete(forget(9))
    assert everything(ensemble) == everything(never(name, forget(8, 9, 30, 31)))


def test_other_routes_and_adapters_stay_fixed(name: str) -> None:
    ensemble, whole, request = fresh(name), fitted(name), forget(8, 30)
    touched = set(ensemble.touched(request).tolist())
    ensemble.delete(request)
    held = ~np.isin(id_keys(all_records().ids), id_keys(request.ids))
    assert np.array_equal(ensemble.left[1], whole.left[1][held])
    for adapter, state in whole.states.items():
        same = adapter in ensemble.states and digest_adapter(ensemble.states[adapter]) == digest_adapter(
            state
        )
        assert same == (adapter not in touched)


def test_receipts_say_what_happened_and_fit_the_state_after(name: str) -> None:
    ensemble, request = fresh(name), forget(100, 101)
    before = ensemble.digest
    receipt = ensemble.delete(request)
    receipt.verify(ensemble)
    assert receipt.level == "bit-exact"
    assert (receipt.digest_before, receipt.digest_after) == (before, ensemble.digest)
    assert receipt.remaining == len(ensemble) == len(ensemble.ids) == len(ensemble.labels)
    ensemble.delete(forget(102))
    with pytest.raises(ValueError, match="changed after this deletion"):
        receipt.verify(ensemble)


def test_an_ensemble_that_was_tampered_with_is_found_out(name: str) -> None:
    for part in ("codes", "labels", "weights", "routes"):
        ensemble = fresh(name)
        receipt = ensemble.delete(forget(8))
        adapter, state = next(iter(ensemble.states.items()))
        row = int(np.flatnonzero(ensemble._held)[0])
        if part == "codes":
            ensemble.records.codes[row, 0] += 1
        elif part == "labels":
            ensemble.records.labels[row] += 1
        elif part == "routes":
            ensemble.routes[row] = ensemble.routes[row, ::-1].copy()
        else:
            ensemble.states[adapter] = {**state, "weights": state["weights"] * 1.001}
        expected = {"codes": "records", "labels": "records", "weights": "adapters", "routes": "routes"}[part]
        with pytest.raises(ValueError, match=f"got changed .*{expected}"):
            receipt.verify(ensemble)


def test_a_false_adapter_fails_the_replay(name: str) -> None:
    whole = fitted(name)
    states = dict(whole.states)
    adapter = sorted(states)[2]
    states[adapter] = {**states[adapter], "weights": states[adapter]["weights"] + 0.001}
    false = AdapterEnsemble(whole.recipe, *whole.left, states)
    false.verify()
    assert false.replay() == [adapter]
    assert false.replay([adapter]) == [adapter]
    assert false.replay([sorted(states)[0]]) == []


def test_states_of_adapters_without_members_are_refused() -> None:
    whole = fitted("ridge")
    empty = next(adapter for adapter in range(12) if adapter not in emptied().states)
    states = {**emptied().states, empty: next(iter(whole.states.values()))}
    with pytest.raises(ValueError, match=f"expected adapters with members alone, got {empty}"):
        AdapterEnsemble(whole.recipe, *emptied().left, states)


@cache
def emptied() -> AdapterEnsemble:
    """Return an ensemble an adapter of which lost all members."""
    ensemble = fresh("ridge")
    smallest = min(ensemble.states, key=lambda adapter: len(ensemble.members[adapter]))
    ids = ensemble.records.ids[ensemble.members[smallest]]
    ensemble.delete(ForgetSet(ids, "all members of one adapter"))
    return ensemble


def test_an_adapter_without_members_does_not_answer() -> None:
    ensemble, codes = emptied(), digits()[1]
    empty = set(range(12)) - ensemble.states.keys()
    assert empty
    routes = route(codes, ensemble.recipe.keys, 2)
    without = np.isin(routes, list(empty)).sum(axis=1)
    assert without.any()
    answers = ensemble.scores(codes)
    assert np.array_equal(answers.answering, 2 - without)
    row = int(np.flatnonzero(without == 1)[0])
    other = next(int(adapter) for adapter in routes[row] if int(adapter) not in empty)
    alone = ensemble.recipe.family.scores(ensemble.states[other], codes[row : row + 1])
    assert np.allclose(answers.scores[row], alone[0], atol=1e-12)


def test_scores_are_means_over_the_adapters_that_an_image_is_routed_to(name: str) -> None:
    ensemble, codes = fresh(name), digits()[1][:9]
    answers, routes = ensemble.scores(codes), route(codes, ensemble.recipe.keys, 2)
    assert answers.answering.tolist() == [2] * 9
    for row, adapters in enumerate(routes):
        each = [
            ensemble.recipe.family.scores(ensemble.states[int(adapter)], codes[row : row + 1])[0]
            for adapter in adapters
        ]
        assert np.allclose(answers.scores[row], np.mean(each, axis=0), atol=1e-12)


def test_keys_from_deletable_images_promise_nothing_but_exemplars() -> None:
    whole = fitted("ridge")
    recipe = replace(whole.recipe, keys=Keys(whole.recipe.keys.codes, "training-samples"))
    ensemble = AdapterEnsemble(recipe, *whole.left, whole.states)
    assert ensemble.delete(forget(8)).level == "exemplar-only"
    assert ensemble.quarantine(forget(9)).level == "exemplar-only"
    assert ensemble.digest != whole.digest


@pytest.mark.parametrize("setting", ["seed", "neighbours", "class_names", "family"])
def test_every_setting_is_in_the_digest(setting: str) -> None:
    recipe = fitted("sgd").recipe
    changed = {
        "seed": 1,
        "neighbours": 3,
        "class_names": tuple("abcdefghij"),
        "family": SgdHeads(epochs=3, batch_size=16, momentum=0.5),
    }
    assert replace(recipe, **{setting: changed[setting]}).digest != recipe.digest  # type: ignore[arg-type]
