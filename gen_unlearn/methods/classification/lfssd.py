"""Loss-free selective synaptic dampening: the importance of weights without labels."""

from __future__ import annotations

from dataclasses import dataclass

from gen_unlearn.methods.classification.ssd import Ssd
from gen_unlearn.methods.loop import Loss
from gen_unlearn.methods.per_sample import squared_output_norm


@dataclass(frozen=True, kw_only=True)
class Lfssd(Ssd):
    """`Ssd` with the importance ``E (d |f(x)|^2 / d theta)^2`` (Foster et al., arXiv 2402.19308)."""

    @classmethod
    def loss(cls) -> Loss:
        """Return the squared norm of the logits."""
        return squared_output_norm
