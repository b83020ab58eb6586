"""What an adapter ensemble can promise of the images that were deleted from it."""

from __future__ import annotations

from gen_unlearn.adapters.determinism import is_deterministic
from gen_unlearn.adapters.family import AdapterFamily
from gen_unlearn.adapters.routing import KeySource
from gen_unlearn.receipts import Level


def promised_level(source: KeySource, family: AdapterFamily, waiting: bool) -> Level:
    """Return the level of the promise.

    Args:
        source: what the keys were made from.
        family: the kind of adapter; it is tried out here whether its bits depend on its surroundings.
        waiting: whether an adapter waits to be rebuilt.
    """
    if source == "training-samples":
        return "exemplar-only"
    if waiting:
        return "influence-free"
    return "bit-exact" if is_deterministic(family) else "distributional"
