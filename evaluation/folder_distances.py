"""The Fréchet distance between two folders by this package, of features that clean-fid would see.

    python -m evaluation.folder_distances GENERATED REFERENCE

prints the peak memory of the process in kB.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from torch import nn

from evaluation.folder_networks import BATCH, print_peak, small_network
from gen_unlearn.image_sets import open_images
from gen_unlearn.judging.distances import measure_frechet
from gen_unlearn.metrics.extractors.inception import CleanFidPreprocessing
from gen_unlearn.metrics.extractors.module import ModuleFeatures
from gen_unlearn.metrics.feature_sets import FeatureSet, measure_features
from gen_unlearn.metrics.protocol import ComparisonConfig


def clean_fid_extractor(network: nn.Module, dim: int) -> ModuleFeatures:
    """Return a network as an extractor that sees what clean-fid would show it."""
    return ModuleFeatures(network, "fresh weights", dim, CleanFidPreprocessing("clean"))


def features_of(folder: Path, extractor: ModuleFeatures, cache: Path | None = None) -> FeatureSet:
    """Extract the features of a folder as `gen-unlearn evaluate` does."""
    return measure_features(open_images(folder), extractor, cache, BATCH)


def distance(generated: Path, reference: Path, network: nn.Module) -> float:
    """Measure the distance, with its error and bias, and keep the features in a cache that was empty."""
    extractor = clean_fid_extractor(network, 64)
    with tempfile.TemporaryDirectory() as scratch:
        found = features_of(generated, extractor, Path(scratch))
        expected = features_of(reference, extractor, Path(scratch))
        return measure_frechet(found, expected, ComparisonConfig()).value


if __name__ == "__main__":
    distance(Path(sys.argv[1]), Path(sys.argv[2]), small_network())
    print_peak()
