"""What the generators on CIFAR-10 (JPEG) share: recipes, images, a judge, and how much is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gen_unlearn.commands.evaluate import find_judge
from gen_unlearn.commands.train import train
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import IndexedImages, Split, load_split
from gen_unlearn.judging.distances import measure_frechet
from gen_unlearn.judging.evidence import Measurer, Recogniser
from gen_unlearn.metrics.extractors.random_conv import RandomConvFeatures
from gen_unlearn.metrics.feature_sets import FeatureSet
from gen_unlearn.pipelines.loading import served_classes
from gen_unlearn.processes import process_state
from gen_unlearn.report.images import save_grid
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SamplePlan, SampleSet, generate_samples
from gen_unlearn.training.classifier import JudgeFeatures

CONFIGS = Path(__file__).parents[1] / "configs"
DDPM, SPM, PUBLIC = "cifar10_ddpm", "cifar10_spm", "cifar10_spm_public"
ENSEMBLE, PAPER = "cifar10_lora", "cifar10_spm_paper"
RECIPES = (DDPM, SPM, PUBLIC, ENSEMBLE, PAPER)

_SHEET_ROWS = 10


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        timed_images: images of a timed sampling, all in one batch.
        exemplars: exemplars per class of the timed samplings, beside the full bank.
        sampling_repeats: timed pairs of samplings, after one that does not count.
        deletion_repeats: deletions of each kind.
        warm_steps: training steps before those that are timed; a network is compiled in the first.
        timed_steps: training steps that are timed.
        forgotten: name of the class that is deleted, and retrained without.
        overrides: of every recipe.
    """

    timed_images: int = 250
    exemplars: tuple[int, ...] = (100, 1024)
    sampling_repeats: int = 5
    deletion_repeats: int = 5
    warm_steps: int = 20
    timed_steps: int = 100
    forgotten: str = "automobile"
    overrides: tuple[str, ...] = ()


TINY_OVERRIDES = (
    "model.block_out_channels=[32,32,32,32]",
    "model.attention_head_dim=16",
    "model.router.encoder.width=8",
    "model.router.training.images=64",
    "model.router.training.batch_size=16",
    "model.adapters.count=4",
    "model.adapters.lora.epochs=1",
    "model.adapters.lora.batch_size=4",
    "model.adapters.lora.stack=2",
    "training.images=32",
    "training.batch_size=16",
    "training.warmup_images=16",
    "training.exemplars_per_class=[1,3]",
    "training.checkpoint_images=16",
    "training.dataloader_workers=0",
    "sampling.num_inference_steps=2",
    "sampling.exemplars_per_class=3",
    "evaluation.images_per_class=4",
    "evaluation.null_images=4",
    "evaluation.judge.epochs=1",
    "evaluation.judge.width=8",
)
TINY = Plan(20, (2, 4), 1, deletion_repeats=2, warm_steps=1, timed_steps=2, overrides=TINY_OVERRIDES)
"""A proof that everything runs, on a CPU; the numbers that come out say nothing."""


@dataclass(frozen=True)
class World:
    """Recipes with their overrides, runs, images, and what judges them.

    Attributes:
        out: folder of the runs, the samples and the sheets of images.
        plan: how much is measured.
        settings: further overrides of every recipe.
        places: those that say where the images lie.
    """

    out: Path
    plan: Plan
    settings: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    @property
    def told(self) -> list[str]:
        """The overrides of every recipe, but for places."""
        return [*self.plan.overrides, *self.settings]

    def config(self, recipe: str, changes: Sequence[str] = ()) -> RunConfig:
        """Return a recipe with the overrides, and with further ones."""
        return load_config(CONFIGS / f"{recipe}.yaml", [*self.told, *self.places, *changes])

    def run(self, recipe: str) -> RunFolder:
        """Return the run of a recipe, which is trained, or trained to its end, where it is not."""
        return train(self.config(recipe), self.out / recipe, description=f"train {recipe}")

    @cached_property
    def split(self) -> Split:
        """Training and held-out images."""
        return load_split(self.config(DDPM).data)

    @property
    def forgotten(self) -> int:
        """Index of the class that is deleted."""
        return self.split.train.class_index(self.plan.forgotten)

    @property
    def retained(self) -> list[int]:
        """Indices of the other classes."""
        return [label for label in range(len(self.split.train.class_names)) if label != self.forgotten]

    @cached_property
    def recogniser(self) -> Recogniser:
        """The judge of the recipe, trained on all training images; it lies in the run of the DDPM."""
        return Recogniser(find_judge(self.run(DDPM), self.split.train))

    @cached_property
    def measurers(self) -> dict[str, Measurer]:
        """What gives the features that distances are taken in, by name."""
        judge = JudgeFeatures(self.recogniser.model, "the training images of CIFAR-10 (JPEG)")
        random = RandomConvFeatures(device=process_state().device)
        return {"judge": Measurer(judge), "random-conv": Measurer(random)}

    def samples(self, run: RunFolder, again: bool = False) -> SampleSet:
        """Return the images that a run is judged by, sampled unless that was done before.

        Args:
            run: the run.
            again: as many under every class with other noise, and none without a class.
        """
        config = run.config.evaluation
        count, null = config.images_per_class, config.null_images
        plan = SamplePlan(count, 0 if again else null, count if again else 0, run.config.sampling)
        path = plan.path(self.out / "samples", run.state_digest())
        if not path.exists():
            pipeline = run.load_pipeline()
            found = generate_samples(pipeline, served_classes(pipeline), plan, f"sample {run.path.name}")
            found.save(path)
            rows = [np.flatnonzero(found.labels == label)[:_SHEET_ROWS] for label in np.unique(found.labels)]
            columns = min(len(row) for row in rows)
            few = np.concatenate([row[:columns] for row in rows])
            save_grid(
                self.out / f"{run.path.name}{'-again' if again else ''}.png", found.images[few], columns
            )
        return SampleSet.from_file(path)

    def frechet(self, generated: SampleSet, reference: IndexedImages | SampleSet) -> dict[str, Any]:
        """Return the Frechet distances of generated images to others, with errors, by extractor.

        Args:
            generated: images in fixed numbers per class.
            reference: real images, or generated ones.
        """
        images = reference.images if isinstance(reference, SampleSet) else reference.all_images()
        return {
            name: self._frechet(measurer, generated, measurer.features("reference", images))
            for name, measurer in self.measurers.items()
        }

    def _frechet(self, measurer: Measurer, generated: SampleSet, reference: FeatureSet) -> dict[str, Any]:
        features = replace(measurer.features("generated", generated.images), strata=generated.labels)
        found = measure_frechet(features, reference, self.config(DDPM).evaluation.comparison)
        return {
            "value": found.value,
            "standard_error": found.standard_error,
            "bias_corrected": found.jackknife_corrected,
            "images": found.n,
            "reference_images": found.reference_n,
            "extractor": found.protocol.extractor,
        }


def device_name() -> str:
    """Return what this process computes on, such as ``NVIDIA H200``, or ``cpu``."""
    device = process_state().device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def arithmetic(precision: Literal["no", "bf16", "fp16"]) -> dict[str, Any]:
    """Say what is computed with; on a GPU float32 may stand for TF32, and does by default in convolutions."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    used = {"convolutions": cudnn, "products of matrices": matmul}
    gpu = process_state().device.type == "cuda"
    rounded = " and ".join(name for name, allowed in used.items() if allowed and gpu)
    exact = f"float32, TF32 in {rounded}" if rounded else "float32"
    name = {"no": exact, "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}[precision]
    return {"precision": name, "cudnn_allow_tf32": cudnn, "matmul_allow_tf32": matmul}
