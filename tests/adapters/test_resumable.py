"""Fitting adapters again after an interruption: what is kept counts only where it would come out the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_denoisers import pixel_records, tiny_lora

from gen_unlearn.adapters import resumable
from gen_unlearn.adapters.family import AdapterState, digest_adapter
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.resumable import fit_resumably
from gen_unlearn.adapters.routing import Keys, members_of, route


@pytest.fixture(scope="module")
def records() -> Records:
    return pixel_records(16)


def recipe_of(records: Records, seed: int = 0) -> EnsembleRecipe:
    keys = Keys(records.codes[:4], "public-samples")
    return EnsembleRecipe(keys, tiny_lora(), 1, ("a", "b", "c"), seed)


def members(recipe: EnsembleRecipe, records: Records) -> dict[int, np.ndarray]:
    return dict(enumerate(members_of(route(records.codes, recipe.keys, 1), len(recipe.keys))))


def digests(states: dict[int, AdapterState]) -> dict[int, str]:
    return {adapter: digest_adapter(state) for adapter, state in states.items()}


def test_what_is_kept_is_what_would_be_fit(records: Records, tmp_path: Path) -> None:
    recipe = recipe_of(records)
    wanted = digests(recipe.fit(records, members(recipe, records)))
    assert digests(fit_resumably(recipe, records, members(recipe, records), tmp_path)) == wanted
    assert len(list(tmp_path.glob("*.safetensors"))) == len(wanted)
    assert digests(fit_resumably(recipe, records, members(recipe, records), tmp_path)) == wanted
    assert digests(fit_resumably(recipe, records, members(recipe, records), None)) == wanted


def test_kept_adapters_are_not_fit_again(records: Records, tmp_path: Path) -> None:
    recipe = recipe_of(records)
    fit_resumably(recipe, records, members(recipe, records), tmp_path)
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    arrays = load_file(path)
    first = sorted(arrays)[0]
    save_file(arrays | {first: arrays[first] + 1}, path)
    again = fit_resumably(recipe, records, members(recipe, records), tmp_path)
    assert np.array_equal(again[int(path.name[:5])][first], arrays[first] + 1)


@pytest.mark.parametrize("change", ["seed", "members", "environment"])
def test_adapters_of_another_making_are_fit_again(
    change: str, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(records)
    fit_resumably(recipe, records, members(recipe, records), tmp_path)
    before = set(tmp_path.iterdir())
    if change == "seed":
        recipe = recipe_of(records, seed=1)
    if change == "members":
        records = records.select(np.arange(1, len(records)))
    if change == "environment":
        monkeypatch.setattr(resumable, "environment_digest", lambda _: "another processor")
    states = fit_resumably(recipe, records, members(recipe, records), tmp_path)
    new = {path.name[:5] for path in set(tmp_path.iterdir()) - before}
    changed = {f"{adapter:05d}" for adapter in states} if change != "members" else new
    assert new == changed
    assert new


def test_a_file_that_was_cut_short_counts_for_none(records: Records, tmp_path: Path) -> None:
    recipe = recipe_of(records)
    wanted = digests(fit_resumably(recipe, records, members(recipe, records), tmp_path))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert digests(fit_resumably(recipe, records, members(recipe, records), tmp_path)) == wanted
