"""What the adapters of an ensemble answer for images that are routed to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gen_unlearn.adapters.family import AdapterState, HeadFamily
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.routing import members_of


class Answers(NamedTuple):
    """What an ensemble says of some images.

    Attributes:
        scores: mean of what the adapters that answer say, float64 ``(n, classes)``; 0 if none answers.
        answering: how many of an image's adapters answer, int64 ``(n,)``: an adapter without members does
            not, and neither does one that waits to be rebuilt.
    """

    scores: np.ndarray
    answering: np.ndarray


def answers(
    recipe: EnsembleRecipe, states: Mapping[int, AdapterState], codes: np.ndarray, routes: np.ndarray
) -> Answers:
    """Average what the adapters that images are routed to say of them.

    Args:
        recipe: what the ensemble is made of.
        states: the adapters that answer.
        codes: of the images, int16 ``(n, features)``.
        routes: of the images, int16 ``(n, neighbours)``.

    Raises:
        ValueError: the adapters do not classify.
    """
    family = recipe.family
    if not isinstance(family, HeadFamily):
        raise ValueError(f"expected adapters that classify, got {type(family).__name__}")
    totals = np.zeros((len(codes), recipe.shape.classes))
    answering = np.zeros(len(codes), dtype=np.int64)
    asked, ranks = np.unique(routes, return_inverse=True)
    members = members_of(ranks.reshape(routes.shape), len(asked))
    for rank, adapter in enumerate(asked.tolist()):
        if adapter in states:
            rows = members[rank]
            totals[rows] += family.scores(states[adapter], codes[rows])
            answering[rows] += 1
    return Answers(totals / np.maximum(answering, 1)[:, None], answering)
