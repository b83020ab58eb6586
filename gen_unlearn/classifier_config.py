"""The recipe of a classifier."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from gen_unlearn.adapters.families import FAMILIES
from gen_unlearn.core import CoreConfig
from gen_unlearn.data import DataConfig
from gen_unlearn.models.classifier_config import ClassifierConfig
from gen_unlearn.pipelines.prediction import PredictionConfig
from gen_unlearn.recipes import recipe_yaml
from gen_unlearn.repro import digest_json
from gen_unlearn.training.classification_config import ClassifierTrainingConfig

NOT_IN_THE_DIGEST = ("checkpoint_images", "checkpoints_total_limit", "dataloader_workers", "log_with")
"""Settings of a training that do not change its result."""


@dataclass(frozen=True)
class ClassifierEvaluationConfig:
    """How a classifier is judged after a deletion.

    Attributes:
        retained_images: retained training images that are classified at most, chosen at random.
        seed: seed of that choice.
    """

    retained_images: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.retained_images < 2:
            raise ValueError(f"expected at least 2 retained_images, got {self.retained_images}")


@dataclass(frozen=True)
class ClassifierRunConfig:
    """A complete recipe of a classifier.

    Attributes:
        task: tells it from the recipe of a generator.
        data: the images.
        model: the classifier.
        core: which images the weights may see.
        training: how it is trained.
        prediction: who votes in predictions.
        evaluation: how it is judged.
        seed: seed of the initial weights and of everything random in training.
    """

    data: DataConfig
    task: Literal["classification"] = "classification"
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    core: CoreConfig = field(default_factory=CoreConfig)
    training: ClassifierTrainingConfig = field(default_factory=ClassifierTrainingConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    evaluation: ClassifierEvaluationConfig = field(default_factory=ClassifierEvaluationConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.core.mode == "public" and self.model.kind == "parametric":
            raise ValueError(
                "core.mode public needs a semi-parametric model or an adapter-ensemble, got parametric"
            )
        if self.core.mode != "public" and self.model.kind == "adapter-ensemble":
            raise ValueError(
                f"model.kind adapter-ensemble needs core.mode public, got {self.core.mode}: its encoder and "
                "its keys stay as they are after a deletion, so they must never have seen a deletable image"
            )
        if self.training.encoder_run is not None and self.model.kind != "semi-parametric":
            raise ValueError(
                f"training.encoder_run trains a fusion on a frozen encoder, which needs a semi-parametric "
                f"model, got {self.model.kind}"
            )
        if self.training.encoder_run is not None and self.core.mode == "public":
            raise ValueError(
                "core.mode public promises weights that never saw a deletable image, which the encoder of "
                "training.encoder_run may have; name weights from elsewhere with model.encoder.weights"
            )

    @property
    def starts_from(self) -> dict[str, str]:
        """Where the encoder's first weights come from, by the key of the recipe that names them."""
        if self.training.encoder_run is not None:
            return {"training.encoder_run": self.training.encoder_run}
        if self.model.encoder.weights is not None:
            return {"model.encoder.weights": self.model.encoder.weights}
        return {}

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides the trained model: data, model, core, training, seed.

        The training of an encoder whose weights are named is counted in, although there is none.
        """
        fields = dataclasses.asdict(self)
        for name in NOT_IN_THE_DIGEST:
            del fields["training"][name]
        if self.model.kind == "adapter-ensemble":
            fields["model"]["adapters"] = self._decisive_adapters(fields["model"]["adapters"])
        else:  # As before there was such a thing, so that digests stay.
            del fields["model"]["adapters"]
        names = ["task", "data", "model", "training", "seed"]
        if self.core.mode == "public":
            names.append("core")
        return digest_json({name: fields[name] for name in names})

    def _decisive_adapters(self, settings: dict[str, object]) -> dict[str, object]:
        """Return the settings that decide the adapters: of the families the chosen one alone."""
        chosen = self.model.adapters.family
        left_out = {"minimum_batch", "deadline_days", *(name for name in FAMILIES if name != chosen)}
        return {name: value for name, value in settings.items() if name not in left_out}

    def to_yaml(self) -> str:
        """Return the recipe with every value spelled out."""
        return recipe_yaml(self)
