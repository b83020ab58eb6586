from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmark_summaries import small_summary
from generation_cases import CLASS_A, RANDOM, judge, measured_case, plain_pipeline, seen

from gen_unlearn.benchmark.catalogue import CATALOGUE, metric_definition
from gen_unlearn.benchmark.forget_sets import ForgetSetConfig
from gen_unlearn.benchmark.generation.catalogue import generation_metrics
from gen_unlearn.benchmark.generation.measures import measure
from gen_unlearn.benchmark.generation.observation import MeasuredCase, Observation, observe
from gen_unlearn.benchmark.plots import benchmark_plots
from gen_unlearn.benchmark.summary import Cell, SetSummary
from gen_unlearn.samples import SampleSet

ALWAYS = {
    "fd.test",
    "fd.retrained",
    "recognised.retained",
    "coverage.test",
    "loss.forget",
    "loss.test",
    "mia.loss.auc",
    "mia.pia.auc",
    "mia.secmi.auc",
    "copies.forget",
    "copies.retain",
    "extracted.forget",
    "nearest.forget",
}


def with_images(observed: Observation, images: np.ndarray, classes: tuple[int, ...]) -> Observation:
    """Put images in the place of the first samples of some classes."""
    samples = observed.samples
    changed = samples.images.copy()
    changed[np.flatnonzero(np.isin(samples.labels, classes))[: len(images)]] = images
    return Observation(SampleSet(changed, samples.labels, samples.indices), observed.scores)


def measured_alone(observed: Observation, measured: MeasuredCase) -> dict[str, float]:
    """Measure a model that is its own original and retrained model."""
    return measure(observed, observed, observed, [], measured)


def test_every_metric_of_a_real_model_is_known_and_finite() -> None:
    measured = measured_case(images_per_class=3)
    own, retrained, *others = (observe(plain_pipeline(seed), measured) for seed in range(4))
    found = measure(own, own, retrained, others, measured)
    assert set(found) == ALWAYS | {"recognised.forgotten", "mia.lira.auc"}
    for metric, value in found.items():
        assert type(value) is float
        assert np.isfinite(value)
        assert metric_definition(metric).set, metric
    assert found["fd.retrained"] > 0
    assert found["loss.forget"] == pytest.approx(-own.scores["loss"][:10].mean())


def test_the_set_decides_which_metrics_apply() -> None:
    whole, some = measured_case(CLASS_A), measured_case(RANDOM)
    assert set(measured_alone(seen(whole, 0), whole)) == ALWAYS | {"recognised.forgotten"}
    assert set(measured_alone(seen(some, 0), some)) == ALWAYS
    lonely = measured_case(ForgetSetConfig("class", classes=("c",)), test=2)
    found = measured_alone(seen(lonely, 0), lonely)
    assert not any(name.startswith("mia.") or name == "loss.test" for name in found)
    assert {"loss.forget", "fd.test", "recognised.forgotten"} <= set(found)


def test_the_catalogue_has_each_metric_once_and_all_are_measured() -> None:
    ids = [metric.id for metric in generation_metrics()]
    assert len(ids) == len(set(ids))
    assert set(ids) == ALWAYS | {"recognised.forgotten", "mia.lira.auc", "extracted.kept"}
    for metric in generation_metrics():
        assert CATALOGUE[metric.id] == metric
        assert metric.role == ("distance" if metric.id == "fd.retrained" else "level")
        assert (metric.unit == "%") == metric.id.startswith(("recognised", "cover", "copies", "extracted"))


def test_an_equal_model_is_at_no_distance_and_another_is() -> None:
    measured = measured_case()
    own, other = seen(measured, 0), seen(measured, 1)
    assert measured_alone(own, measured)["fd.retrained"] == pytest.approx(0, abs=1e-6)
    found = measure(other, own, own, [], measured)
    brighter = with_images(own, np.full((20, 8, 8, 1), 255, dtype=np.uint8), (1, 2))
    far = measure(brighter, own, own, [], measured)
    assert 0 < found["fd.retrained"] < far["fd.retrained"]
    assert found["fd.test"] < far["fd.test"]
    assert far["coverage.test"] == 0


def test_real_images_of_the_class_have_coverage_and_no_distance() -> None:
    measured = measured_case()
    test = measured.case.splits.test
    images = test.images[test.labels != 0]
    samples = SampleSet(images, test.labels[test.labels != 0], np.arange(20))
    own = seen(measured, 0)
    own = Observation(samples, own.scores)
    blank = seen(measured, 1)
    real = SampleSet(
        np.concatenate([images, blank.samples.of_classes([0]).images]),
        np.concatenate([samples.labels, np.zeros(10, dtype=np.int64)]),
        np.arange(30),
    )
    found = measure(Observation(real, own.scores), blank, blank, [], measured)
    assert found["fd.test"] == pytest.approx(0, abs=1e-6)
    assert found["coverage.test"] == 100


@pytest.mark.parametrize("repeats", [1, 3])
def test_forgotten_images_among_the_samples_are_copies(repeats: int) -> None:
    measured = measured_case(CLASS_A, repeats=repeats)
    own = seen(measured, 0)
    assert measured_alone(own, measured)["copies.forget"] == 0
    forgotten = measured.forgotten.all_images()
    found = measure(with_images(own, forgotten, (0,)), own, own, [], measured)
    assert (found["copies.forget"], found["extracted.forget"]) == (100, 100)
    assert (found["copies.retain"], found["nearest.forget"]) == (0, 0)
    one = measure(with_images(own, np.repeat(forgotten[:1], 5, axis=0), (0,)), own, own, [], measured)
    assert (one["copies.forget"], one["extracted.forget"]) == (50, 10)
    assert one["nearest.forget"] > 1


def test_retained_images_among_the_samples_are_copies_of_retained_ones() -> None:
    measured = measured_case(CLASS_A)
    retained = measured.case.retain_images.all_images()
    own = with_images(seen(measured, 0), retained[:5], (1, 2))
    found = measured_alone(own, measured)
    assert (found["copies.retain"], found["copies.forget"]) == (25, 0)


def test_what_the_original_copied_is_followed() -> None:
    measured = measured_case(CLASS_A)
    forgotten, clean = measured.forgotten.all_images(), seen(measured, 0)
    original, half = with_images(clean, forgotten[:4], (0,)), with_images(clean, forgotten[2:8], (0,))
    assert "extracted.kept" not in measure(half, clean, clean, [], measured)
    assert measure(original, original, clean, [], measured)["extracted.kept"] == 100
    assert measure(half, original, clean, [], measured)["extracted.kept"] == 50
    assert measure(clean, original, clean, [], measured)["extracted.kept"] == 0


def test_the_judge_says_what_is_recognised() -> None:
    for always, kept, gone in ((0, 0.0, 100.0), (1, 50.0, 0.0)):
        measured = measured_case(CLASS_A, recogniser=judge(always))
        found = measured_alone(seen(measured, 0), measured)
        assert (found["recognised.retained"], found["recognised.forgotten"]) == (kept, gone)


def test_a_model_that_remembers_is_attacked() -> None:
    measured = measured_case(CLASS_A)
    knows, ignorant = (measured_alone(seen(measured, 0, known), measured) for known in (20.0, 0.0))
    for attack in ("loss", "pia", "secmi"):
        assert knows[f"mia.{attack}.auc"] == 1
        assert ignorant[f"mia.{attack}.auc"] < 1
    assert knows["loss.forget"] < ignorant["loss.forget"]
    assert knows["loss.test"] == ignorant["loss.test"]


def test_references_are_other_models() -> None:
    measured = measured_case(CLASS_A)
    own, *others = (seen(measured, seed) for seed in range(4))
    hard = np.random.default_rng(0).normal(size=len(own.scores["loss"])) * 100
    leaks = np.where(np.arange(len(hard)) < len(measured.scored.data), 8.0, 0.0)

    def shifted(observed: Observation, more: np.ndarray) -> Observation:
        return replace(observed, scores=dict(observed.scores) | {"loss": observed.scores["loss"] + more})

    knows, others = shifted(own, hard + leaks), [shifted(other, hard) for other in others]
    found = measure(knows, knows, knows, others, measured)
    assert found["mia.lira.auc"] > 0.95 > found["mia.loss.auc"]
    assert measure(others[0], knows, knows, others, measured)["mia.lira.auc"] < 0.95
    assert "mia.lira.auc" not in measure(knows, knows, knows, others[:1], measured)
    assert "mia.lira.auc" not in measure(knows, knows, knows, [others[0], knows, others[0]], measured)
    with_itself = measure(knows, knows, knows, [*others, knows], measured)
    assert with_itself["mia.lira.auc"] == found["mia.lira.auc"]


def test_plots_of_generators_show_forgetting_and_a_front() -> None:
    summary = small_summary({"siss": (0.0,) * 6, "fine-tune": (0.0,) * 6}, seeds=3).sets[0]
    values = {
        "original": (9.0, 4.0, 0.7, 90.0, 0.0),
        "retrained": (10.0, None, 0.5, 0.0, 100.0),
        "second retrained": (10.0, 2.0, 0.5, 0.0, 100.0),
        "siss": (12.0, 3.0, 0.55, 5.0, 10.0),
        "fine-tune": (11.0, 3.5, 0.65, 60.0, 5.0),
        "diverged": (None,) * 5,
    }
    metrics = ("fd.test", "fd.retrained", "mia.loss.auc", "recognised.forgotten", "cost.passes")

    def cells(name: str) -> dict[str, Cell]:
        pairs = zip(metrics, values[name], strict=True)
        return {metric: Cell(value, None, 0.0, (), ()) for metric, value in pairs if value is not None}

    methods = tuple(replace(method, cells=cells(method.name)) for method in summary.methods)
    plots = benchmark_plots(SetSummary("class 3", summary.forget_digests, methods))
    assert [plot.heading for plot in plots] == [
        "Privacy against utility",
        "Gap to retraining against cost",
        "Privacy against cost",
        "Forgetting against utility",
        "Forgetting against cost",
    ]
    fronts = [plot.heading for plot in plots if "Pareto front" in plot.remark]
    assert fronts == ["Gap to retraining against cost"]
