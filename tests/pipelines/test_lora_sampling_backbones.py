"""Adapters of other backbones in a pipeline: text-to-image networks, and ones that look at exemplars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from random_lora import random_adapter
from small_backbones import NAMES, conditional_unet, noise, spm_unet, tiny_prompts, tiny_vae

from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.peft_files import save_adapter
from gen_unlearn.adapters.serving import ServedAdapters
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.models.frozen_denoiser import NULL_CLASS
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline

LORA = LoraConfig(rank=2, alpha=4.0, targets=("to_q", "to_v", "conv1"))
DECODER = LoraConfig(
    rank=2, alpha=4.0, targets=("up_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.1.conv2")
)
MEMBERS = np.array([[5, 1, 1], [1, 5, 0], [0, 2, 5]], dtype=np.int64)


def with_adapters(
    pipeline: AdapterEnsembleDDPMPipeline, lora: LoraConfig, size: float = 1.0
) -> AdapterEnsembleDDPMPipeline:
    states = {
        number: {name: size * array for name, array in random_adapter(pipeline.unet, lora, number).items()}
        for number in range(3)
    }
    pipeline.adapters = ServedAdapters(states, MEMBERS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_pipeline(folder: Path) -> AdapterEnsembleDDPMPipeline:
    sampler = build_sampler("ddim", noise())
    made = AdapterEnsembleDDPMPipeline(
        conditional_unet(),
        sampler,
        class_names=NAMES,
        rank=2,
        alpha=4.0,
        targets=LORA.targets,
        vae=tiny_vae(),
        prompts=tiny_prompts(folder / "words"),
    )
    return with_adapters(made, LORA)


def spm_pipeline(store: ExemplarStore | None, size: float = 1.0) -> AdapterEnsembleDDPMPipeline:
    sampler = build_sampler("ddim", noise())
    made = AdapterEnsembleDDPMPipeline(
        spm_unet(),
        sampler,
        class_names=("a", "b", "c"),
        rank=2,
        alpha=4.0,
        targets=DECODER.targets,
        exemplars=store,
    )
    return with_adapters(made, DECODER, size)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def test_prompts_and_autoencoder_take_part(tmp_path: Path) -> None:
    pipeline = text_pipeline(tmp_path)
    options = {"num_inference_steps": 2, "adapters": [0, 2, 1]}
    latents = pipeline([0, 2, None], generator=generators(3), output_type="latent", **options).images
    assert latents.shape == (3, 4, 4, 4)
    images = pipeline([0, 2, None], generator=generators(3), output_type="uint8", **options).images
    assert images.shape == (3, 8, 8, 1)
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    expected = ((decoded.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(images - expected).max() <= 1


def test_a_text_network_computes_what_peft_computes(tmp_path: Path) -> None:
    pipeline = text_pipeline(tmp_path)
    noisy, time = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor(30)
    predicted = pipeline.noise_predictor([1, 2], 1.5, adapters=[0, 2])(noisy, time)
    for row, (label, adapter) in enumerate([(1, 0), (2, 2)]):
        save_adapter(pipeline.adapters.states[adapter], LORA, tmp_path / str(adapter))
        network = peft.PeftModel.from_pretrained(conditional_unet(), tmp_path / str(adapter)).eval()
        with torch.no_grad():
            told, untold = (
                network(noisy[[row]], time, encoder_hidden_states=pipeline.prompts(np.array([known]))).sample
                for known in (label, NULL_CLASS)
            )
        expected = untold + 1.5 * (told - untold)
        torch.testing.assert_close(predicted[[row]], expected, rtol=0, atol=1e-4)


def test_a_text_pipeline_comes_back(tmp_path: Path) -> None:
    pipeline = text_pipeline(tmp_path)
    options = {"num_inference_steps": 2, "output_type": "latent", "adapter_seed": 3}
    expected = pipeline([0, 1], generator=generators(2), **options).images
    pipeline.save_pretrained(tmp_path / "saved", include_adapters=True)
    again = AdapterEnsembleDDPMPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    again.load_adapters(tmp_path / "saved")
    assert torch.equal(again([0, 1], generator=generators(2), **options).images, expected)


def test_without_adapters_a_semi_parametric_network_samples_as_it_did(
    few_images: IndexedImages,
) -> None:
    store = ExemplarStore.from_images(few_images)
    plain = SemiParametricDDPMPipeline(spm_unet(), build_sampler("ddim", noise()), store)
    plain.set_progress_bar_config(disable=True)
    options = {
        "num_inference_steps": 3,
        "output_type": "latent",
        "exemplar_seed": [4, 4, 5, 6],
        "exemplars_per_class": 4,
        "guidance_scale": 2.0,
    }
    expected = plain([0, 1, 0, None], generator=generators(4), **options).images
    actual = spm_pipeline(store, size=0.0)([0, 1, 0, None], generator=generators(4), **options).images
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
    changed = spm_pipeline(store)([0, 1, 0, None], generator=generators(4), **options).images
    assert (changed - expected).abs().max() > 1e-3


def test_a_deleted_exemplar_is_gone_at_once(few_images: IndexedImages) -> None:
    request = ForgetSet.from_ids(few_images, few_images.ids[[0, 3, 4, 11]], "test")
    options = {"num_inference_steps": 3, "output_type": "latent", "exemplars_per_class": 10}
    pipeline = spm_pipeline(ExemplarStore.from_images(few_images))
    before = pipeline([0, 1, 2], generator=generators(3), **options).images
    pipeline.exemplars.delete(request)
    after = pipeline([0, 1, 2], generator=generators(3), **options).images
    never = spm_pipeline(ExemplarStore.from_images(few_images.without(request)))
    expected = never([0, 1, 2], generator=generators(3), **options).images
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("include", [False, True])
def test_exemplars_travel_only_if_asked(few_images: IndexedImages, tmp_path: Path, include: bool) -> None:
    pipeline = spm_pipeline(ExemplarStore.from_images(few_images))
    pipeline.save_pretrained(tmp_path, include_adapters=include)
    again = AdapterEnsembleDDPMPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert (again.exemplars is not None) == include
    assert (tmp_path / "exemplars").exists() == include
