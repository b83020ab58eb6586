"""Sets of generated images, kept in a run's folder under the digest of what generated them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from gen_unlearn.pipelines.sampling import GeneratorPipeline, sample_images
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.repro import digest_json

NULL_LABEL = -1
"""Label of an image that was sampled without exemplars, or under the null label."""


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Generated images with what was asked for.

    Attributes:
        images: uint8 ``(n, height, width, channels)``.
        labels: class that each image was asked for under, int64 ``(n,)``; `NULL_LABEL` without exemplars.
        indices: number of each image within its class, int64 ``(n,)``.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def of_classes(self, classes: Sequence[int]) -> SampleSet:
        """Return the images that were asked for under some classes."""
        rows = np.isin(self.labels, np.asarray(classes, dtype=np.int64))
        return SampleSet(self.images[rows], self.labels[rows], self.indices[rows])

    @property
    def null(self) -> SampleSet:
        """The images that were sampled without exemplars."""
        return self.of_classes([NULL_LABEL])

    @property
    def conditional(self) -> SampleSet:
        """The images that were asked for under a class."""
        return self.of_classes(np.unique(self.labels[self.labels != NULL_LABEL]).tolist())

    def save(self, path: Path) -> None:
        """Write the set as safetensors, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.unfinished")
        save_file({"images": self.images, "labels": self.labels, "indices": self.indices}, temporary)
        temporary.replace(path)

    @classmethod
    def from_file(cls, path: Path) -> SampleSet:
        """Read a set."""
        return cls(**load_file(path))


@dataclass(frozen=True)
class SamplePlan:
    """Which images a set holds.

    Attributes:
        images_per_class: images under each class that is served.
        null_images: images without exemplars, or under the null label.
        first_index: number of the first image; sets with other numbers share no noise.
        sampling: how they are sampled.
    """

    images_per_class: int
    null_images: int
    first_index: int
    sampling: SamplingConfig

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides the images, given the generator."""
        fields = asdict(self)
        del fields["sampling"]["batch_size"]
        if self.sampling.composition == "route":  # Digests stay what they were before there was a choice.
            del fields["sampling"]["composition"], fields["sampling"]["adapters_per_image"]
        return digest_json(json.loads(json.dumps(fields)))

    def path(self, folder: Path, state_digest: str) -> Path:
        """Return where the set of a generator's state lies in a folder of sets."""
        return folder / f"{state_digest}-{self.digest[:12]}.safetensors"


def generate_samples(
    pipeline: GeneratorPipeline, classes: Sequence[int], plan: SamplePlan, description: str = "sample"
) -> SampleSet:
    """Sample the set that `plan` describes, under the given classes, if any, and without a class.

    Raises:
        ValueError: there is no class, and the plan has no images without one.
    """
    if not classes and not plan.null_images:
        raise ValueError(
            "expected a class that can be sampled, or images without one, got neither: nothing is left of "
            "any class; add images, or ask for images without a class where the generator can make them"
        )
    numbers = range(plan.first_index, plan.first_index + plan.images_per_class)
    null_numbers = range(plan.first_index, plan.first_index + plan.null_images)
    asked = [(label, index) for index in numbers for label in classes]
    asked += [(NULL_LABEL, index) for index in null_numbers]
    labels, indices = (np.array(column, dtype=np.int64) for column in zip(*asked, strict=True))
    images = sample_images(
        pipeline,
        [None if label == NULL_LABEL else int(label) for label in labels],
        indices.tolist(),
        plan.sampling,
        description=description,
    )
    return SampleSet(images, labels, indices)
