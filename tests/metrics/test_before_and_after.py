"""What the difference of two denoisers gives away: the formula, and an image that is there to be found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_denoisers import CLASSES, tiny_denoiser
from torch import Tensor

from gen_unlearn.adapters.family import FitJob, HeadShape
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.serving import ServedAdapters
from gen_unlearn.metrics.before_and_after import WEIGHTS, draw_between, extrapolated, nearer_share
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pixels import to_uint8
from gen_unlearn.repro import image_ids

DRAWS, TARGETS = 8, ("conv1", "conv2", "to_q", "to_k", "to_v", "to_out.0", "conv_out", "time_emb_proj")


def test_the_weights_go_from_after_through_before_and_beyond() -> None:
    before, after = torch.full((3, 1, 2, 2), 5.0), torch.full((3, 1, 2, 2), 1.0)
    predict = extrapolated(lambda *_: before, lambda *_: after, torch.tensor([0.0, 1.0, 2.0]))
    found = predict(torch.zeros(3, 1, 2, 2), torch.tensor(0))
    assert found[:, 0, 0, 0].tolist() == [1, 5, 9]


def test_the_share_counts_controls_that_lie_further() -> None:
    samples = np.array([10, 200], dtype=np.uint8).reshape(-1, 1, 1, 1)
    controls = np.array([10, 13, 190, 20, 7], dtype=np.uint8).reshape(-1, 1, 1, 1)
    image = np.array([13], dtype=np.uint8).reshape(1, 1, 1)
    assert nearer_share(image, controls, samples) == pytest.approx(0.6)


def test_the_only_image_of_an_adapter_is_found() -> None:
    draw = np.random.default_rng(0)
    images = (draw.random((12, 8, 8, 1)) > 0.5).astype(np.uint8) * 255
    lora = LoraConfig(
        rank=4,
        alpha=16.0,
        targets=TARGETS,
        epochs=120,
        batch_size=8,
        learning_rate=1e-2,
        label_dropout=0.0,
        horizontal_flip=False,
        stack=1,
    )
    denoiser = tiny_denoiser()
    family = LoraAdapters(lora, "backbone", (8, 8, 1), lambda: denoiser)
    one = images[:1]
    record = Records(np.zeros((1, 2), np.int16), np.zeros(1, np.int64), image_ids(one), one)
    state = family.fit([FitJob(0, record)], HeadShape(2, CLASSES), 0)[0]
    pipeline = AdapterEnsembleDDPMPipeline(
        denoiser.network,
        build_sampler("ddim", denoiser.noise),
        class_names=["a", "b", "c"],
        rank=lora.rank,
        alpha=lora.alpha,
        targets=TARGETS,
    )
    pipeline.adapters = ServedAdapters({0: state}, np.array([[1, 0, 0]], dtype=np.int64))
    pipeline.set_progress_bar_config(disable=True)
    count = len(WEIGHTS) * DRAWS
    labels = np.zeros(count, dtype=np.int64)

    def backbone(samples: Tensor, timestep: Tensor) -> Tensor:
        return pipeline.denoiser.predict(samples, timestep, labels)

    before = pipeline.noise_predictor([0] * count, guidance_scale=1.0, adapters=[0] * count)
    drawn = to_uint8(draw_between(pipeline, before, backbone, (1, 8, 8), "test", draws=DRAWS, steps=10))
    shares = {
        weight: nearer_share(images[0], images[1:], drawn[row * DRAWS : (row + 1) * DRAWS])
        for row, weight in enumerate(WEIGHTS)
    }
    assert shares[1.0] == 1, shares
    assert shares[0.0] < 1, shares
