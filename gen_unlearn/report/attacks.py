"""Attacks on an adapter ensemble, in words for people who know nothing of them."""

from __future__ import annotations

from dataclasses import dataclass

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.numbers import format_floor

_SIGNIFICANT = 0.025

_NOT_HIDDEN = "Not told from guessing by these attacks; a batch is not meant to hide it from others."

_KEYS, _SEQUENCES = "key_source_auc", ("adaptive_sequence", "bit_identical")

_QUESTIONS = {
    _KEYS: (
        "Do the keys give training images away?",
        "Each adapter has a key, by which it is found. Training images lie no nearer to the keys than images "
        "that were never used, if the keys were made from public images alone. 0.5 is guessing, 1 is always "
        "right.",
    ),
    "reconstruction_single": (
        "One image deleted: can it be found?",
        "Somebody has an adapter from before and after, and must find the deleted image among 20, of which "
        "19 were never used.",
    ),
    "reconstruction_single_kept": (
        "The same among 20 images that were all used",
        "Which of them was deleted?",
    ),
    "reconstruction_batched": (
        "As many deleted as the minimum batch: can one be found?",
        "The adapter is shown again only after so many deletions (model.adapters.minimum_batch). Was this "
        "image among them, or never used?",
    ),
    "reconstruction_batched_kept": (
        "The same among 20 images that were all used",
        "Which of them was deleted? A batch promises nothing about that.",
    ),
    "adaptive_sequence": (
        "Deletions chosen by looking at the last answer: is anything left?",
        "Adapters that are, bit for bit, what they would be had the images never been there.",
    ),
    "bit_identical": (
        "Random deletions, one batch after another: is anything left?",
        "Adapters that are, bit for bit, what they would be had the images never been there.",
    ),
}
"""Measure -> the question that it answers, and how it is asked."""


@dataclass(frozen=True)
class AttackRow:
    """One attack.

    Attributes:
        question: what somebody wants to find out.
        explanation: how.
        measure: what was found, `None` if it could not be measured.
        of_all: follows the number where it is a count: `` of`` how many, or nothing.
        best: what the best possible is, in words.
        reading: what was found means, or why it could not be measured.
        alarming: the attack succeeded.
    """

    question: str
    explanation: str
    measure: Measure | None
    of_all: str
    best: str
    reading: str
    alarming: bool


def attack_rows(scorecard: Scorecard) -> list[AttackRow]:
    """Return the attacks that were made or tried, in a fixed order; none for other models."""
    measures = {measure.name: measure for measure in scorecard.measures}
    rows = []
    for name, (question, explanation) in _QUESTIONS.items():
        measure, begin = measures.get(name), f"{name}: "
        missing = [note.removeprefix(begin) for note in scorecard.notes if note.startswith(begin)]
        if measure is not None:
            rows.append(_row(question, explanation, measure))
        elif missing:
            text = missing[0]
            reading = f"{text[:1].upper()}{text[1:]}"
            rows.append(AttackRow(question, explanation, None, "", "", reading, alarming=False))
    return rows


def _row(question: str, explanation: str, measure: Measure) -> AttackRow:
    succeeded, best = _succeeded(measure), f"{format_floor(measure)}, guessing"
    of_all = ""
    if measure.name in _SEQUENCES:
        of_all, best = f" of {format_floor(measure)}", "all of them"
    reading = _reading(measure, succeeded)
    return AttackRow(question, explanation, measure, of_all, best, reading, succeeded)


def _succeeded(measure: Measure) -> bool:
    """Say whether an attack found more than chance would, or something was left."""
    if measure.name == _KEYS:
        return measure.details["interval_low"] > 0.5
    if measure.name in _SEQUENCES:
        return measure.floor is None or measure.value < measure.floor
    return measure.details["p_value"] < _SIGNIFICANT


def _reading(measure: Measure, succeeded: bool) -> str:
    """Say what was found in one sentence."""
    if measure.name in _SEQUENCES:
        deleted = f"{measure.details['images_deleted']:.0f} images were deleted from a copy. "
        if succeeded:
            return f"{deleted}Other adapters keep something of them."
        return f"{deleted}The adapters are as if they had never been there."
    if not succeeded:
        return _NOT_HIDDEN if measure.name.endswith("batched_kept") else "Not told from guessing."
    if measure.name == _KEYS:
        return "Better than guessing: the keys lie nearer to training images, or the images differ otherwise."
    if "single" in measure.name:
        return "Found: an adapter must not be shown after a single deletion."
    return "Better than guessing: the batch does not hide it wholly; a larger one hides more."
