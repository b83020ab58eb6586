"""The plots that open a page: the measures by which a deletion is judged first, as bars."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.report.bars import floor_caption, state_bars
from gen_unlearn.report.states import States


@dataclass(frozen=True)
class Compared:
    """A quantity that is measured in several states.

    Attributes:
        quantity: how the names of its measures begin, up to the state.
        heading: what it is, in a line.
        remark: how to read it.
    """

    quantity: str
    heading: str
    remark: str = ""


COMPARED = (
    Compared("fd_retain", "Fréchet distance on the retained classes", "Lower is better."),
    Compared("forgotten_class_rate", "Images recognised as a forgotten class"),
    Compared(
        "unlearning_accuracy",
        "Unlearning accuracy",
        "Noise alone scores 100\u00a0%: read it beside the oracle's and beside the samples.",
    ),
    Compared(
        "membership_auc_loss",
        "Membership, loss attack",
        "Area under the ROC curve. Dotted line: 0.5, guessing.",
    ),
    Compared("copies_share", "Generated images that copy a deleted image"),
)


@dataclass(frozen=True)
class Plot:
    """A drawn comparison with its heading and what is written below it."""

    heading: str
    svg: Markup
    remark: str


def comparison_plots(scorecard: Scorecard, states: States) -> list[Plot]:
    """Draw every comparison of `COMPARED` that was measured in two states or more."""
    plots = []
    for compared in COMPARED:
        svg = state_bars(scorecard, compared.quantity, states)
        if svg is not None:
            remarks = (compared.remark, floor_caption(scorecard, compared.quantity, states))
            plots.append(Plot(compared.heading, svg, " ".join(filter(None, remarks))))
    return plots
