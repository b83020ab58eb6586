"""Collect what a run's report shows, and write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.evaluate import find_deletion
from gen_unlearn.commands.model_words import adapter_words, backbone_words
from gen_unlearn.commands.report_classifier import class_turn, collect_classifier
from gen_unlearn.judging.evidence import Deletion
from gen_unlearn.metrics.copying import nearest_images
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.report.classifier_page import render_classifier_report
from gen_unlearn.report.page import DeletedView, GridRow, Neighbour, ReportContent, StateView, render_report
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SampleSet

_COLUMNS = 10
_DELETED_SHOWN = 24

_CAPTIONS = {
    "before": "the model as it was trained",
    "after": "the same weights, after the deletion",
    "oracle": "retrained from scratch without the deleted images",
}
_AFTER = "the adapters of deleted images rebuilt without them; backbone and other adapters as they were"

_UNLEARNED = "the weights after approximate unlearning, which may still carry traces of the images"


def write_report(run: RunFolder, path: Path, show_deleted: bool = False) -> None:
    """Write the report of a run that was evaluated; it shows deleted images only if asked to.

    Raises:
        ValueError: the run was not evaluated, or was changed since.
    """
    if run.recipe.task == "classification":
        html = render_classifier_report(collect_classifier(run, _evaluated(run), show_deleted))
    else:
        html = render_report(collect(run, show_deleted))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)


def collect(run: RunFolder, show_deleted: bool) -> ReportContent:
    """Collect the content of a run's report from its scorecard, samples and receipts."""
    card = _evaluated(run)
    states = load_states(run, card)
    receipts = tuple(run.receipts())
    deletion = find_deletion(run, run.load_split().train)
    return ReportContent(
        title=_title(run, bool(receipts)),
        summary=_summary(run, card),
        states=tuple(_state_view(run, name, samples, deletion) for name, samples in states.items()),
        deleted=_deleted_views(run, states, deletion) if receipts and show_deleted else (),
        deleted_total=sum(receipt.removed for receipt in receipts),
        scorecard=card,
        receipts=receipts,
        recipe_yaml=run.config.to_yaml(),
        recipe_digest=run.manifest.recipe_digest,
    )


def _title(run: RunFolder, deleted: bool) -> str:
    if run.manifest.unlearned is not None:
        return "Approximate unlearning in an image generator"
    return "Deletion from an image generator" if deleted else "An image generator"


def _evaluated(run: RunFolder) -> Scorecard:
    """Return the scorecard of a run as it is now."""
    if not run.scorecard_path.exists():
        raise ValueError(f"{run.path} was not evaluated yet; run: gen-unlearn evaluate {run.path}")
    card = Scorecard.from_file(run.scorecard_path)
    if card.protocol["state"] != run.state_digest():
        raise ValueError(f"{run.path} was changed after its evaluation; run: gen-unlearn evaluate {run.path}")
    return card


def load_states(run: RunFolder, card: Scorecard) -> dict[str, SampleSet]:
    """Load the samples that a scorecard was made from: before, after and oracle, as far as there are."""
    return {
        state: SampleSet.from_file(run.samples_path / name)
        for state, name in card.samples.items()
        if state in _CAPTIONS
    }


def _summary(run: RunFolder, card: Scorecard) -> tuple[tuple[str, str], ...]:
    receipts = run.receipts()
    facts = [("Model", f"{run.config.model.kind}, trained on {run.config.data.source}")]
    if run.is_ensemble:
        facts += [("Backbone", backbone_words(run, run.config)), ("Adapters", adapter_words(run))]
    if receipts:
        removed = sum(receipt.removed for receipt in receipts)
        classes = ", ".join(card.protocol["forgotten_classes"]) or "none whole"
        facts += [
            (
                run.manifest.removal.capitalize(),
                f"{removed} images in {len(receipts)} requests; {receipts[-1].remaining} remain",
            ),
            ("Classes deleted", classes),
            ("Time inside the process", f"{1000 * sum(receipt.seconds for receipt in receipts):.1f} ms"),
            ("Level of the promise", receipts[-1].level),
        ]
    if (unlearned := run.manifest.unlearned) is not None:
        facts.append(("Unlearned with", f"{unlearned.method}, seed {unlearned.seed}"))
    left = {m.name: m.value for m in card.measures if m.name.startswith("forgotten_class_rate_null")}
    if left:
        shares = ", ".join(f"{'oracle' if 'oracle' in name else 'now'} {left[name]:.0%}" for name in left)
        facts.append((f"Deleted class in images made {_made(run)}", shares))
    return tuple(facts)


def _state_view(run: RunFolder, name: str, samples: SampleSet, deletion: Deletion) -> StateView:
    rows = []
    for label, class_name in enumerate(run.manifest.class_names):
        images = samples.of_classes([label]).images[:_COLUMNS]
        held = "image" if run.is_ensemble else "exemplar"
        refused = f"refused: no {held} is left" if label in deletion.classes else "not sampled"
        rows.append(GridRow(class_name, images, "") if len(images) else GridRow(class_name, None, refused))
    if len(samples.null.images):
        rows.append(GridRow("null token", samples.null.images[:_COLUMNS], _made(run)))
    caption = _CAPTIONS[name]
    if name == "after" and (run.is_ensemble or run.manifest.unlearned is not None):
        caption = _AFTER if run.is_ensemble else _UNLEARNED
    return StateView(name, caption, tuple(rows))


def _made(run: RunFolder) -> str:
    """Say what images of the null token are made without."""
    return "without exemplars" if run.recipe.model.kind == "semi-parametric" else "without a class"


def _deleted_views(
    run: RunFolder, states: Mapping[str, SampleSet], deletion: Deletion
) -> tuple[DeletedView, ...]:
    """Show some deleted images beside the nearest generated ones, evenly over the deleted classes."""
    if not len(deletion.images):
        return ()
    chosen = _spread_over_classes(deletion)
    shown = deletion.images.select(chosen)
    pixels = shown.all_images()
    found = {name: nearest_images(pixels, samples.images) for name, samples in states.items()}
    names = ids_to_hex(shown.ids)
    return tuple(
        DeletedView(
            f"{run.manifest.class_names[shown.labels[row]]}, id {names[row][:8]}...",
            pixels[row],
            tuple(
                Neighbour(
                    name,
                    states[name].images[nearest[row, 0]],
                    float(distances[row, 0]),
                )
                for name, (distances, nearest) in found.items()
            ),
        )
        for row in range(len(shown))
    )


def _spread_over_classes(deletion: Deletion) -> np.ndarray:
    """Choose rows of deleted images, taking the classes in turn."""
    labels = deletion.images.labels
    return np.lexsort((labels, class_turn(labels)))[:_DELETED_SHOWN]
