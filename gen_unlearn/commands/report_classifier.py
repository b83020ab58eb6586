"""Collect what the report of a classifier shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gen_unlearn.commands.classified import classify
from gen_unlearn.commands.evaluate import find_deletion
from gen_unlearn.commands.model_words import adapter_words, encoder_words, per_class
from gen_unlearn.commands.predict import shown_votes
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.pipelines.classification import SemiParametricPipeline
from gen_unlearn.report.classifier_page import ClassifierContent, VotesView
from gen_unlearn.report.votes import ShownPrediction, draw_votes, percent
from gen_unlearn.repro import keyed_order
from gen_unlearn.runs import RunFolder
from gen_unlearn.words import counted

IMAGES_SHOWN = 8
"""Images with their votes at most."""

_OF_DELETED_CLASSES = 3
_VOTERS = 6
_FEW_CLASSES = 4

_WITHOUT_VOTES = ("batch_size",)
"""Settings of a prediction that matter where no exemplar votes."""

_WHO_VOTES = {
    "prototypes": "prototypes: one mean key per class",
    "exemplars": "the {neighbours} exemplars with the highest scores, weighted by them",
    "nearest-neighbours": "the {neighbours} exemplars with the nearest keys, one vote each",
}


def collect_classifier(run: RunFolder, card: Scorecard, show_deleted: bool = False) -> ClassifierContent:
    """Collect the content of a classifier's report.

    The exemplars that it shows are those of the run as it is now; a held-out image that was deleted from the
    exemplars, to which it had been added, is not shown.

    Args:
        run: a classifier, as it was evaluated.
        card: its scorecard.
        show_deleted: show deleted images too, if the source has them.

    Raises:
        ValueError: the run sets how to predict otherwise than it was evaluated.
    """
    if any(override.startswith("prediction.") for override in run.overrides):
        raise ValueError(
            "expected no prediction.* in a report, which shows what was evaluated; set it in: "
            f"gen-unlearn evaluate {run.path} --set prediction.vote=..."
        )
    run = run.with_overrides(
        [f"prediction.{key}={value}" for key, value in card.protocol["prediction"].items()]
    )
    receipts = tuple(run.receipts())
    exemplars = _exemplars_left(run)
    voted = sum(exemplars.values()) and not run.is_ensemble
    votes, deleted = _votes(run, card, show_deleted) if voted else (None, None)
    return ClassifierContent(
        title=_title(run, card),
        headline=_headline(run),
        summary=_summary(run, card, exemplars),
        captions=_captions(run, card),
        exemplars=exemplars,
        held="images" if run.is_ensemble else "exemplars",
        votes=votes,
        deleted_votes=deleted,
        deleted_total=sum(receipt.removed for receipt in receipts),
        scorecard=replace(card, protocol=_protocol_used(run, card.protocol)),
        receipts=receipts,
        recipe_yaml=run.classifier_config.to_yaml(),
        recipe_digest=run.manifest.recipe_digest,
    )


def _protocol_used(run: RunFolder, protocol: dict[str, Any]) -> dict[str, Any]:
    """Leave out how exemplars vote where none does."""
    if run.recipe.model.kind == "semi-parametric":
        return protocol
    used = {key: value for key, value in protocol["prediction"].items() if key in _WITHOUT_VOTES}
    return protocol | {"prediction": used}


def class_turn(labels: np.ndarray) -> np.ndarray:
    """Count, for each row, the earlier rows of its class, int64 ``(n,)``."""
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turn[rows] = np.arange(len(rows))
    return turn


def spread_over_classes(labels: np.ndarray, count: int) -> np.ndarray:
    """Choose at most `count` rows, taking the classes in turn; of too many classes, some from first to last.

    Args:
        labels: classes, int64 ``(n,)``.
        count: rows to choose, at least 1.

    Returns:
        Rows, int64 ``(chosen,)``.
    """
    turn = class_turn(labels)
    order = np.lexsort((labels, turn))
    classes = int((turn == 0).sum())
    if classes > count:
        return order[np.linspace(0, classes - 1, count).round().astype(np.int64)]
    return order[:count]


def _exemplars_left(run: RunFolder) -> dict[str, int]:
    if not run.has_exemplars:
        return {}
    names = run.manifest.class_names
    counts = np.bincount(run.exemplar_folder().labels, minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))


def _votes(run: RunFolder, card: Scorecard, show_deleted: bool) -> tuple[VotesView | None, VotesView | None]:
    """Draw the votes for some held-out images and, if asked to, for some deleted ones."""
    pipeline, split = run.load_classifier(), run.load_split()
    assert isinstance(pipeline, SemiParametricPipeline)
    forgotten = set(card.protocol["forgotten_classes"])
    held_out = shown_held_out(run, split, forgotten)
    votes = _view(run, pipeline, held_out, "held-out", forgotten)
    if not (show_deleted and run.receipts()):
        return votes, None
    deleted = find_deletion(run, split.train).images
    deleted = deleted.select(keyed_order(deleted.ids, "votes shown"))
    deleted = deleted.select(np.sort(spread_over_classes(deleted.labels, IMAGES_SHOWN)))
    return votes, _view(run, pipeline, deleted, "deleted", forgotten)


def shown_held_out(run: RunFolder, split: Split, forgotten: set[str]) -> IndexedImages:
    """Choose held-out images to show, of retained and then of deleted classes.

    Where a source holds an image twice, or another one is tested on, a held-out image may be one that was
    deleted, from this run or from the one whose oracle this is: it is left out.

    Args:
        run: the run.
        split: its images.
        forgotten: names of the deleted classes.
    """
    test = split.test.select(~run.forgotten().mask(split.test.ids))
    if (without := run.without()) is not None:
        test = test.select(~without.mask(test.ids))
    test = test.select(keyed_order(test.ids, "votes shown"))
    gone = np.isin(test.labels, [label for label, name in enumerate(test.class_names) if name in forgotten])
    rows, others = np.flatnonzero(gone), np.flatnonzero(~gone)
    rows = rows[spread_over_classes(test.labels[rows], _OF_DELETED_CLASSES)]
    others = others[spread_over_classes(test.labels[others], IMAGES_SHOWN - len(rows))]
    return test.select(np.concatenate([others[np.argsort(test.labels[others], kind="stable")], rows]))


def vote_rows(
    run: RunFolder, pipeline: SemiParametricPipeline, shown: IndexedImages, forgotten: set[str]
) -> tuple[list[ShownPrediction], str]:
    """Classify images; return a row of a sheet for each, named after its class, and the sheet's footer."""
    names, images = run.manifest.class_names, shown.all_images()
    true = [names[label] for label in shown.labels]
    texts = [f"true class {name}{', a deleted class' if name in forgotten else ''}" for name in true]
    rows, footer = shown_votes(run, classify(pipeline, names, texts, images, _VOTERS), images)
    return [replace(row, name=text) for row, text in zip(rows, texts, strict=True)], footer


def _view(
    run: RunFolder, pipeline: SemiParametricPipeline, shown: IndexedImages, kind: str, forgotten: set[str]
) -> VotesView | None:
    """Draw a sheet of `kind` images."""
    if not len(shown):
        return None
    rows, footer = vote_rows(run, pipeline, shown, forgotten)
    sheet = draw_votes(rows, f"{len(rows)} {kind} images; bold: the class predicted", footer)
    described = [f"{row.name}, classified as {row.class_name} ({percent(row.probability)})" for row in rows]
    text = f"{kind.capitalize()} images, each beside the exemplars that voted: {'; '.join(described)}."
    return VotesView(sheet, len(rows), text)


def _title(run: RunFolder, card: Scorecard) -> str:
    """Name what was deleted."""
    kind, receipts = "an image classifier", run.receipts()
    if not receipts:
        return f"{kind[:1].upper()}{kind[1:]}"
    removed = sum(receipt.removed for receipt in receipts)
    classes = card.protocol["forgotten_classes"]
    of_classes = sum(receipt.removed_per_class.get(name, 0) for receipt in receipts for name in classes)
    if not classes:
        what = counted(removed, "image")
    elif len(classes) > _FEW_CLASSES:
        what = f"{len(classes)} classes"
    else:
        listed = " and ".join(filter(None, [", ".join(classes[:-1]), classes[-1]]))
        what = f"{'Class' if len(classes) == 1 else 'Classes'} {listed}"
    if classes and removed > of_classes:
        what += f" and {counted(removed - of_classes, 'other image')}"
    return f"{what} {run.manifest.removal} from {kind}"


def _headline(run: RunFolder) -> str:
    """Say in a sentence or two what was deleted, how fast, and what that promises."""
    receipts = run.receipts()
    if not receipts:
        if run.has_exemplars:
            return "Nothing has been deleted from it."
        return (
            "Its classes are in its weights: images cannot be deleted, it has to be retrained without them."
        )
    return (
        f"{counted(sum(receipt.removed for receipt in receipts), 'image')} {run.manifest.removal} in "
        f"{_milliseconds(run)}. "
        f"Level of the promise: {_levels(run)}."
    )


def _summary(run: RunFolder, card: Scorecard, exemplars: dict[str, int]) -> tuple[tuple[str, str], ...]:
    config, receipts = run.classifier_config, run.receipts()
    facts = [
        ("Model", f"{config.model.kind} classifier, trained on {config.data.source}"),
        ("Encoder", encoder_words(config)),
    ]
    if run.is_ensemble:
        facts += [("Adapters", adapter_words(run)), ("Images left per class", per_class(exemplars))]
    elif exemplars:
        voting = min(config.prediction.neighbours, sum(exemplars.values()))
        facts += [
            ("Who votes", _WHO_VOTES[config.prediction.vote].format(neighbours=voting)),
            ("Exemplars left per class", per_class(exemplars)),
        ]
    if receipts:
        removed = sum(receipt.removed for receipt in receipts)
        facts += [
            (
                run.manifest.removal.capitalize(),
                f"{counted(removed, 'image')} in {counted(len(receipts), 'request')}; "
                f"{receipts[-1].remaining:,} {'remains' if receipts[-1].remaining == 1 else 'remain'}",
            ),
            ("Classes deleted", ", ".join(card.protocol["forgotten_classes"]) or "none whole"),
            ("Level", _levels(run)),
        ]
    return tuple(facts)


def _captions(run: RunFolder, card: Scorecard) -> dict[str, str]:
    """Say what each state is that was measured."""
    ensemble = run.is_ensemble
    if run.manifest.unlearned is not None:
        return _unlearned_captions(run, card)
    still = (
        "adapters fit on the deleted images too"
        if ensemble
        else ("with the deleted images still among the exemplars")
    )
    captions = {
        "before": f"{still}, as if nothing had been done"
        if run.receipts()
        else "the model as it was trained; nothing has been deleted",
        "after": "the adapters that the deleted images had reached, without them; the others as they were"
        if ensemble
        else "the same weights, without the deleted images",
        "oracle": _retrained(card.protocol["oracles"], "retrained from scratch without the deleted images"),
        "parametric": _retrained(
            card.protocol["parametric_oracles"], "without exemplars, retrained without the deleted images"
        ),
    }
    return {state: text for state, text in captions.items() if state in card.accuracy_per_class}


def _unlearned_captions(run: RunFolder, card: Scorecard) -> dict[str, str]:
    """Say what each state of a parametric run is that was unlearned approximately."""
    assert run.manifest.unlearned is not None
    captions = {
        "before": "the model that was unlearned, as it was trained",
        "after": f"its weights after {run.manifest.unlearned.method}, an approximate unlearning method",
        "parametric": _retrained(
            card.protocol["parametric_oracles"], "retrained from scratch without the deleted images"
        ),
    }
    return {state: text for state, text in captions.items() if state in card.accuracy_per_class}


def _retrained(models: int, text: str) -> str:
    return text if models == 1 else f"{text}: the mean of {models} models of different training seeds"


def _levels(run: RunFolder) -> str:
    return ", ".join(dict.fromkeys(receipt.level for receipt in run.receipts()))


def _milliseconds(run: RunFolder) -> str:
    return f"{1000 * sum(receipt.seconds for receipt in run.receipts()):.1f}\u00a0ms"
