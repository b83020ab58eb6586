"""What the digits regression must give: reference values of one split, and the ranges of seven.

Source: the specification of the classification benchmark, section 8. The ranges are the envelope of the
reference and of six further splits, with 32 originals and 32 retrained networks each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.gradient_ascent import GradientAscent
from gen_unlearn.methods.classification.negative_gradient import NegGradPlus
from gen_unlearn.methods.classification.random_labels import RandomLabels
from gen_unlearn.methods.classification.scrub import Scrub
from gen_unlearn.methods.method import UnlearningMethod

Range = tuple[float, float]


@dataclass(frozen=True)
class Expected:
    """What a row reads on the reference split, and where it may lie on others.

    Attributes:
        accuracies: percentages on images to forget, on retained and on unseen ones.
        gap: mean absolute difference of the three to retrained networks, in points.
        tow: "tug of war".
        auc: of U-LiRA.
        tpr_1: of U-LiRA at a false-positive rate of 1 %.
        auc_mislabelled: of U-LiRA on images with a wrong label; `None` for retrained networks.
        accept_forget: accepted accuracies on images to forget.
        accept_auc: accepted areas.
    """

    accuracies: tuple[float, float, float]
    gap: float
    tow: float
    auc: float
    tpr_1: float
    auc_mislabelled: float | None
    accept_forget: Range
    accept_auc: Range


# fmt: off
EXPECTED: Mapping[str, Expected] = {
    "Retrain": Expected((84.7, 96.8, 90.5), 0, 1, .496, .01, None, (72, 88), (.45, .55)),
    "Original": Expected((97.9, 97.0, 90.6), 4.48, .866, .748, .155, 1.0, (93, 99), (.71, .81)),
    "FT 10 ep lr .1": Expected((93.3, 98.3, 91.0), 3.50, .897, .766, .157, .995, (89, 97), (.71, .79)),
    "FT 10 ep lr .2": Expected((86.5, 92.1, 88.7), 2.80, .918, .630, .108, .895, (82, 89), (.61, .68)),
    "GA .005": Expected((96.5, 96.3, 90.0), 4.31, .872, .728, .152, 1.0, (92, 97), (.68, .78)),
    "GA .02": Expected((87.4, 89.3, 83.6), 5.75, .837, .665, .144, .977, (72, 88), (.62, .71)),
    "NegGrad+ .95": Expected((95.8, 98.7, 91.8), 4.76, .861, .762, .141, .999, (91, 99), (.73, .81)),
    "NegGrad+ .8": Expected((87.2, 97.1, 90.6), .95, .971, .700, .109, .904, (81, 92), (.65, .76)),
    "RL .01": Expected((96.2, 97.9, 88.4), 4.91, .857, .829, .182, 1.0, (92, 98), (.82, .88)),
    "RL .04": Expected((91.7, 95.5, 90.7), 2.82, .916, .835, .190, .996, (88, 95), (.82, .88)),
    "SCRUB .01": Expected((98.2, 97.9, 91.2), 5.11, .849, .759, .150, 1.0, (93, 99), (.73, .82)),
    "SCRUB .1": Expected((93.2, 95.6, 90.6), 3.26, .903, .705, .137, .998, (88, 95), (.69, .78)),
}

OTHERS: Mapping[str, tuple[float, Range | None]] = {
    "population AUC, Original": (.559, (.49, .60)),
    "population AUC, Retrain": (.468, (.38, .51)),
    "population AUC, FT 6 ep lr .05": (.548, None),
    "PG_H unseen, Original": (11.31, (10, 13)),
    "PG_H unseen, FT": (10.30, None),
    "PG_H unseen, floor": (11.03, (8.9, 12)),
    "PG_H forget, Original": (13.96, None),
    "PG_H forget, FT": (12.37, None),
    "PG_H forget, floor": (9.30, None),
    "PG_S forget, Original": (.453, None),
    "PG_S forget, FT": (.391, None),
    "PG_S forget, floor": (.270, None),
    "energy 0/1 forget, Original": (.153, (.12, .21)),
    "energy 0/1 forget, FT": (.120, None),
    "energy 0/1 forget, null": (-.007, (-.01, .01)),
    "energy JS forget, Original": (.080, (.07, .13)),
    "energy JS forget, FT": (.066, None),
    "energy JS forget, null": (-.002, (-.01, .01)),
    "energy 0/1 unseen, Original": (.008, (.004, .02)),
    "energy 0/1 unseen, FT": (.007, (.004, .02)),
    "energy 0/1 unseen, null": (-.0004, None),
    "energy JS unseen, Original": (.008, (.004, .02)),
    "energy JS unseen, FT": (.006, (.004, .02)),
    "energy JS unseen, null": (-.0002, None),
    "class 0, PG_H unseen, Original": (18.94, (18, 21)),
    "class 0, PG_H unseen, floor": (13.20, (12.9, 15.7)),
    "KLoM 16+16, Original": (4.82, None),
    "KLoM 16+16, FT": (4.79, None),
    "KLoM 16+16, floor": (3.68, None),
}
# fmt: on
"""Value of the reference split, and the accepted range where there is one."""


def methods(batch_forget: int, batch_retain: int) -> dict[str, UnlearningMethod]:
    """Return the methods of all rows that unlearn, by the name of the row; SGD with a momentum of 0.9.

    Args:
        batch_forget: images to forget of a step.
        batch_retain: retained images of a step.
    """
    f, r = batch_forget, batch_retain
    found: dict[str, UnlearningMethod] = {
        f"FT 10 ep lr {lr:.1f}".replace("0.", "."): FineTune(lr=lr, epochs=10, batch_retain=r)
        for lr in (0.1, 0.2)
    }
    for name, lr in (("GA .005", 0.005), ("GA .02", 0.02)):
        found[name] = GradientAscent(lr=lr, epochs=5, batch_forget=f)
    for name, alpha in (("NegGrad+ .95", 0.95), ("NegGrad+ .8", 0.8)):
        found[name] = NegGradPlus(alpha=alpha, lr=0.03, epochs=5, batch_forget=f, batch_retain=r)
    for name, lr in (("RL .01", 0.01), ("RL .04", 0.04)):
        found[name] = RandomLabels(lr=lr, epochs=5, batch_forget=f, batch_retain=r)
    for name, lr in (("SCRUB .01", 0.01), ("SCRUB .1", 0.1)):
        found[name] = Scrub(
            lr=lr,
            epochs=5,
            alpha=0.5,
            gamma=1.0,
            temperature=4.0,
            msteps=3,
            first_phase="max",
            weight_decay=0.0,
            milestones=(),
            batch_forget=f,
            batch_retain=r,
        )
    return found


def mild_fine_tuning(batch_retain: int) -> UnlearningMethod:
    """Return the fine-tuning that population attacks are measured on."""
    return FineTune(lr=0.05, epochs=6, batch_retain=batch_retain)
