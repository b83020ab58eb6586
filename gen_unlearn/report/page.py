"""The one page that shows a deletion: samples, deleted images, measures and receipts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.receipts import NOT_COVERED, OUTSIDE, PROMISES, DeletionReceipt, Level
from gen_unlearn.report import numbers
from gen_unlearn.report.classes import MANY_CLASSES, NULL_TOKEN, class_maps
from gen_unlearn.report.images import Picture, page_picture
from gen_unlearn.report.kept import kept_by_weights
from gen_unlearn.report.plots import comparison_plots
from gen_unlearn.report.roc import roc_panels
from gen_unlearn.report.states import States
from gen_unlearn.repro import software_versions

_FEW_DELETED = 6
"""So many deleted images are shown; the others are folded."""

_MANY_MEASURES = 24
"""With more measures than this, their tables are folded."""


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
    template = _environment(states).get_template("page.html.jinja")
    return template.render(
        content=content,
        scorecard=card,
        states=states,
        few_deleted=_FEW_DELETED,
        promises=_promises(content.receipts),
        outside=OUTSIDE,
        kept=kept_by_weights(card, content.receipts),
        sample_rows=_sample_rows(content.states),
        plots=comparison_plots(card, states),
        panels=roc_panels(card, states),
        maps=class_maps(card, states),
        null_token=NULL_TOKEN,
        accuracy=_accuracy_rows(card),
        many_classes=MANY_CLASSES,
        groups=numbers.grouped(card.measures),
        many_measures=_MANY_MEASURES,
        numbers=numbers,
        versions=software_versions(),
    )


def _environment(states: States) -> Environment:
    """Return the templates of the page, with filters for its pictures and states."""
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
