"""What the pages of generators and classifiers share: their templates, and what every section can use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.receipts import NOT_COVERED, OUTSIDE, PROMISES, DeletionReceipt, Level
from gen_unlearn.report import numbers
from gen_unlearn.report.classes import MANY_CLASSES, NULL_TOKEN, class_maps
from gen_unlearn.report.images import Picture, page_picture
from gen_unlearn.report.states import States
from gen_unlearn.repro import software_versions

_MANY_MEASURES = 24
"""With more measures than this, their tables are folded."""


def page_environment(states: States) -> Environment:
    """Return the templates of a page, with filters for its pictures and states."""
    environment = Environment(
        loader=PackageLoader("gen_unlearn", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = _single_picture
    environment.filters["strip"] = _strip_picture
    environment.filters["state"] = lambda name: _badge(states, name)
    return environment


def shared_sections(
    scorecard: Scorecard, receipts: Sequence[DeletionReceipt], states: States
) -> dict[str, Any]:
    """Return what the shared parts of a page are filled with: promises, classes, measures and versions."""
    return {
        "scorecard": scorecard,
        "states": states,
        "promises": _promises(receipts),
        "outside": OUTSIDE,
        "maps": class_maps(scorecard, states),
        "null_token": NULL_TOKEN,
        "accuracy": _accuracy_rows(scorecard),
        "many_classes": MANY_CLASSES,
        "groups": numbers.grouped(scorecard.measures),
        "many_measures": _MANY_MEASURES,
        "numbers": numbers,
        "versions": software_versions(),
    }


def _badge(states: States, name: str) -> Markup:
    """Write the name of a state with a dot of its colour."""
    return Markup('<span class="state" style="--state: var(--{})">{}</span>').format(
        states.variable(name), name
    )


def _promises(receipts: Sequence[DeletionReceipt]) -> list[tuple[Level, str, str, str]]:
    """Return per level in the receipts: the level, its artefacts, its promise and what that leaves out."""
    artefacts: dict[Level, dict[str, None]] = {}
    for receipt in receipts:
        artefacts.setdefault(receipt.level, {})[receipt.artefact] = None
    return [
        (level, ", ".join(names), PROMISES[level], NOT_COVERED[level]) for level, names in artefacts.items()
    ]


def _accuracy_rows(scorecard: Scorecard) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """Return per class: its name, and the accuracy in each state, `None` where the state refuses it."""
    table = scorecard.accuracy_per_class
    classes = dict.fromkeys(name for shares in table.values() for name in shares)
    return [(name, [(state, shares.get(name)) for state, shares in table.items()]) for name in classes]


def _single_picture(image: np.ndarray) -> Picture:
    """Encode one image ``(height, width, channels)``."""
    return page_picture(image[np.newaxis])


def _strip_picture(images: np.ndarray) -> Picture:
    """Encode a row of images: ten abreast if they are tiny, else five, so that each can be made out."""
    tiny = images.ndim == 4 and images.shape[2] <= 16
    return page_picture(images, columns=10 if tiny else 5)
