"""How far predictions after a deletion lie from those of retrained models, beside the same between these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gen_unlearn.judging.predictions import SETS, Predictions
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.gap import RetrainGap, retrain_gap
from gen_unlearn.metrics.prediction_gap import (
    Distance,
    PredictionGap,
    compare_with_retrained,
)
from gen_unlearn.metrics.scorecard import Measure

AT_FLOOR = "indistinguishable"
"""Detail of a distance: 1 at or below the floor, 0 above it."""

_EXCESS = "prediction_gap_excess_"


class _Quantity(NamedTuple):
    """A distance: what its measures begin with, and what it is."""

    name: str
    distance: Distance
    text: str


_QUANTITIES = (
    _Quantity(
        "prediction_gap",
        "disagreement",
        "Share of {images} for which the model {state} predicts another class than {retrained} (PG_H)",
    ),
    _Quantity(
        "soft_gap",
        "kl",
        "Mean KL(retrained || model) in nats between the probabilities that the model {state} and "
        "{retrained} give the classes, over {images} (PG_S). Probabilities below 1e-12 count as 1e-12, "
        "which decides the size of large values",
    ),
    _Quantity(
        "js_gap",
        "js",
        "Mean Jensen-Shannon divergence in nats, at most ln 2 = 0.69, between the probabilities that the "
        "model {state} and {retrained} give the classes, over {images}",
    ),
)

_POOLS = {
    "oracle": ("", "an oracle, the model retrained without the deleted images", "oracles"),
    "parametric": (
        "_parametric",
        "a model without exemplars, retrained without the deleted images",
        "models without exemplars",
    ),
}
"""State of the retrained models -> what names of measures take on, one of them in words, and several."""

_COMPARED = {"before": "_before", "after": ""}
"""State that is compared -> what names of measures end in."""


class _Comparison(NamedTuple):
    """One state against one pool of retrained models, on one set of images."""

    models: list[np.ndarray]
    retrained: list[np.ndarray]
    state: str
    pool: str
    images: str
    name: str
    """What names of measures end in."""

    def to_retrained(self, distance: Distance) -> PredictionGap:
        """Compare the models with the pool."""
        return compare_with_retrained(self.models, self.retrained, distance)

    @property
    def against(self) -> str:
        """What the model is compared with."""
        _, one, _ = _POOLS[self.pool]
        count = len(self.retrained)
        return one if count == 1 else f"{one}; the mean over {count} of different training seeds"

    @property
    def floor(self) -> str:
        """What the floor is."""
        _, _, several = _POOLS[self.pool]
        return f"the mean over pairs of the {len(self.retrained)} {several}: none can be expected below it"


def measure_prediction_gaps(predictions: Predictions) -> list[Measure]:
    """Measure PG_H and PG_S of arXiv 2603.22870 and the Jensen-Shannon gap, each with its floor.

    The floor is the distance between two retrained models; with one retrained model there is none. A set of
    one image is left out: it shows no error.
    """
    comparisons = list(_comparisons(predictions))
    measures = []
    for quantity in _QUANTITIES:
        found = [(item, item.to_retrained(quantity.distance)) for item in comparisons]
        measures += [_distance(quantity, item, gap) for item, gap in found]
        if quantity.distance == "disagreement":
            measures += [_excess(item, gap) for item, gap in found if gap.retrained > 1]
    return measures


def _comparisons(predictions: Predictions) -> Iterator[_Comparison]:
    for pool, (suffix, _, _) in _POOLS.items():
        for name, labels in predictions.labels.items():
            retrained, images = predictions.of(pool, name), f"{len(labels)} {SETS[name]}"
            for state, ending in _COMPARED.items():
                models = predictions.of(state, name)
                if retrained and models and len(labels) > 1:
                    yield _Comparison(models, retrained, state, pool, images, f"{name}{suffix}{ending}")


def _distance(quantity: _Quantity, comparison: _Comparison, found: PredictionGap) -> Measure:
    value, sampling = found.to_retrained, _sampling_error(found, len(comparison.retrained[0]))
    text = quantity.text.format(
        images=comparison.images, state=comparison.state, retrained=comparison.against
    )
    name, floor = f"{quantity.name}_{comparison.name}", found.floor
    if floor is None:
        return Measure.of(
            name,
            Estimate(value.value, sampling),
            f"{text}. Not even another retraining would have 0: two retrained models give the floor.",
        )
    return Measure.of(
        name,
        Estimate(value.value, math.hypot(value.standard_error, sampling)),
        f"{text}. At or below the floor the model is indistinguishable from a retrained one by this measure, "
        "never better. The error is that of other training seeds and of other images, in quadrature.",
        floor.value,
        f"{comparison.floor} ({floor})",
        {AT_FLOOR: float(value.value <= floor.value)},
    )


def _sampling_error(gap: PredictionGap, images: int) -> float:
    """Return the error of other images; of a share of 0 or 1 it is that of `proportion`."""
    if gap.distance == "disagreement" and gap.image_error == 0:
        return 1 / (images + 1)
    return gap.image_error


def _excess(comparison: _Comparison, found: PredictionGap) -> Measure:
    """Measure how far PG_H lies above its floor."""
    (to,), error = found.pairs, _sampling_error(found, len(comparison.retrained[0]))
    gap = retrain_gap(to, found.retrained_pairs, error)
    spread = {} if gap.retraining_spread is None else {"retraining_spread": gap.retraining_spread}
    return Measure.of(
        f"{_EXCESS}{comparison.name}",
        gap.gap,
        f"Share of {comparison.images} for which the model {comparison.state} predicts another class than "
        f"{comparison.against}, less {comparison.floor.partition(':')[0]}. {_reading(gap)}",
        0.0,
        "the mean of further retrainings",
        {AT_FLOOR: float(gap.gap.value <= 0), **spread},
    )


def _reading(gap: RetrainGap) -> str:
    """Say what an excess of 0 means, and by what one is told from it."""
    never = "at or below it the model is indistinguishable from a retrained one by this measure, never better"
    note = f"{gap.note[:1].upper()}{gap.note[1:]}."
    if gap.retraining_spread is None:
        return f"0 is the mean of further retrainings; {never}. {note}"
    return (
        f"0 is the mean of further retrainings, which scatter by {gap.retraining_spread:.2g} (the standard "
        f"deviation, retraining_spread); {never}. An excess is told from 0 by this, not by its own error. "
        f"{note}"
    )


def gap_notes(measures: Sequence[Measure]) -> list[str]:
    """Say which distances after the deletion are at their floor, and which of them were before it."""
    distances = {
        measure.name: measure
        for measure in measures
        if AT_FLOOR in measure.details and not measure.name.startswith(_EXCESS)
    }
    at = [name for name, found in distances.items() if found.details[AT_FLOOR]]
    reached = [name for name in at if not name.endswith("_before")]
    blind = [name for name in reached if f"{name}_before" in at]
    notes = []
    if reached:
        notes.append(
            "At or below the floor, which means indistinguishable from a retrained model by this measure and "
            f"not better than one: {_listed(reached)}."
        )
    if blind:
        which = "any of them" if blind == reached else _listed(blind)
        notes.append(
            "The model before the deletion is at or below the floor as well, so that what the deletion did "
            f"cannot be seen in {which}."
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    """List measures by quantity, such as ``js_gap (forget, test)``."""
    texts = []
    for quantity in _QUANTITIES:
        begin = f"{quantity.name}_"
        if sets := [name.removeprefix(begin) for name in names if name.startswith(begin)]:
            texts.append(f"{quantity.name} ({', '.join(sets)})")
    return ", ".join(texts)
