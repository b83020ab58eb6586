"""How a generator is judged: the part of the protocol that a recipe sets."""

from __future__ import annotations

from dataclasses import dataclass, field

from gen_unlearn.metrics.attack_config import AttackConfig
from gen_unlearn.training.judge_config import JudgeConfig


@dataclass(frozen=True)
class ComparisonConfig:
    """How two sets of images are compared.

    Attributes:
        neighbours: `k` of precision, recall, density and coverage.
        permutations: relabellings behind the p-value of the kernel distance.
        largest_pairwise: images of each side in measures that look at every pair of images.
        jackknife_blocks: blocks of the jackknife, which gives the error where few images are there.
        seed: seed of the choice of images and of the relabellings.
    """

    neighbours: int = 5
    permutations: int = 200
    largest_pairwise: int = 10_000
    jackknife_blocks: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.neighbours, self.permutations) < 1 or self.jackknife_blocks < 2:
            raise ValueError(
                f"expected neighbours >= 1, permutations >= 1 and jackknife_blocks >= 2, got "
                f"{self.neighbours}, {self.permutations} and {self.jackknife_blocks}"
            )
        if self.largest_pairwise < 2 * (self.neighbours + 1):
            raise ValueError(
                f"expected largest_pairwise >= {2 * (self.neighbours + 1)}, which makes two sets with "
                f"{self.neighbours} neighbours, got {self.largest_pairwise}"
            )


@dataclass(frozen=True)
class MembershipConfig:
    """How it is tested whether a denoiser remembers particular training images.

    Attributes:
        images: deleted images, and held-out images, that are scored at most; 0 leaves the test out.
        exemplars_per_class: exemplars that a semi-parametric denoiser is shown of an image's class.
        attack: timesteps and numbers of draws of the attacks.
    """

    images: int = 500
    exemplars_per_class: int = 1000
    attack: AttackConfig = field(default_factory=AttackConfig)

    def __post_init__(self) -> None:
        if self.images < 0 or self.exemplars_per_class < 1:
            raise ValueError(
                f"expected images >= 0 and exemplars_per_class >= 1, got {self.images} and "
                f"{self.exemplars_per_class}"
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """How many images are sampled, and who judges them.

    Attributes:
        images_per_class: images sampled under each class that the generator serves.
        null_images: images sampled without exemplars, or under the null label.
        features: extractor that distances are taken in: ``judge``, the classifier below, or one of
            `gen_unlearn.metrics.extractors.choice.EXTRACTORS`.
        weights: file or folder of the extractor's weights, if they are not in the cache folder.
        judge: the independent classifier, trained on the run's own training split, that recognises classes.
        judge_seed: seed of the judge's training; the same for all runs that are compared.
        comparison: how two sets of images are compared.
        membership: how it is tested whether the weights remember images.
    """

    images_per_class: int = 100
    null_images: int = 500
    features: str = "judge"
    weights: str | None = None
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    judge_seed: int = 0
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)

    def __post_init__(self) -> None:
        if self.images_per_class < 2 or self.null_images < 1:
            raise ValueError(
                f"expected at least 2 images per class and 1 null image, got {self.images_per_class} "
                f"and {self.null_images}"
            )
