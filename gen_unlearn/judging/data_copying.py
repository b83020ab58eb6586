"""Whether generated images stick to the training images more than other real images do, by their features."""

from __future__ import annotations

from gen_unlearn.metrics.data_copying import authenticity, copying_z, memorization_informed_fid
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.feature_sets import FeatureSet
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure


def measure_data_copying(
    state: str,
    generated: FeatureSet,
    reference: FeatureSet,
    training: FeatureSet,
    distance: float,
    real_distance: float,
    config: ComparisonConfig,
    standard_error: float | None = None,
) -> list[Measure]:
    """Measure how generated images lie to the training images, beside real images that are none of them.

    Args:
        state: ends the name of each measure.
        generated: features of generated images.
        reference: features of real images that the generator was not trained on.
        training: features of its training images.
        distance: Frechet distance of the generated images to the reference.
        real_distance: the same of other real images, its floor.
        config: how many images of each are looked at, and the seed of their choice.
        standard_error: that of `distance`; `None` if it is not known.
    """
    few = config.largest_pairwise
    some, test, train = (images.sample(few, config.seed) for images in (generated, reference, training))
    counts = f"{len(some)} of {len(generated)} generated images ({state}) and {len(train)} training images"
    held_out = f"{len(test)} real images that were not trained on, in the place of generated ones"
    mifid = memorization_informed_fid(Estimate(distance, standard_error or 0.0), train=train, generated=some)
    best = memorization_informed_fid(Estimate(real_distance, 0.0), train=train, generated=test)
    measures = [
        Measure.of(
            f"authenticity_share_{state}",
            authenticity(train=train, generated=some),
            "Share of generated images whose nearest training image has a training image still nearer to it "
            f"(AuthPct), from {counts}. 0 means that every image is a copy.",
            authenticity(train=train, generated=test).value,
            held_out,
        ),
        Measure(
            f"mifid_{state}",
            mifid.value,
            "Frechet distance, divided by the mean cosine distance to the nearest training image where that "
            f"is below 0.1 (MiFID), from {counts}. 0 needs equal means and covariances; copying "
            "raises it. Made for Inception features: others may lie so near that it means little.",
            None if standard_error is None else mifid.standard_error,
            best.value,
            f"the floor of the Frechet distance, with the divisor of {held_out}",
        ),
    ]
    z = copying_z(train=train, test=test, generated=some, seed=config.seed).statistic
    if z is not None:
        measures.append(
            Measure.of(
                f"copying_z_{state}",
                z,
                "Whether generated images lie nearer to the training images than real ones do (C_T, a "
                f"z-score over 3 cells), from {counts} and {len(test)} real ones. 0 is alike, well below -3 "
                "copying, well above 3 underfitting.",
                0.0,
                "equal distances",
            )
        )
    return measures
