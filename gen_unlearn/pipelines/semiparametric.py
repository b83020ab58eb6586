"""Sample from a semi-parametric diffusion model, and delete images from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin
from torch import Tensor

from gen_unlearn.bank import ExemplarBank
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.models.fusion import NULL_GROUP, FusionContext, FusionPlan, plan_fusion
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.denoising import (
    Generators,
    NoisePredictor,
    StepCallback,
    denoise,
    require_one_image_per_label,
)
from gen_unlearn.pipelines.output import OutputType, convert_samples
from gen_unlearn.receipts import CORE_PROMISES, DeletionReceipt

OnEmptyClass = Literal["raise", "null"]


class SemiParametricDDPMPipeline(DiffusionPipeline):
    """Generate images from noise and exemplars.

    Args:
        unet: the denoiser.
        scheduler: any diffusers scheduler.
        exemplars: the images that the denoiser looks at. Without them every label is empty.
        core: what the weights were fit on, see `gen_unlearn.core.CoreConfig`; decides the level of receipts.
    """

    _optional_components: ClassVar[list[str]] = ["exemplars"]

    def __init__(
        self,
        unet: SemiParametricUNet2DModel,
        scheduler: SchedulerMixin,
        exemplars: ExemplarStore | None = None,
        core: str = "joint",
    ) -> None:
        super().__init__()
        if core not in CORE_PROMISES:
            raise ValueError(f"expected a core out of {', '.join(CORE_PROMISES)}, got {core!r}")
        self.register_to_config(core=core)
        self.register_modules(unet=unet, scheduler=scheduler, exemplars=exemplars)
        self._bank: ExemplarBank | None = None

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | None],
        exemplars_per_class: int = 32,
        exemplar_seed: int | Sequence[int] = 0,
        guidance_scale: float = 1.3,
        num_inference_steps: int = 50,
        generator: Generators = None,
        eta: float = 0.0,
        on_empty_class: OnEmptyClass = "raise",
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate one image for each entry of `class_labels`.

        Args:
            class_labels: class index of each image; `None` samples from the null token, without exemplars.
            exemplars_per_class: exemplars that an image is conditioned on; a smaller class gives all it has.
            exemplar_seed: which exemplars are drawn, for all images or for each.
            guidance_scale: classifier-free guidance ``null + scale * (exemplars - null)``; 1 turns it off.
            num_inference_steps: denoising steps.
            generator: one for all, or one for each image, which makes image *i* independent of the batch.
            eta: weight of the noise that DDIM adds.
            on_empty_class: what to do for a class without exemplars: ``"raise"``, or sample from the
                ``"null"`` token. Another class is never put in its place.
            latents: noise to start from, ``(images, channels, height, width)``.
            output_type: ``"pil"``, ``"np"``, ``"pt"``, ``"uint8"`` or ``"latent"``; see `convert_samples`.
            return_dict: return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: called after each step, as in every diffusers pipeline.

        Raises:
            ValueError: a label is unknown, or its class has no exemplar left.
        """
        predict_noise = self.noise_predictor(
            class_labels, exemplars_per_class, exemplar_seed, guidance_scale, on_empty_class
        )
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
        self,
        class_labels: Sequence[int | None],
        exemplars_per_class: int = 32,
        exemplar_seed: int | Sequence[int] = 0,
        guidance_scale: float = 1.3,
        on_empty_class: OnEmptyClass = "raise",
    ) -> NoisePredictor:
        """Return what `__call__` denoises with, for one batch of images.

        It keeps the exemplars that it was made with; make a new one after a deletion.

        Args:
            class_labels: class of each noisy image; `None` for the null token.
            exemplars_per_class: see `__call__`, as for the rest.
            exemplar_seed: which exemplars are drawn, for all images or for each.
            guidance_scale: classifier-free guidance; 1 gives the network's own prediction.
            on_empty_class: what to do for a class without exemplars.

        Returns:
            A function of noisy images ``(images, channels, height, width)`` and a timestep, an integer tensor
            ``()``, to the prediction that the scheduler's ``prediction_type`` names, without gradient.

        Raises:
            ValueError: a label is unknown, or its class has no exemplar left.
        """
        labels = [None if label is None else int(label) for label in class_labels]
        seeds = list(exemplar_seed) if isinstance(exemplar_seed, Sequence) else [exemplar_seed] * len(labels)
        if len(seeds) != len(labels):
            raise ValueError(
                f"expected one exemplar seed or {len(labels)}, one for each image, got {len(seeds)}"
            )
        if exemplars_per_class < 1:
            raise ValueError(f"expected at least 1 exemplar per class, got {exemplars_per_class}")
        self._refuse_empty_classes(labels, on_empty_class)
        plan = self._plan(labels, seeds, exemplars_per_class).to(self.unet.device)
        context = None
        if self.exemplars is not None and len(plan.slots):
            self._bank = ExemplarBank.build(self.exemplars, self.unet, self._bank)
            context = self.unet.fusion.context(self._bank.tokens, plan)
        return _NoisePrediction(self.unet, context, guidance_scale, self._label_slots(labels), len(labels))

    @property
    def num_classes(self) -> int:
        """Number of classes that can be asked for, with exemplars or without."""
        return len(self.exemplars.class_names) if self.exemplars is not None else 0

    def delete(self, forget: ForgetSet) -> DeletionReceipt:
        """Delete images from the exemplars; `core` decides the level of the receipt.

        Raises:
            ValueError: the pipeline holds no exemplars, or not all of these; nothing is deleted.
        """
        if self.exemplars is None:
            raise ValueError(
                "this pipeline holds no exemplars; load it with its exemplar store to delete from it"
            )
        receipt = self.exemplars.delete(forget)
        self._bank = None if self._bank is None else self._bank.restrict(self.exemplars)
        artefact, level = CORE_PROMISES[self.config.core]
        return replace(receipt, artefact=artefact, level=level)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        include_exemplars: bool = False,
    ) -> None:
        """Save the pipeline to a folder.

        Args:
            save_directory: folder to write, made if missing.
            safe_serialization: write safetensors.
            variant: diffusers' name of a weights variant, such as ``"fp16"``.
            include_exemplars: save the exemplars too. They are training images, so they travel only if asked.

        Raises:
            ValueError: exemplars are not to be saved, but the folder holds some.
        """
        if not include_exemplars and (Path(save_directory) / "exemplars").exists():
            raise ValueError(
                f"{save_directory} holds exemplars of an earlier save; pass include_exemplars=True to "
                f"replace them, or save to another folder"
            )
        exemplars = self.exemplars if include_exemplars else None
        saved = SemiParametricDDPMPipeline(self.unet, self.scheduler, exemplars, self.config.core)
        super(SemiParametricDDPMPipeline, saved).save_pretrained(
            save_directory, safe_serialization=safe_serialization, variant=variant
        )

    def _refuse_empty_classes(self, labels: list[int | None], on_empty_class: OnEmptyClass) -> None:
        if on_empty_class not in ("raise", "null"):
            raise ValueError(f"expected on_empty_class 'raise' or 'null', got {on_empty_class!r}")
        wanted = sorted({label for label in labels if label is not None})
        if wanted and self.exemplars is None:
            raise ValueError(
                "this pipeline was loaded without its exemplars, which classes come from; load it with its "
                "exemplar store, or ask for None to sample from the null token"
            )
        unknown = [label for label in wanted if not 0 <= label < self.num_classes]
        if unknown:
            raise ValueError(f"expected class labels from 0 to {self.num_classes - 1}, got {unknown}")
        if on_empty_class == "null" or self.exemplars is None:
            return
        held = set(self.exemplars.labels.tolist())
        empty = [f"{label} ({self.exemplars.class_names[label]})" for label in wanted if label not in held]
        if empty:
            raise ValueError(
                f"no exemplar is left of class {', '.join(empty)}; ask for another class, or "
                f"sample from the null token (on_empty_class='null'; --null on the command line)"
            )

    def _plan(self, labels: list[int | None], seeds: list[int], count: int) -> FusionPlan:
        """Group the images by label and exemplar seed, and draw the exemplars of each group."""
        groups = sorted(
            {(label, seed) for label, seed in zip(labels, seeds, strict=True) if label is not None}
        )
        index = {group: position for position, group in enumerate(groups)}
        members = [
            np.empty(0, dtype=np.int64) if self.exemplars is None else self.exemplars.draw(label, count, seed)
            for label, seed in groups
        ]
        group_of_query = [
            NULL_GROUP if label is None else index[label, seed]
            for label, seed in zip(labels, seeds, strict=True)
        ]
        return plan_fusion(group_of_query, members)

    def _label_slots(self, labels: list[int | None]) -> Tensor | None:
        """Return the label slot of each image, for networks that take one."""
        null = self.unet.config.num_label_slots
        if null is None:
            return None
        held = set() if self.exemplars is None else set(self.exemplars.labels.tolist())
        slots = [label if label is not None and label in held else null for label in labels]
        return torch.tensor(slots, device=self.unet.device)


class _NoisePrediction:
    """Predict noise under exemplars, guided away from the prediction without them.

    Without a label embedding both predictions share one pass through the encoder, which guidance would
    otherwise run twice.
    """

    def __init__(
        self,
        unet: SemiParametricUNet2DModel,
        context: FusionContext | None,
        guidance_scale: float,
        label_slots: Tensor | None,
        images: int,
    ) -> None:
        self.unet = unet
        self.context = context
        self.guidance_scale = guidance_scale
        self.label_slots = label_slots
        self.images = images

    @torch.no_grad()
    def __call__(self, samples: Tensor, timestep: Tensor) -> Tensor:
        require_one_image_per_label(samples, self.images)
        unet = self.unet
        encoded = unet.encode(samples, timestep, self.label_slots)
        conditional = unet.decode(unet.fuse(encoded, self.context))
        if self.context is None or self.guidance_scale == 1:
            return conditional
        if self.label_slots is not None:
            encoded = unet.encode(samples, timestep)
        unconditional = unet.decode(unet.fuse(encoded, None))
        return unconditional + self.guidance_scale * (conditional - unconditional)
