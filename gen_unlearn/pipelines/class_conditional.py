"""Sample from a plain class-conditional diffusion model: the parametric reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from torch import Tensor

from gen_unlearn.pipelines.denoising import (
    Generators,
    NoisePredictor,
    StepCallback,
    denoise,
    require_one_image_per_label,
)
from gen_unlearn.pipelines.output import OutputType, convert_samples


class ClassConditionalDDPMPipeline(DiffusionPipeline):
    """Generate images of a class with a diffusers `UNet2DModel` and classifier-free guidance.

    Args:
        unet: a network with ``num_class_embeds = classes + 1``; the last embedding is the null label.
        scheduler: any diffusers scheduler.
    """

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def num_classes(self) -> int:
        """Number of classes that can be asked for."""
        return self.unet.config.num_class_embeds - 1

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | None],
        guidance_scale: float = 1.3,
        num_inference_steps: int = 50,
        generator: Generators = None,
        eta: float = 0.0,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate one image for each entry of `class_labels`; `None` samples under the null label.

        Args and errors are those of `SemiParametricDDPMPipeline`, less what concerns exemplars.
        """
        predict_noise = self.noise_predictor(class_labels, guidance_scale)
        config = self.unet.config
        samples = denoise(
            self,
            predict_noise,
            (len(class_labels), config.in_channels, config.sample_size, config.sample_size),
            num_inference_steps=num_inference_steps,
            generator=generator,
            eta=eta,
            latents=latents,
            callback_on_step_end=callback_on_step_end,
        )
        images = convert_samples(samples, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def noise_predictor(
        self, class_labels: Sequence[int | None], guidance_scale: float = 1.3
    ) -> NoisePredictor:
        """Return what `__call__` denoises with, for one batch of images.

        See `SemiParametricDDPMPipeline.noise_predictor`, less what concerns exemplars.
        """
        null = self.num_classes
        labels = [null if label is None else int(label) for label in class_labels]
        unknown = sorted({label for label in labels if not 0 <= label <= null})
        if unknown:
            raise ValueError(f"expected class labels from 0 to {null - 1}, got {unknown}")
        conditional = torch.tensor(labels, device=self.unet.device)
        guided = guidance_scale != 1 and any(label != null for label in labels)
        both = torch.cat([conditional, torch.full_like(conditional, null)]) if guided else conditional

        @torch.no_grad()
        def predict_noise(samples: Tensor, timestep: Tensor) -> Tensor:
            require_one_image_per_label(samples, len(labels))
            if not guided:
                return self.unet(samples, timestep, both).sample
            with_label, without = self.unet(torch.cat([samples, samples]), timestep, both).sample.chunk(2)
            return without + guidance_scale * (with_label - without)

        return predict_noise
