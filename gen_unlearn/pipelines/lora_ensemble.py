"""Sample from a frozen denoiser with many LoRA adapters, each trained on a few of the images."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, SchedulerMixin
from torch import Tensor

from gen_unlearn.adapters.family import AdapterState
from gen_unlearn.adapters.lora_config import Composition, LoraConfig
from gen_unlearn.adapters.serving import ServedAdapters
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.frozen_denoiser import NULL_CLASS, FrozenDenoiser, Network
from gen_unlearn.models.semiparametric_denoiser import freeze
from gen_unlearn.models.text_conditioning import ClassPrompts
from gen_unlearn.pipelines.denoising import Generators, NoisePredictor, StepCallback, denoise
from gen_unlearn.pipelines.lora_choice import AdapterRequest, AdapterSamples, checked_labels
from gen_unlearn.pipelines.lora_composition import (
    AdaptedNetwork,
    ChosenAdapters,
    DrawnExemplars,
    MergedPrediction,
)
from gen_unlearn.pipelines.lora_files import load_adapters, refuse_adapters, save_adapters
from gen_unlearn.pipelines.lora_mixture import mixture
from gen_unlearn.pipelines.output import OutputType, convert_samples

_PLAIN = LoraConfig()


class AdapterEnsembleDDPMPipeline(DiffusionPipeline):
    """Generate images with a frozen denoiser and, for each image, one or a few of many adapters.

    Adapters may be replaced while others sample: a batch is denoised by those before or those after.

    Args:
        unet: the frozen denoiser, see `gen_unlearn.models.semiparametric_denoiser.freeze`.
        scheduler: any diffusers scheduler that was made from the noise schedule of training.
        router: the public encoder and keys of the adapters; for query images and mixtures.
        class_names: names of all classes.
        rank: of the adapters.
        alpha: what adapters add is scaled by ``alpha / rank``.
        targets: ends of the names of the layers that have adapters; those of `LoraConfig` by default.
        vae: between images and what is denoised.
        prompts: what tells a text-to-image denoiser the classes.
        exemplars: what a semi-parametric denoiser looks at; deletable images.
    """

    _optional_components: ClassVar[list[str]] = ["router", "vae", "prompts", "exemplars"]

    def __init__(
        self,
        unet: Network,
        scheduler: SchedulerMixin,
        router: AdapterBackbone | None = None,
        class_names: list[str] | None = None,
        rank: int = _PLAIN.rank,
        alpha: float = _PLAIN.alpha,
        targets: list[str] | None = None,
        vae: AutoencoderKL | None = None,
        prompts: ClassPrompts | None = None,
        exemplars: ExemplarStore | None = None,
    ) -> None:
        super().__init__()
        names, ends = list(class_names or ()), tuple(targets or _PLAIN.targets)
        self.lora = LoraConfig(rank=rank, alpha=alpha, targets=ends)
        self.register_to_config(class_names=names, rank=rank, alpha=alpha, targets=list(ends))
        self.register_modules(
            unet=unet, scheduler=scheduler, router=router, vae=vae, prompts=prompts, exemplars=exemplars
        )
        noise = DDPMScheduler.from_config(scheduler.config)
        self._denoiser = freeze(unet, noise, len(names), vae, prompts)
        self._adapters = ServedAdapters({}, np.zeros((0, len(names)), dtype=np.int64))
        self._replacing = threading.Lock()

    @property
    def adapters(self) -> ServedAdapters:
        """The adapters that answer; none until they are set, or loaded with `load_adapters`."""
        return self._adapters

    @adapters.setter
    def adapters(self, served: ServedAdapters) -> None:
        """Answer with other adapters from now on."""
        if served.members.shape[1] != self.num_classes:
            raise ValueError(
                f"expected members of {self.num_classes} classes, those of the pipeline, got "
                f"{served.members.shape[1]}; count them with gen_unlearn.adapters.serving.count_members"
            )
        keys = len(served.members) if self.router is None else len(self.router.key_codes)
        if len(served.members) != keys:
            raise ValueError(
                f"expected {keys} adapters, one for each key, got {len(served.members)}; take both from a run"
            )
        with self._replacing:
            self._adapters = served

    def swap(self, adapter: int, state: AdapterState | None, members: np.ndarray) -> None:
        """Put another adapter in the place of one, such as a rebuilt one; who samples keeps those before.

        Args:
            adapter: its number.
            state: what answers from now on; `None` while it waits to be rebuilt.
            members: its records of each class, int64 ``(classes,)``.
        """
        with self._replacing:
            self._adapters = self._adapters.replaced(adapter, state, members)

    def load_adapters(self, folder: str | os.PathLike) -> None:
        """Answer with the adapters that `save_pretrained` saved to a folder with ``include_adapters=True``.

        Raises:
            ValueError: there are none, a file is damaged, or they are those of another ensemble.
        """
        self.adapters = load_adapters(Path(folder), self.lora)

    @property
    def denoiser(self) -> FrozenDenoiser:
        """The frozen denoiser that the components make."""
        made, parts = self._denoiser, (self.unet, self.vae, self.prompts)
        if any(
            part is not other
            for part, other in zip(parts, (made.network, made.vae, made.prompts), strict=True)
        ):
            self._denoiser = freeze(self.unet, made.noise, self.num_classes, self.vae, self.prompts)
        return self._denoiser

    @property
    def num_classes(self) -> int:
        """Number of classes that can be asked for."""
        return len(self.config.class_names)

    @property
    def served_classes(self) -> list[int]:
        """Classes with members at an adapter that answers."""
        return self.adapters.served_classes

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | None],
        query_images: np.ndarray | None = None,
        adapters: Sequence[int] | np.ndarray | None = None,
        composition: Composition = "route",
        adapters_per_image: int = 2,
        adapter_seed: int | Sequence[int] = 0,
        exemplars_per_class: int = 32,
        exemplar_seed: int | Sequence[int] = 0,
        guidance_scale: float = 1.3,
        num_inference_steps: int = 50,
        generator: Generators = None,
        eta: float = 0.0,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> AdapterSamples | tuple:
        """Generate one image for each entry of `class_labels`.

        Adapters are drawn in proportion to their members, of the image's class or of all; or they are those
        with the keys nearest to a query image; or given. An adapter that waits to be rebuilt never answers.

        Args:
            class_labels: class index of each image; `None` for any. A denoiser without classes takes them for
                the choice of adapters alone.
            query_images: one for each image, uint8 ``(images, height, width, channels)``.
            adapters: number of the adapter of each image, or of several, ``(images, k)``.
            composition: ``"route"`` samples an image with one adapter, and ``"mean"`` with the mean of what a
                few add to the weights, both in one evaluation of the network for each step; ``"mixture"``
                mixes their scores, see `MixturePrediction`, in as many evaluations as there are adapters.
            adapters_per_image: adapters of a mean or a mixture; a class that fewer have members of gives all.
            adapter_seed: which adapters are drawn: of each image, or one seed, of which each image of the
                batch gets its own.
            exemplars_per_class: exemplars that a semi-parametric denoiser is conditioned on; where a class
                has none left, it has the null token.
            exemplar_seed: which exemplars are drawn, for all images or for each.
            guidance_scale: classifier-free guidance; 1 turns it off.
            num_inference_steps: denoising steps.
            generator: one for all, or one for each image, which makes image *i* independent of the batch.
            eta: weight of the noise that DDIM adds.
            latents: noise to start from, ``(images, channels, height, width)``.
            output_type: see `convert_samples`.
            return_dict: return `AdapterSamples` instead of a tuple.
            callback_on_step_end: called after each step, as in every diffusers pipeline.

        Raises:
            ValueError: a label is unknown; no adapter that answers has members of its class; an adapter that
                is given does not answer; or guidance is asked of a denoiser without a null class.
        """
        served, labels = self.adapters, checked_labels(self.denoiser, class_labels, guidance_scale)
        request = AdapterRequest(
            labels, query_images, adapters, composition, adapters_per_image, adapter_seed
        )
        chosen = request.choose(served, self.router)
        drawn = DrawnExemplars.of(self.exemplars, exemplars_per_class, exemplar_seed, len(labels))
        samples = denoise(
            self,
            self._predictor(served, request, chosen, guidance_scale, drawn),
            (len(labels), *self.denoiser.sample_shape),
            num_inference_steps=num_inference_steps,
            generator=generator,
            eta=eta,
            latents=latents,
            callback_on_step_end=callback_on_step_end,
        )
        samples = samples if output_type == "latent" else self.denoiser.decode(samples)
        images = convert_samples(samples, output_type)
        masked = np.array([served.masked_share(label) for label in labels])
        found = AdapterSamples(images=images, adapters=chosen.numbers, masked_shares=masked)
        return found if return_dict else found.to_tuple()

    @torch.no_grad()
    def noise_predictor(
        self,
        class_labels: Sequence[int | None],
        guidance_scale: float = 1.3,
        query_images: np.ndarray | None = None,
        adapters: Sequence[int] | np.ndarray | None = None,
        composition: Composition = "route",
        adapters_per_image: int = 2,
        adapter_seed: int | Sequence[int] = 0,
        exemplars_per_class: int = 32,
        exemplar_seed: int | Sequence[int] = 0,
    ) -> NoisePredictor:
        """Return what `__call__` denoises with, for one batch of images; arguments and errors are its own.

        It keeps the adapters that it was made with; make a new one after a deletion.
        """
        served, labels = self.adapters, checked_labels(self.denoiser, class_labels, guidance_scale)
        request = AdapterRequest(
            labels, query_images, adapters, composition, adapters_per_image, adapter_seed
        )
        drawn = DrawnExemplars.of(self.exemplars, exemplars_per_class, exemplar_seed, len(labels))
        return self._predictor(served, request, request.choose(served, self.router), guidance_scale, drawn)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        include_adapters: bool = False,
    ) -> None:
        """Save the pipeline to a folder.

        Args:
            save_directory: folder to write, made if missing.
            safe_serialization: write safetensors.
            variant: diffusers' name of a weights variant, such as ``"fp16"``.
            include_adapters: save adapters and exemplars too, for `load_adapters`. They come from deletable
                images, so they travel only if asked.

        Raises:
            ValueError: adapters are not to be saved, but the folder holds some.
        """
        if not include_adapters:
            refuse_adapters(Path(save_directory))
        settings = {name: self.config[name] for name in ("class_names", "rank", "alpha", "targets")}
        saved = AdapterEnsembleDDPMPipeline(
            self.unet,
            self.scheduler,
            self.router,
            vae=self.vae,
            prompts=self.prompts,
            exemplars=self.exemplars if include_adapters else None,
            **settings,
        )
        super(AdapterEnsembleDDPMPipeline, saved).save_pretrained(
            save_directory, safe_serialization=safe_serialization, variant=variant
        )
        if include_adapters:
            save_adapters(self.adapters, self.lora, Path(save_directory))

    def _predictor(
        self,
        served: ServedAdapters,
        request: AdapterRequest,
        chosen: ChosenAdapters,
        guidance_scale: float,
        exemplars: DrawnExemplars,
    ) -> NoisePredictor:
        labels = [NULL_CLASS if label is None else label for label in request.labels]
        network = AdaptedNetwork(
            self.denoiser,
            self.lora,
            served.states,
            chosen.numbers,
            np.array(labels, dtype=np.int64),
            guidance_scale,
            exemplars,
        )
        if request.composition != "mixture":
            return MergedPrediction(network, chosen)
        return mixture(network, chosen, self.router)
