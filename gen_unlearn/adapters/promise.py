"""What an adapter ensemble can promise of the images that were deleted from it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from gen_unlearn.adapters.family import AdapterFamily, HeadShape
from gen_unlearn.adapters.routing import KeySource
from gen_unlearn.receipts import Level
from gen_unlearn.repro import digest_json

if TYPE_CHECKING:
    import torch

ARTEFACT = "adapter ensemble"
"""What receipts say that images were deleted from."""


def environment_digest(device: torch.device | None = None) -> str:
    """Return the SHA-256 of what decides the last bits here, see `gen_unlearn.adapters.determinism`.

    Args:
        device: where adapters are computed; the CPU by default.
    """
    from gen_unlearn.adapters.determinism import environment

    return digest_json(environment(device))


def fit_here(environments: Collection[str] | None, device: torch.device | None = None) -> bool:
    """Return whether adapters were fit with what there is here, from the digests of where they were.

    Args:
        environments: these digests; `None` if all were fit by this process.
        device: where adapters are computed here; the CPU by default.
    """
    return environments is None or set(environments) <= {environment_digest(device)}


def masked_level(source: KeySource) -> Level:
    """Return the level of the promise while adapters wait to be rebuilt, from what the keys were made of."""
    return "exemplar-only" if source == "training-samples" else "influence-free"


def promised_level(
    source: KeySource,
    family: AdapterFamily,
    waiting: bool,
    environments: Collection[str] | None = None,
    shape: HeadShape | None = None,
) -> Level:
    """Return the level of the promise.

    Args:
        source: what the keys were made from.
        family: the kind of adapter; it is tried out here whether its bits depend on its surroundings.
        waiting: whether an adapter waits to be rebuilt.
        environments: digests of where the adapters were fit; by default all were here. Elsewhere the same fit
            can have other bits.
        shape: sizes of the adapters, which it is tried out with; usual ones by default.
    """
    if waiting or source == "training-samples":
        return masked_level(source)
    from gen_unlearn.adapters.determinism import computing_device, is_deterministic

    exact = fit_here(environments, computing_device(family)) and is_deterministic(family, shape)
    return "bit-exact" if exact else "distributional"
