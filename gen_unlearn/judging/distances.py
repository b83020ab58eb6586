"""Compare two sets of images by their features, each number with its error and floor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gen_unlearn.image_sets import ImageSet
from gen_unlearn.metrics.estimate import Estimate, mean_error
from gen_unlearn.metrics.feature_sets import FeatureSet, combine_stats
from gen_unlearn.metrics.features import FeatureStats
from gen_unlearn.metrics.frechet import (
    FrechetMeasurement,
    frechet_distance,
    frechet_distance_of_features,
    influence_function,
)
from gen_unlearn.metrics.jackknife import block_jackknife, split_half
from gen_unlearn.metrics.kernel import kernel_distance_estimate, permutation_p_value
from gen_unlearn.metrics.manifold import ManifoldMetrics, manifold_metrics
from gen_unlearn.metrics.planning import detectable_difference, images_needed
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.repro import numpy_generator

_RELIABLE = 4
"""Images per feature dimension from which on the closed form of the error is good to some percent."""

_PARTS, _HALVINGS = 8, 8
"""Parts of the reference that its halves are put together from, and how often."""


@dataclass(frozen=True)
class Comparison:
    """What was found between generated and reference images.

    Attributes:
        frechet: Frechet distance.
        kernel: kernel distance (KID).
        kernel_p: p-value of the hypothesis that both are draws of one distribution, by permutation.
        manifold: precision, recall, density and coverage.
        pairs: images of each side in the measures that look at every pair.
    """

    frechet: FrechetMeasurement
    kernel: Estimate
    kernel_p: float
    manifold: ManifoldMetrics
    pairs: tuple[int, int]


@dataclass(frozen=True)
class Floor:
    """The values that real images would get in the place of generated ones, and which images they were."""

    frechet: float
    kernel: float
    manifold: ManifoldMetrics
    definition: str


def require_enough(images: ImageSet, config: ComparisonConfig, halves: int = 1) -> None:
    """Refuse a set whose images, split into `halves` equal parts, are too few for `compare`.

    Raises:
        ValueError: they are too few.
    """
    least = max(3, halves * (config.neighbours + 1))
    if len(images) < least:
        raise ValueError(
            f"expected at least {least} images in {images.name} for {config.neighbours} neighbours, got "
            f"{len(images)}; add some, or set evaluation.comparison.neighbours=1"
        )


def compare(generated: FeatureSet, reference: FeatureSet, config: ComparisonConfig) -> Comparison:
    """Compare generated with reference images.

    Measures that look at every pair of images take a random part of larger sets; the Frechet distance
    takes all images.

    Raises:
        ValueError: the features were measured under different protocols.
    """
    few = config.largest_pairwise
    some, others = generated.sample(few, config.seed), reference.sample(few, config.seed)
    return Comparison(
        measure_frechet(generated, reference, config),
        kernel_distance_estimate(some, others, config.seed),
        permutation_p_value(some, others, config.permutations, config.seed),
        manifold_metrics(real=others, generated=some, k=config.neighbours),
        (len(some), len(others)),
    )


def measure_frechet(
    generated: FeatureSet, reference: FeatureSet, config: ComparisonConfig
) -> FrechetMeasurement:
    """Measure the Frechet distance of generated images to a reference, with its standard error.

    With at least four images per dimension of the features the error has a closed form and the bias is taken
    off by halves; below both come from a jackknife over blocks (see `gen_unlearn.metrics.jackknife`). For
    images in fixed numbers per class both count the spread within classes only.
    """
    stats, dim = generated.stats, len(generated.stats.mean)
    if min(len(generated), len(reference)) > dim:
        value = frechet_distance(stats, reference.stats)
    else:
        value = frechet_distance_of_features(generated.array(), reference.array())
    error, corrected = _error_and_correction(generated, reference.stats, config)
    return FrechetMeasurement(
        value=value,
        standard_error=error,
        jackknife_corrected=corrected,
        n=len(generated),
        reference_n=len(reference),
        reference_digest=reference.digest,
        protocol=generated.protocol,
    )


def _error_and_correction(
    generated: FeatureSet, reference: FeatureStats, config: ComparisonConfig
) -> tuple[float | None, float | None]:
    """Return the error of a Frechet distance, and the distance without its bias; `None` from too few."""
    stats = generated.stats
    if stats.n < _RELIABLE * len(stats.mean):
        blocks = min(config.jackknife_blocks, stats.n // 2)
        if blocks < 2:
            return None, None
        jackknife = block_jackknife(generated.stats_of_parts(blocks), reference)
        return jackknife.standard_error, jackknife.corrected
    influence = influence_function(stats, reference)
    error = mean_error(np.concatenate([influence(block) for block in generated]), generated.strata)
    first, second = generated.stats_of_parts(2)
    return error, split_half(first, second, reference)


def choose_floor(
    generated: int, reference: FeatureSet, training: FeatureSet | None, what: str, config: ComparisonConfig
) -> Floor:
    """Return the floors of training images if there are as many as generated ones, else of the reference.

    Args:
        generated: number of generated images; of more training images as many are chosen at random.
        reference: features of the images that the generated ones are compared with.
        training: features of training images; `None` for none.
        what: what the training images are, such as ``retained training images``.
        config: numbers and seeds.
    """
    if training is None or len(training) < generated:
        return floor_from_halves(reference, generated, config)
    if len(training) > generated:
        rows = training.sample(generated, config.seed, "floor")
        training = FeatureSet.of(training.name, rows, training.protocol)
    definition = f"{generated} {what} in the place of generated ones"
    return floor_from_images(training, reference, config, definition)


def floor_from_halves(reference: FeatureSet, generated: int, config: ComparisonConfig) -> Floor:
    """Return the floors that parts of the reference give, one in the place of generated images.

    The bias of the Frechet distance falls as ``1/n + 1/m`` with the numbers of images. Halves of the
    reference have fewer, so their distance is brought to the numbers of the comparison by that law, which
    holds for more images than the features have dimensions and is rough for fewer. It varies by half from
    one split to the next, and is the mean over several. Coverage and the like depend on ``n : m``: they are
    those of two parts in that proportion.
    """
    parts = reference.stats_of_parts(min(_PARTS, 2 * (len(reference) // 2)))
    generator = numpy_generator("floor", config.seed)
    scaled = []
    for _ in range(_HALVINGS):
        shuffled = generator.permutation(len(parts))
        first, second = (combine_stats([parts[part] for part in shuffled[half::2]]) for half in (0, 1))
        scaled.append(frechet_distance(first, second) / (1 / first.n + 1 / second.n))
    return Floor(
        float(np.mean(scaled)) * (1 / generated + 1 / len(reference)),
        0.0,
        _manifold_of_parts(reference, generated, config),
        "random parts of the reference, one in the place of generated images: for the Frechet distance "
        "halves, brought to these numbers of images by the 1/N law; for the other measures parts in the "
        "proportion of these numbers",
    )


def _manifold_of_parts(reference: FeatureSet, generated: int, config: ComparisonConfig) -> ManifoldMetrics:
    """Compare two random parts of the reference that are in proportion to generated and reference images."""
    few, least = config.largest_pairwise, config.neighbours + 1
    rows = reference.sample(few, config.seed)
    order = numpy_generator("floor parts", config.seed).permutation(len(rows))  # Files may alternate.
    share = min(generated, few) / (min(generated, few) + len(rows))
    split = int(np.clip(round(share * len(rows)), least, len(rows) - least))
    return manifold_metrics(real=rows[order[split:]], generated=rows[order[:split]], k=config.neighbours)


def floor_from_images(
    stand_in: FeatureSet, reference: FeatureSet, config: ComparisonConfig, what: str
) -> Floor:
    """Return the floors that other real images give in the place of generated ones; `what` says which."""
    few = config.largest_pairwise
    some, others = stand_in.sample(few, config.seed), reference.sample(few, config.seed)
    value = measure_frechet(stand_in, reference, config).value
    return Floor(
        value,
        kernel_distance_estimate(some, others, config.seed).value,
        manifold_metrics(real=others, generated=some, k=config.neighbours),
        what,
    )


def as_measures(
    found: Comparison,
    floor: Floor,
    state: str,
    images: str,
    distance_suffix: str,
    detect: float | None = None,
) -> list[Measure]:
    """Write a comparison as measures.

    Args:
        found: the comparison.
        floor: what real images get.
        state: ends the name of each measure.
        images: what is compared, for the definitions, such as ``900 generated images and 300 held-out ones``.
        distance_suffix: stands between ``fd`` or ``kd`` and the state, such as ``_retain``; may be empty.
        detect: a difference of Frechet distances to plan the numbers of images for.
    """
    manifold, best = found.manifold, floor.manifold
    a, b = found.pairs
    kernel = Measure.of(
        f"kd{distance_suffix}_{state}",
        found.kernel,
        f"Kernel distance (KID, unbiased, cubic kernel) between {images}, from {a} and {b} of them. 0 means "
        "one distribution. It can be negative, and is where both have their classes in fixed proportions: "
        "compare with the floor. The p-value is that of one distribution, by permutation.",
        floor.kernel,
        floor.definition,
        {"p_value": found.kernel_p},
    )
    texts = {
        "precision": "Share of generated images that lie among the real ones (in a real image's ball that "
        "reaches to its k-th neighbour)",
        "recall": "Share of real images that lie among the generated ones (in a generated image's ball)",
        "density": "Real images' balls that a generated image lies in, over k",
        "coverage": "Share of real images' balls that hold a generated image",
    }
    shares = [
        Measure.of(
            f"{name}_{state}",
            getattr(manifold, name),
            f"{text}: {images}, {a} and {b} of them, k-nearest neighbours as in PRDC. 0 is the worst.",
            getattr(best, name).value,
            floor.definition,
        )
        for name, text in texts.items()
    ]
    return [
        frechet_measure(f"fd{distance_suffix}_{state}", found.frechet, images, floor, detect),
        kernel,
        *shares,
    ]


def detection_notes(measures: Iterable[Measure], detect: float | None) -> Iterator[str]:
    """Yield how many images show a difference of Frechet distances, for each of the measures that know it."""
    for measure in measures:
        if detect is not None and "images_needed" in measure.details:
            yield (
                f"{measure.name}: {measure.details['images_needed']:,} images of each of two generators show "
                f"a difference of {detect:g} (power 0.8, level 0.05)."
            )


def frechet_measure(
    name: str, found: FrechetMeasurement, images: str, floor: Floor, detect: float | None = None
) -> Measure:
    """Write a Frechet distance as a measure, with what differences it can tell."""
    details: dict[str, float] = {}
    if found.jackknife_corrected is not None:
        details["bias_corrected"] = found.jackknife_corrected
    if found.standard_error:
        details["detectable_difference"] = detectable_difference(found.standard_error, found.n)
        if detect is not None:
            details["images_needed"] = images_needed(detect, found.standard_error, found.n)
    return Measure(
        name,
        found.value,
        f"Frechet distance between {images}, in features of {found.protocol.extractor}. 0 means equal means "
        "and covariances of features; it is biased upwards by about C/N, so compare only at equal numbers.",
        found.standard_error,
        floor.frechet,
        floor.definition,
        details,
    )
