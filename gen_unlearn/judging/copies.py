"""Whether generated images are copies of training images, and of deleted ones."""

from __future__ import annotations

import numpy as np

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.judging.evidence import Deletion, Evidence, Measurer
from gen_unlearn.metrics.copy_tests import (
    CopyCounts,
    carlini_copies,
    count_copies,
    embedding_copies,
    paired_change,
    training_neighbours,
    yoon_copies,
)
from gen_unlearn.metrics.copying import (
    LARGEST_GALLERY,
    CopyDistances,
    TrainingGallery,
    copy_distances,
    median_estimate,
)
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.repro import keyed_order
from gen_unlearn.samples import SampleSet

_LARGEST_TEST = 1000
"""Deleted images whose nearest generated image is looked for."""

_NEIGHBOURS = 50
"""Training images whose distance Carlini's ratio compares with."""

_RULES = {
    "copies": "less than half as far from its nearest training image as from the {k} nearest on average "
    "(Carlini's ratio below 1, alpha 0.5)",
    "copies_yoon": "less than a third as far from its nearest training image as from the next one (Yoon)",
}

COPY_DETECTOR = "sscd"
"""The extractor whose features tell copies apart, for `measure_embedding_copies`."""


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
                float(np.median(found.control_distance)) if len(found.control_distance) else None,
                f"the same for {len(found.control_distance)} retained training images",
            )
        )
    gallery = find_gallery(deletion.images, deletion.retained)
    states = {state: samples.images for state, samples in evidence.states.items()}
    return [*measures, *_counted(states, gallery), *_changes(evidence, gallery)]


def nearest_to_deleted(samples: SampleSet, deletion: Deletion) -> CopyDistances:
    """Find the generated images nearest to deleted images and to as many retained ones, up to 1,000."""
    deleted, retained = deletion.images, deletion.retained
    chosen = keyed_order(deleted.ids, "copy test")[:_LARGEST_TEST]
    control = keyed_order(retained.ids, "copy test")[: len(chosen)]
    return copy_distances(samples.images, deleted.images[chosen], retained.images[control])


def find_gallery(
    deleted: IndexedImages, retained: IndexedImages, largest: int = LARGEST_GALLERY
) -> TrainingGallery:
    """Choose the images that copies are looked for of: at most `largest` deleted, and as many retained."""
    return TrainingGallery.of(deleted, retained, "copy test", largest=largest)


def measure_copies_of(state: str, generated: np.ndarray, gallery: TrainingGallery) -> list[Measure]:
    """Count the copies of deleted images among generated ones, uint8 ``(n, height, width, channels)``."""
    return _counted({state: generated}, gallery)


def measure_embedding_copies(evidence: Evidence, measurer: Measurer, features: str) -> list[Measure]:
    """Count the generated images that a copy detector takes for copies of deleted ones, in every state.

    Nothing if the features in use are no copy detector's, or there is no deleted or no retained image.

    Args:
        evidence: what is compared.
        measurer: extracts the features.
        features: name of its extractor, see `gen_unlearn.metrics.extractors.choice.EXTRACTORS`.
    """
    deletion = evidence.deletion
    if features != COPY_DETECTOR or not len(deletion.images) or not len(deletion.retained):
        return []
    gallery = find_gallery(
        deletion.images, deletion.retained, largest=min(LARGEST_GALLERY, len(deletion.images))
    )
    real = measurer.features("deleted images and their control", compared_images(gallery)).array()
    measures = []
    for state, samples in evidence.states.items():
        generated = measurer.features(f"all images {state}", samples.images).array()
        measures += measure_embedding_copies_of(state, generated, real, gallery)
    return measures


def compared_images(gallery: TrainingGallery) -> np.ndarray:
    """Return the deleted images, then those of the control, uint8 ``(n, height, width, channels)``."""
    return np.concatenate([gallery.images[gallery.deleted], gallery.images[gallery.control]])


def measure_embedding_copies_of(
    state: str, generated: np.ndarray, real: np.ndarray, gallery: TrainingGallery
) -> list[Measure]:
    """Count the generated images that resemble a deleted image by SSCD.

    Args:
        state: ends the name of the measure.
        generated: SSCD features of generated images, ``(n, d)``.
        real: those of `compared_images`, ``(m, d)``, with a control.
        gallery: what these images are.
    """
    deleted = int(gallery.deleted.sum())
    found = embedding_copies(generated, real[:deleted], real[deleted:])
    return [
        Measure.of(
            f"copies_sscd_share_{state}",
            found.of_deleted,
            f"Share of {len(generated)} generated images ({state}) that are copies of a deleted training "
            f"image: SSCD features with a cosine above {found.threshold} to one of {deleted}. 0 is none.",
            found.of_control.value,
            f"copies of {len(real) - deleted} retained images instead{_unmatched(gallery)}",
            {
                "median_similarity": float(np.median(found.deleted_similarity)),
                "median_similarity_to_control": float(np.median(found.control_similarity)),
            },
        )
    ]


def _counted(states: dict[str, np.ndarray], gallery: TrainingGallery) -> list[Measure]:
    """Count copies by each rule in each state."""
    deleted, k = int(gallery.deleted.sum()), min(_NEIGHBOURS, len(gallery.images))
    control = f"copies of {int(gallery.control.sum())} retained images instead{_unmatched(gallery)}"
    few = f" of {gallery.distinct:,}" if len(gallery.images) < gallery.distinct else ""
    measures = []
    for state, images in states.items():
        for rule, counts in _copies(images, gallery, k).items():
            measures.append(
                Measure.of(
                    f"{rule}_share_{state}",
                    counts.of_deleted,
                    f"Share of {counts.images} generated images ({state}) that are copies of a deleted "
                    f"training image: {_RULES[rule].format(k=k)}. Looked for among {len(gallery.images):,}"
                    f"{few} training images; {counts.deleted_copied} of {deleted} deleted images are copied. "
                    "0 is none.",
                    counts.of_control.value if gallery.control.any() else None,
                    control,
                    {"copies_of_retained": counts.of_retained.value},
                )
            )
    return measures


def _unmatched(gallery: TrainingGallery) -> str:
    return f", {gallery.unmatched} of them of other classes for want of any" if gallery.unmatched else ""


def _changes(evidence: Evidence, gallery: TrainingGallery) -> list[Measure]:
    """Compare before and after on the images that both have, drawn from the same noise."""
    if not {"before", "after"} <= set(evidence.states):
        return []
    before, after = evidence.states["before"], evidence.states["after"]
    shared, k = _in_both(before, after), min(_NEIGHBOURS, len(gallery.images))
    if k < 2 or not len(shared[0]):
        return []
    flags = [
        _copies(samples.images[rows], gallery, k)["copies"].copies_of_deleted
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


def _copies(images: np.ndarray, gallery: TrainingGallery, k: int) -> dict[str, CopyCounts]:
    """Count copies by each rule from `k` neighbours; none from fewer than two."""
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
