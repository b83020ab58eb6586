"""Compiled training: the same weights but for rounding, and a network that is left as it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from command_line import CONFIGS, TINY_OVERRIDES
from torch import Tensor

from gen_unlearn.commands.fit_generator import GeneratorTraining
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import load_digits_images
from gen_unlearn.training import compilation
from gen_unlearn.training.compilation import require_compiler
from gen_unlearn.training.diffusion import train_diffusion

pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache:UserWarning")
"""Of diffusers' upsampling, which looks up the version of torch."""

SPM, PLAIN = "digits_spm.yaml", "digits_ddpm.yaml"
STAYING = ("training.exemplar_refresh_steps=2", "training.images=36")
SHALLOW = (
    "model.block_out_channels=[8]",
    "model.down_block_types=[DownBlock2D]",
    "model.up_block_types=[UpBlock2D]",
)
ADDITIVE = ("model.fusion_type=additive", "model.pixel_fusion_width=0.3", "model.label_embedding=true")


@pytest.fixture(autouse=True)
def fresh_states() -> Iterator[None]:
    AcceleratorState._reset_state()
    torch._dynamo.reset()
    yield
    AcceleratorState._reset_state()
    torch._dynamo.reset()


def fresh(config: RunConfig, cpu: bool = True) -> GeneratorTraining:
    AcceleratorState._reset_state()
    training, data = config.training, load_digits_images()
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
    )
    return GeneratorTraining.of(config, CoreSplit(data, data), accelerator)


def trained(base: str, *overrides: str, cpu: bool = True) -> dict[str, Tensor]:
    config = load_config(CONFIGS / base, [*TINY_OVERRIDES, *overrides])
    training = fresh(config, cpu)
    network = training.network
    with torch.random.fork_rng():
        train_diffusion(
            network, config.noise.build(), training.batches, config.training, training.accelerator
        )
    if config.training.compile:
        assert not {"forward", "_original_forward"} & vars(network).keys(), "it is as it was"
    return network.state_dict()


def assert_compiling_changes_rounding_alone(base: str, *overrides: str) -> None:
    few = ("training.images=24", "training.batch_size=12", "training.exemplars_per_class=[4, 5]")
    slow = ("training.learning_rate=1e-4", *few, *overrides)
    plain, compiled = trained(base, *slow), trained(base, *slow, "training.compile=true")
    assert plain.keys() == compiled.keys()
    tolerance = 5e-4 if "training.mixed_precision=bf16" in overrides else 2e-5
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        (PLAIN, SHALLOW),
        (SPM, (*STAYING, "training.gradient_accumulation_steps=2", *ADDITIVE, *SHALLOW)),
        (SPM, ("training.mixed_precision=bf16", *SHALLOW)),
    ],
    ids=["plain", "everything", "bf16"],
)
def test_compiled_training_learns_the_same(
    base: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "COMPILER", "eager")
    assert_compiling_changes_rounding_alone(base, *overrides)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("base", "overrides"),
    [(PLAIN, ()), (SPM, ())],
    ids=["plain", "default"],
)
def test_inductor_learns_the_same(base: str, overrides: tuple[str, ...]) -> None:
    assert_compiling_changes_rounding_alone(base, *overrides)


def test_a_compiler_that_does_not_work_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> None:
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr(compilation, "COMPILER", broken)
    with pytest.raises(ValueError, match=r"no working C\+\+ compiler found.* set training.compile to false$"):
        require_compiler(torch.device("cpu"))


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_training_in_shards_is_refused(kind: DistributedType) -> None:
    training = fresh(load_config(CONFIGS / SPM, TINY_OVERRIDES))
    training.accelerator.state.distributed_type = kind
    with pytest.raises(ValueError, match=rf"whole network, got {kind.value}.*launch with torchrun"):
        training.fit(None, "train")


def test_a_compiler_of_the_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    training = fresh(load_config(CONFIGS / SPM, TINY_OVERRIDES))
    with pytest.raises(ValueError, match=r"expected training.compile in the recipe, got the dynamo backend"):
        training.fit(None, "train")


def test_fp16_is_refused_on_a_cpu() -> None:
    training = fresh(load_config(CONFIGS / SPM, [*TINY_OVERRIDES, "training.mixed_precision=fp16"]))
    with pytest.raises(ValueError, match=r"expected a GPU for training.mixed_precision fp16, got a CPU"):
        training.fit(None, "train")


@pytest.mark.gpu
@pytest.mark.parametrize("extra", [(), ("training.compile=true",)], ids=["plain", "compiled"])
@pytest.mark.parametrize("base", [SPM, PLAIN])
def test_fp16_learns_nearly_the_same_on_a_gpu(base: str, extra: tuple[str, ...]) -> None:
    full = trained(base, cpu=False)
    half = trained(base, "training.mixed_precision=fp16", *extra, cpu=False)
    assert {weights.dtype for weights in half.values()} == {torch.float32}
    assert 0 < max((full[name] - half[name]).abs().max() for name in full) < 0.1
