import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gen_unlearn.metrics.extractors.random_conv import RandomConvFeatures
from gen_unlearn.metrics.features import (
    FeatureStats,
    MeasurementProtocol,
    apply_extractor,
    extract_features,
)

PROTOCOL = MeasurementProtocol("toy", "0" * 64, "none", (1, 8, 8))


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_stats_are_mean_and_unbiased_covariance() -> None:
    features = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    stats = FeatureStats.from_features(features, PROTOCOL)
    wide = features.astype(np.float64)
    np.testing.assert_allclose(stats.mean, wide.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.cov, np.cov(wide, rowvar=False), rtol=1e-12)


def test_merge_equals_the_statistics_of_all_rows() -> None:
    features = np.random.default_rng(1).normal(5.0, 2.0, size=(101, 6))
    features[:30] += 40.0
    parts = [FeatureStats.from_features(rows, PROTOCOL) for rows in np.split(features, [30, 47])]
    merged, whole = parts[0].merge(parts[1]).merge(parts[2]), FeatureStats.from_features(features, PROTOCOL)
    assert merged.n == whole.n
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.cov, whole.cov, rtol=1e-12)


def test_merge_refuses_another_protocol() -> None:
    stats = FeatureStats.from_features(np.eye(4), PROTOCOL)
    with pytest.raises(ValueError, match=r"'toy'.*'other'"):
        stats.merge(replace(stats, protocol=replace(PROTOCOL, extractor="other")))


def test_stats_refuse_broken_or_single_features() -> None:
    with pytest.raises(ValueError, match=r"2 of 4 rows"):
        FeatureStats.from_features(np.array([[0.0, 1], [np.nan, 1], [2, 3], [np.inf, -np.inf]]), PROTOCOL)
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        FeatureStats.from_features(np.ones((1, 3)), PROTOCOL)


def test_protocol_describes_the_measurement() -> None:
    extractor = RandomConvFeatures()
    protocol = MeasurementProtocol.of(extractor, noise(1, 9, 8, 1)[0])
    assert json.loads(json.dumps(protocol.as_dict())) == {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "resize": "none",
        "input_shape": [3, 9, 8],
    }


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3), (64, 64, 3)])
def test_random_conv_takes_any_size(shape: tuple[int, int, int]) -> None:
    features = extract_features(RandomConvFeatures(dim=16), noise(3, *shape))
    assert features.shape == (3, 16)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_random_conv_is_fixed_by_its_seed() -> None:
    images = noise(4, 8, 8, 1)
    first, again, other = RandomConvFeatures(3), RandomConvFeatures(3), RandomConvFeatures(4)
    assert first.digest == again.digest != other.digest
    features = extract_features(first, images)
    np.testing.assert_array_equal(extract_features(again, images), features)
    assert not np.allclose(extract_features(other, images), features)


def test_features_do_not_depend_on_the_batch() -> None:
    images = noise(11, 8, 8, 3)
    extractor = RandomConvFeatures()
    np.testing.assert_allclose(
        extract_features(extractor, images, batch_size=4), extract_features(extractor, images), atol=1e-5
    )


def test_extraction_refuses_what_is_not_a_batch_of_images() -> None:
    extractor = RandomConvFeatures()
    for wrong in (noise(2, 8, 8, 1) / 255, noise(8, 8, 1), noise(0, 8, 8, 1)):
        with pytest.raises(ValueError, match="uint8 of shape"):
            extract_features(extractor, wrong)
    for wrong in (noise(2, 8, 8, 2), noise(2, 8, 7, 1)):
        with pytest.raises(ValueError, match="one or three channels"):
            extract_features(extractor, wrong)


def test_extraction_is_preprocessing_and_the_network() -> None:
    images = noise(3, 9, 13, 1)
    extractor = RandomConvFeatures()
    inputs = torch.stack([extractor.preprocess(image) for image in images])
    assert inputs.shape == (3, 3, 9, 13)
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs[:, 2].numpy(), images[..., 0] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(extract_features(extractor, images), extractor(inputs).numpy())
    np.testing.assert_array_equal(apply_extractor(extractor, inputs), extractor(inputs).numpy())


def test_extraction_names_an_extractor_of_the_wrong_width() -> None:
    extractor = RandomConvFeatures(dim=16)
    extractor.dim = 17
    with pytest.raises(ValueError, match=r"\(2, 17\) from random-conv-16"):
        extract_features(extractor, noise(2, 8, 8, 1))
