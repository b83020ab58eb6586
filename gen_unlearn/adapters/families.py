"""The families of adapters by name, and the settings of an ensemble in a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from gen_unlearn.adapters.family import AdapterFamily
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.sgd import SgdHeads

PublicKeySource = Literal["public-samples", "public-kmeans", "public-gaussian"]
FamilyName = Literal["ridge", "sgd"]

FAMILIES: dict[FamilyName, type[RidgeHeads] | type[SgdHeads]] = {"ridge": RidgeHeads, "sgd": SgdHeads}

_MOST_ADAPTERS = 32767


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
        minimum_batch: deletions from an adapter before its new weights should be published, at least 1: who
            sees an adapter before and after a single deletion can tell what was deleted.

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

    def __post_init__(self) -> None:
        if not 1 <= self.count <= _MOST_ADAPTERS:
            raise ValueError(f"expected adapters.count from 1 to {_MOST_ADAPTERS}, got {self.count}")
        if not 1 <= self.neighbours <= self.count:
            raise ValueError(
                f"expected adapters.neighbours from 1 to adapters.count ({self.count}), got {self.neighbours}"
            )
        if self.minimum_batch < 1:
            raise ValueError(f"expected adapters.minimum_batch of at least 1, got {self.minimum_batch}")
        for name, value, choices in (
            ("keys", self.keys, get_args(PublicKeySource)),
            ("family", self.family, get_args(FamilyName)),
        ):
            if value not in choices:
                raise ValueError(f"expected adapters.{name} out of {', '.join(choices)}, got {value!r}")

    @property
    def heads(self) -> AdapterFamily:
        """The family that was chosen, with its settings."""
        sections: dict[FamilyName, AdapterFamily] = {"ridge": self.ridge, "sgd": self.sgd}
        return sections[self.family]
