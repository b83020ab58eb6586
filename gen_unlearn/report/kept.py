"""What a generator still produces of a deleted class when nothing of it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gen_unlearn.judging.wording import EXEMPLARS
from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.report.bars import NORMAL_95, Bar, draw_bars, floors_of
from gen_unlearn.report.numbers import format_floor, format_value
from gen_unlearn.report.states import States

QUANTITY = "forgotten_class_rate_null"


@dataclass(frozen=True)
class KeptByWeights:
    """The share of a deleted class in images of the null token, beside the oracle's or else chance.

    Attributes:
        made: how these images were made, such as ``without any exemplar``.
        classes: the deleted classes in words, such as ``class 3``.
        several: there is more than one.
        share: share after the deletion, with its error.
        oracle_share: the oracle's; nothing without an oracle.
        chance: the share of images that show every class alike.
        one_in: the share as ``about 1 in 8``, or nothing if it is 0.
        oracle_one_in: the same of the oracle's.
        more_than_expected: the share lies above the oracle's, or without an oracle above chance, by more
            than 1.96 standard errors of the difference.
        weights_unchanged: the deletion was made at the level exemplar-only, which keeps the weights.
        svg: the shares as bars.
        floors: what the dotted line in the bars is.
    """

    made: str
    classes: str
    several: bool
    share: str
    oracle_share: str
    chance: str
    one_in: str
    oracle_one_in: str
    more_than_expected: bool
    weights_unchanged: bool
    svg: Markup
    floors: str


def kept_by_weights(scorecard: Scorecard, receipts: Sequence[DeletionReceipt]) -> KeptByWeights | None:
    """Compare the null token of the model with that of its oracle, or with chance where there is none.

    `None` unless it was measured, with something to compare it with.
    """
    measures = {measure.name: measure for measure in scorecard.measures if math.isfinite(measure.value)}
    after, oracle = measures.get(QUANTITY), measures.get(f"{QUANTITY}_oracle")
    if after is None or (oracle is None and after.floor is None):
        return None
    expected = oracle or Measure("chance", after.floor or 0.0, "")
    names = [str(name) for name in scorecard.protocol.get("forgotten_classes", ())]
    bars = [Bar("after", after), *([Bar("oracle", oracle)] if oracle else [])]
    return KeptByWeights(
        made=str(scorecard.protocol.get("null_images_drawn", EXEMPLARS.null)),
        classes=_classes(names),
        several=len(names) > 1,
        share=format_value(after),
        oracle_share=format_value(oracle) if oracle else "",
        chance=format_floor(after),
        one_in=_one_in(after.value),
        oracle_one_in=_one_in(oracle.value) if oracle else "",
        more_than_expected=_differs(after, expected),
        weights_unchanged=any(receipt.level == "exemplar-only" for receipt in receipts),
        svg=draw_bars(bars, QUANTITY, States.of(["after", "oracle"])),
        floors=floors_of([bar.measure for bar in bars]),
    )


def _classes(names: Sequence[str]) -> str:
    """Name the deleted classes."""
    if not names:
        return "the deleted class"
    if len(names) == 1:
        return f"class {names[0]}"
    return f"the classes {', '.join(names)}" if len(names) <= 5 else f"the {len(names)} deleted classes"


def _one_in(share: float) -> str:
    """Write a share as one in so many."""
    return f"about 1 in {1 / share:.0f}" if 0 < share <= 1 else ""


def _differs(larger: Measure, smaller: Measure) -> bool:
    """Tell whether the first value lies above the second by more than their errors explain."""
    error = math.hypot(larger.standard_error or 0.0, smaller.standard_error or 0.0)
    return larger.value - smaller.value > NORMAL_95 * error
