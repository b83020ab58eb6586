"""Images of adapter ensembles on every kind of backbone; two deletions in one pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from small_backbones import NAMES, noise, plain_unet, save_text_pipeline, spm_unet, tiny_vae
from small_denoisers import pixel_records

from gen_unlearn.adapters.family import FitJob, HeadShape, digest_adapter
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.serving import ServedAdapters
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.models.backbone_checkpoints import load_backbone_checkpoint
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.models.semiparametric_denoiser import freeze
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline

LORA = LoraConfig(rank=2, alpha=4.0, targets=("to_q", "to_v", "conv1"), epochs=2, stack=1, learning_rate=1e-2)
SHAPE = HeadShape(features=1, classes=3)
LABELS = [0, 1, 2, None, 1]


def text_to_image(folder: Path) -> FrozenDenoiser:
    save_text_pipeline(folder / "text")
    return load_backbone_checkpoint(folder / "text", NAMES, (8, 8, 1))


KINDS: dict[str, Callable[[Path], FrozenDenoiser]] = {
    "latent": lambda _: freeze(
        plain_unet(sample_size=4, in_channels=4, out_channels=4), noise(), 3, tiny_vae()
    ),
    "text": text_to_image,
    "semi-parametric": lambda _: freeze(spm_unet(), noise(), 3),
}


def members_of(records: Records) -> list[Records]:
    """Route records to two adapters, by the first byte of their ids."""
    return [records.select(records.ids[:, 0] % 2 == part) for part in (0, 1)]


def store_of(records: Records) -> ExemplarStore:
    assert records.pixels is not None
    names = tuple(str(row) for row in range(len(records)))
    return ExemplarStore.from_images(IndexedImages(records.pixels, records.labels, records.ids, NAMES, names))


def fit(denoiser: FrozenDenoiser, records: Records) -> ServedAdapters:
    family = LoraAdapters(LORA, denoiser.digest, denoiser.image_shape, lambda: denoiser)
    parts = members_of(records)
    states = family.fit([FitJob(number, part) for number, part in enumerate(parts)], SHAPE, 0)
    counts = np.stack([np.bincount(part.labels, minlength=3) for part in parts]).astype(np.int64)
    return ServedAdapters(dict(enumerate(states)), counts)


def ensemble(denoiser: FrozenDenoiser, records: Records) -> AdapterEnsembleDDPMPipeline:
    exemplars = store_of(records) if denoiser.exemplars_per_image else None
    settings = {"class_names": NAMES, "rank": LORA.rank, "alpha": LORA.alpha, "targets": LORA.targets}
    sampler = DDIMScheduler.from_config(denoiser.noise.config)
    pipeline = AdapterEnsembleDDPMPipeline(
        denoiser.network,
        sampler,
        vae=denoiser.vae,
        prompts=denoiser.prompts,
        exemplars=exemplars,
        **settings,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.adapters = fit(denoiser, records)
    return pipeline


def sample(pipeline: AdapterEnsembleDDPMPipeline) -> np.ndarray:
    generators = [torch.Generator().manual_seed(number) for number in range(len(LABELS))]
    guidance = 1.3 if pipeline.denoiser.has_null_class else 1.0
    settings = {
        "num_inference_steps": 3,
        "generator": generators,
        "output_type": "np",
        "guidance_scale": guidance,
    }
    return pipeline(LABELS, **settings, exemplar_seed=[4, 4, 5, 5, 6]).images


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_samples_and_is_saved(kind: str, tmp_path: Path) -> None:
    records = pixel_records(16)
    denoiser = KINDS[kind](tmp_path)
    pipeline = ensemble(denoiser, records)
    images = sample(pipeline)
    assert images.shape == (5, 8, 8, 1)
    assert np.array_equal(sample(pipeline), images)
    pipeline.save_pretrained(tmp_path / "saved", include_adapters=True)
    loaded = AdapterEnsembleDDPMPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    loaded.load_adapters(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(sample(loaded), images)
    assert loaded.denoiser.digest == denoiser.digest
    assert (tmp_path / "saved" / "vae").exists() == (denoiser.vae is not None)
    assert not (tmp_path / "saved" / "text_encoder").exists()


def test_latents_are_decoded(tmp_path: Path) -> None:
    pipeline = ensemble(text_to_image(tmp_path), pixel_records(16))
    settings = {
        "num_inference_steps": 2,
        "latents": torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)),
    }
    latents = pipeline([0, 1], output_type="latent", **settings).images
    images = pipeline([0, 1], output_type="pt", **settings).images
    assert latents.shape == (2, 4, 4, 4)
    expected = pipeline.denoiser.decode(torch.as_tensor(latents))
    rounding = 0.5 / 255 + 1e-6
    torch.testing.assert_close(
        torch.as_tensor(images), (expected / 2 + 0.5).clamp(0, 1), rtol=0, atol=rounding
    )
    assert expected.std() > 0.05


def test_both_deletions_are_exact_in_one_pipeline() -> None:
    """The store and the adapter that held an image are those of a build that never saw it."""
    records, gone = pixel_records(24), np.array([2, 11])
    kept = records.select(np.delete(np.arange(24), gone))
    pipeline = ensemble(freeze(spm_unet(), noise(), 3), records)
    before, served = sample(pipeline), pipeline.adapters
    assert pipeline.exemplars is not None
    pipeline.exemplars.delete(ForgetSet.from_ids(pipeline.exemplars, records.ids[gone], "a test"))
    pipeline.adapters = fit(pipeline.denoiser, kept)
    never = ensemble(freeze(spm_unet(), noise(), 3), kept)
    assert pipeline.exemplars.digest == never.exemplars.digest
    for number in (0, 1):
        digests = [digest_adapter(some.adapters.states[number]) for some in (pipeline, never)]
        assert digests[0] == digests[1] != digest_adapter(served.states[number])
    after = sample(pipeline)
    np.testing.assert_allclose(after, sample(never), rtol=0, atol=1e-5)
    assert np.abs(after - before).max() > 1e-3
