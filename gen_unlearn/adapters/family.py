"""What a kind of adapter can do: the protocol that every family implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from gen_unlearn.adapters.records import Records
from gen_unlearn.repro import digest_arrays, digest_json

if TYPE_CHECKING:
    import torch

AdapterState = Mapping[str, np.ndarray]
"""The arrays of one adapter, by name. One without weights is not complete and answers nothing."""

WEIGHTS = "weights"

_LORA_SUFFIX = ".weight"


def has_weights(state: AdapterState | None) -> bool:
    """Return whether an adapter is complete: it has ``weights``, or, as peft names them, those of layers."""
    return any(name == WEIGHTS or name.endswith(_LORA_SUFFIX) for name in state or ())


class HeadShape(NamedTuple):
    """Sizes of every adapter of an ensemble."""

    features: int
    classes: int


class FitJob(NamedTuple):
    """One adapter to fit: its number in the ensemble, and the records routed to it, at least one."""

    adapter: int
    members: Records


class AdapterFamily(Protocol):
    """A kind of adapter: a frozen dataclass of hyper-parameters.

    What is fit is a pure function of the hyper-parameters, the shape, the seed, the adapter's number and its
    members, to the bit: not of the other adapters that are fit with it, of their order, of the number of
    threads or processes, or of what was drawn before. `gen_unlearn.adapters.purity` checks that. Fields that
    are not compared are no hyper-parameters: what they hold, the others say.
    """

    def fit(self, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:
        """Fit adapters, each on its members alone; members are sorted by id and label."""

    def visits(self, members: int) -> int:
        """Return how often records are read to fit an adapter of so many members."""


@runtime_checkable
class HeadFamily(AdapterFamily, Protocol):
    """A family whose adapters classify: they answer from the codes of an image."""

    def scores(self, state: AdapterState, codes: np.ndarray) -> np.ndarray:
        """Map codes, int16 ``(n, features)``, to scores of the classes, float64 ``(n, classes)``."""


@runtime_checkable
class PixelFamily(AdapterFamily, Protocol):
    """A family whose adapters are fit on images: members have pixels."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""

    @property
    def stack(self) -> int:
        """Adapters that are trained together."""

    def shortened(self) -> Self:
        """Return the family with as short a training as still shows what its bits depend on."""

    def device(self) -> torch.device:
        """Return where adapters are computed, which decides their bits."""


@runtime_checkable
class Subtractable(AdapterFamily, Protocol):
    """A family whose adapters are made from sums: records are added and subtracted without the others."""

    def update(
        self, state: AdapterState | None, change: Records, sign: int, shape: HeadShape
    ) -> AdapterState:
        """Return the sums with records added (`sign` 1) or subtracted (-1), without weights.

        `None` is an adapter without members. The state that is given is left as it is.
        """

    def complete(self, state: AdapterState) -> AdapterState:
        """Return the sums with the weights that follow from them."""


def digest_adapter(state: AdapterState) -> str:
    """Return the SHA-256 of the arrays of an adapter, with their names."""
    return digest_json({name: digest_arrays(state[name]) for name in sorted(state)})
