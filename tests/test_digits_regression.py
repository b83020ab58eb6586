"""The regression of the digits benchmark: its helpers on made-up logits, and a small run of all of it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from evaluation.digits_expected import EXPECTED, OTHERS, methods
from evaluation.digits_measures import assertions, measure_others, measure_retrained, measure_row, misses
from evaluation.digits_pools import RANDOM, RECIPE, SETS, Pool, World, class_world, random_world
from evaluation.digits_regression import BATCH, main, report
from gen_unlearn.benchmark.forget_sets import draw_forget_set
from gen_unlearn.benchmark.splits import SplitConfig, build_splits
from gen_unlearn.data import IndexedImages, load_digits_images
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.negative_gradient import NegGradPlus
from gen_unlearn.repro import numpy_generator

MODELS = 12
CLASSES = 10


def pool_of(parts: list[IndexedImages], wrong: dict[str, float], shift: float, seed: int) -> Pool:
    """Return random logits of which the first share `wrong` of each set is not right."""
    draws = numpy_generator("pool", seed)
    found = []
    for name, images in zip(SETS, parts, strict=True):
        logits = draws.normal(0, 0.1, (MODELS, len(images), CLASSES))
        rows = np.arange(len(images))
        logits[:, rows, images.labels] += 5 + shift * (name == "forget")
        bad = rows[: round(wrong.get(name, 0.0) * len(images))]
        logits[:, bad, (images.labels[bad] + 1) % CLASSES] += 20
        found.append(logits.astype(np.float32))
    return Pool(*found)


@pytest.fixture(scope="module")
def world() -> World:
    digits = load_digits_images()
    splits = build_splits(digits, SplitConfig(397, 400, 0, wrong_labels=100))
    case = draw_forget_set(RANDOM, splits, seed=0)
    unseen = digits.select(~splits.train.holds(digits.ids))
    parts = [case.forget_images, case.retain_images, unseen]
    originals = pool_of(parts, {}, 1.0, seed=0)
    retrained = pool_of(parts, {"forget": 0.2}, 0.0, seed=1)
    return World(case, unseen, [], originals, retrained, range(MODELS))


def reference_rows() -> dict[str, dict[str, Any]]:
    return {
        name: {
            "accuracies": dict(zip(SETS, row.accuracies, strict=True)),
            "gap": row.gap,
            "tow": row.tow,
            "auc": row.auc,
            "tpr_1": row.tpr_1,
            "auc_mislabelled": row.auc_mislabelled,
        }
        for name, row in EXPECTED.items()
    }


def test_accuracies_gap_and_tow_are_those_of_the_made_up_logits(world: World) -> None:
    row = measure_row(world, world.originals)
    assert row["accuracies"] == {"forget": 100.0, "retain": 100.0, "unseen": 100.0}
    assert row["gap"] == pytest.approx(20 / 3)
    assert row["tow"] == pytest.approx(0.8)
    assert measure_retrained(world)["accuracies"]["forget"] == pytest.approx(80.0)


def test_attacks_find_shifted_margins_and_no_difference_between_halves(world: World) -> None:
    assert measure_row(world, world.originals)["auc"] > 0.95
    assert 0.45 < measure_retrained(world)["auc"] < 0.55
    assert 0.45 < measure_row(world, pool_of_retrained(world))["auc"] < 0.55


def pool_of_retrained(world: World) -> Pool:
    return pool_of(list(world.images.values()), {"forget": 0.2}, 0.0, seed=2)


def test_sets_are_disjoint_and_of_the_sizes_of_the_specification(world: World) -> None:
    assert [len(images) for images in world.images.values()] == [100, 900, 797]
    ids = np.concatenate([images.ids for images in world.images.values()])
    assert len(np.unique(ids, axis=0)) == 1797
    assert 1 < world.mislabelled.sum() < 30


def test_other_values_have_known_names_and_no_distance_between_equal_pools(world: World) -> None:
    found = measure_others(world, world.retrained, world.originals, world)
    assert set(found) <= set(OTHERS)
    assert set(OTHERS) - set(found) == {f"KLoM 16+16, {name}" for name in ("Original", "FT", "floor")}
    assert found["PG_H forget, Original"] == pytest.approx(20.0)
    assert found["PG_H forget, floor"] == 0
    assert found["energy 0/1 forget, Original"] == pytest.approx(0.4)


def test_reference_values_agree_with_themselves_and_with_their_ranges() -> None:
    rows = reference_rows()
    assert misses(rows, {name: value for name, (value, _) in OTHERS.items()}) == []
    assert all(checked["holds"] for checked in assertions(rows).values())
    retrained = np.array(EXPECTED["Retrain"].accuracies)
    for row in EXPECTED.values():
        apart = np.abs(np.array(row.accuracies) - retrained)
        assert apart.mean() == pytest.approx(row.gap, abs=0.1)
        assert np.prod(1 - apart / 100) == pytest.approx(row.tow, abs=0.002)


@pytest.mark.parametrize(
    ("row", "key", "value", "failed"),
    [
        ("Original", "auc_mislabelled", 0.95, "AUC on mislabelled images above .95"),
        ("Original", "auc_mislabelled", None, "AUC on mislabelled images above .95"),
        ("Retrain", "auc", 0.56, "AUC between halves of Retrain in [.45, .55]"),
        ("RL .04", "auc", 0.79, "AUC of RL at least .05 above Original"),
        ("NegGrad+ .8", "gap", 3.6, "NegGrad+ .8 cuts the gap by 1.0"),
        ("NegGrad+ .8", "auc", 0.66, "AUC of NegGrad+ .8 falls by .08 at most"),
    ],
)
def test_each_assertion_can_fail(row: str, key: str, value: float | None, failed: str) -> None:
    rows = copy.deepcopy(reference_rows())
    rows[row][key] = value
    assert [name for name, checked in assertions(rows).items() if not checked["holds"]] == [failed]


def test_the_report_tells_what_is_outside_and_what_failed() -> None:
    rows = reference_rows()
    rows["Original"]["auc"] = 0.69
    others = {"population AUC, Original": 0.7}
    found = misses(rows, others)
    assert [miss.split(":")[0] for miss in found] == ["Original", "population AUC, Original"]
    split = {"split_seed": 4, "seconds": 1.0, "rows": rows, "others": others, "assertions": assertions(rows)}
    text = report({**split, "outside accepted ranges": found, "mislabelled images to forget": 9})
    assert "FAIL  AUC of Original above .70: 0.690" in text
    assert text.count("PASS") == 5
    assert text.count("OUT") == 2
    assert text.count("outside: ") == 2


def test_methods_have_the_names_and_settings_of_the_rows() -> None:
    found = methods(7, 9)
    assert ["Retrain", "Original", *found] == list(EXPECTED)
    for name, method in found.items():
        settings: Any = method
        assert settings.epochs == (10 if "10 ep" in name else 5)
        assert settings.momentum == 0.9
        assert settings.weight_decay == 0
        number = float(name.split()[-1])
        assert number == (settings.alpha if isinstance(method, NegGradPlus) else settings.lr)
        assert "forget" not in method.needs or settings.batch_forget == 7
        assert "retain" not in method.needs or settings.batch_retain == 9


def test_originals_are_unlearned_one_by_one_and_serve_for_a_class_too() -> None:
    recipe = replace(RECIPE, epochs=5)
    small = random_world(0, 2, recipe)
    assert len(small.originals) == len(small.retrained) == 2
    assert not np.array_equal(small.originals.forget[0], small.originals.forget[1])
    tuned = small.unlearned(FineTune(lr=0.01, epochs=1), Accelerator(cpu=True))
    assert np.array_equal(small.logits(small.networks).forget, small.originals.forget)
    assert not np.array_equal(tuned.forget, small.originals.forget)
    gone = class_world(small, "0", recipe)
    assert set(gone.case.forget_images.labels) == {0}
    assert not (gone.case.retain_images.labels == 0).any()
    assert np.array_equal(gone.originals.unseen, small.originals.unseen)
    zeros = gone.unseen.labels == 0
    assert not (gone.retrained.unseen[:, zeros].argmax(axis=2) == 0).any()


@pytest.mark.slow
def test_a_run_with_eight_models_holds_what_must_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["digits_regression", "--models", "8", "--result", str(path)])
    main()
    assert "FAIL" not in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert result["batches"] == {"forget": BATCH, "retain": BATCH}
    split = result["splits"][0]
    assert list(split["rows"]) == list(EXPECTED)
    assert all(checked["holds"] for checked in split["assertions"].values())
    for name, row in split["rows"].items():
        low, high = EXPECTED[name].accept_forget
        assert low <= row["accuracies"]["forget"] <= high
