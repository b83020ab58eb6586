"""The one page of a classifier: how near a deletion came to retraining, and which exemplars vote now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.report.attacks import attack_rows
from gen_unlearn.report.frame import page_environment, shared_sections
from gen_unlearn.report.gaps import SETS, gap_groups
from gen_unlearn.report.images import Picture, embedded
from gen_unlearn.report.states import States, measure_suffix

_READINGS = {
    "forget": "Forgetting means the accuracy of the oracle, which never saw them and may still be right "
    "about them. Lower is not better.",
}
"""Set of images -> what its accuracy should be."""

_OF_DELETED_CLASSES = {
    "exemplars": "0 where exemplars vote: a class without an exemplar is never predicted.",
    "images": "Near 0: no adapter that answers was fit on an image of such a class.",
}
"""What a model holds -> what the accuracy on held-out images of deleted classes should be."""

_FLOORS = "what retraining without the deleted images gives"
_FLOORS_OF_ATTACKS = f"{_FLOORS}; of an attack, what guessing gives"


@dataclass(frozen=True, eq=False)
class VotesView:
    """A sheet of votes.

    Attributes:
        sheet: as `gen_unlearn.report.votes.draw_votes` draws it.
        images: how many images it shows with their votes.
        description: what it shows, in words.
    """

    sheet: Image.Image
    images: int
    description: str

    @property
    def picture(self) -> Picture:
        """The sheet, encoded for the page."""
        return embedded(self.sheet, pixelated=False)


@dataclass(frozen=True, eq=False)
class ClassifierContent:
    """Everything that the page of a classifier shows; what is empty or `None` is left out.

    Attributes:
        title: heading of the page.
        headline: what was done, in a sentence or two.
        summary: facts as pairs of name and text.
        captions: state -> what it is, in the order of the columns.
        exemplars: class name -> exemplars that are left; empty for a parametric classifier.
        held: what these are called: exemplars, or images of an adapter ensemble, where none votes.
        votes: held-out images and who voted for them.
        deleted_votes: deleted images and what they are classified as now.
        deleted_total: how many images were deleted in all.
        scorecard: measures, protocol, confusion, accuracy per class and notes.
        receipts: receipts of the deletions, in order.
        recipe_yaml: the resolved recipe.
        recipe_digest: its SHA-256.
    """

    title: str
    headline: str
    summary: tuple[tuple[str, str], ...]
    captions: dict[str, str]
    exemplars: dict[str, int]
    votes: VotesView | None
    deleted_votes: VotesView | None
    deleted_total: int
    scorecard: Scorecard
    receipts: tuple[DeletionReceipt, ...]
    recipe_yaml: str
    recipe_digest: str
    held: Literal["exemplars", "images"] = "exemplars"


@dataclass(frozen=True)
class AccuracyRow:
    """The accuracy on one set of images.

    Attributes:
        heading: which images.
        images: how many.
        reading: what the accuracy should be, or nothing.
        cells: for each state its measure, `None` where it has none.
    """

    heading: str
    images: int | None
    reading: str
    cells: tuple[tuple[str, Measure | None], ...]


def render_classifier_report(content: ClassifierContent) -> str:
    """Render the page as one HTML text that loads nothing from anywhere."""
    card = content.scorecard
    attacks = attack_rows(card)
    states = States.of([*content.captions, *card.accuracy_per_class, *card.confusion])
    return (
        page_environment(states)
        .get_template("classifier.html.jinja")
        .render(
            shared_sections(card, content.receipts, states),
            content=content,
            gaps=gap_groups(card, states),
            accuracies=accuracy_rows(card, content.captions, _OF_DELETED_CLASSES[content.held]),
            never=never_predicted(card),
            attacks=attacks,
            floors_are=_FLOORS_OF_ATTACKS if attacks else _FLOORS,
        )
    )


def accuracy_rows(
    scorecard: Scorecard, states: Mapping[str, str], of_deleted_classes: str = ""
) -> list[AccuracyRow]:
    """Sort the measures ``accuracy_<set>_<state>`` into a row for each set.

    Args:
        scorecard: the measures.
        states: the columns.
        of_deleted_classes: what the accuracy on held-out images of deleted classes should be.
    """
    readings = _READINGS | {"forget_class_test": of_deleted_classes}
    measures = {measure.name: measure for measure in scorecard.measures if math.isfinite(measure.value)}
    sizes, rows = scorecard.protocol.get("images", {}), []
    for name, heading in SETS.items():
        cells = tuple((state, measures.get(f"accuracy_{name}_{measure_suffix(state)}")) for state in states)
        if any(measure is not None for _, measure in cells):
            rows.append(AccuracyRow(heading, sizes.get(name), readings.get(name, ""), cells))
    return rows


def never_predicted(scorecard: Scorecard) -> dict[str, set[str]]:
    """Return, by state, the deleted classes that it predicts for no held-out image."""
    deleted = {str(name) for name in scorecard.protocol.get("forgotten_classes", ())}
    never = {}
    for state, table in scorecard.confusion.items():
        predicted = {name for row in table.values() for name, count in row.items() if count}
        if table:
            never[state] = deleted - predicted
    return never
