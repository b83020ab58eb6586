"""Tiny forget sets and generators with fresh weights, to test what the generation benchmark measures."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import UNet2DModel
from run_factory import random_images

from gen_unlearn.benchmark.forget_sets import ForgetSetConfig, draw_forget_set
from gen_unlearn.benchmark.generation.observation import GenerationMeasureConfig, MeasuredCase, Observation
from gen_unlearn.benchmark.splits import Splits
from gen_unlearn.judging.evidence import Measurer, Recogniser
from gen_unlearn.metrics.extractors.random_conv import RandomConvFeatures
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.samples import SampleSet
from gen_unlearn.training.classifier import JudgeClassifier

CLASS_A = ForgetSetConfig("class", classes=("a",))
RANDOM = ForgetSetConfig("random", count=4)


def judge(always: int | None = None) -> Recogniser:
    """Make a judge with fresh weights, or one that sees the same class in every image."""
    torch.manual_seed(0)
    model = JudgeClassifier(8, 1, 3, width=8, feature_dim=8).eval()
    if always is not None:
        with torch.no_grad():
            model.head.bias[always] = 1000.0
    return Recogniser(model)


def measured_case(
    choose: ForgetSetConfig = CLASS_A,
    images_per_class: int = 10,
    repeats: int = 1,
    test: int = 30,
    seed: int = 0,
    batch_size: int = 250,
    recogniser: Recogniser | None = None,
) -> MeasuredCase:
    """Make a forget set of 30 random training images of three classes, all of them repeated.

    Args:
        choose: the forget set.
        images_per_class: samples.
        repeats: how often each image is there.
        test: test images; of less than three some class has none.
        seed: of the samples.
        batch_size: of the sampler.
        recogniser: a judge with fresh weights by default.
    """
    train = random_images(30, seed=1)
    train = train.select(np.tile(np.arange(30), repeats))
    nothing = np.empty((0, 16), dtype=np.uint8)
    splits = Splits(train, random_images(6, seed=2), random_images(test, seed=3), nothing)
    return MeasuredCase(
        draw_forget_set(choose, splits, 0),
        recogniser or judge(),
        Measurer(RandomConvFeatures()),
        GenerationMeasureConfig(images_per_class, seed=seed),
        SamplingConfig(num_inference_steps=2, batch_size=batch_size),
    )


def plain_pipeline(seed: int = 0) -> ClassConditionalDDPMPipeline:
    """Make a plain generator of three classes with fresh weights."""
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=4,
        add_attention=False,
    )
    noise = NoiseConfig(num_train_timesteps=100).build()
    return ClassConditionalDDPMPipeline(network.eval(), build_sampler("ddim", noise))


def seen(measured: MeasuredCase, seed: int, known: float = 0.0) -> Observation:
    """Make up what is seen of a model: random samples, and scores that are higher for forgotten images.

    Args:
        measured: the forget set.
        seed: of both.
        known: by how many standard deviations the scores of forgotten images are higher.
    """
    draw, count = np.random.default_rng([seed, 7]), measured.config.images_per_class
    labels = np.tile(np.arange(3, dtype=np.int64), count)
    images = draw.integers(0, 256, (3 * count, 8, 8, 1), dtype=np.uint8)
    members, unseen = len(measured.scored.data), len(measured.scored.held_out)
    scores = {name: draw.normal(size=members + unseen) for name in ("loss", "pia", "secmi")}
    for values in scores.values():
        values[:members] += known
    return Observation(SampleSet(images, labels, np.repeat(np.arange(count), 3)), scores)
