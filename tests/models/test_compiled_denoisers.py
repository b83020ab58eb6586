"""The denoisers compile to one graph, forward and backward, whatever the numbers of exemplars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from gen_unlearn.models.fusion import NULL_GROUP, FusionContext, plan_fusion
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.training.compilation import let_sizes_vary

pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache:UserWarning")
"""Of diffusers' upsampling, which looks up the version of torch."""

SHAPE: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
SHALLOW: dict[str, Any] = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
KINDS: dict[str, dict[str, Any]] = {
    "dropout and labels": SHALLOW | {"dropout": 0.3, "num_label_slots": 3},
    "additive": SHALLOW | {"fusion_type": "additive"},
    "pixels": SHALLOW | {"pixel_fusion_width": 0.3},
    "all": {"dropout": 0.3, "num_label_slots": 3, "fusion_type": "additive", "pixel_fusion_width": 0.3},
}
PLANS = (
    ([0, 1, NULL_GROUP, 0, 1, 0], [8, 9]),
    ([0, 1, 2, 0, 1, 0], [7, 4, 9]),
    ([0, 1, 1, 0, NULL_GROUP, NULL_GROUP], [12, 6]),
    ([0, 2, 1, 0, 1, 2], [3, 17, 5]),
)
"""For some steps the group of each query, and the exemplars of each group: at least 16 in all,
where convolutions on a CPU begin to choose another layout, which is another graph."""


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def semi_parametric(**options: Any) -> SemiParametricUNet2DModel:
    torch.manual_seed(3)
    unet = SemiParametricUNet2DModel(**SHAPE | options)
    nn.init.normal_(unet.fusion.null_key)
    nn.init.normal_(unet.fusion.null_value)
    if unet.pixel_fusion is not None:
        unet.pixel_fusion.set_noise_schedule(NoiseConfig().build().alphas_cumprod)
    return unet.train()


def deep(kind: str) -> dict[str, Any]:
    """Return the options of a kind, but with both resolutions."""
    return {name: value for name, value in KINDS[kind].items() if name not in SHALLOW}


def conditioning(step: int, slots: int | None) -> dict[str, Any]:
    groups, counts = PLANS[step]
    ends = np.cumsum(counts)
    members = np.split(np.arange(ends[-1]), ends[:-1])
    draws = torch.Generator().manual_seed(step)
    arguments = {
        "exemplars": torch.randn(int(ends[-1]), 1, 8, 8, generator=draws),
        "plan": plan_fusion(groups, members),
    }
    return arguments if slots is None else arguments | {"class_labels": torch.arange(6) % slots}


def learned(network: ModelMixin, forward: Any, arguments: dict[str, Any], half: bool) -> list[Tensor]:
    """Return the prediction and all gradients of a step; what dropout draws is always the same."""
    torch.manual_seed(0)
    network.zero_grad()
    noisy = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with precision(half):
        (prediction,) = forward(noisy, torch.arange(6) * 150, **arguments, return_dict=False)
    prediction.float().square().sum().backward()
    return [prediction.detach().float(), *(weights.grad.clone() for weights in network.parameters())]


def precision(half: bool) -> AbstractContextManager[None]:
    return torch.autocast("cpu", torch.bfloat16, enabled=half)


def assert_alike(one: list[Tensor], other: list[Tensor], half: bool) -> None:
    for first, second in zip(one, other, strict=True):
        scale = max(1.0, float(first.abs().max()))
        torch.testing.assert_close(second / scale, first / scale, rtol=0, atol=0.05 if half else 1e-5)


@pytest.mark.parametrize(("kind", "half"), [("dropout and labels", True), ("all", False)])
def test_training_is_one_graph_for_all_numbers_of_exemplars(kind: str, half: bool) -> None:
    assert_one_graph(kind, half, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_are_traced_together(kind: str) -> None:
    assert_one_graph(kind, False, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rounds_no_more_where_it_is_traced(kind: str) -> None:
    """Where gradients are small, two orders of rounding differ much: both are compared with float32."""
    unet = semi_parametric(**deep(kind))
    compiled = torch.compile(unet.forward, backend="aot_eager", fullgraph=True)
    for step in range(len(PLANS)):
        arguments = conditioning(step, unet.label_slots)
        exact, plain = (flat(learned(unet, unet.forward, arguments, half)) for half in (False, True))
        let_sizes_vary(arguments)
        found = flat(learned(unet, compiled, arguments, half=True))
        assert (plain - exact).norm() < 0.02 * exact.norm()
        assert (found - exact).norm() < 1.25 * (plain - exact).norm()


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def assert_one_graph(kind: str, half: bool, backend: str) -> None:
    unet = semi_parametric(**KINDS[kind])
    compiled = torch.compile(unet.forward, backend=backend, fullgraph=True)
    for step in range(len(PLANS)):
        arguments = conditioning(step, unet.label_slots)
        expected = learned(unet, unet.forward, arguments, half)
        let_sizes_vary(arguments)
        assert_alike(expected, learned(unet, compiled, arguments, half), half)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_training_of_the_plain_network_is_one_graph() -> None:
    torch.manual_seed(3)
    unet = UNet2DModel(
        **SHAPE,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
        dropout=0.3,
    ).train()
    compiled = torch.compile(unet.forward, backend="eager", fullgraph=True)
    arguments = {"class_labels": torch.arange(6) % 4}
    let_sizes_vary(arguments)
    expected = learned(unet, unet.forward, arguments, half=True)
    assert_alike(expected, learned(unet, compiled, arguments, half=True), half=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sampling_is_one_graph_for_all_numbers_of_exemplars(kind: str) -> None:
    unet = semi_parametric(**deep(kind)).eval()

    def denoise(samples: Tensor, timestep: Tensor | int, context: FusionContext, labels: Any) -> Tensor:
        return unet.decode(unet.fuse(unet.encode(samples, timestep, labels), context))

    compiled = torch.compile(denoise, backend="eager", fullgraph=True, dynamic=True)
    samples = torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        for timestep in (torch.tensor(300), 700):
            torch._dynamo.utils.counters.clear()
            for step in range(len(PLANS)):
                given = conditioning(step, unet.label_slots)
                context = unet.fusion.context(unet.encode_exemplars(given["exemplars"]), given["plan"])
                arguments = (samples, timestep, context, given.get("class_labels"))
                torch.testing.assert_close(compiled(*arguments), denoise(*arguments), rtol=0, atol=1e-5)
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
