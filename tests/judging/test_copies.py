"""Copies of deleted images: planted ones are found, and nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gen_unlearn.commands.compare import ComparisonRequest, compare_images
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.judging.copies import (
    find_gallery,
    measure_copies,
    measure_copies_of,
    measure_embedding_copies,
)
from gen_unlearn.judging.evidence import Deletion, Evidence, Measurer
from gen_unlearn.metrics.copy_tests import embedding_copies
from gen_unlearn.metrics.extractors.torchscript import sscd_features
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.metrics.weights import SSCD_DISC_MIXUP, WeightsFile, file_sha256
from gen_unlearn.repro import image_ids
from gen_unlearn.samples import SampleSet

CLASSES = ("a", "b", "c")


class TinyCopyDetector(nn.Module):
    """Describe an image by a coarse picture of it; those of two pictures are about orthogonal."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        coarse = nn.functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), (16, 32)).flatten(1)
        return coarse - coarse.mean(dim=1, keepdim=True)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "sscd.pt"
    torch.jit.script(TinyCopyDetector()).save(str(path))
    return path


def published(weights: Path) -> WeightsFile:
    """Return what the published file would be if it were this one."""
    return replace(SSCD_DISC_MIXUP, sha256=file_sha256(weights))


@pytest.fixture(scope="session")
def measurer(weights: Path) -> Measurer:
    return Measurer(sscd_features(weights, file=published(weights)))


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, (count, 12, 12, 3), dtype=np.uint8)


def indexed(images: np.ndarray, labels: np.ndarray) -> IndexedImages:
    names = tuple(str(row) for row in range(len(images)))
    return IndexedImages(images, labels.astype(np.int64), image_ids(images), CLASSES, names)


def as_samples(images: np.ndarray) -> SampleSet:
    return SampleSet(images, np.zeros(len(images), dtype=np.int64), np.arange(len(images)))


def evidence_of(deleted: np.ndarray, retained: np.ndarray, after: np.ndarray) -> Evidence:
    """Return evidence of class a deleted, and of a and b retained; before, copies of all deleted."""
    gone = indexed(deleted, np.zeros(len(deleted)))
    left = indexed(retained, np.arange(len(retained)) % 2)
    states = {"before": as_samples(deleted), "after": as_samples(after)}
    return Evidence(states, (), (), Deletion((), (0, 1), gone, left), indexed(noise(5, 9), np.zeros(5)))


def by_name(measures: list[Measure]) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


def brighter(images: np.ndarray) -> np.ndarray:
    """Return copies with every pixel three levels brighter."""
    return (images + 3).astype(np.uint8)


def test_copies_by_a_copy_detector(measurer: Measurer) -> None:
    deleted, retained = noise(10, 0), noise(60, 1)
    control = find_gallery(indexed(deleted, np.zeros(10)), indexed(retained, np.arange(60) % 2))
    of_control = control.images[control.control][:2]
    after = np.concatenate([brighter(deleted[:3]), brighter(of_control), noise(15, 2)])
    evidence = evidence_of(deleted, retained, after)
    found = by_name(measure_embedding_copies(evidence, measurer, "sscd"))
    assert list(found) == ["copies_sscd_share_before", "copies_sscd_share_after"]
    share = found["copies_sscd_share_after"]
    assert (share.value, share.floor) == (3 / 20, 2 / 20)
    assert share.standard_error == pytest.approx(np.sqrt(0.15 * 0.85 / 20))
    assert "Share of 20 generated images (after)" in share.definition
    assert "above 0.5 to one of 10" in share.definition
    assert share.floor_definition == "copies of 10 retained images instead"
    features = [measurer.features("any", images).array() for images in (after, deleted, retained)]
    expected = embedding_copies(*features).deleted_similarity
    assert share.details["median_similarity"] == pytest.approx(np.median(expected), abs=1e-6)
    assert found["copies_sscd_share_before"].value == 1
    assert found["copies_sscd_share_before"].details["median_similarity"] == pytest.approx(1)
    assert found["copies_sscd_share_before"].floor == 0


def test_one_deleted_image_is_enough(measurer: Measurer) -> None:
    evidence = evidence_of(noise(1, 0), noise(30, 1), brighter(noise(2, 0)))
    del evidence.states["before"]
    (found,) = measure_embedding_copies(evidence, measurer, "sscd")
    assert (found.value, found.floor) == (1 / 2, 0)


def test_a_control_of_other_classes_is_named(measurer: Measurer) -> None:
    evidence = evidence_of(noise(8, 0), noise(20, 1), noise(9, 2))
    labels = np.ones(20, dtype=np.int64)
    left = replace(evidence.deletion.retained, labels=labels)
    evidence = replace(evidence, deletion=replace(evidence.deletion, retained=left))
    for measure in measure_embedding_copies(evidence, measurer, "sscd"):
        assert measure.floor_definition.endswith("instead, 8 of them of other classes for want of any")


def test_only_a_copy_detector_tells_copies(measurer: Measurer) -> None:
    evidence = evidence_of(noise(8, 0), noise(20, 1), noise(9, 2))
    assert measure_embedding_copies(evidence, measurer, "random-conv") == []
    nothing = evidence.deletion.images.select(np.arange(0))
    for part in ("images", "retained"):
        without = replace(evidence, deletion=replace(evidence.deletion, **{part: nothing}))
        assert measure_embedding_copies(without, measurer, "sscd") == []


def save(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return folder


def test_folders_are_searched_with_the_copy_detector(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of ten images are copies of one deleted image, which the training folder holds as well."""
    monkeypatch.setattr(sscd_features, "__defaults__", (None, "cpu", published(weights)))
    deleted = noise(1, 0)
    planted = np.concatenate([brighter(deleted), brighter(deleted), deleted, noise(7, 2)])
    request = ComparisonRequest(
        generated=(save(tmp_path / "planted", planted), save(tmp_path / "fresh", noise(6, 3))),
        reference=save(tmp_path / "real", noise(12, 4)),
        training=save(tmp_path / "training", np.concatenate([noise(8, 1), deleted])),
        deleted=save(tmp_path / "deleted", deleted),
        features="sscd",
        weights=weights,
        config=ComparisonConfig(permutations=5),
    )
    found = by_name(list(compare_images(request, tmp_path / "out").measures))
    assert (found["copies_sscd_share_planted"].value, found["copies_sscd_share_planted"].floor) == (3 / 10, 0)
    assert found["copies_sscd_share_fresh"].value == 0
    assert "above 0.5 to one of 1." in found["copies_sscd_share_planted"].definition
    assert "among 9 training images" in found["copies_share_planted"].definition
    assert found["mifid_planted"].standard_error
    other = replace(request, features="torchscript")
    names = by_name(list(compare_images(other, tmp_path / "other").measures))
    assert names.keys() == found.keys() - {"copies_sscd_share_planted", "copies_sscd_share_fresh"}


def test_the_definition_says_among_how_many() -> None:
    deleted, retained = noise(10, 0), noise(60, 1)
    found = by_name(measure_copies(evidence_of(deleted, retained, noise(15, 2))))
    text = found["copies_share_after"].definition
    assert "less than half as far from its nearest training image as from the 50 nearest" in text
    assert "Looked for among 70 training images; 0 of 10 deleted images are copied" in text
    assert "10 of 10 deleted images are copied" in found["copies_share_before"].definition
    assert found["copies_share_change"].value == -1

    some = find_gallery(indexed(deleted, np.zeros(10)), indexed(retained, np.zeros(60)), largest=12)
    (share, yoon) = measure_copies_of("folder", brighter(deleted[:4]), some)
    assert "as from the 22 nearest on average" in share.definition
    assert "Looked for among 22 of 70 training images; 4 of 10" in share.definition
    assert share.value == yoon.value == 1


def with_one_retained() -> Evidence:
    return evidence_of(noise(1, 0), noise(1, 1), noise(9, 2))


def with_none_shared() -> Evidence:
    evidence = evidence_of(noise(8, 0), noise(20, 1), noise(9, 2))
    evidence.states["after"] = replace(evidence.states["after"], indices=np.arange(100, 109))
    return evidence


@pytest.mark.parametrize("make", [with_one_retained, with_none_shared])
def test_little_to_compare(make: Callable[[], Evidence]) -> None:
    found = by_name(measure_copies(make()))
    assert "copies_share_after" in found
    assert ("copies_share_change" in found) == (make is with_one_retained)


def test_an_image_alone_has_no_neighbours() -> None:
    evidence = evidence_of(noise(1, 0), noise(0, 1), noise(9, 2))
    assert measure_copies(evidence) == []
