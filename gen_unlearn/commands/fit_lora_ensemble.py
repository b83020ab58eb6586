"""The training of an adapter ensemble that generates: backbone and router on the core, then LoRA adapters."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace

from accelerate import Accelerator
from torch import nn

from gen_unlearn.adapters.encoding import encode_records
from gen_unlearn.adapters.lora_recipe import lora_recipe
from gen_unlearn.adapters.strict import strict_arithmetic
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.fit_generator import GeneratorTraining
from gen_unlearn.commands.fit_router import RouterTraining, require_public_core
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.config import RunConfig
from gen_unlearn.core import CoreConfig, CoreSplit
from gen_unlearn.models.classifier_config import ClassifierConfig
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.models.semiparametric_denoiser import SemiParametricDenoiser, freeze
from gen_unlearn.models.stacked_lora import lora_layers
from gen_unlearn.pipelines.lora_loading import lora_pipeline, named_backbone
from gen_unlearn.run_paths import RunPaths
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress, TrainingInterruptedError
from gen_unlearn.training.diffusion_config import TrainingConfig


@dataclass(frozen=True)
class LoraEnsembleTraining:
    """Everything that the training of an adapter ensemble that generates needs.

    Attributes:
        config: the recipe.
        given: the backbone, if its weights are named; else `None`.
        backbone: trains the backbone otherwise.
        router: trains the router's encoder, and chooses the keys.
        parts: the public core, and what the adapters are fit on.
        accelerator: device, precision and trackers.
    """

    config: RunConfig
    given: FrozenDenoiser | None
    backbone: GeneratorTraining | None
    router: RouterTraining
    parts: CoreSplit
    accelerator: Accelerator

    @classmethod
    def of(cls, config: RunConfig, parts: CoreSplit, accelerator: Accelerator) -> LoraEnsembleTraining:
        """Set up the training of a recipe.

        Raises:
            ValueError: core and deletable images overlap, the core has too few images for so many keys, a
                training cannot work, the backbone that is given does not fit the images, or the backbone
                takes no such adapters.
        """
        with strict_arithmetic(accelerator.device):
            pass  # What the adapters will need is refused now if it is not there.
        adapters, core = config.model.adapters, parts.core
        require_public_core(parts, adapters.count, adapters.keys)
        router = RouterTraining.of(_of_router(config), adapters.count, adapters.keys, core, accelerator)
        if config.model.weights is not None:
            given = named_backbone(config, core.class_names, core.image_shape)
            _require_kind(config, given)
            _require_adaptable(config, given)
            return cls(config, given, None, router, parts, accelerator)
        training = replace(config.training, checkpoint_images=_up_to_the_end(config.training))
        on_core = replace(config, model=config.model.of_backbone, core=CoreConfig(), training=training)
        backbone = GeneratorTraining.of(on_core, CoreSplit(core, core), accelerator)
        copied = copy.deepcopy(backbone.network)  # It is frozen, and this one is to be trained.
        _require_adaptable(config, freeze(copied, config.noise.build(), len(core.class_names)))
        return cls(config, None, backbone, router, parts, accelerator)

    @property
    def network(self) -> nn.Module:
        """The backbone."""
        if self.backbone is not None:
            return self.backbone.network
        assert self.given is not None, "a backbone that is not trained is given"
        return self.given.network

    def require_samples(self) -> None:
        """Raise a ValueError if the recipe could be trained, but not sampled from as it says.

        How images are sampled can be changed later, so that a run which was trained is not asked.
        """
        if self.given is None:
            return
        sampling, steps = self.config.sampling, self.given.noise.config.num_train_timesteps
        if sampling.guidance_scale != 1 and not self.given.has_null_class:
            raise ValueError(
                f"expected sampling.guidance_scale 1 for a backbone without a null class, got "
                f"{sampling.guidance_scale}; set it to 1"
            )
        if sampling.num_inference_steps > steps:
            raise ValueError(
                f"expected sampling.num_inference_steps of at most {steps}, the timesteps of the backbone in "
                f"{self.config.model.weights}, got {sampling.num_inference_steps}; set it lower"
            )

    def fit(self, checkpoints: CheckpointFolder | None, description: str) -> tuple[TrainedEnsemble, Progress]:
        """Train the backbone on the core unless its weights are named, then the router, then the adapters.

        Returns:
            The ensemble, and the steps, seconds and loss that it took; without a training the loss is 0.
        """
        config, router, deletable = self.config, self.router.network, self.parts.deletable
        denoiser, progress = self._frozen(checkpoints, description)
        started = time.perf_counter()
        pipeline = lora_pipeline(config, denoiser, router, deletable.class_names)
        self.router.fit(None, f"{description} router")
        pipeline.to(self.accelerator.device)
        size = deletable.image_shape[:2]
        rows = encode_records(router, deletable, config.model.adapters.neighbours, size)
        recipe = lora_recipe(
            config,
            router.public_keys(),
            deletable.class_names,
            deletable.image_shape,
            denoiser.digest,
            lambda: pipeline.denoiser,
        )
        kept = None if checkpoints is None else checkpoints.path / RunPaths.adapters_name
        trained = TrainedEnsemble(pipeline, recipe, rows, size, kept)
        try:
            _ = trained.adapters  # They are fit here, so that their time counts.
        except KeyboardInterrupt as error:
            done = 0 if kept is None else len(list(kept.glob("*.safetensors")))
            filled = sum(len(rows) > 0 for rows in trained.members.values())
            raise TrainingInterruptedError(done, filled, "adapters") from error
        return trained, replace(progress, seconds=progress.seconds + time.perf_counter() - started)

    def _frozen(
        self, checkpoints: CheckpointFolder | None, description: str
    ) -> tuple[FrozenDenoiser, Progress]:
        """Return the backbone, trained if it is not given; it is frozen from then on."""
        if self.given is not None:
            return self.given, Progress(loss=0.0)
        assert self.backbone is not None, "a backbone that is not given is trained"
        trained, progress = self.backbone.fit(checkpoints, description)
        classes = len(self.parts.core.class_names)
        return freeze(trained.unet, self.config.noise.build(), classes), progress


def _require_kind(config: RunConfig, given: FrozenDenoiser) -> None:
    """Check that a backbone which is given is of the kind that the recipe says."""
    found = "semi-parametric" if isinstance(given, SemiParametricDenoiser) else "class-conditional"
    if config.model.backbone != found:
        raise ValueError(
            f"expected a {config.model.backbone} backbone, as model.backbone says, got a {found} one in "
            f"{config.model.weights}; set model.backbone to {found}"
        )


def _require_adaptable(config: RunConfig, denoiser: FrozenDenoiser) -> None:
    """Check, before anything is trained, that a denoiser takes the adapters of a recipe."""
    lora = config.model.adapters.lora
    denoiser.require_stack(lora.stack)
    lora_layers(denoiser.network, lora.targets, denoiser.adaptable)


def _up_to_the_end(training: TrainingConfig) -> int:
    """Return the images between resume points such that one is written at or near the end."""
    total = training.steps * training.batch_size
    return max(1, total // math.ceil(total / training.checkpoint_images))


def _of_router(config: RunConfig) -> ClassifierRunConfig:
    """Return the recipe of the classifier whose encoder routes."""
    router = config.model.router
    model = ClassifierConfig(kind="parametric", encoder=router.encoder)
    return ClassifierRunConfig(data=config.data, model=model, training=router.training, seed=config.seed)
