from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_benchmark import RANDOM, TINY, tiny_recipe

from gen_unlearn.benchmark.catalogue import metric_definition
from gen_unlearn.benchmark.functional import AFTER_STEPS, Functional
from gen_unlearn.benchmark.measures import Context, measure
from gen_unlearn.benchmark.pools import measure_pool
from gen_unlearn.benchmark.predictions import Logits, MeasuredSets
from gen_unlearn.benchmark.prepared_sets import PreparedSet, prepare_sets
from gen_unlearn.benchmark.row_work import Bench, _context, predict_references
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED
from gen_unlearn.metrics.relearning import Relearning, relearn

ATTACKS = TINY["measure"] | {"scores": ["margin", "modified_entropy"]}


@pytest.fixture(scope="module")
def prepared_both(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedSet, ...]:
    return prepare_sets(tiny_recipe(measure=ATTACKS), tmp_path_factory.mktemp("sets"))


def noise(sets: MeasuredSets, seed: int, known: float = 2.0, forgotten: float | None = None) -> Logits:
    """Return normal logits; those of the label are higher by `known`, on the forget set by `forgotten`."""
    random, found = np.random.default_rng(seed), {}
    for name, images in sets.images.items():
        logits = random.normal(size=(len(images), len(images.class_names))).astype(np.float32)
        higher = known if forgotten is None or name != "forget" else forgotten
        logits[np.arange(len(images)), images.labels] += higher
        found[name] = logits
    return found


def context(sets: MeasuredSets, references: Sequence[int] = range(10, 14)) -> Context:
    config = tiny_recipe(measure=ATTACKS).measure
    others = [noise(sets, seed) for seed in references]
    return Context(sets, noise(sets, 1, forgotten=6.0), noise(sets, 2), others, noise(sets, 3, 0.0), config)


@pytest.mark.parametrize("place", [0, 1])
def test_the_retrained_model_is_at_no_distance_from_itself(
    place: int, prepared_both: tuple[PreparedSet, ...]
) -> None:
    sets = prepared_both[place].sets
    own = context(sets)
    found = measure(own.retrained, own)
    distances = {
        name for name in found if name.startswith(("gap.", "js.", "pg_h.", "pg_s.", "actdist.", "avg_gap"))
    }
    assert {"gap.acc.forget", "js.forget", "pg_h.test", "avg_gap.optml"} <= distances
    assert ("js.forget_class_test" in distances) == (place == 1)
    assert {name: found[name] for name in distances} == pytest.approx(dict.fromkeys(distances, 0.0), abs=1e-9)
    assert (found["tow"], found["tow_mia"]) == pytest.approx((1.0, 1.0))


def test_every_metric_is_in_the_catalogue_and_finite(prepared_both: tuple[PreparedSet, ...]) -> None:
    for prepared in prepared_both:
        own = context(prepared.sets)
        found = measure(own.original, own)
        assert np.isfinite(list(found.values())).all()
        for name, value in found.items():
            if metric_definition(name).role == "distance":
                assert value >= 0, name


def test_a_model_that_still_knows_is_attacked(prepared_both: tuple[PreparedSet, ...]) -> None:
    own = context(prepared_both[0].sets)
    knows, target = measure(own.original, own), own.retrained_levels
    for attack in ("mia_pop.margin.auc", "mia_pop.modified_entropy.auc", "rmia.ratio.auc"):
        assert knows[attack] > 0.8
        assert 0.4 < target[attack] < 0.6


def test_the_ratio_attack_needs_four_references(prepared_both: tuple[PreparedSet, ...]) -> None:
    sets = prepared_both[0].sets
    assert "rmia.ratio.auc" not in measure(noise(sets, 5), context(sets, range(3)))
    assert "rmia.ratio.auc" in measure(noise(sets, 5), context(sets, range(4)))


def test_references_exclude_the_own_seed(tmp_path: Path) -> None:
    recipe = tiny_recipe(forget_sets=RANDOM, seeds=5)
    (prepared,) = prepare_sets(recipe, tmp_path)
    bench = Bench(recipe, tmp_path, Accelerator(cpu=True))
    for role in (ORIGINAL, RETRAINED):
        pool = prepared.pools[role]
        pool.train(pool.seeds, bench.models, torch.device("cpu"))
    predict_references(prepared, bench)
    for seed in range(5):
        own = _context(prepared, bench, seed)
        assert len(own.references) == 4
        assert not any(np.array_equal(other["forget"], own.retrained["forget"]) for other in own.references)
        expected = prepared.sets.logits(prepared.pools[RETRAINED].load(bench.models, seed))
        np.testing.assert_array_equal(own.retrained["forget"], expected["forget"])


def test_pools(prepared_both: tuple[PreparedSet, ...]) -> None:
    sets = prepared_both[1].sets
    retrained = [noise(sets, seed) for seed in range(8)]
    alike = measure_pool([noise(sets, 100 + seed) for seed in range(8)], retrained, sets)
    knows = measure_pool([noise(sets, 100 + seed, forgotten=6.0) for seed in range(8)], retrained, sets)
    for name in alike:
        metric_definition(name)
    assert 0.4 < alike["ulira.loo.auc"].value < 0.6
    assert knows["ulira.loo.auc"].value > 0.95
    assert knows["klom.gauss.mean.forget"].value > 2 * alike["klom.gauss.mean.forget"].value
    assert knows["klom.gauss.mean.heldout"].value == alike["klom.gauss.mean.heldout"].value
    assert abs(alike["energy_pg.js.forget"].value) < 0.02 < knows["energy_pg.js.forget"].value
    assert {"energy_pg.01.forget_class_test", "eps_score.single.n8"} <= set(alike)
    assert alike["eps_score.single.n8"].value > knows["eps_score.single.n8"].value
    assert measure_pool(retrained[:4], retrained, sets) == {}


def test_relearning_compares_with_the_retrained_model_and_probes_whole_classes(
    prepared_both: tuple[PreparedSet, ...],
) -> None:
    for prepared, probed in zip(prepared_both, (False, True), strict=True):
        original, retrained = (
            prepared.pools[role].build(seed) for seed, role in enumerate([ORIGINAL, RETRAINED])
        )
        judge = Functional(prepared.case, original, retrained, seed=0)
        found = judge.measure(retrained)
        assert ("probe.linear" in found) == probed
        assert found[f"relearn.acc.k{AFTER_STEPS}"] == judge._retrained_curve.accuracy[AFTER_STEPS]
        assert found.get("relearn.ain", 1.0) == 1.0
        whole = relearn(original, *judge._images, Relearning(), seed=0)
        assert judge._original_loss == whole.loss[0]


def test_measured_sets_are_apart_and_retained_images_are_drawn_once(
    prepared_both: tuple[PreparedSet, ...],
) -> None:
    random, of_class = (prepared.sets for prepared in prepared_both)
    assert len(random.images["retain"]) == 200
    assert set(of_class.images["forget_class_test"].labels) == {3}
    assert 3 not in of_class.images["test"].labels
    assert of_class.forgotten_classes == (3,)
    assert random.forgotten_classes == ()
    again = MeasuredSets.of(prepared_both[0].case, 200).images["retain"]
    np.testing.assert_array_equal(again.ids, random.images["retain"].ids)
    assert not random.images["forget"].holds(random.images["retain"].ids).any()
    everything = MeasuredSets.of(prepared_both[0].case, 10**6).images["retain"]
    assert len(everything) == len(prepared_both[0].case.retain_images)
