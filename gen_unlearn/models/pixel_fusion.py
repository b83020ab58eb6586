"""Pixel fusion: what the exemplars alone say about a noisy image, as a start for the network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_unlearn.models.fusion import FusionContext

PATCH_SIDES = (3, 5)
"""Sides of the patches, in pixels, whose means the network sees beside that of the whole image."""


class PixelFusion(nn.Module):
    """Predict the noise from exemplars without learning, and show the network what that rests on.

    Take the clean image to be one of the exemplars `e_i` plus a Gaussian of standard deviation `h` in every
    pixel. For ``x = a e + s ε``, with ``a² = ᾱ`` and ``s² = 1 - ᾱ``, the best guess is then::

        w_i ∝ exp(-|x - a e_i|² / (2 (s² + a² h²))),  m = Σ w_i e_i,  ε = s (x - a m) / (s² + a² h²)

    (a kernel density estimate under noise). It holds for classes that the network never saw: the network
    adds to `ε`, so what it learns is what exemplars do not tell. It sees `m`, and what `m` would be in each
    pixel if only a patch around it counted.

    Args:
        image_channels: channels of the images.
        channels: channels of the outermost features, which those of the means are added to.
        width: the `h` above, for pixels in [-1, 1].
        num_timesteps: length of the noise schedule; `set_noise_schedule` says what it is.
    """

    def __init__(self, image_channels: int, channels: int, width: float, num_timesteps: int) -> None:
        super().__init__()
        self.width = width
        seen = image_channels * (1 + len(PATCH_SIDES)) + 1
        self.to_features = nn.Conv2d(seen, channels, kernel_size=3, padding=1)
        self.signal: Tensor
        self.register_buffer("signal", torch.full((num_timesteps,), torch.nan))

    def set_noise_schedule(self, alphas_cumprod: Tensor) -> None:
        """Take over `ᾱ` of every timestep, from the schedule that the network is trained with."""
        self.signal.copy_(alphas_cumprod)

    def forward(
        self, sample: Tensor, timesteps: Tensor, context: FusionContext | None
    ) -> tuple[Tensor, Tensor]:
        """Return features of the means to add to the outermost ones, and the noise; 0 without exemplars.

        Args:
            sample: noisy images, ``(batch, channels, height, width)``.
            timesteps: int64 ``(batch,)``.
            context: the exemplars; `None` means none for any image.
        """
        present, noise = torch.zeros_like(sample[:, :1]), torch.zeros_like(sample)
        means = [noise] * (1 + len(PATCH_SIDES))
        if context is not None:
            signal = self.signal[timesteps].float()[:, None, None, None]
            with torch.autocast(sample.device.type, enabled=False):
                means = self.means(sample.float(), signal, context)
            held = (context.cells < context.slots.numel())[:, None, None, None]
            noise = (1 - signal).sqrt() / self._variance(signal) * (sample - signal.sqrt() * means[0])
            present, noise = present + held.to(present.dtype), torch.where(held, noise, 0).to(sample.dtype)
        return self.to_features(torch.cat([*(mean.to(sample.dtype) for mean in means), present], 1)), noise

    @torch.no_grad()
    def means(self, sample: Tensor, signal: Tensor, context: FusionContext) -> list[Tensor]:
        """Return `m` of whole images and of patches, each ``(batch, channels, height, width)``.

        Args:
            sample: noisy images, ``(batch, channels, height, width)``.
            signal: `ᾱ` of each, ``(batch, 1, 1, 1)``.
            context: the exemplars. The means of an image without any are 0.
        """
        assert context.pixels is not None, "a network with pixel fusion keeps the pixels of its exemplars"
        exemplars, chosen = context.pixels.float(), context.slots.reshape(-1)
        queries, signal = (
            part.index_select(0, chosen).unflatten(0, context.slots.shape) for part in (sample, signal)
        )
        # -|x - a e|² / 2 in each pixel, without |x|², which is the same for every exemplar.
        energy = signal.sqrt() * torch.einsum("rqchw,rmchw->rqmhw", queries, exemplars)
        energy = energy - signal * exemplars.square().sum(2)[:, None] / 2
        energy = energy / self._variance(signal)
        absent = ~context.present[:, None, :, None, None]
        means = []
        for weights in (
            energy.sum((3, 4), keepdim=True),
            *(_patch_sums(energy, side) for side in PATCH_SIDES),
        ):
            weights = weights.masked_fill(absent, -torch.inf).softmax(dim=2).expand_as(energy)
            mean = torch.einsum("rqmhw,rmchw->rqchw", weights, exemplars).flatten(0, 1)
            null = mean.new_zeros(1, *mean.shape[1:])
            means.append(torch.cat([mean, null]).index_select(0, context.cells))
        return means

    def _variance(self, signal: Tensor) -> Tensor:
        return 1 - signal + signal * self.width**2


def _patch_sums(values: Tensor, side: int) -> Tensor:
    """Sum ``(rows, queries, members, height, width)`` over the patch around each pixel, cut at the border."""
    rows = F.avg_pool2d(values.flatten(0, 2)[:, None], side, stride=1, padding=side // 2, divisor_override=1)
    return rows.reshape(values.shape)
