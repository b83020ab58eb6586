"""Laws of the semi-parametric network: its halves, its exemplar branch, its gradients, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gen_unlearn.bank import ExemplarBank
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.fusion import NULL_GROUP, FusionContext, FusionPlan, plan_fusion
from gen_unlearn.models.unet import EncodedSample, SemiParametricUNet2DModel
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import digest_state

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
    "attention": {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
    },
    "scale shift": {"resnet_time_scale_shift": "scale_shift", "layers_per_block": 2},
    "dropout": {"dropout": 0.5},
    "labels": {"num_label_slots": 3},
    "additive": {"fusion_type": "additive"},
    "residual": {"fusion_residual": True},
    "pixels": {"pixel_fusion_width": 0.3},
}

SHALLOW: dict[str, Any] = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}


def make_unet(**options: Any) -> SemiParametricUNet2DModel:
    torch.manual_seed(3)
    options = {"layers_per_block": 1, "block_out_channels": (8, 16), **options}
    unet = SemiParametricUNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4, **options
    )
    nn.init.normal_(unet.fusion.null_key)
    nn.init.normal_(unet.fusion.null_value)
    if unet.pixel_fusion is not None:
        unet.pixel_fusion.set_noise_schedule(NoiseConfig().build().alphas_cumprod)
    return unet.eval()


@pytest.fixture(params=ARCHITECTURES)
def unet(request: pytest.FixtureRequest) -> SemiParametricUNet2DModel:
    return make_unet(**ARCHITECTURES[request.param])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slots_for(unet: SemiParametricUNet2DModel, count: int) -> Tensor | None:
    return None if unet.label_slots is None else torch.arange(count) % (unet.label_slots + 1)


def two_groups() -> FusionPlan:
    """Six queries of two groups and of none, over five exemplars."""
    return plan_fusion([0, 1, NULL_GROUP, 0, 1, 0], [np.array([0, 1]), np.array([2, 3, 4])])


def test_encode_and_decode_are_the_diffusers_network(unet: SemiParametricUNet2DModel) -> None:
    samples, timesteps = draw(4, 1, 8, 8), torch.tensor([0, 7, 500, 999])
    labels = slots_for(unet, 4)
    with torch.no_grad():
        whole = unet.unet(samples, timesteps, labels).sample
        halves = unet.decode(unet.encode(samples, timesteps, labels))
        one_time = unet.decode(unet.encode(samples, 7, labels))
        assert torch.equal(halves, whole)
        assert torch.equal(one_time, unet.unet(samples, 7, labels).sample)


def test_exemplars_are_encoded_clean_at_timestep_zero_without_gradient_or_dropout() -> None:
    unet = make_unet(dropout=0.5, num_label_slots=3).train()
    exemplars = draw(5, 1, 8, 8)
    seen: dict[str, tuple[Tensor, Tensor, bool]] = {}

    def watch(name: str, module: nn.Module) -> None:
        def note(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (arguments[0], output, torch.is_grad_enabled())

        module.register_forward_hook(note)

    watch("pixels", unet.unet.conv_in)
    watch("time", unet.unet.time_proj)
    watch("label", unet.unet.class_embedding)
    watch("dropout", unet.unet.down_blocks[0].resnets[0].dropout)
    tokens = unet.encode_exemplars(exemplars)
    assert torch.equal(seen["pixels"][0], exemplars)
    assert seen["time"][0].tolist() == [0] * 5
    assert seen["label"][0].tolist() == [3] * 5
    assert torch.equal(seen["dropout"][0], seen["dropout"][1]), "nothing is dropped"
    assert not any(gradient for *_, gradient in seen.values())
    assert set(seen) == {"pixels", "time", "label", "dropout"}
    assert all(module.training for module in unet.modules())
    assert tokens.keys.requires_grad
    assert tokens.values.requires_grad
    unet.encode(exemplars, 0)
    assert not torch.equal(seen["dropout"][0], seen["dropout"][1]), "queries are learned from"


def test_encoding_exemplars_leaves_every_training_flag_as_it_was() -> None:
    unet = make_unet(dropout=0.5).train()
    unet.unet.down_blocks[0].eval()
    before = {name: module.training for name, module in unet.named_modules()}
    unet.encode_exemplars(draw(2, 1, 8, 8))
    assert {name: module.training for name, module in unet.named_modules()} == before


def test_gradient_of_the_exemplar_branch_reaches_only_the_fusion(unet: SemiParametricUNet2DModel) -> None:
    tokens = unet.encode_exemplars(draw(2, 1, 8, 8))
    (tokens.keys.square().sum() + tokens.values.square().sum()).backward()
    touched = {name.split(".")[0] for name, p in unet.named_parameters() if p.grad is not None}
    assert touched == {"fusion"}


def test_training_forward_equals_the_sampling_path(
    unet: SemiParametricUNet2DModel, tiny_store: ExemplarStore
) -> None:
    rows, plan = np.array([4, 0, 9, 17, 2]), two_groups()
    samples, timesteps, labels = draw(6, 1, 8, 8), torch.arange(6) * 150, slots_for(unet, 6)
    exemplars = to_model_input(tiny_store.images[rows])
    bank = ExemplarBank.build(tiny_store, unet)
    with torch.no_grad():
        trained = unet(samples, timesteps, exemplars, plan, labels).sample
        context = unet.fusion.context(
            bank.tokens, plan._replace(members=torch.from_numpy(rows)[plan.members])
        )
        sampled = unet.decode(unet.fuse(unet.encode(samples, timesteps, labels), context))
        alone = unet(samples, timesteps, class_labels=labels).sample
    torch.testing.assert_close(sampled, trained, rtol=0, atol=1e-5)
    torch.testing.assert_close(trained[2], alone[2], rtol=0, atol=1e-5)
    assert (trained[[0, 1, 3, 4, 5]] - alone[[0, 1, 3, 4, 5]]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize(
    "plan",
    [
        two_groups(),
        plan_fusion([NULL_GROUP] * 6, [np.arange(2), np.arange(2, 5)]),
        plan_fusion([0] * 6, [np.empty(0, dtype=np.int64)]),
    ],
    ids=["mixed", "all dropped", "no exemplars"],
)
def test_every_parameter_gets_a_gradient(unet: SemiParametricUNet2DModel, plan: FusionPlan) -> None:
    unet.train()
    count = int(plan.members.max()) + 1 if plan.members.numel() else 0
    unet(
        draw(6, 1, 8, 8), torch.arange(6), draw(count, 1, 8, 8), plan, slots_for(unet, 6)
    ).sample.sum().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in unet.parameters())


@pytest.mark.parametrize(
    "options",
    [SHALLOW, {"num_label_slots": 3, "fusion_type": "additive", "pixel_fusion_width": 0.3}],
    ids=["default", "all"],
)
def test_denoising_compiles_to_one_graph(options: dict[str, Any]) -> None:
    """A wait for the device or a branch on data would break the graph."""
    unet = make_unet(**options)

    def denoise(samples: Tensor, timestep: Tensor, context: FusionContext, labels: Tensor | None) -> Tensor:
        encoded: EncodedSample = unet.encode(samples, timestep, labels)
        return unet.decode(unet.fuse(encoded, context)) - unet.decode(unet.fuse(encoded, None))

    with torch.no_grad():
        context = unet.fusion.context(unet.encode_exemplars(draw(5, 1, 8, 8)), two_groups())
        arguments = (draw(6, 1, 8, 8), torch.tensor(300), context, slots_for(unet, 6))
        explained = torch._dynamo.explain(denoise)(*arguments)
        torch._dynamo.reset()
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


def test_class_identity_enters_through_exemplars_only(tiny_unet: SemiParametricUNet2DModel) -> None:
    groups, members = np.array([0, 1, 2, 0, 1, 2]), [np.array([0]), np.array([1, 2]), np.array([3, 4])]
    samples, exemplars = draw(6, 1, 8, 8), draw(5, 1, 8, 8, seed=1)
    renamed = np.array([2, 0, 1])
    moved = [members[int(np.flatnonzero(renamed == group)[0])] for group in range(3)]
    with torch.no_grad():
        named = tiny_unet(samples, 300, exemplars, plan_fusion(groups, members)).sample
        other = tiny_unet(samples, 300, exemplars, plan_fusion(renamed[groups], moved)).sample
        wrong = tiny_unet(samples, 300, exemplars, plan_fusion(renamed[groups], members)).sample
    torch.testing.assert_close(other, named, rtol=0, atol=1e-5)
    assert (wrong - named).abs().max() > 1e-3


def test_save_and_load_keep_every_bit(unet: SemiParametricUNet2DModel, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    loaded = SemiParametricUNet2DModel.from_pretrained(tmp_path)
    arguments = draw(6, 1, 8, 8), 300, draw(5, 1, 8, 8), two_groups(), slots_for(unet, 6)
    assert not loaded.training
    assert digest_state(loaded.state_dict()) == digest_state(unet.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(*arguments).sample, unet(*arguments).sample)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_misuse_is_refused(tiny_unet: SemiParametricUNet2DModel) -> None:
    with pytest.raises(ValueError, match="takes no class labels; build it with num_label_slots"):
        tiny_unet(draw(1, 1, 8, 8), 0, class_labels=torch.tensor([0]))
    with pytest.raises(ValueError, match="pass both or neither"):
        tiny_unet(draw(1, 1, 8, 8), 0, exemplars=draw(5, 1, 8, 8))
    with pytest.raises(ValueError, match="'dot-product' or 'additive', got 'mean'"):
        make_unet(fusion_type="mean")


def test_labels_work_with_fractional_timesteps() -> None:
    """Euler and Heun schedulers of diffusers give floating-point timesteps."""
    unet = make_unet(num_label_slots=3)
    with torch.no_grad():
        fractional = unet(draw(2, 1, 8, 8), torch.tensor(300.0)).sample
        assert torch.equal(fractional, unet(draw(2, 1, 8, 8), torch.tensor(300)).sample)
