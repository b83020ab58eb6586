"""The families of adapters by name, and the settings of an ensemble in a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from gen_unlearn.adapters.family import AdapterFamily
from gen_unlearn.adapters.release import ReleaseConfig
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import MOST_ADAPTERS
from gen_unlearn.adapters.sgd import SgdHeads

PublicKeySource = Literal["public-samples", "public-kmeans", "public-gaussian"]
FamilyName = Literal["ridge", "sgd"]

FAMILIES: dict[FamilyName, type[RidgeHeads] | type[SgdHeads]] = {"ridge": RidgeHeads, "sgd": SgdHeads}


@dataclass(frozen=True)
class AdaptersConfig:
    """The adapters of an ensemble.

    Attributes:
        count: adapters, 1 to 32767. A deletion costs less with more of them.
        neighbours: adapters that each image is routed to, 1 to `count`.
        keys: what the adapters' keys are made from, see `gen_unlearn.adapters.routing.public_keys`.
        family: ``"ridge"``, from which images are subtracted, or ``"sgd"``, which is trained.
        ridge: settings of that family; unused with the other.
        sgd: settings of that family; unused with the other.
        minimum_batch: changes of an adapter, deletions and additions, before its new scores are given away,
            at least 1: who compares an adapter before and after few of them can tell which images they were.
            160 was found on digits, with 64 features and 10 classes; how many it takes needs measuring in
            each setting, and grows with features and classes. 1 turns holding back off.
        deadline_days: days after the first of these changes when the scores are given away all the same, 0 to
            36500; 0 turns holding back off too.

    Raises:
        ValueError: a value outside what is said above.
    """

    count: int = 1000
    neighbours: int = 10
    keys: PublicKeySource = "public-samples"
    family: FamilyName = "ridge"
    ridge: RidgeHeads = field(default_factory=RidgeHeads)
    sgd: SgdHeads = field(default_factory=SgdHeads)
    minimum_batch: int = 160
    deadline_days: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_ADAPTERS:
            raise ValueError(f"expected adapters.count from 1 to {MOST_ADAPTERS}, got {self.count}")
        if not 1 <= self.neighbours <= self.count:
            raise ValueError(
                f"expected adapters.neighbours from 1 to adapters.count ({self.count}), got {self.neighbours}"
            )
        _ = self.release
        for name, value, choices in (
            ("keys", self.keys, get_args(PublicKeySource)),
            ("family", self.family, get_args(FamilyName)),
        ):
            if value not in choices:
                raise ValueError(f"expected adapters.{name} out of {', '.join(choices)}, got {value!r}")

    @property
    def release(self) -> ReleaseConfig:
        """When new scores of an adapter are given away."""
        return ReleaseConfig(self.minimum_batch, self.deadline_days)

    @property
    def heads(self) -> AdapterFamily:
        """The family that was chosen, with its settings."""
        sections: dict[FamilyName, AdapterFamily] = {"ridge": self.ridge, "sgd": self.sgd}
        return sections[self.family]
