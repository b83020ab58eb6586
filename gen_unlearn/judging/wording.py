"""What measures call the states of a model, and what its images without a class come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """A kind of generator in the words of its measures.

    Attributes:
        states: state (``before``, ``after``, ``random``, ``oracle``) -> the model in that state.
        null: how images of the null token are sampled, such as ``without any exemplar``.
        kept: what they show of a deleted class.
        scored: how an image is scored by a membership attack, as a sentence, or nothing.
        gap: what leakage means, by state; of others it is ``""``.
    """

    states: dict[str, str]
    null: str
    kept: str
    scored: str
    gap: dict[str, str]

    def gap_of(self, state: str) -> str:
        """Say what it means if a state leaks more than the oracle."""
        return self.gap.get(state, self.gap[""])


_ORACLE = {"oracle": "the model that was retrained without the deleted images"}

EXEMPLARS = Wording(
    states={
        "before": "the model with all its exemplars",
        "after": "the model without the deleted images among its exemplars",
        "random": "the model without as many other images, chosen at random, among its exemplars",
        **_ORACLE,
    },
    null="without any exemplar",
    kept="the part of the class that lives in the weights",
    scored="",
    gap={
        "after": "Parametric leakage: above 0 the weights remember more than retraining.",
        "": "Above 0 the weights and the exemplars remember more than retraining.",
    },
)
"""Words for a semi-parametric generator, and for those from which nothing is deleted."""

ADAPTERS = Wording(
    states={
        "before": "the model with all images in their adapters",
        "after": "the model as it is now, with the adapters of the deleted images rebuilt or waiting",
        "random": "the model without as many other images, chosen at random, in its adapters",
        **_ORACLE,
    },
    null="without a class",
    kept="what the backbone knows of the class from public images, and other adapters from the images that "
    "are left. For each an adapter is drawn by its share of all images",
    scored="Each image is scored under its class with the adapter it is routed to, the one with the nearest "
    "key among those that answer, by the same rule in every state.",
    gap={
        "after": "Above 0 the adapters that are left remember more than retraining; if every deletion is "
        "bit-exact, and the oracle was trained in the same environment, it is 0 to the last digit.",
        "": "Above 0 the adapters remember more than retraining.",
    },
)
"""Words for an adapter ensemble."""

WEIGHTS = Wording(
    states={
        "before": "the model that was unlearned, as it was trained",
        "after": "the model after approximate unlearning",
        **_ORACLE,
    },
    null="without a class",
    kept="what the weights still make of the class unasked",
    scored="",
    gap={"": "Above 0 the weights remember more than retraining."},
)
"""Words for a plain generator after approximate unlearning."""
