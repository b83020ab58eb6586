"""The generators that are compared: what is trained on the deletable images, and how it samples.

Each samples an image from its class and its number alone, all from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from evaluation.lora_world import ROOT, World
from evaluation.timing import seconds_of
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.routing import KeySource
from gen_unlearn.adapters.serving import ServedAdapters, count_members
from gen_unlearn.commands.fit import fit, fresh_training
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import IndexedImages
from gen_unlearn.forget import ForgetSet
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.sampling import GeneratorPipeline, sample_images
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.repro import derive_seed
from gen_unlearn.training.diffusion_config import TrainingConfig


class Cost(NamedTuple):
    """What a training cost: how often images were read, and seconds."""

    visits: int
    seconds: float


@dataclass(frozen=True)
class PlainSystem:
    """A generator that has no adapters, or one that has one network for all images.

    Attributes:
        pipeline: the generator.
        cost: of what was trained on the deletable images, or on all, for those that start from nothing.
        guidance: its own guidance scale; `None` for that of the others.
    """

    pipeline: GeneratorPipeline
    cost: Cost
    guidance: float | None = None

    def draw(self, labels: Sequence[int], indices: Sequence[int], sampling: SamplingConfig) -> np.ndarray:
        """Sample images."""
        own = sampling if self.guidance is None else replace(sampling, guidance_scale=self.guidance)
        return sample_images(self.pipeline, labels, indices, own)


class LoraSystem:
    """Adapters of the backbone; one draws the whole image: in proportion to its members of the class.

    Args:
        world: what all generators share.
        config: how adapters look and are trained.
        adapters: how many; one is a joint LoRA.
        neighbours: adapters of each image.
        source: what the keys are made from.
        seed: of keys, initial weights and draws.
    """

    def __init__(
        self,
        world: World,
        config: LoraConfig,
        adapters: int,
        neighbours: int = 1,
        source: KeySource = "public-samples",
        seed: int = 0,
    ) -> None:
        self.world, self.config, self.seed = world, config, seed
        self.routed = routed = world.routed(adapters, source, seed)
        family = LoraAdapters(
            config, world.backbone_digest, world.parts.deletable.image_shape, lambda: world.denoiser
        )
        recipe = EnsembleRecipe(routed.router.public_keys(), family, neighbours, world.class_names, seed)
        built: list[AdapterEnsemble] = []
        seconds = seconds_of(lambda: built.append(AdapterEnsemble.fit(recipe, routed.deletable)))
        self.ensemble = built[0]
        self.cost = Cost(config.epochs * neighbours * len(routed.deletable), seconds)

    def delete(self, ids: np.ndarray) -> Cost:
        """Delete images, and rebuild the adapters that they were routed to."""
        forget, ensemble = ForgetSet(ids, "comparison"), self.ensemble
        touched = ensemble.touched(forget).tolist()
        seconds = seconds_of(lambda: ensemble.delete(forget))
        left = [len(ensemble.members[adapter]) for adapter in touched]
        return Cost(sum(ensemble.recipe.family.visits(members) for members in left), seconds)

    @property
    def pipeline(self) -> AdapterEnsembleDDPMPipeline:
        """The generator with the adapters that it has now."""
        world, ensemble, config = self.world, self.ensemble, self.config
        pipeline = AdapterEnsembleDDPMPipeline(
            world.backbone.unet,
            world.backbone.scheduler,
            self.routed.router,
            world.class_names,
            rank=config.rank,
            alpha=config.alpha,
            targets=config.targets,
        )
        records, routes = ensemble.left
        counts = count_members(records.labels, routes, len(ensemble.members), len(world.class_names))
        pipeline.adapters = ServedAdapters(ensemble.states, counts)
        return pipeline

    def draw(self, labels: Sequence[int], indices: Sequence[int], sampling: SamplingConfig) -> np.ndarray:
        """Sample images."""
        return sample_images(self.pipeline, labels, indices, sampling)

    def choices(self, labels: Sequence[int], indices: Sequence[int], sampling: SamplingConfig) -> np.ndarray:
        """Return which adapter draws each image where one does, int64 ``(n,)``."""
        served = self.pipeline.adapters
        seeds = [
            derive_seed(sampling.seed, "adapter", str(label), index)
            for label, index in zip(labels, indices, strict=True)
        ]
        return np.concatenate(
            [served.choose(label, [seed])[0] for label, seed in zip(labels, seeds, strict=True)]
        )


def plain_backbone(world: World) -> PlainSystem:
    """Return the backbone, with nothing added."""
    return PlainSystem(world.backbone, Cost(0, 0.0))


def full_fine_tune(world: World, training: TrainingConfig) -> PlainSystem:
    """Train all weights of the backbone further, on the deletable images."""
    deletable = world.parts.deletable
    config = replace(world.config, training=training)
    fresh = fresh_training(config, CoreSplit(deletable, deletable), None)
    fresh.network.load_state_dict(world.backbone.unet.state_dict())
    trained: list[GeneratorPipeline] = []
    seconds = seconds_of(lambda: trained.append(fresh.fit(None, "fine-tune")[0]))
    return PlainSystem(trained[0], Cost(training.steps * training.batch_size, seconds))


def trained_on_everything(world: World) -> PlainSystem:
    """Train the backbone's recipe on core and deletable images: an upper reference, not deletable."""
    return _trained(world.config, world.train, None)


def semi_parametric(world: World, overrides: Sequence[str] = ()) -> PlainSystem:
    """Train the semi-parametric model on the core; the deletable images are its exemplars."""
    config = load_config(ROOT / "configs" / "digits_public.yaml", [*overrides, f"seed={world.config.seed}"])
    trained = _trained(config, world.parts.core, world.parts.deletable)
    return replace(trained, guidance=config.sampling.guidance_scale)


def _trained(config: RunConfig, data: IndexedImages, exemplars: IndexedImages | None) -> PlainSystem:
    found: list[GeneratorPipeline] = []
    seconds = seconds_of(lambda: found.append(fit(config, data, exemplars)[0]))
    return PlainSystem(found[0], Cost(config.training.steps * config.training.batch_size, seconds))


System = PlainSystem | LoraSystem
