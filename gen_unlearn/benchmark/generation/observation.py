"""What is seen of one generator: its samples, and how it scores forgotten and unseen images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from gen_unlearn.benchmark.catalogue import metric_definition
from gen_unlearn.benchmark.forget_sets import ForgetCase
from gen_unlearn.benchmark.generation.catalogue import generation_metrics
from gen_unlearn.data import IndexedImages
from gen_unlearn.judging.attacks import ScoredImages, attack_model
from gen_unlearn.judging.evidence import Deletion, Measurer, Recogniser, of_classes
from gen_unlearn.metrics.attack_config import AttackConfig
from gen_unlearn.metrics.copying import TrainingGallery
from gen_unlearn.metrics.denoiser_attacks import AttackName
from gen_unlearn.metrics.feature_sets import FeatureSet
from gen_unlearn.metrics.protocol import MembershipConfig
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.sampling import GeneratorPipeline, sample_images
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.repro import id_keys
from gen_unlearn.samples import SampleSet

ATTACKS: tuple[AttackName, ...] = ("loss", "pia", "secmi")
"""The attacks whose scores are kept, see `gen_unlearn.metrics.denoiser_attacks`."""

_ATTACK = AttackConfig(secmi_stride=50)
"""SecMI takes two steps to its timestep and not ten: on digits that told repeated images no worse."""

_SCORE = "score."


@dataclass(frozen=True)
class GenerationMeasureConfig:
    """What is measured of a generator.

    Attributes:
        images_per_class: samples asked for under every class.
        attacked_images: forgotten images, and test images of their classes, that are scored at most.
        seed: of the samples' noise, which is the same for all models, and of the attacks' noise.
        table: metrics that tables show, by id; all of them are in the summary.
    """

    images_per_class: int = 50
    attacked_images: int = 300
    seed: int = 0
    table: tuple[str, ...] = (
        "fd.test",
        "fd.retrained",
        "recognised.retained",
        "recognised.forgotten",
        "loss.forget",
        "mia.pia.auc",
        "mia.lira.auc",
        "copies.forget",
        "extracted.forget",
        "cost.passes",
        "cost.seconds",
    )

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides the numbers, and not how they are shown."""
        return {name: value for name, value in asdict(self).items() if name != "table"}

    def __post_init__(self) -> None:
        if self.images_per_class < 2 or self.attacked_images < 1:
            raise ValueError(
                f"expected at least 2 images_per_class and 1 attacked_images, got {self.images_per_class} "
                f"and {self.attacked_images}"
            )
        known = {definition.id for definition in generation_metrics()}
        for metric in self.table:
            if metric not in known and metric_definition(metric).role != "cost":
                raise ValueError(
                    f"expected metrics of generators and costs in the table, got {metric}; choose among "
                    f"{', '.join(sorted(known))}"
                )


@dataclass(frozen=True, eq=False)
class MeasuredCase:
    """What all models of one forget set are measured with.

    Attributes:
        case: the forget set.
        recogniser: says which class a sample shows.
        measurer: extracts the features that distances are taken in.
        config: how much is measured.
        sampling: how images are sampled; its seed gives way to that of `config`.
    """

    case: ForgetCase
    recogniser: Recogniser
    measurer: Measurer
    config: GenerationMeasureConfig
    sampling: SamplingConfig

    @cached_property
    def forgotten_classes(self) -> tuple[int, ...]:
        """The classes of which no image is left."""
        return tuple(np.setdiff1d(self.forgotten.labels, self.case.retain_images.labels).tolist())

    @cached_property
    def retained_classes(self) -> tuple[int, ...]:
        """The classes of which images are left."""
        return tuple(np.unique(self.case.retain_images.labels).tolist())

    @cached_property
    def touched_classes(self) -> tuple[int, ...]:
        """The classes that have forgotten images, whether others are left or not."""
        return tuple(np.unique(self.forgotten.labels).tolist())

    @cached_property
    def forgotten(self) -> IndexedImages:
        """The distinct forgotten images; one that training repeats is one."""
        images = self.case.forget_images
        _, first = np.unique(id_keys(images.ids), return_index=True)
        return images.select(np.sort(first))

    @cached_property
    def scored(self) -> ScoredImages:
        """Forgotten images and test images of their classes, `config.attacked_images` each at most."""
        deletion = Deletion(
            self.forgotten_classes, self.retained_classes, self.forgotten, self.case.retain_images
        )
        return ScoredImages.choose(deletion, self.case.splits.test, self.config.attacked_images)

    @cached_property
    def gallery(self) -> TrainingGallery:
        """The distinct training images that copies are looked for of, forgotten ones marked."""
        retained = self.case.retain_images
        largest = len(self.forgotten) + len(retained)
        return TrainingGallery.of(self.forgotten, retained, "copy test", largest=largest)

    @cached_property
    def reference(self) -> FeatureSet:
        """Features of the test images of the retained classes."""
        images = of_classes(self.case.splits.test, self.retained_classes)
        return self.measurer.features_of("test images of retained classes", images)


@dataclass(frozen=True, eq=False)
class Observation:
    """What was seen of one model.

    Attributes:
        samples: images asked for under every class; those of two models are paired by row.
        scores: attack -> score of each forgotten image, then of each test image, float64
            ``(forgotten + test,)``; higher for likelier members.
    """

    samples: SampleSet
    scores: Mapping[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write the observation as safetensors, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        scores = {f"{_SCORE}{attack}": values for attack, values in self.scores.items()}
        save_file({**vars(self.samples), **scores}, unfinished)
        unfinished.replace(path)

    @classmethod
    def from_file(cls, path: Path) -> Observation:
        """Read what `save` wrote.

        Raises:
            ValueError: there is no such file.
        """
        if not path.is_file():
            raise ValueError(
                f"expected the observation of a generator in {path}, found none; run the benchmark again"
            )
        found = load_file(path)
        scores = {name[len(_SCORE) :]: found.pop(name) for name in list(found) if name.startswith(_SCORE)}
        return cls(SampleSet(**found), scores)


def observe(pipeline: GeneratorPipeline, measured: MeasuredCase) -> Observation:
    """Sample from a generator under every class of the training images, and attack it.

    The noise of a sample follows from `config.seed`, its class and its number. A semi-parametric model
    without exemplars of a class samples it from the null token. An adapter ensemble without members of a
    class is asked without a class, which is from other noise than that of other models.

    Raises:
        ValueError: the pipeline does not know a class, or has nothing to sample from; or its network predicts
            what is not finite.
    """
    config = measured.config
    attack = replace(_ATTACK, seed=config.seed, batch_size=measured.sampling.batch_size)
    membership = MembershipConfig(config.attacked_images, attack=attack)
    found = attack_model(pipeline, measured.scored, membership, "observed", ATTACKS)
    if broken := [name for name in ATTACKS if not np.isfinite(found[name]).all()]:
        raise ValueError(
            f"expected finite scores, got others of the attack {broken[0]}: what the network predicts is not "
            "finite; lower the learning rate"
        )
    return Observation(_sample(pipeline, measured), found)


def _sample(pipeline: GeneratorPipeline, measured: MeasuredCase) -> SampleSet:
    """Sample as many images under every class of the training images."""
    count = measured.config.images_per_class
    classes = sorted({*measured.touched_classes, *measured.retained_classes})
    labels = np.tile(np.array(classes, dtype=np.int64), count)
    indices = np.repeat(np.arange(count, dtype=np.int64), len(classes))
    asked: list[int | None] = labels.tolist()
    numbers = indices.copy()
    if isinstance(pipeline, AdapterEnsembleDDPMPipeline):
        lacking = ~np.isin(labels, pipeline.served_classes)
        asked = [None if gone else label for label, gone in zip(labels.tolist(), lacking, strict=True)]
        numbers[lacking] += labels[lacking] * count  # No two classes share the noise of an image.
    sampling = replace(measured.sampling, seed=measured.config.seed)
    images = sample_images(pipeline, asked, numbers.tolist(), sampling, on_empty_class="null")
    return SampleSet(images, labels, indices)
