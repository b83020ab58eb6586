"""What steps of unlearning methods are timed on: a small classifier of noise, the denoiser of the digits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from evaluation.handwritten_training import Images, Request
from gen_unlearn.config import load_config
from gen_unlearn.data import IndexedImages, load_split
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import image_ids, numpy_generator

CONFIGS = Path(__file__).parents[1] / "configs"
FORGET, RETAIN, HELDOUT = 320, 1280, 320
"""Noise images of the size of CIFAR's: a class to forget, nine others, and both held out."""


def placed(data: UnlearnData) -> Request:
    """Return all images and labels of a request on the device."""
    device, parts = Accelerator().device, (data.forget, data.retain, data.heldout)
    inputs = [to_model_input(part.all_images()).to(device) for part in parts]
    return Request(*map(Images, inputs, [torch.from_numpy(part.labels).to(device) for part in parts]))


def small_classifier() -> nn.Module:
    """Return three convolutions of stride 2 with batch normalisation, and a linear layer, fresh weights."""
    channels = (3, 16, 32, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in pairwise(channels)
    ]
    network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels[-1] * 4 * 4, 10))
    return network.to(Accelerator().device).eval()


def noise_request() -> UnlearnData:
    """Return noise in ten classes: the first to forget, the others to retain, all of them held out."""
    draws = numpy_generator(0, "methods")
    pixels = draws.integers(0, 256, (FORGET + RETAIN + HELDOUT, 32, 32, 3), dtype=np.uint8)
    labels = np.concatenate([np.zeros(FORGET), 1 + np.arange(RETAIN) % 9, np.arange(HELDOUT) % 10])
    names = tuple(map(str, range(10)))
    every = IndexedImages(pixels, labels.astype(np.int64), image_ids(pixels), names, ("",) * len(pixels))
    starts = np.split(np.arange(len(every)), [FORGET, FORGET + RETAIN])
    return UnlearnData(*(every.select(rows) for rows in starts))


def digits_denoiser() -> tuple[DenoisingModel, UnlearnData]:
    """Return the denoiser of the digits, fresh weights, and the request to forget the class 3."""
    config = load_config(CONFIGS / "digits_ddpm.yaml")
    split = load_split(config.data)
    classes = len(split.train.class_names)
    network = build_denoiser(config.model, split.train.image_shape, classes)
    forget = split.train.labels == 3
    data = UnlearnData(split.train.select(forget), split.train.select(~forget), split.test)
    return DenoisingModel(network, config.noise.build(), classes).to(Accelerator().device).eval(), data
