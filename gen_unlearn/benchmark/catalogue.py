"""Every metric of the benchmarks by id: what it is, its direction, how far to trust it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gen_unlearn.benchmark.definitions import TIERS, Direction, MetricDefinition, Role, Tier
from gen_unlearn.benchmark.generation.catalogue import generation_metrics

__all__ = ["CATALOGUE", "TIERS", "Direction", "MetricDefinition", "Role", "Tier", "metric_definition"]


def metric_definition(metric: str) -> MetricDefinition:
    """Return the definition of a metric; a number in its id may be any.

    Raises:
        ValueError: there is no such metric.
    """
    name = metric if metric in CATALOGUE else re.sub(r"(?<=\.[kn])\d+$", "*", metric)
    if name not in CATALOGUE:
        raise ValueError(f"{metric!r} is no metric of the catalogue; its ids are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


_SETS = {
    "forget": "the forget set",
    "retain": "the retain set",
    "heldout": "the held-out set",
    "test": "the test set (without forgotten classes)",
    "forget_class_test": "test images of the forgotten classes",
}

_SCORES = {
    "loss": "minus the cross-entropy",
    "confidence": "the probability of the label",
    "entropy": "minus the entropy of the prediction",
    "margin": "the margin z_y - logsumexp of the other logits",
    "modified_entropy": "minus the modified entropy",
}

_STATS = {
    "auc": ("area under the ROC curve", ""),
    "balanced_acc": ("balanced accuracy at a threshold from another half", "%"),
    "tpr@1%": ("true positive rate at a false positive rate of 1 %", "%"),
    "tpr@.1%": ("true positive rate at a false positive rate of 0.1 %", "%"),
}

_POOLS = ("logits", "unlearned pool", "retrained pool")


def _accuracies() -> Iterable[MetricDefinition]:
    for name, words in _SETS.items():
        yield MetricDefinition(f"acc.{name}", f"Accuracy on {words}.", "%", "level", "C", name)
    yield MetricDefinition("optml.ua", "Unlearning accuracy, 100 - acc.forget.", "%", "level", "C", "forget")
    for name, words in _SETS.items():
        text = f"Absolute difference of the accuracy on {words} to the retrained model of the same seed."
        yield MetricDefinition(
            f"gap.acc.{name}", text, "points", "distance", "C", name, ("logits", "retrain")
        )


def _compatibility() -> Iterable[MetricDefinition]:
    gaps = ("logits", "retrain")
    svc = "Share of the forget set that an RBF SVC on the probability of the label predicts as non-member."
    yield MetricDefinition(
        "optml.mia_efficacy.confidence", svc, "%", "level", "D", "forget", ("logits", "retain", "test")
    )
    text = "Mean of the gaps in unlearning, retain and test accuracy and in MIA efficacy."
    yield MetricDefinition("avg_gap.optml", text, "points", "distance", "D", "forget+retain+test", gaps)
    text = "Product of 1 - |accuracy difference to retraining| over forget, retain and test set."
    yield MetricDefinition("tow", text, "", "score", "D", "forget+retain+test", gaps)
    text = "As tow, with the difference in MIA efficacy in place of the forget accuracy."
    yield MetricDefinition("tow_mia", text, "", "score", "D", "forget+retain+test", gaps)
    text = "(1 - (A_original - A_test)) / (1 + |A_test - A_forget|), accuracies as shares."
    yield MetricDefinition("aus", text, "", "score", "D", "forget+test", ("logits", "original"))
    text = "Half the test accuracy plus half of 1 - 2 |MIA accuracy - 1/2|."
    yield MetricDefinition("nomus", text, "", "score", "D", "forget+test")
    text = "1 - mean JS divergence to a randomly initialised model; the target is retraining's value."
    yield MetricDefinition("zrf", text, "", "level", "D", "forget", ("logits", "random model"))


def _attacks() -> Iterable[MetricDefinition]:
    for score, words in _SCORES.items():
        for stat, (name, unit) in _STATS.items():
            text = f"Population attack by {words}: {name}, forget against held-out samples."
            yield MetricDefinition(
                f"mia_pop.{score}.{stat}", text, unit, "level", "C", "forget+heldout", ("logits", "heldout")
            )
    text = "RMIA ratio attack, p(x) over its mean in reference models: area under the ROC curve."
    needs = ("logits", "heldout", "reference models")
    yield MetricDefinition("rmia.ratio.auc", text, "", "level", "B", "forget+heldout", needs)
    for stat in ("auc", "tpr@1%", "tpr@.1%"):
        name, unit = _STATS[stat]
        text = f"U-LiRA by sample, unlearned against retrained models, each left out of both pools: {name}."
        yield MetricDefinition(f"ulira.loo.{stat}", text, unit, "level", "A", "forget", _POOLS)


def _pools() -> Iterable[MetricDefinition]:
    kinds = (("hist20", "20-bin histograms", 1), ("gauss", "normal fits, 11.5 at most of an image", 2))
    for kind, words, version in kinds:
        for stat, name in (("mean", "mean"), ("p95", "95th percentile")):
            for part in ("forget", "retain", "heldout"):
                text = f"KL of margins, unlearned to retrained pool, by {words}: {name} over {_SETS[part]}."
                yield MetricDefinition(
                    f"klom.{kind}.{stat}.{part}", text, "nats", "distance", "A", part, _POOLS, version
                )
    for attacks in ("single", "double"):
        text = f"NeurIPS 2023 score from epsilons by sample of {attacks}-threshold attacks, N models a side."
        yield MetricDefinition(
            f"eps_score.{attacks}.n*", text, "", "score", "A", "forget+retain+test", _POOLS
        )


def _outputs() -> Iterable[MetricDefinition]:
    kinds = {
        "pg_h": ("Share of samples with another predicted class than the retrained model's", "%"),
        "pg_s": ("Mean KL divergence of the retrained model's prediction to the unlearned one's", "nats"),
        "js": ("Mean Jensen-Shannon divergence of the two predictions", "nats"),
        "actdist": ("Mean Euclidean distance of the two probability vectors", ""),
    }
    for kind, (words, unit) in kinds.items():
        for part in ("forget", "test", "forget_class_test"):
            text = f"{words}, on {_SETS[part]}."
            yield MetricDefinition(f"{kind}.{part}", text, unit, "distance", "C", part, ("logits", "retrain"))
    for kind, words in (("01", "share of disagreements"), ("js", "JS divergence")):
        for part in ("forget", "test", "forget_class_test"):
            text = f"Energy distance of unlearned to retrained models by {words}, on {_SETS[part]}."
            yield MetricDefinition(f"energy_pg.{kind}.{part}", text, "", "distance", "B", part, _POOLS)


def _functional() -> Iterable[MetricDefinition]:
    text = "Accuracy of a linear head refit on frozen features, on test images of the forgotten classes."
    yield MetricDefinition(
        "probe.linear", text, "%", "level", "B", "forget_class_test", ("features", "train")
    )
    text = "Confusions that are left between two classes whose labels were swapped before training."
    yield MetricDefinition("confusion.ic", text, "", "level", "B", "test", ("logits", "swapped labels"))
    text = "Accuracy on the forget set after k steps of relearning with one optimiser for all."
    yield MetricDefinition("relearn.acc.k*", text, "%", "level", "D", "forget", ("weights",))
    text = "Steps of relearning until the loss on the forget set is the original's."
    yield MetricDefinition("relearn.steps", text, "", "level", "D", "forget", ("weights", "original"))
    text = "Relearning steps over those of the retrained model; retraining itself has 1."
    yield MetricDefinition(
        "relearn.ain", text, "", "level", "D", "forget", ("weights", "original", "retrain")
    )
    text = "Sample passes, forward and backward, relative to retraining; the search is not in it."
    yield MetricDefinition("cost.passes", text, "%", "cost", "C", "none", ("budget",))
    text = "Seconds of computation on the machine of the benchmark, without metrics; the search is not in it."
    yield MetricDefinition("cost.seconds", text, "s", "cost", "C", "none", ("budget",))


CATALOGUE: dict[str, MetricDefinition] = {
    metric.id: metric
    for family in (
        _accuracies,
        _compatibility,
        _attacks,
        _pools,
        _outputs,
        _functional,
        generation_metrics,
    )
    for metric in family()
}
"""Id -> definition of every metric."""
