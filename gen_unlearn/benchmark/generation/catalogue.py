"""The metrics of the generation benchmark: what each is, on which images, and how far to trust it."""

from __future__ import annotations

from collections.abc import Iterable

from gen_unlearn.benchmark.definitions import MetricDefinition, Tier

_SAMPLES = ("samples",)
_JUDGED = ("samples", "judge")
_SCORES = ("denoiser",)

_ATTACKS: dict[str, tuple[str, Tier, tuple[str, ...]]] = {
    "loss": ("minus the denoising loss", "C", _SCORES),
    "pia": ("PIA, how steady the predicted noise is", "C", _SCORES),
    "secmi": ("SecMI, the drift of a step on and back", "C", _SCORES),
    "lira": (
        "the denoising loss beside that of retrained models of other seeds (offline LiRA)",
        "B",
        ("denoiser", "retrained models of other seeds"),
    ),
}


def generation_metrics() -> Iterable[MetricDefinition]:
    """Yield the definition of every metric that only generators have; costs are those of all benchmarks."""
    yield from _quality()
    yield from _forgetting()
    yield from _leakage()
    yield from _copies()


def _quality() -> Iterable[MetricDefinition]:
    text = (
        "Frechet distance of samples asked for under retained classes to test images of these classes, in "
        "features of the judge unless the recipe names others; biased upwards, equally at equal numbers."
    )
    yield MetricDefinition("fd.test", text, "", "level", "C", "retained classes", _JUDGED)
    text = (
        "Frechet distance of samples asked for under retained classes to those of the retrained model of the "
        "same seed, from the same noise."
    )
    yield MetricDefinition(
        "fd.retrained", text, "", "distance", "C", "retained classes", (*_JUDGED, "retrain")
    )
    text = "Samples asked for under retained classes that the judge recognises as the class asked for."
    yield MetricDefinition("recognised.retained", text, "%", "level", "C", "retained classes", _JUDGED)
    text = (
        "Coverage: test images of retained classes with a sample in the ball to their fifth neighbour, in "
        "the features of fd.test."
    )
    yield MetricDefinition("coverage.test", text, "%", "level", "C", "retained classes", _JUDGED)


def _forgetting() -> Iterable[MetricDefinition]:
    text = (
        "Samples asked for under classes that are forgotten as a whole and recognised as one of them; 100 "
        "minus it is the unlearning accuracy UA. Noise has 0 too: the aim is the retrained model's value."
    )
    yield MetricDefinition("recognised.forgotten", text, "%", "level", "C", "forgotten classes", _JUDGED)
    for name, words, part in (
        ("forget", "forgotten images", "forget"),
        ("test", "test images of the classes of the forgotten images", "test"),
    ):
        text = (
            f"Mean squared error of the predicted noise of {words}, under their class, without guidance, a "
            "tenth to a quarter of the way to noise."
        )
        yield MetricDefinition(f"loss.{name}", text, "", "level", "C", part, _SCORES)


def _leakage() -> Iterable[MetricDefinition]:
    for attack, (words, tier, needs) in _ATTACKS.items():
        text = (
            f"Membership attack by {words}: area under the ROC curve, forgotten images against test images "
            "of their own class."
        )
        yield MetricDefinition(f"mia.{attack}.auc", text, "", "level", tier, "forget+test", needs)


def _copies() -> Iterable[MetricDefinition]:
    rule = (
        "less than half as far from its nearest training image as from its 50 nearest distinct ones on "
        "average (Carlini's ratio below 1)"
    )
    asked = "samples asked for under classes with forgotten images"
    text = f"Share of {asked} that are copies of a forgotten one: {rule}."
    yield MetricDefinition("copies.forget", text, "%", "level", "C", "forget", _SAMPLES)
    text = f"Share of samples asked for under retained classes that are copies of a retained image: {rule}."
    yield MetricDefinition("copies.retain", text, "%", "level", "C", "retain", _SAMPLES)
    text = "Share of the distinct forgotten images that a sample of copies.forget copies."
    yield MetricDefinition("extracted.forget", text, "%", "level", "C", "forget", _SAMPLES)
    text = (
        "Share of the forgotten images that the original of the seed copies (extracted.forget) that are "
        "still copied; not there if it copies none."
    )
    yield MetricDefinition("extracted.kept", text, "%", "level", "C", "forget", (*_SAMPLES, "original"))
    text = f"Median distance of a distinct forgotten image to the nearest of the {asked}; pixels in [0, 1]."
    yield MetricDefinition("nearest.forget", text, "", "level", "C", "forget", _SAMPLES)
