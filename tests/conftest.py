"""Tiny data, networks and pipelines that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from command_line import tiny, works

from gen_unlearn.data import IndexedImages, Split, load_digits_images, stratified_split
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import image_ids


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what forks many times first: a process that has done much else forks slowly."""
    items.sort(key=lambda item: item.path.name != "test_crashes.py")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: tiny networks gain nothing from more, and busy machines lose."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def single_precision() -> Iterator[None]:
    """Let each test begin in full precision: Accelerate keeps a precision for the life of a process."""
    _single_precision()
    yield
    _single_precision()


def _single_precision() -> None:
    AcceleratorState._reset_state()
    Accelerator(mixed_precision="no", cpu=True)


@pytest.fixture(scope="session")
def digits_split() -> Split:
    """Scikit-learn's handwritten digits, a fifth of each class held out."""
    return stratified_split(load_digits_images(), 0.2, 0)


@pytest.fixture
def few_images() -> IndexedImages:
    """30 random grey images of 8x8 pixels in three classes of ten."""
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    return IndexedImages(
        images=images,
        labels=np.arange(30, dtype=np.int64) % 3,
        ids=image_ids(images),
        class_names=("a", "b", "c"),
        names=tuple(f"random/{number}" for number in range(30)),
    )


@pytest.fixture
def tiny_unet() -> SemiParametricUNet2DModel:
    """A network for `few_images` with fresh weights, in evaluation mode; its null token is not zero."""
    torch.manual_seed(0)
    unet = SemiParametricUNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )
    torch.nn.init.normal_(unet.fusion.null_key)
    torch.nn.init.normal_(unet.fusion.null_value)
    return unet.eval()


@pytest.fixture
def tiny_store(few_images: IndexedImages) -> ExemplarStore:
    """A store of all of `few_images`."""
    return ExemplarStore.from_images(few_images)


@pytest.fixture
def tiny_pipeline(
    tiny_unet: SemiParametricUNet2DModel, tiny_store: ExemplarStore
) -> SemiParametricDDPMPipeline:
    """`tiny_unet` over `tiny_store` with DDIM, without a progress bar."""
    pipeline = SemiParametricDDPMPipeline(tiny_unet, build_sampler("ddim", NoiseConfig().build()), tiny_store)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def run_without_threes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the handwritten digits from which class 3 was deleted; tests change copies of it only."""
    run = tmp_path_factory.mktemp("without-threes") / "run"
    works("train", *tiny(), "--out", run)
    works("forget", run, "--class", "3")
    return run
