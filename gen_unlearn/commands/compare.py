"""Compare folders of images from anywhere: generated ones with real ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from gen_unlearn.atomic import write_text
from gen_unlearn.image_sets import EncodedImageSet, ImageArray, open_distinct, open_images
from gen_unlearn.image_sources import ALL_IMAGES
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.judging.copies import (
    COPY_DETECTOR,
    compared_images,
    find_gallery,
    measure_copies_of,
    measure_embedding_copies_of,
)
from gen_unlearn.judging.data_copying import measure_data_copying
from gen_unlearn.judging.distances import (
    Floor,
    as_measures,
    choose_floor,
    compare,
    detection_notes,
    require_enough,
)
from gen_unlearn.metrics.copying import TrainingGallery
from gen_unlearn.metrics.extractors.choice import load_extractor
from gen_unlearn.metrics.feature_sets import FeatureSet, measure_features
from gen_unlearn.metrics.features import FeatureExtractor
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.processes import process_state
from gen_unlearn.repro import image_ids, numpy_generator, software_versions


@dataclass(frozen=True)
class ComparisonRequest:
    """Which sets of images to compare, and how.

    Attributes:
        generated: folders or tables of generated images.
        reference: real images to compare them with, best ones that no model was trained on.
        training: the images that the generator was trained on; they show whether it copies them.
        deleted: images that were deleted from the training images; they show whether they are still copied.
        features: extractor, see `gen_unlearn.metrics.extractors.choice.EXTRACTORS`.
        weights: file or folder of its weights, if they are not in the cache folder.
        size: side in pixels that every image is converted to; `None` leaves each as it is.
        detect: a difference of Frechet distances to plan the number of images for.
        config: numbers and seeds.
    """

    generated: tuple[Path, ...]
    reference: Path
    training: Path | None = None
    deleted: Path | None = None
    features: str = "inception-clean"
    weights: Path | None = None
    size: int | None = None
    detect: float | None = None
    config: ComparisonConfig = field(default_factory=ComparisonConfig)

    def __post_init__(self) -> None:
        if not self.generated:
            raise ValueError("expected at least one set of generated images")
        if self.deleted is not None and self.training is None:
            raise ValueError("expected the training images beside the deleted ones: they are the control")
        if self.detect is not None and not self.detect > 0:
            raise ValueError(f"expected a difference above 0 to detect, got {self.detect}")


@dataclass(frozen=True, eq=False)
class ComparedSets:
    """The opened sets of a comparison; measures end in the names of the generated ones."""

    generated: tuple[EncodedImageSet, ...]
    reference: EncodedImageSet
    training: EncodedImageSet | None
    deleted: EncodedImageSet | None

    @classmethod
    def open(cls, request: ComparisonRequest) -> ComparedSets:
        """Open all sets without decoding an image.

        Raises:
            ValueError: one is missing, empty or too small, or two generated ones are the same.
        """
        size = None if request.size is None else (request.size, request.size)
        sets = cls(
            tuple(open_distinct(request.generated, size)),
            open_images(request.reference, size),
            None if request.training is None else open_images(request.training, size),
            None if request.deleted is None else open_images(request.deleted, size),
        )
        for images in sets.generated:
            require_enough(images, request.config)
        require_enough(sets.reference, request.config, halves=2)
        if sets.training is not None:
            require_enough(sets.training, request.config)
        return sets


def compare_images(request: ComparisonRequest, out: Path) -> Scorecard:
    """Compare sets of images; write ``scorecard.json`` into a folder, and keep the features there.

    With several processes each extracts a part of the features; then all compute the same measures.

    Raises:
        ValueError: a set is empty or too small, weights are missing, or images do not fit the extractor.
        ImageDecodeError: an image cannot be decoded.
    """
    state = process_state()
    sets = ComparedSets.open(request)
    extractor = load_extractor(request.features, request.weights, state.device)
    measures, reference = _measure(request, sets, extractor, out / "features")
    card = Scorecard(
        measures=tuple(measures),
        protocol=_protocol(request, extractor, reference, sets),
        notes=tuple(_notes(request, sets, extractor, measures)),
    )
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "scorecard.json", card.to_json())
    return card


def _measure(
    request: ComparisonRequest, sets: ComparedSets, extractor: FeatureExtractor, cache: Path
) -> tuple[list[Measure], FeatureSet]:
    """Measure each set of generated images; return also the features of the reference."""
    config, few = request.config, request.config.largest_pairwise
    reference = measure_features(sets.reference, extractor, cache)
    train = None if sets.training is None else measure_features(sets.training, extractor, cache)
    if train is not None:
        _require_one_size(train, reference)
    gallery, real = _find_gallery(sets, config), None
    if gallery is not None and gallery.control.any() and request.features == COPY_DETECTOR:
        compared = ImageArray("deleted images and their control", compared_images(gallery))
        real = measure_features(compared, extractor, cache).array()
    measures: list[Measure] = []
    floors: dict[int, Floor] = {}
    for images in sets.generated:
        found = measure_features(images, extractor, cache)
        _require_one_size(found, reference)
        text = f"{len(images)} images of {images.name} and {len(reference)} of {reference.name}"
        result = compare(found, reference, config)
        if len(found) not in floors:
            what = "" if train is None else f"images of {train.name}"
            floors[len(found)] = choose_floor(len(found), reference, train, what, config)
        floor = floors[len(found)]
        measures += as_measures(result, floor, images.name, text, "", request.detect)
        if train is not None:
            distances = result.frechet.value, floor.frechet
            error = result.frechet.standard_error
            measures += measure_data_copying(images.name, found, reference, train, *distances, config, error)
        if gallery is not None:
            pixels = _in_memory(images, few, config.seed).all_images()
            measures += measure_copies_of(images.name, pixels, gallery)
            if real is not None:
                drawn = found.sample(few, config.seed)
                measures += measure_embedding_copies_of(images.name, drawn, real, gallery)
    return measures, reference


def _require_one_size(images: FeatureSet, reference: FeatureSet) -> None:
    shapes = images.protocol.input_shape, reference.protocol.input_shape
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"expected images of one size, got {shapes[0]} in {images.name} and {shapes[1]} in "
            f"{reference.name} (channels, height, width); set --size PIXELS"
        )


def _notes(
    request: ComparisonRequest, sets: ComparedSets, extractor: FeatureExtractor, measures: list[Measure]
) -> Iterator[str]:
    """Yield what the reader must know."""
    enough, few = 4 * extractor.dim, request.config.largest_pairwise
    if any(len(images) < enough for images in sets.generated):
        yield (
            f"Fewer than {enough} images for {extractor.dim} features: distances are biased upwards, and "
            "errors come from a jackknife."
        )
    if sets.training is not None and not all(
        any(measure.name == f"copying_z_{images.name}" for measure in measures) for images in sets.generated
    ):
        yield "copying_z takes more than 20 generated and 20 real images around some of the training images."
    if sets.deleted is not None:
        large = [one for one in (*sets.generated, sets.training, sets.deleted) if one and len(one) > few]
        for images in large:
            yield f"Copies were looked for with {few} random images of the {len(images)} of {images.name}."
    yield from detection_notes(measures, request.detect)


def _find_gallery(sets: ComparedSets, config: ComparisonConfig) -> TrainingGallery | None:
    """Choose the images that copies are looked for of; `None` if it is not known what was deleted."""
    if sets.training is None or sets.deleted is None:
        return None
    few, seed = config.largest_pairwise, config.seed
    deleted, training = _in_memory(sets.deleted, few, seed), _in_memory(sets.training, few, seed)
    return find_gallery(deleted, training, few)


def _in_memory(images: EncodedImageSet, largest: int, seed: int) -> IndexedImages:
    """Read all images, or as many at random, into memory, as one class, grey ones as RGB.

    Raises:
        ValueError: they are not all of one size.
    """
    rows = np.arange(len(images))
    if len(rows) > largest:
        rows = np.sort(numpy_generator("copies", seed).choice(rows, largest, replace=False))
    coloured = replace(images, channels=3)
    read = [coloured.read(row) for row in rows.tolist()]
    if len({image.shape for image in read}) > 1:
        raise ValueError(f"expected images of one size in {images.name} to look for copies; set --size")
    pixels = np.stack(read)
    labels = np.zeros(len(rows), dtype=np.int64)
    names = tuple(f"{images.name}#{row}" for row in rows.tolist())
    return IndexedImages(pixels, labels, image_ids(pixels), (ALL_IMAGES,), names)


def _protocol(
    request: ComparisonRequest,
    extractor: FeatureExtractor,
    reference: FeatureSet,
    sets: ComparedSets,
) -> dict[str, object]:
    return {
        **reference.protocol.as_dict(),
        "generated": {images.name: len(images) for images in sets.generated},
        "reference": {"name": reference.name, "images": len(reference), "digest": reference.digest},
        "quantisation": "uint8 as decoded, once, before any measure",
        "size": request.size,
        "comparison": asdict(request.config),
        "feature_dimensions": extractor.dim,
        "versions": software_versions(),
        "standard_errors": "of the draw of generated images, as independent, at these reference "
        "images, unless a definition says otherwise",
    }
