"""Whether generated images are copies of training images, and of deleted ones."""

from __future__ import annotations

import numpy as np

from gen_unlearn.data import IndexedImages
from gen_unlearn.judging.evidence import Deletion, Evidence
from gen_unlearn.metrics.copy_tests import (
    CopyCounts,
    carlini_copies,
    count_copies,
    paired_change,
    training_neighbours,
    yoon_copies,
)
from gen_unlearn.metrics.copying import CopyDistances, TrainingGallery, copy_distances, median_estimate
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.repro import keyed_order
from gen_unlearn.samples import SampleSet

_LARGEST_TEST = 1000
"""Deleted images whose nearest generated image is looked for."""

_NEIGHBOURS = 50
"""Training images whose distance Carlini's ratio compares with."""

_RULES = {
    "copies": "at most half as far from its nearest training image as from the 50 nearest on average "
    "(Carlini's ratio below 1, alpha 0.5)",
    "copies_yoon": "less than a third as far from its nearest training image as from the next one (Yoon)",
}


def measure_copies(evidence: Evidence) -> list[Measure]:
    """Measure how near generated images come to the deleted ones, and how many are copies of them.

    Nothing if nothing was deleted, or the source no longer has it. Plain images pass for copies: what counts
    is the share beside that of the control, retained images in the place of the deleted ones, and the
    oracle's.
    """
    deletion = evidence.deletion
    if not len(deletion.images):
        return []
    measures = []
    for state, samples in evidence.states.items():
        found = nearest_to_deleted(samples, deletion)
        if len(found.forgotten_distance) < 2:
            continue
        measures.append(
            Measure.of(
                f"nearest_deleted_{state}",
                median_estimate(found.forgotten_distance),
                f"Median distance from a deleted image to the nearest of {len(samples.images)} generated "
                f"images ({state}), over {len(found.forgotten_distance)} deleted images. Euclidean over "
                "pixels in [0, 1]: 0 is an identical image.",
                float(np.median(found.control_distance)),
                f"the same for {len(found.control_distance)} retained training images",
            )
        )
    gallery = TrainingGallery.of(deletion.images, deletion.retained, "copy test")
    states = {state: samples.images for state, samples in evidence.states.items()}
    return [*measures, *_counted(states, gallery), *_changes(evidence, gallery)]


def nearest_to_deleted(samples: SampleSet, deletion: Deletion) -> CopyDistances:
    """Find the generated images nearest to deleted images and to as many retained ones, up to 1,000."""
    deleted, retained = deletion.images, deletion.retained
    chosen = keyed_order(deleted.ids, "copy test")[:_LARGEST_TEST]
    control = keyed_order(retained.ids, "copy test")[: len(chosen)]
    return copy_distances(samples.images, deleted.images[chosen], retained.images[control])


def measure_copies_of(
    state: str, generated: np.ndarray, deleted: IndexedImages, retained: IndexedImages
) -> list[Measure]:
    """Count the copies of deleted images among generated ones, uint8 ``(n, height, width, channels)``."""
    return _counted({state: generated}, TrainingGallery.of(deleted, retained, "copy test"))


def _counted(states: dict[str, np.ndarray], gallery: TrainingGallery) -> list[Measure]:
    """Count copies by each rule in each state."""
    matched = (
        "" if not gallery.unmatched else f", {gallery.unmatched} of them of other classes for want of any"
    )
    control = f"copies of as many retained images instead{matched}"
    measures = []
    for state, images in states.items():
        for rule, counts in _copies(images, gallery).items():
            measures.append(
                Measure.of(
                    f"{rule}_share_{state}",
                    counts.of_deleted,
                    f"Share of {counts.images} generated images ({state}) that are copies of a deleted "
                    f"training image: {_RULES[rule]}. {counts.deleted_copied} of "
                    f"{int(gallery.deleted.sum())} deleted images are copied. 0 is none.",
                    counts.of_control.value,
                    control,
                    {"copies_of_retained": counts.of_retained.value},
                )
            )
    return measures


def _changes(evidence: Evidence, gallery: TrainingGallery) -> list[Measure]:
    """Compare before and after on the images that both have, drawn from the same noise."""
    if not {"before", "after"} <= set(evidence.states):
        return []
    before, after = evidence.states["before"], evidence.states["after"]
    shared = _in_both(before, after)
    flags = [
        _copies(samples.images[rows], gallery)["copies"].copies_of_deleted
        for samples, rows in zip((before, after), shared, strict=True)
    ]
    return [
        Measure.of(
            "copies_share_change",
            paired_change(*flags),
            f"Change of copies_share from before to after over the {len(flags[0])} images that both generate "
            "from the same noise.",
            0.0,
            "no change",
        )
    ]


def _copies(images: np.ndarray, gallery: TrainingGallery) -> dict[str, CopyCounts]:
    """Count copies by each rule; there must be enough training images for it."""
    k = min(_NEIGHBOURS, len(gallery.images))
    if k < 2:
        return {}
    found = training_neighbours(images, gallery, k)
    return {
        "copies": count_copies(found, carlini_copies(found.distances)),
        "copies_yoon": count_copies(found, yoon_copies(found.distances)),
    }


def _in_both(first: SampleSet, second: SampleSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the images that two sets share by class and number, in one order."""
    most = 1 + max(samples.indices.max() for samples in (first, second))
    numbers = [samples.labels * most + samples.indices for samples in (first, second)]
    _, rows, others = np.intersect1d(*numbers, return_indices=True)
    return rows, others
