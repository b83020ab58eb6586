"""Laws of pixel fusion: it is the posterior mean of a kernel density over a query's own exemplars."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gen_unlearn.models.fusion import NULL_GROUP, ExemplarTokens, FusionBlock, FusionContext, plan_fusion
from gen_unlearn.models.pixel_fusion import PATCH_SIDES, PixelFusion
from gen_unlearn.pipelines.noise_config import NoiseConfig

WIDTH = 0.3
GROUPS, MEMBERS = (
    [0, 1, NULL_GROUP, 0, 1, 0, 2],
    [np.array([0, 3]), np.array([1, 2, 4]), np.empty(0, np.int64)],
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def fusion() -> PixelFusion:
    torch.manual_seed(0)
    fusion = PixelFusion(image_channels=2, channels=8, width=WIDTH, num_timesteps=1000)
    fusion.set_noise_schedule(NoiseConfig().build().alphas_cumprod)
    return fusion


def context_of(pixels: Tensor) -> FusionContext:
    keys = torch.zeros(len(pixels), 1, 1, 4)
    plan = plan_fusion(GROUPS, MEMBERS)
    return FusionBlock(4, 1, 1).context(ExemplarTokens(keys, keys, pixels), plan)


def test_noise_is_that_of_the_posterior_mean_over_the_exemplars_of_the_group(fusion: PixelFusion) -> None:
    """Against the posterior of a Gaussian mixture, in float64 and one query at a time."""
    samples, pixels, timesteps = draw(7, 2, 4, 4), draw(5, 2, 4, 4, seed=1), torch.arange(7) * 160 + 3
    _, noise = fusion(samples, timesteps, context_of(pixels))
    signal = NoiseConfig().build().alphas_cumprod.double()[timesteps]
    for query, group in enumerate(GROUPS):
        members = [] if group == NULL_GROUP else MEMBERS[group]
        if not len(members):
            assert not noise[query].any()
            continue
        x, e, a2 = samples[query].double().flatten(), pixels[members].double().flatten(1), signal[query]
        variance = 1 - a2 + a2 * WIDTH**2
        weights = (-(x - a2.sqrt() * e).square().sum(1) / (2 * variance)).softmax(0)
        clean = e + a2.sqrt() * WIDTH**2 / variance * (x - a2.sqrt() * e)
        expected = (x - a2.sqrt() * (weights @ clean)) / (1 - a2).sqrt()
        torch.testing.assert_close(noise[query].double().flatten(), expected, rtol=0, atol=1e-5)


def test_patches_are_weighed_each_by_itself(fusion: PixelFusion) -> None:
    """Far from every border, the patch means are the mean of the patch cut out."""
    samples, pixels = draw(7, 2, 7, 7), draw(5, 2, 7, 7, seed=1)
    signal = torch.linspace(0.1, 0.9, 7)[:, None, None, None]
    whole, *patches = fusion.means(samples, signal, context_of(pixels))
    for mean, side in zip(patches, PATCH_SIDES, strict=True):
        start, stop = 3 - side // 2, 4 + side // 2
        cut = np.s_[:, :, start:stop, start:stop]
        alone = fusion.means(samples[cut], signal, context_of(pixels[cut]))[0]
        torch.testing.assert_close(mean[:, :, 3, 3], alone[:, :, side // 2, side // 2], rtol=0, atol=1e-5)
        assert (mean - whole)[0].abs().max() > 1e-3


def test_an_image_without_exemplars_sees_none(fusion: PixelFusion) -> None:
    samples, timesteps = draw(7, 2, 4, 4), torch.zeros(7, dtype=torch.long)
    features, _ = fusion(samples, timesteps, context_of(draw(5, 2, 4, 4, seed=1)))
    alone, noise = fusion(samples, timesteps, None)
    assert torch.equal(features[[2, 6]], alone[[2, 6]])
    assert (features - alone)[[0, 1, 3, 4, 5]].abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert not noise.any()


def test_a_forgotten_noise_schedule_does_not_pass_unnoticed() -> None:
    fusion = PixelFusion(image_channels=2, channels=8, width=WIDTH, num_timesteps=1000)
    _, noise = fusion(draw(7, 2, 4, 4), torch.zeros(7, dtype=torch.long), context_of(draw(5, 2, 4, 4)))
    assert noise[[0, 1]].isnan().all()
