"""Laws of sampling: what an image depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.models.fusion import plan_fusion
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.denoising import build_sampler, denoise
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.output import convert_samples
from gen_unlearn.pipelines.sampling_config import Sampler
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.pixels import to_model_input

LABELS: tuple[int | None, ...] = (0, 1, 2, 0, None, 1, 0, 2)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "additive": {"fusion_type": "additive"},
    "labels": {"num_label_slots": 3},
}


def sample(
    pipeline: SemiParametricDDPMPipeline,
    labels: Sequence[int | None],
    images: Sequence[int] | None = None,
    exemplar_seed: int | Sequence[int] = 0,
    **options: Any,
) -> Tensor:
    """Sample unclamped images; image `i` starts from noise number `i`."""
    numbers = range(len(labels)) if images is None else images
    settings = {"num_inference_steps": 3, "exemplars_per_class": 4, "output_type": "latent", **options}
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    return pipeline(labels, exemplar_seed=exemplar_seed, generator=generators, **settings).images


def pipeline_of(variant: str, store: ExemplarStore, sampler: Sampler = "ddim") -> SemiParametricDDPMPipeline:
    torch.manual_seed(5)
    unet = SemiParametricUNet2DModel(
        8, 1, 1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **VARIANTS[variant]
    )
    torch.nn.init.normal_(unet.fusion.null_key)
    torch.nn.init.normal_(unet.fusion.null_value)
    pipeline = SemiParametricDDPMPipeline(unet.eval(), build_sampler(sampler, NoiseConfig().build()), store)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Agree to 1e-5 of the largest value; an untrained network may leave [-1, 1]."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def differs(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() > 1e-3)


@pytest.mark.parametrize("sampler", get_args(Sampler))
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_does_not_depend_on_its_batch(
    tiny_store: ExemplarStore, variant: str, sampler: Sampler
) -> None:
    pipeline = pipeline_of(variant, tiny_store, sampler)
    seeds = [number // 2 for number in range(8)]
    whole = sample(pipeline, LABELS, exemplar_seed=seeds)
    assert whole.isfinite().all()
    for size in (1, 3):
        for start in range(0, 8, size):
            part = slice(start, start + size)
            numbers = list(range(8))[part]
            assert_same(sample(pipeline, LABELS[part], numbers, exemplar_seed=seeds[part]), whole[part])


def test_order_of_the_exemplars_does_not_matter(
    few_images: IndexedImages, tiny_pipeline: SemiParametricDDPMPipeline
) -> None:
    before = sample(tiny_pipeline, LABELS)
    shuffled = few_images.select(np.random.default_rng(2).permutation(30))
    other = SemiParametricDDPMPipeline(
        tiny_pipeline.unet, tiny_pipeline.scheduler, ExemplarStore.from_images(shuffled)
    )
    other.set_progress_bar_config(disable=True)
    assert_same(sample(other, LABELS), before)


def test_deleting_a_class_changes_no_other_class(
    few_images: IndexedImages, tiny_pipeline: SemiParametricDDPMPipeline
) -> None:
    before = sample(tiny_pipeline, LABELS)
    tiny_pipeline.delete(ForgetSet.from_classes(few_images, ["b"], "test"))
    after = sample(tiny_pipeline, LABELS, on_empty_class="null")
    others = [number for number, label in enumerate(LABELS) if label != 1]
    assert_same(after[others], before[others])
    assert differs(after[[1]], before[[1]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_sampling_after_a_deletion_equals_never_having_held(few_images: IndexedImages, variant: str) -> None:
    request = ForgetSet.from_ids(few_images, few_images.ids[[0, 3, 4, 11]], "test")
    deleted = pipeline_of(variant, ExemplarStore.from_images(few_images))
    before = sample(deleted, LABELS, exemplars_per_class=10)
    deleted.delete(request)
    never = pipeline_of(variant, ExemplarStore.from_images(few_images.without(request)))
    assert_same(sample(deleted, LABELS), sample(never, LABELS))
    assert differs(sample(deleted, LABELS, exemplars_per_class=10), before)


def test_an_image_follows_its_exemplars_and_its_noise(tiny_pipeline: SemiParametricDDPMPipeline) -> None:
    first, again, other_draw = sample(tiny_pipeline, [0, 0, 0], [5, 5, 5], exemplar_seed=[1, 1, 2])
    assert_same(again, first)
    assert differs(other_draw, first)
    assert differs(sample(tiny_pipeline, [0], [6], exemplar_seed=1)[0], first)
    assert differs(sample(tiny_pipeline, [1], [5], exemplar_seed=1)[0], first)
    assert_same(sample(tiny_pipeline, [0], [5], exemplar_seed=2)[0], other_draw)


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_guidance_is_the_formula_in_two_passes(
    tiny_store: ExemplarStore, variant: str, guidance: float
) -> None:
    pipeline = pipeline_of(variant, tiny_store)
    labels, start = [0, 1, 2, 0], torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    actual = sample(pipeline, labels, latents=start, exemplars_per_class=10, guidance_scale=guidance)
    exemplars = to_model_input(tiny_store.images)
    plan = plan_fusion(labels, [tiny_store.by_class(label) for label in range(3)])
    slots = torch.tensor(labels) if variant == "labels" else None
    scheduler = build_sampler("ddim", NoiseConfig().build())
    scheduler.set_timesteps(3)
    expected = start
    with torch.no_grad():
        for time in scheduler.timesteps:
            guided = pipeline.unet(expected, time, exemplars, plan, slots).sample
            plain = pipeline.unet(expected, time).sample
            noise = plain + guidance * (guided - plain)
            expected = scheduler.step(noise, time, expected, use_clipped_model_output=True).prev_sample
    assert_same(actual, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_class_is_refused_or_sampled_from_the_null_token(
    few_images: IndexedImages, tiny_store: ExemplarStore, variant: str
) -> None:
    pipeline = pipeline_of(variant, tiny_store)
    pipeline.delete(ForgetSet.from_classes(few_images, ["b"], "test"))
    with pytest.raises(ValueError, match=r"no exemplar is left of class 1 \(b\)"):
        sample(pipeline, [0, 1])
    alone = sample(pipeline, [1, 1], on_empty_class="null")
    assert torch.equal(alone, sample(pipeline, [None, None]))
    assert_same(sample(pipeline, [0, 1], on_empty_class="null")[1], alone[1])
    pipeline.delete(ForgetSet.from_classes(few_images.select(few_images.labels != 1), ["a", "c"], "test"))
    assert_same(sample(pipeline, [2, 1], on_empty_class="null"), alone)


def test_without_exemplars_only_the_null_token_is_left(tiny_pipeline: SemiParametricDDPMPipeline) -> None:
    bare = SemiParametricDDPMPipeline(tiny_pipeline.unet, tiny_pipeline.scheduler)
    bare.set_progress_bar_config(disable=True)
    assert_same(sample(bare, [None, None]), sample(tiny_pipeline, [None, None]))
    with pytest.raises(ValueError, match="exemplars"):
        sample(bare, [0])


def test_bad_requests_are_refused(tiny_pipeline: SemiParametricDDPMPipeline) -> None:
    refusals: list[tuple[str, dict[str, Any]]] = [
        (r"class labels from 0 to 2, got \[-1, 3\]", {"class_labels": [0, 3, -1]}),
        ("one exemplar seed or 2, one for each image, got 3", {"exemplar_seed": [1, 2, 3]}),
        ("at least 1 exemplar per class, got 0", {"exemplars_per_class": 0}),
        ("one generator or 2, one for each image, got 1", {"generator": [torch.Generator()]}),
        (r"latents of shape \(2, 1, 8, 8\), got \(1, 1, 8, 8\)", {"latents": torch.zeros(1, 1, 8, 8)}),
        ("on_empty_class 'raise' or 'null', got 'other'", {"on_empty_class": "other"}),
        ("expected output_type", {"output_type": "jpeg"}),
    ]
    for message, options in refusals:
        with pytest.raises(ValueError, match=message):
            tiny_pipeline(**{"class_labels": [0, 1], "num_inference_steps": 2, **options})


@pytest.mark.parametrize("sampler", get_args(Sampler))
@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
def test_samplers_find_the_image_through_a_slightly_wrong_network(
    tiny_pipeline: SemiParametricDDPMPipeline, sampler: Sampler, schedule: Any
) -> None:
    """DPM-Solver++ straight from a squared-cosine schedule multiplies small errors."""
    training = NoiseConfig(beta_schedule=schedule).build()
    tiny_pipeline.scheduler = build_sampler(sampler, training)
    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)

    def predict_noise(samples: Tensor, timestep: Tensor) -> Tensor:
        signal = training.alphas_cumprod[timestep]
        return 1.02 * (samples - signal.sqrt() * image) / (1 - signal).sqrt()

    reached = denoise(
        tiny_pipeline,
        predict_noise,
        (3, 1, 8, 8),
        num_inference_steps=20,
        generator=torch.Generator().manual_seed(0),
        eta=0.0,
        latents=None,
        callback_on_step_end=None,
    )
    assert (reached - image).abs().mean() < 0.01
    assert reached.abs().max() < 1.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_diffusers_scheduler_will_do(tiny_store: ExemplarStore, variant: str) -> None:
    pipeline = pipeline_of(variant, tiny_store)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    assert sample(pipeline, [0, 1, None]).isfinite().all()


def test_output_types_show_the_same_image(tiny_pipeline: SemiParametricDDPMPipeline) -> None:
    raw = sample(tiny_pipeline, [0, 1], output_type="uint8")
    assert (raw.shape, raw.dtype) == ((2, 8, 8, 1), np.uint8)
    assert np.array_equal(np.stack(sample(tiny_pipeline, [0, 1], output_type="pil"))[..., None], raw)
    assert np.array_equal(sample(tiny_pipeline, [0, 1], output_type="np"), raw.astype(np.float32) / 255)
    as_tensor = sample(tiny_pipeline, [0, 1], output_type="pt").permute(0, 2, 3, 1)
    assert torch.equal(as_tensor, torch.from_numpy(raw).float() / 255)
    coarse = convert_samples(torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16).bfloat16(), "pt")
    assert coarse.dtype == torch.float32
    returned = tiny_pipeline([0], num_inference_steps=2, return_dict=False, output_type="uint8")
    assert returned[0].shape == (1, 8, 8, 1)
