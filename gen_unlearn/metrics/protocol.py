"""How a generator is judged: the part of the protocol that a recipe sets."""

from __future__ import annotations

from dataclasses import dataclass, field

from gen_unlearn.training.classifier import JudgeConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """How many images are sampled, and who judges them.

    Attributes:
        images_per_class: images sampled under each class that the generator serves.
        null_images: images sampled without exemplars, or under the null label.
        judge: the independent classifier, trained on the run's own training split, that recognises classes
            and whose features the Frechet distance is taken in.
        judge_seed: seed of the judge's training; the same for all runs that are compared.
    """

    images_per_class: int = 100
    null_images: int = 500
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    judge_seed: int = 0

    def __post_init__(self) -> None:
        if self.images_per_class < 2 or self.null_images < 1:
            raise ValueError(
                f"expected at least 2 images per class and 1 null image, got {self.images_per_class} "
                f"and {self.null_images}"
            )
