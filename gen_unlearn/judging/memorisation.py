"""Whether the adapters of an ensemble have learnt by heart the few images that each was trained on."""

from __future__ import annotations

import numpy as np

from gen_unlearn.data import IndexedImages
from gen_unlearn.judging.attacks import nearest_adapters
from gen_unlearn.judging.refitting import RefittableEnsemble
from gen_unlearn.metrics.adapter_copying import AdaptedImages, median_ratios, own_distances
from gen_unlearn.metrics.copying import median_estimate, nearest_images
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.repro import derive_seed, keyed_order
from gen_unlearn.samples import SampleSet

_LARGEST_TEST = 2000
"""Generated images, and held-out ones, whose nearest training image is looked for."""

_LEAST_ADAPTERS = 2

_HELD_OUT = "held-out images that are routed to the same adapters lie as near"


def measure_memorisation(
    ensemble: RefittableEnsemble,
    state: str,
    samples: SampleSet,
    core: IndexedImages,
    held_out: IndexedImages,
    sampling: SamplingConfig,
) -> list[Measure]:
    """Measure how near generated images come to the training images, for each adapter beside held-out images.

    Nothing if fewer than two adapters have generated an image and have a held-out one.

    Args:
        ensemble: the run as it is now.
        state: ends the names of the measures.
        samples: what it generated under classes.
        core: the public images that the backbone was trained on.
        held_out: images that nothing was trained on.
        sampling: how the samples were drawn.
    """
    pipeline, rows = ensemble.pipeline, ensemble.rows
    samples = _some(samples)
    held_out = held_out.select(np.sort(keyed_order(held_out.ids, "memorisation")[:_LARGEST_TEST]))
    if not len(samples.images) or not len(held_out):
        return []
    generated = AdaptedImages(samples.images, sampling_adapters(pipeline, samples, sampling))
    real = held_out.all_images()
    unseen = AdaptedImages(real, nearest_adapters(pipeline, real))
    training = AdaptedImages(rows.pixels, ensemble.routes(rows).astype(np.int64))
    everything = np.concatenate([rows.pixels, core.all_images()])
    found = {
        "adapter_copying": [own_distances(images, training) for images in (generated, unseen)],
        "adapter_copying_of_all": [
            nearest_images(images.images, everything)[0][:, 0] for images in (generated, unseen)
        ],
    }
    ratios = {
        name: median_ratios(distances, generated.adapters[:, 0], others, unseen.adapters[:, 0])
        for name, (distances, others) in found.items()
    }
    if min(map(len, ratios.values())) < _LEAST_ADAPTERS:
        return []
    whose = {
        "adapter_copying": "nearest of the images that its adapter was trained on",
        "adapter_copying_of_all": f"nearest of all {len(everything):,} training images, public ones included",
    }
    return [
        Measure.of(
            f"{name}_{state}",
            median_estimate(ratios[name]),
            f"How far a generated image ({state}) lies from the {text}, over how far a held-out real image "
            f"does that is routed to that adapter: ratio of the two median distances, its median over "
            f"{len(ratios[name])} adapters, from {len(samples.images)} generated and {len(real)} held-out "
            "images. Euclidean over pixels. Well below 1 the adapters learnt their images by heart; 0 is "
            "copies. Above 1 the images are less like real ones.",
            1.0,
            _HELD_OUT,
            {
                "median_distance": float(np.median(found[name][0])),
                "median_distance_held_out": float(np.median(found[name][1])),
            },
        )
        for name, text in whose.items()
    ]


def sampling_adapters(
    pipeline: AdapterEnsembleDDPMPipeline, samples: SampleSet, sampling: SamplingConfig
) -> np.ndarray:
    """Return the adapters that samples of classes were drawn with, int64 ``(n, k)``: a choice by their seeds.

    Args:
        pipeline: what generated them.
        samples: the images.
        sampling: how they were drawn.
    """
    count = 1 if sampling.composition == "route" else sampling.adapters_per_image
    found = np.empty((len(samples.labels), count), dtype=np.int64)
    for label in np.unique(samples.labels).tolist():
        rows = np.flatnonzero(samples.labels == label)
        seeds = [
            derive_seed(sampling.seed, "adapter", str(label), index)
            for index in samples.indices[rows].tolist()
        ]
        found[rows] = pipeline.adapters.choose(label, seeds, count)
    return found


def _some(samples: SampleSet) -> SampleSet:
    """Return the first images of each class, not many more than are looked at."""
    classes = max(1, len(np.unique(samples.labels)))
    rows = np.argsort(samples.indices, kind="stable")[: max(_LARGEST_TEST, classes)]
    return SampleSet(samples.images[rows], samples.labels[rows], samples.indices[rows])
