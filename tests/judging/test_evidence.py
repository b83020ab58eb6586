"""Features of evidence: of arrays, and of data that may not fit in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.judging.evidence import Measurer
from gen_unlearn.lazy_images import LazyImages
from gen_unlearn.metrics.extractors.random_conv import RandomConvFeatures
from gen_unlearn.repro import image_ids


def test_images_on_disk_have_the_features_of_those_in_memory(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    files = [tmp_path / f"{row}.png" for row in range(7)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    ids, labels = image_ids(pixels), np.zeros(7, dtype=np.int64)
    data = IndexedImages(pixels, labels, ids, ("all",), tuple(map(str, files)))
    lazy = replace(data, images=LazyImages(files, np.arange(7), ids, (8, 8), 3))
    measurer = Measurer(RandomConvFeatures())
    found = measurer.features_of("pictures", lazy)
    np.testing.assert_array_equal(found.array(), measurer.features("pictures", pixels).array())
    assert found.name == "pictures"
    files[6].unlink()
    assert measurer.features_of("again", lazy) is found, "looked at once"
    some = measurer.features_of("some", lazy.select(np.array([5, 2])))
    np.testing.assert_array_equal(some.array(), found.array()[[5, 2]])
    kept = Measurer(measurer.extractor, tmp_path / "cache")
    kept.features("pictures", pixels)
    assert len(kept.features_of("pictures", lazy)) == 7, "found in the cache, without the missing file"
