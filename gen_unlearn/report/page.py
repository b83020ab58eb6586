"""The one page that shows a deletion: samples, deleted images, measures and receipts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.report.frame import page_environment, shared_sections
from gen_unlearn.report.kept import kept_by_weights
from gen_unlearn.report.plots import comparison_plots
from gen_unlearn.report.roc import roc_panels
from gen_unlearn.report.states import States

_FEW_DELETED = 6
"""So many deleted images are shown; the others are folded."""


@dataclass(frozen=True, eq=False)
class GridRow:
    """One class in the sample grid.

    Attributes:
        label: class name, or such as ``null token``; rows of equal label are set side by side.
        images: uint8 ``(n, height, width, channels)``, or `None` where nothing was generated.
        remark: shown below the images, or in their place, such as ``refused: no exemplar is left``.
    """

    label: str
    images: np.ndarray | None
    remark: str = ""


@dataclass(frozen=True, eq=False)
class StateView:
    """What one state of the model (``before``, ``after`` or ``oracle``) generates, and what the state is."""

    name: str
    caption: str
    rows: tuple[GridRow, ...]


@dataclass(frozen=True, eq=False)
class Neighbour:
    """The generated image of a state that is nearest to a deleted one: uint8 ``(height, width, channels)``.

    The distance is Euclidean over all pixel values in [0, 1].
    """

    state: str
    image: np.ndarray
    distance: float


@dataclass(frozen=True, eq=False)
class DeletedView:
    """A deleted training image, uint8 ``(height, width, channels)``, and its nearest generated images."""

    title: str
    image: np.ndarray
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything the page shows; any of the tuples may be empty, and its section is left out.

    Attributes:
        title: heading of the page.
        summary: headline facts as pairs of name and text.
        states: states of the model, from left to right.
        deleted: the deleted images to show.
        deleted_total: how many images were deleted in all.
        scorecard: measures, protocol, accuracy per class and notes.
        receipts: receipts of the deletions, in order.
        recipe_yaml: the resolved recipe.
        recipe_digest: its SHA-256.
    """

    title: str
    summary: tuple[tuple[str, str], ...]
    states: tuple[StateView, ...]
    deleted: tuple[DeletedView, ...]
    deleted_total: int
    scorecard: Scorecard
    receipts: tuple[DeletionReceipt, ...]
    recipe_yaml: str
    recipe_digest: str


def render_report(content: ReportContent) -> str:
    """Render the page as one HTML text that loads nothing from anywhere.

    Raises:
        ValueError: an image is not uint8, grey or RGB, of the shape stated above, or a ROC curve is damaged.
    """
    card, states = content.scorecard, _states(content)
    return (
        page_environment(states)
        .get_template("page.html.jinja")
        .render(
            shared_sections(card, content.receipts, states),
            content=content,
            few_deleted=_FEW_DELETED,
            kept=kept_by_weights(card, content.receipts),
            sample_rows=_sample_rows(content.states),
            plots=comparison_plots(card, states),
            panels=roc_panels(card, states),
            floors_are="what the best possible generator, or chance, would get",
        )
    )


def _states(content: ReportContent) -> States:
    """Collect the states that the page may show anywhere."""
    card = content.scorecard
    return States.of(
        [
            *(view.name for view in content.states),
            *(neighbour.state for view in content.deleted for neighbour in view.neighbours),
            *card.accuracy_per_class,
            *card.confusion,
            *(state for by_state in card.roc.values() for state in by_state),
        ]
    )


def _sample_rows(states: Sequence[StateView]) -> list[tuple[str, list[tuple[str, GridRow]]]]:
    """Align rows of equal label across states; a state without the row gets an empty one."""
    labels = dict.fromkeys(row.label for state in states for row in state.rows)
    by_label = {state.name: {row.label: row for row in state.rows} for state in states}
    return [
        (
            label,
            [(name, rows.get(label, GridRow(label, None, "not sampled"))) for name, rows in by_label.items()],
        )
        for label in labels
    ]
