"""Two processes train a denoiser as one does: the same steps, and the same weights on both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from command_line import CONFIGS, TINY_OVERRIDES
from torch import Tensor
from two_processes import as_two

from gen_unlearn.commands.fit_generator import GeneratorTraining
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import load_digits_images
from gen_unlearn.training import compilation
from gen_unlearn.training.diffusion import train_diffusion

ACCUMULATED = "training.gradient_accumulation_steps=2"
ADDITIVE = ("model.fusion_type=additive", "model.label_embedding=true")
PIXELS = "model.pixel_fusion_width=0.3"
KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("digits_ddpm.yaml", ACCUMULATED),
    "default": ("digits_spm.yaml",),
    "exemplars stay": ("digits_spm.yaml", "training.exemplar_refresh_steps=3", ACCUMULATED, PIXELS),
    "nobody sees exemplars": ("digits_spm.yaml", "training.exemplar_dropout=0.999999", PIXELS, *ADDITIVE),
    "everything": ("digits_spm.yaml", ACCUMULATED, PIXELS, *ADDITIVE),
}


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def recipe(base: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / base, [*TINY_OVERRIDES, "training.learning_rate=1e-4", *overrides])


def trained(config: RunConfig, bucket: float) -> dict[str, Tensor]:
    """Train with as many processes as there are; gradients travel in buckets of so many MB."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=config.training.gradient_accumulation_steps,
        kwargs_handlers=[DistributedDataParallelKwargs(bucket_cap_mb=bucket)],
    )
    data = load_digits_images()
    training = GeneratorTraining.of(config, CoreSplit(data, data), accelerator)
    network = training.network
    train_diffusion(network, config.noise.build(), training.batches, config.training, accelerator)
    return network.state_dict()


def assert_two_are_one(config: RunConfig, bucket: float) -> None:
    expected = trained(config, bucket)
    as_two(lambda _: assert_both_trained(config, bucket, expected))


def assert_both_trained(config: RunConfig, bucket: float, expected: dict[str, Tensor]) -> None:
    """Train in a group of two processes, and check that both have the weights that are expected."""
    together = trained(config, bucket)
    assert together.keys() == expected.keys()
    for name, weights in together.items():
        both = Accelerator(cpu=True).gather(weights[None])
        assert torch.equal(both[0], both[1]), name
        torch.testing.assert_close(weights, expected[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(kind: str) -> None:
    assert_two_are_one(recipe(*KINDS[kind]), bucket=0.01)


@pytest.mark.slow
def test_two_processes_can_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "COMPILER", "eager")
    few = ("training.exemplars_per_class=[4, 5]", "training.images=48")
    expected = trained(recipe("digits_spm.yaml", *few), bucket=25)
    compiled = recipe("digits_spm.yaml", *few, "training.compile=true")
    as_two(lambda _: assert_both_trained(compiled, 25, expected))
