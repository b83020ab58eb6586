"""What the digits regression measures of a pool of networks, and what must hold of it on every split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluation.digits_expected import EXPECTED, OTHERS, Range
from evaluation.digits_pools import SETS, Pool, World
from gen_unlearn.metrics.auc import Stratum, area_under_curve
from gen_unlearn.metrics.compatibility import SetAccuracies, tow
from gen_unlearn.metrics.klom import klom_hist20
from gen_unlearn.metrics.prediction_gap import Distance, compare_with_retrained
from gen_unlearn.metrics.ulira import ulira_loo
from gen_unlearn.repro import numpy_generator

HALF_SPLITS = 8
KLOM_MODELS = 16

Row = dict[str, Any]
_ENERGY: dict[str, Distance] = {"0/1": "disagreement", "JS": "js"}


def measure_row(world: World, pool: Pool) -> Row:
    """Return accuracies (percent, with their deviation over networks), gap, ToW and U-LiRA of a pool."""
    found = _accuracies(world, pool)
    retrained = _accuracies(world, world.retrained)
    own, other = found["accuracies"], retrained["accuracies"]
    attacked, oracle = world.margins(pool, "forget"), world.margins(world.retrained, "forget")
    attack = ulira_loo(attacked, oracle)
    wrong = world.mislabelled
    return found | {
        "gap": float(np.mean([abs(own[name] - other[name]) for name in SETS])),
        "tow": tow(_set_accuracies(own), _set_accuracies(other)),
        "auc": attack.auc.value,
        "auc_error_images": attack.auc.standard_error,
        "auc_error_models": attack.model_error,
        "tpr_1": None if attack.tpr_1 is None else attack.tpr_1.value,
        "auc_mislabelled": ulira_loo(attacked[:, wrong], oracle[:, wrong]).auc.value if wrong.any() else None,
    }


def measure_retrained(world: World) -> Row:
    """Return the same of retrained networks, whose attack tells random halves of them apart."""
    oracle = world.margins(world.retrained, "forget")
    areas, rates = [], []
    for number in range(HALF_SPLITS):
        order = numpy_generator("half split", number).permutation(len(oracle))
        half = len(order) // 2
        attack = ulira_loo(oracle[order[:half]], oracle[order[half : 2 * half]])
        areas.append(attack.auc.value)
        rates += [] if attack.tpr_1 is None else [attack.tpr_1.value]
    return _accuracies(world, world.retrained) | {
        "gap": 0.0,
        "tow": 1.0,
        "auc": float(np.mean(areas)),
        "auc_half_splits": areas,
        "tpr_1": float(np.mean(rates)) if rates else None,
        "auc_mislabelled": None,
    }


def measure_others(world: World, fine_tuned: Pool, mild: Pool, forgotten_class: World) -> dict[str, float]:
    """Return what the specification lists beside the rows, by the names of `OTHERS`.

    Args:
        world: the random forget set.
        fine_tuned: its originals after ten epochs of fine-tuning at 0.1.
        mild: the same after six at 0.05.
        forgotten_class: the same originals with a class to forget.
    """
    half = len(world.retrained) // 2
    first, second = world.retrained.take(slice(half)), world.retrained.take(slice(half, 2 * half))
    pools = {"Original": world.originals, "FT": fine_tuned}
    found = {
        "population AUC, Original": population_auc(world, world.originals),
        "population AUC, Retrain": population_auc(world, world.retrained),
        "population AUC, FT 6 ep lr .05": population_auc(world, mild),
    }
    for name in ("unseen", "forget"):
        for label, pool in pools.items():
            found |= _apart(pool, world.retrained, name, label)
        for short, distance in _ENERGY.items():
            found[f"energy {short} {name}, null"] = distances(first, second, name, distance)[2]
    of_class = distances(forgotten_class.originals, forgotten_class.retrained, "unseen", "disagreement")
    found["class 0, PG_H unseen, Original"] = 100 * of_class[0]
    found["class 0, PG_H unseen, floor"] = 100 * of_class[1]
    if half >= KLOM_MODELS:
        oracle = world.margins(first, "forget")[:KLOM_MODELS]
        for label, pool in {**pools, "floor": second}.items():
            divergence = klom_hist20(world.margins(pool, "forget")[:KLOM_MODELS], oracle)
            found[f"KLoM 16+16, {label}"] = divergence.mean.value
    return {name: found[name] for name in OTHERS if name in found}


def _apart(pool: Pool, retrained: Pool, name: str, label: str) -> dict[str, float]:
    """Return PG_H, PG_S (on images to forget), their floors and both energies of a pool on one set."""
    found = {}
    for short, distance in _ENERGY.items():
        to, floor, energy = distances(pool, retrained, name, distance)
        found[f"energy {short} {name}, {label}"] = energy
        if distance == "disagreement":
            found |= {f"PG_H {name}, {label}": 100 * to, f"PG_H {name}, floor": 100 * floor}
    if name == "forget":
        to, floor, _ = distances(pool, retrained, name, "kl")
        found |= {f"PG_S {name}, {label}": to, f"PG_S {name}, floor": floor}
    return found


def distances(pool: Pool, retrained: Pool, name: str, distance: Distance) -> tuple[float, float, float]:
    """Return the mean distance to retrained networks, that between these, and the energy distance.

    The energy of ``"kl"``, which has none, is NaN.
    """
    gap = compare_with_retrained(pool.probabilities(name), retrained.probabilities(name), distance)
    assert gap.floor is not None
    return gap.to_retrained.value, gap.floor.value, np.nan if gap.energy is None else gap.energy.value


def population_auc(world: World, pool: Pool) -> float:
    """Return the mean over networks of the area between margins of images to forget and of unseen ones."""
    pairs = zip(world.margins(pool, "forget"), world.margins(pool, "unseen"), strict=True)
    return float(np.mean([area_under_curve([Stratum(a, b)])[0].value for a, b in pairs]))


def assertions(rows: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
    """Return what must hold on every split, each with the value it is about and whether it holds.

    Args:
        rows: of all names in `EXPECTED`.
    """
    original, retrained, plus = (rows[name] for name in ("Original", "Retrain", "NegGrad+ .8"))
    relabelled = min(rows[name]["auc"] for name in ("RL .01", "RL .04")) - original["auc"]
    wrong = original["auc_mislabelled"]
    cut, fall = original["gap"] - plus["gap"], original["auc"] - plus["auc"]
    found = {
        "AUC of Original above .70": (original["auc"], original["auc"] > 0.70),
        "AUC on mislabelled images above .95": (wrong, wrong is not None and wrong > 0.95),
        "AUC between halves of Retrain in [.45, .55]": (retrained["auc"], 0.45 <= retrained["auc"] <= 0.55),
        "AUC of RL at least .05 above Original": (relabelled, relabelled >= 0.05),
        "NegGrad+ .8 cuts the gap by 1.0": (cut, cut >= 1.0),
        "AUC of NegGrad+ .8 falls by .08 at most": (fall, fall <= 0.08),
    }
    return {name: {"value": value, "holds": bool(holds)} for name, (value, holds) in found.items()}


def misses(rows: Mapping[str, Row], others: Mapping[str, float]) -> list[str]:
    """Return every value outside its accepted range, in words."""
    found = []
    for name, row in rows.items():
        expected = EXPECTED[name]
        forget = row["accuracies"]["forget"]
        if not inside(forget, expected.accept_forget):
            found.append(
                f"{name}: accuracy on images to forget {forget:.1f}, not in {expected.accept_forget}"
            )
        if not inside(row["auc"], expected.accept_auc):
            found.append(f"{name}: AUC {row['auc']:.3f}, not in {expected.accept_auc}")
    for name, value in others.items():
        accepted = OTHERS[name][1]
        if accepted is not None and not inside(value, accepted):
            found.append(f"{name}: {value:.4g}, not in {accepted}")
    return found


def inside(value: float, accepted: Range) -> bool:
    """Tell whether a value lies in a range, ends included."""
    return accepted[0] <= value <= accepted[1]


def _set_accuracies(found: Mapping[str, float]) -> SetAccuracies:
    return SetAccuracies(forget=found["forget"], retain=found["retain"], test=found["unseen"])


def _accuracies(world: World, pool: Pool) -> Row:
    found: Row = {"accuracies": {}, "deviations": {}}
    for name in SETS:
        right = getattr(pool, name).argmax(axis=2) == world.images[name].labels
        each = 100 * right.mean(axis=1)
        found["accuracies"][name] = float(each.mean())
        found["deviations"][name] = float(each.std(ddof=1))
    return found
