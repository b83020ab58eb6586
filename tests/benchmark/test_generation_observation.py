from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from generation_cases import CLASS_A, RANDOM, measured_case, plain_pipeline
from random_lora import TARGETS, random_adapter, tiny_network, tiny_noise

from gen_unlearn.adapters.encoding import set_public_statistics
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.serving import ServedAdapters
from gen_unlearn.benchmark.forget_sets import ForgetSetConfig
from gen_unlearn.benchmark.generation.observation import (
    ATTACKS,
    GenerationMeasureConfig,
    MeasuredCase,
    Observation,
    observe,
)
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.models.encoders import encoder_architecture
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline


def semi_parametric(unet: SemiParametricUNet2DModel, measured: MeasuredCase) -> SemiParametricDDPMPipeline:
    """Return a pipeline over the training images."""
    scheduler = build_sampler("ddim", NoiseConfig().build())
    store = ExemplarStore.from_images(measured.case.splits.train)
    return SemiParametricDDPMPipeline(unet, scheduler, store)


def ensemble(measured: MeasuredCase, *members: tuple[int, int, int]) -> AdapterEnsembleDDPMPipeline:
    """Return a pipeline of an adapter with each of these numbers of members by class."""
    torch.manual_seed(0)
    architecture = encoder_architecture(EncoderConfig(width=4, depth=0), (1, 8, 8))
    router = AdapterBackbone(architecture, len(members))
    set_public_statistics(router, measured.case.splits.heldout, seed=0)
    network, lora = tiny_network(), LoraConfig(rank=2, alpha=4.0, targets=TARGETS)
    pipeline = AdapterEnsembleDDPMPipeline(
        network, build_sampler("ddim", tiny_noise()), router, ["a", "b", "c"], 2, 4.0, list(TARGETS)
    )
    states = {number: random_adapter(network, lora, number) for number in range(len(members))}
    pipeline.adapters = ServedAdapters(states, np.array(members, dtype=np.int64))
    return pipeline


def require_whole(found: Observation, measured: MeasuredCase) -> None:
    """Assert that an observation has all samples and finite scores."""
    count = measured.config.images_per_class
    assert found.samples.images.shape == (3 * count, 8, 8, 1)
    assert found.samples.images.dtype == np.uint8
    assert sorted(zip(found.samples.labels, found.samples.indices, strict=True)) == [
        (label, index) for label in range(3) for index in range(count)
    ]
    assert set(found.scores) == set(ATTACKS)
    for scores in found.scores.values():
        assert scores.shape == (len(measured.scored.pictures),)
        assert np.isfinite(scores).all()


def test_a_plain_model_is_observed_and_kept(tmp_path: Path) -> None:
    measured = measured_case()
    found = observe(plain_pipeline(), measured)
    require_whole(found, measured)
    file = tmp_path / "deep" / "seen.safetensors"
    found.save(file)
    again = Observation.from_file(file)
    for name in ("images", "labels", "indices"):
        np.testing.assert_array_equal(getattr(again.samples, name), getattr(found.samples, name))
    assert {name: scores.tolist() for name, scores in again.scores.items()} == {
        name: scores.tolist() for name, scores in found.scores.items()
    }
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with pytest.raises(ValueError, match=r"none\.safetensors, found none; run the benchmark again"):
        Observation.from_file(tmp_path / "none.safetensors")


def test_samples_depend_on_the_seed_and_not_on_the_batch() -> None:
    pipeline = plain_pipeline()
    first = observe(pipeline, measured_case(images_per_class=4))
    other_batch = observe(pipeline, measured_case(images_per_class=4, batch_size=5))
    other_seed = observe(pipeline, measured_case(images_per_class=4, seed=1))
    images = first.samples.images.astype(int)
    assert np.abs(images - other_batch.samples.images).max() <= 1
    assert np.abs(images - other_seed.samples.images).mean() > 10
    np.testing.assert_allclose(first.scores["loss"], other_batch.scores["loss"], rtol=1e-4)
    assert not np.allclose(first.scores["loss"], other_seed.scores["loss"], rtol=1e-4)


def test_more_samples_per_class_begin_alike() -> None:
    few, many = (observe(plain_pipeline(), measured_case(images_per_class=n)).samples for n in (2, 4))
    assert np.abs(few.images.astype(int) - many.images[: len(few.images)]).max() <= 1


def test_an_emptied_class_is_sampled_from_the_null_token(tiny_unet: SemiParametricUNet2DModel) -> None:
    measured = measured_case(images_per_class=4)
    pipeline = semi_parametric(tiny_unet, measured)
    before = observe(pipeline, measured)
    pipeline.delete(measured.case.forget)
    after = observe(pipeline, measured)
    for found in (before, after):
        require_whole(found, measured)
    kept = before.samples.labels != 0
    np.testing.assert_array_equal(before.samples.images[kept], after.samples.images[kept])
    assert not np.array_equal(before.samples.images[~kept], after.samples.images[~kept])


def test_an_ensemble_without_members_of_a_class_is_asked_without_it() -> None:
    measured = measured_case(images_per_class=4)
    found = observe(ensemble(measured, (0, 3, 2), (0, 1, 4)), measured)
    require_whole(found, measured)
    gone = found.samples.of_classes([0]).images
    assert len(np.unique(gone, axis=0)) == len(gone)
    before = observe(ensemble(measured, (4, 3, 2), (1, 1, 4)), measured)
    np.testing.assert_array_equal(
        found.samples.of_classes([1, 2]).images, before.samples.of_classes([1, 2]).images
    )


def test_two_emptied_classes_share_no_noise() -> None:
    measured = measured_case(ForgetSetConfig("class", classes=("a", "b")), images_per_class=4)
    images = observe(ensemble(measured, (0, 0, 2)), measured).samples.of_classes([0, 1]).images
    assert len(np.unique(images, axis=0)) == len(images)


def test_what_is_measured_of_a_class_and_of_random_images() -> None:
    whole, some = measured_case(CLASS_A), measured_case(RANDOM, repeats=3)
    assert (whole.forgotten_classes, whole.retained_classes, whole.touched_classes) == ((0,), (1, 2), (0,))
    assert (some.forgotten_classes, some.retained_classes) == ((), (0, 1, 2))
    assert set(some.touched_classes) == set(some.case.forget_images.labels.tolist())
    assert set(whole.scored.held_out.labels.tolist()) == {0}
    assert len(whole.reference) == 20
    assert len(some.reference) == 30


def test_repeated_images_are_one() -> None:
    measured = measured_case(RANDOM, repeats=3)
    assert len(measured.case.forget_images) == 12
    assert len(measured.forgotten) == len(measured.scored.data) == 4
    assert len(measured.gallery.images) == 30
    assert measured.gallery.deleted.sum() == 4


@pytest.mark.parametrize("model", ["plain", "semi-parametric"])
def test_models_are_paired_by_noise(model: str, tiny_unet: SemiParametricUNet2DModel) -> None:
    measured = measured_case(images_per_class=3)
    pipelines: list[GeneratorPipeline] = [plain_pipeline(), plain_pipeline()]
    if model == "semi-parametric":
        pipelines = [semi_parametric(tiny_unet, measured), semi_parametric(tiny_unet, measured)]
    first, second = (observe(pipeline, measured).samples for pipeline in pipelines)
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_settings_are_checked() -> None:
    config = GenerationMeasureConfig(images_per_class=3, table=("fd.test",))
    assert config.decisive == {"images_per_class": 3, "attacked_images": 300, "seed": 0}
    with pytest.raises(ValueError, match="at least 2 images_per_class and 1 attacked_images, got 1 and 300"):
        GenerationMeasureConfig(images_per_class=1)
    with pytest.raises(ValueError, match="got 50 and 0"):
        GenerationMeasureConfig(attacked_images=0)
    with pytest.raises(ValueError, match=r"'fd\.tset' is no metric"):
        GenerationMeasureConfig(table=("fd.tset",))
