"""Laws of the bank: exemplars are encoded once, and never by weights that are no longer there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from gen_unlearn.bank import ExemplarBank
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import image_ids


@pytest.fixture
def encoded(tiny_unet: SemiParametricUNet2DModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the number of exemplars in each call of the real encoder."""
    counts: list[int] = []
    original = tiny_unet.encode_exemplars

    def count(images: Tensor) -> object:
        counts.append(len(images))
        return original(images)

    monkeypatch.setattr(tiny_unet, "encode_exemplars", count)
    return counts


def draw(pipeline: SemiParametricDDPMPipeline, steps: int = 2) -> Tensor:
    start = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": steps, "output_type": "latent", "on_empty_class": "null"}
    return pipeline([0, 1, 2], latents=start, **options).images


def fresh(pipeline: SemiParametricDDPMPipeline) -> SemiParametricDDPMPipeline:
    """A pipeline of the same parts, which has encoded nothing yet."""
    other = SemiParametricDDPMPipeline(pipeline.unet, pipeline.scheduler, pipeline.exemplars)
    other.set_progress_bar_config(disable=True)
    return other


def assert_bank(pipeline: SemiParametricDDPMPipeline) -> None:
    """The pipeline's bank holds exactly what encoding its store now would give."""
    kept = ExemplarBank.build(pipeline.exemplars, pipeline.unet, pipeline._bank)
    anew = ExemplarBank.build(pipeline.exemplars, pipeline.unet)
    assert np.array_equal(kept.ids, anew.ids)
    for ours, theirs in zip(kept.tokens, anew.tokens, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_exemplars_are_encoded_once_and_not_while_denoising(
    tiny_pipeline: SemiParametricDDPMPipeline, encoded: list[int]
) -> None:
    draw(tiny_pipeline, steps=2)
    assert encoded == [30]
    draw(tiny_pipeline, steps=5)
    assert encoded == [30]


def test_only_new_images_are_encoded(
    few_images: IndexedImages, tiny_pipeline: SemiParametricDDPMPipeline, encoded: list[int]
) -> None:
    request = ForgetSet.from_ids(few_images, few_images.ids[:7], "test")
    draw(tiny_pipeline)
    tiny_pipeline.delete(request)
    draw(tiny_pipeline)
    assert encoded == [30]
    tiny_pipeline.exemplars.add(few_images.select(np.arange(4)))
    draw(tiny_pipeline)
    assert encoded == [30, 4]
    assert_bank(tiny_pipeline)


def test_a_deletion_drops_the_encoded_images_at_once(
    few_images: IndexedImages, tiny_pipeline: SemiParametricDDPMPipeline
) -> None:
    draw(tiny_pipeline)
    request = ForgetSet.from_ids(few_images, few_images.ids[:7], "test")
    tiny_pipeline.delete(request)
    bank = tiny_pipeline._bank
    assert bank is not None
    assert not request.mask(bank.ids).any()
    assert len(bank.tokens.keys) == len(bank.tokens.values) == len(bank.ids) == 23
    assert_bank(tiny_pipeline)


def delete_some(data: IndexedImages, store: ExemplarStore) -> None:
    store.delete(ForgetSet.from_ids(data, data.ids[3:9], "test"))


def delete_everything(data: IndexedImages, store: ExemplarStore) -> None:
    store.delete(ForgetSet(data.ids, "test"))


def delete_and_add(data: IndexedImages, store: ExemplarStore) -> None:
    store.delete(ForgetSet.from_ids(data, data.ids[3:9], "test"))
    store.add(data.select(np.arange(3, 5)))


def add_under_another_label(data: IndexedImages, store: ExemplarStore) -> None:
    store.add(replace(data, labels=(data.labels + 1) % 3))


def load_other_images(data: IndexedImages, store: ExemplarStore) -> None:
    """Overwrite the rows in place with as many other images."""
    images = 255 - data.images
    other = ExemplarStore.from_images(replace(data, images=images, ids=image_ids(images)))
    store.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "change", [delete_some, delete_everything, delete_and_add, add_under_another_label, load_other_images]
)
def test_the_bank_follows_a_store_that_changes_by_itself(
    few_images: IndexedImages,
    tiny_pipeline: SemiParametricDDPMPipeline,
    change: Callable[[IndexedImages, ExemplarStore], None],
) -> None:
    draw(tiny_pipeline)
    change(few_images, tiny_pipeline.exemplars)
    torch.testing.assert_close(draw(tiny_pipeline), draw(fresh(tiny_pipeline)), rtol=0, atol=1e-5)


def step_in_place(unet: SemiParametricUNet2DModel) -> None:
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.5)


def load_state(unet: SemiParametricUNet2DModel) -> None:
    unet.load_state_dict({name: 1.5 * value for name, value in unet.state_dict().items()})


def load_assigned_state(unet: SemiParametricUNet2DModel) -> None:
    unet.load_state_dict({name: 1.5 * value for name, value in unet.state_dict().items()}, assign=True)


def copy_averaged_weights(unet: SemiParametricUNet2DModel) -> None:
    """Do as diffusers' training scripts do before they sample: swap the averaged weights in."""
    average = EMAModel([1.5 * parameter.detach() for parameter in unet.parameters()])
    average.copy_to(unet.parameters())


def train_fused(unet: SemiParametricUNet2DModel) -> None:
    optimizer = torch.optim.AdamW(unet.parameters(), lr=0.1, fused=True)
    for parameter in unet.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def replace_one_parameter(unet: SemiParametricUNet2DModel) -> None:
    unet.unet.conv_in.weight = torch.nn.Parameter(1.5 * unet.unet.conv_in.weight.detach())


@pytest.mark.parametrize(
    "change",
    [
        step_in_place,
        load_state,
        load_assigned_state,
        copy_averaged_weights,
        train_fused,
        replace_one_parameter,
    ],
)
def test_a_bank_of_other_weights_is_not_used(
    tiny_pipeline: SemiParametricDDPMPipeline, change: Callable[[SemiParametricUNet2DModel], None]
) -> None:
    before = draw(tiny_pipeline)
    change(tiny_pipeline.unet)
    after = draw(tiny_pipeline)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, draw(fresh(tiny_pipeline)), rtol=0, atol=1e-5)


def test_a_bank_of_another_network_is_not_used(tiny_pipeline: SemiParametricDDPMPipeline) -> None:
    draw(tiny_pipeline)
    torch.manual_seed(9)
    tiny_pipeline.unet = SemiParametricUNet2DModel.from_config(tiny_pipeline.unet.config).eval()
    torch.testing.assert_close(draw(tiny_pipeline), draw(fresh(tiny_pipeline)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moving_a_pipeline_leaves_the_store_alone(
    tiny_pipeline: SemiParametricDDPMPipeline, dtype: torch.dtype
) -> None:
    store = tiny_pipeline.exemplars
    digest, images = store.digest, store.images.copy()
    before = draw(tiny_pipeline)
    tiny_pipeline.to(dtype)
    after = draw(tiny_pipeline)
    assert after.dtype == dtype
    tolerance = 1e-3 if dtype == torch.float64 else 0.2
    torch.testing.assert_close(after.float(), before, rtol=0, atol=tolerance)
    store.half().to("meta")
    assert (store.digest, store.pixels.dtype) == (digest, torch.uint8)
    assert np.array_equal(store.images, images)
