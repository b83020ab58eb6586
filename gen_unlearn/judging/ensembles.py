"""Attack an adapter ensemble in memory: its keys, what was deleted, deletions that look at the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from gen_unlearn.adapters.attacks import adaptive_deletions, closeness, first_rank_rates, most_moved
from gen_unlearn.adapters.encoding import encode_records
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import Subtractable
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.metrics.auc import Stratum, area_under_curve
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.processes import alone
from gen_unlearn.repro import among, keyed_order, numpy_generator
from gen_unlearn.runs import RunFolder

P_VALUE = "p_value"
"""Detail of a reconstruction: how likely so high a rate is by chance."""

CANDIDATES = 20
"""Images that a reconstruction chooses among: the deleted one and others."""

_TRIALS = {"single": 100, "batched": 200}
_STEPS = 200
_LARGEST_BATCH = 3
_ASKED = 500
"""Records that the adaptive sequence asks about; all of a large ensemble would take too long to ask."""

_MOST_VISITS = 10_000_000
"""Records that a sequence of deletions reads at most where adapters are fit again."""


@dataclass(frozen=True, eq=False)
class Target:
    """An ensemble to attack, and what the attackers know.

    Attributes:
        ensemble: in memory; attacks change copies of it.
        public: records of the public core.
        unseen: records of held-out images, in no model.
        minimum_batch: deletions between two releases of an adapter.
        seed: of all choices.
    """

    ensemble: AdapterEnsemble
    public: Records
    unseen: Records
    minimum_batch: int
    seed: int


class Findings(NamedTuple):
    """What attacks found, and which could not be made, as ``name: why``."""

    measures: tuple[Measure, ...]
    notes: tuple[str, ...]


def attack_run(run: RunFolder, network: AdapterBackbone, split: Split) -> Findings:
    """Attack the ensemble of a run as it is now; nothing on disk changes.

    Of several processes each makes all attacks `alone`: deletions that follow one another, of a few adapters
    each, are too small to share.

    Args:
        run: an adapter ensemble.
        network: its backbone.
        split: its images.
    """
    ensemble, core = run.load_ensemble(), run.split_core(split.train).core
    if not len(ensemble):
        return Findings((), ("Attacks: not made, no image is left that the adapters were fit on.",))
    test, (gone, without) = split.test, (run.forgotten(), run.without())
    seen = core.holds(test.ids) | np.isin(test.labels, np.unique(ensemble.labels), invert=True)
    seen |= gone.mask(test.ids) | among(test.ids, unique_ids(ensemble.ids))
    if without is not None:
        seen |= without.mask(test.ids)
    neighbours, config = ensemble.recipe.neighbours, run.classifier_config

    def encoded(images: IndexedImages, description: str) -> Records:
        rows = encode_records(network, images, neighbours, (1, 1), description)
        return Records.of_rows(rows, ensemble.recipe.shape.features)[0]

    target = Target(
        ensemble,
        encoded(core, "encode core"),
        encoded(test.select(~seen), "encode held-out images"),
        config.model.adapters.minimum_batch,
        config.evaluation.seed,
    )
    with alone():
        return attack(target)


def attack(target: Target) -> Findings:
    """Make every attack that can be made."""
    measures: list[Measure] = []
    notes: list[str] = []
    for found in (_key_source(target), *_reconstructions(target), *_sequences(target)):
        if isinstance(found, Measure):
            measures.append(found)
        else:
            notes.append(found)
    return Findings(tuple(measures), tuple(notes))


def _key_source(target: Target) -> Measure | str:
    """Measure whether closeness to a key tells records from held-out images of their class."""
    name, keys = "key_source_auc", target.ensemble.recipe.keys
    records, _ = target.ensemble.left
    own, other = closeness(records.codes, keys), closeness(target.unseen.codes, keys)
    shared = np.intersect1d(records.labels, target.unseen.labels)
    if not len(shared):
        return f"{name}: not measured, no held-out image is of a class of the records."
    strata = [Stratum(own[records.labels == label], other[target.unseen.labels == label]) for label in shared]
    area, (low, high) = area_under_curve(strata)
    return Measure.of(
        name,
        area,
        f"Area under the ROC curve with which the distance to the nearest key tells the {len(records)} "
        f"images that the adapters were fit on from {len(target.unseen)} held-out images of the same class. "
        f"Keys that were made from training images would lie near these. Images of another source may differ "
        f"from 0.5 for that alone. DeLong's standard error.",
        0.5,
        "chance: the keys say nothing of who was trained on",
        {"interval_low": low, "interval_high": high},
    )


class _Setting(NamedTuple):
    """A reconstruction: what it is called, and what it is about."""

    name: str
    batch: int
    trials: int
    unseen: Records | None
    others: str


def _reconstructions(target: Target) -> Iterator[Measure | str]:
    """Measure whether a deleted image is found from an adapter before and after the deletion."""
    unseen, kept = "held-out images routed to the same adapter", "members of the same adapter that are kept"
    for batch, kind in ((1, "single"), (target.minimum_batch, "batched")):
        for ending, pool, others in (("", target.unseen, unseen), ("_kept", None, kept)):
            setting = _Setting(f"reconstruction_{kind}{ending}", batch, _TRIALS[kind], pool, others)
            yield _reconstruction(target, setting)


def _reconstruction(target: Target, setting: _Setting) -> Measure | str:
    recipe, (records, _) = target.ensemble.recipe, target.ensemble.left
    if not isinstance(recipe.family, RidgeHeads):
        return (
            f"{setting.name}: not measured. The attacks solve the equations of ridge heads; for "
            f"{type(recipe.family).__name__} none is known here, which does not mean that there is none."
        )
    if not len(target.public):
        return f"{setting.name}: not measured, the source no longer holds the public core."
    largest = max(len(rows) for rows in target.ensemble.members.values())
    if largest <= setting.batch:
        return (
            f"{setting.name}: not measured. No adapter has more members than the {setting.batch} deletions "
            f"of model.adapters.minimum_batch; the largest has {largest}, and fewer adapters would have more."
        )
    try:
        rates = first_rank_rates(
            recipe,
            records,
            target.public,
            setting.unseen,
            batch=setting.batch,
            trials=setting.trials,
            seed=target.seed,
            candidates=CANDIDATES,
        )
    except ValueError as error:
        return f"{setting.name}: not measured, {error}."
    best = max(rates, key=lambda attack: rates[attack].value)
    firsts = round(setting.trials * rates[best].value)
    by_chance = len(rates) * float(stats.binom.sf(firsts - 1, setting.trials, 1 / CANDIDATES))
    return Measure.of(
        setting.name,
        rates[best],
        f"How often a deleted image is ranked first among {CANDIDATES} candidates by who has an adapter "
        f"before and after {_deletions(setting.batch)}, and the public images: the highest rate of "
        f"{len(rates)} attacks, {setting.trials} random adapters and deletions each. The others are "
        f"{setting.others}. {_reading(setting)} The p-value is that of so high a rate by chance, times "
        f"{len(rates)} for as many attacks.",
        1 / CANDIDATES,
        f"chance among {CANDIDATES}; the highest of {len(rates)} attacks lies a little above it",
        {**{attack: rate.value for attack, rate in rates.items()}, P_VALUE: min(1.0, by_chance)},
    )


def _deletions(batch: int) -> str:
    return "a single deletion" if batch == 1 else f"{batch} deletions at once"


def _reading(setting: _Setting) -> str:
    """Say what a rate does and does not show."""
    if setting.batch == 1:
        return "Above chance, an adapter should not be published after a single deletion."
    if setting.unseen is None:
        return (
            "Batching does not hide which members were deleted: what is asked is who of the members is gone, "
            "not who was one, and at chance these attacks alone fail at it."
        )
    return "At chance, the batch hides who was a member from these attacks, not from every other one."


def _sequences(target: Target) -> Iterator[Measure | str]:
    """Measure whether adapters equal a fresh fit of what is left, after many deletions from a copy."""
    steps = _steps_of(target.ensemble)
    if not steps:
        for name in ("adaptive_sequence", "bit_identical"):
            yield f"{name}: not measured, one image alone is left."
        return
    yield _equal_adapters(
        target,
        "adaptive_sequence",
        lambda copy: _delete_adaptively(copy, steps, target.seed),
        "deletions one by one from a copy in memory, each of the image whose scores the last one moved most "
        f"among {_ASKED} at most that were asked about",
    )
    yield _equal_adapters(
        target,
        "bit_identical",
        lambda copy: _delete_at_random(copy, steps, target.seed),
        f"batches of up to {_LARGEST_BATCH} random images were deleted from a copy in memory",
    )


def _equal_adapters(
    target: Target, name: str, delete: Callable[[AdapterEnsemble], int], text: str
) -> Measure:
    """Count the adapters of a copy that equal a fresh fit after deletions; `delete` returns how many."""
    whole = target.ensemble
    copy = AdapterEnsemble(whole.recipe, *whole.left, whole.states)
    steps, before = delete(copy), len(whole)
    different = copy.replay()
    filled = {adapter for adapter, rows in copy.members.items() if len(rows)} | set(different)
    return Measure(
        name,
        len(filled) - len(different),
        f"Adapters that equal, bit for bit, a fresh fit of the {len(copy)} of {before} images that are left "
        f"after {steps} {text}. A count, without an error; adapters without members are left out.",
        floor=len(filled),
        floor_definition="all adapters: nothing is left of what was deleted",
        details={"steps": steps, "images_deleted": before - len(copy)},
    )


def _steps_of(ensemble: AdapterEnsemble) -> int:
    """Return how many deletions a sequence makes: 200, fewer where they take too long or images run out."""
    family, left = ensemble.recipe.family, len(unique_ids(ensemble.ids)) - 1
    if isinstance(family, Subtractable):
        return max(0, min(_STEPS, left))
    sizes = np.array([len(rows) for rows in ensemble.members.values()])
    visits = sum(int(size) * family.visits(int(size)) for size in sizes if size)
    return max(0, min(_STEPS, left, max(1, _MOST_VISITS * len(ensemble) // max(visits, 1))))


def _delete_at_random(ensemble: AdapterEnsemble, batches: int, seed: int) -> int:
    """Delete batches of one to three random images, of one where there are few; return how many batches."""
    ids = unique_ids(ensemble.ids)
    most = _LARGEST_BATCH if _LARGEST_BATCH * batches < len(ids) else 1
    sizes = numpy_generator(seed, "random batches").integers(1, most + 1, batches)
    order = keyed_order(ids, seed, "random deletions")[: sizes.sum()]
    for rows in np.split(order, np.cumsum(sizes)[:-1]):
        ensemble.delete(ForgetSet(ids[rows], "random"))
    return batches


def _delete_adaptively(ensemble: AdapterEnsemble, steps: int, seed: int) -> int:
    records, _ = ensemble.left
    asked = records.select(np.sort(keyed_order(records.ids, seed, "asked about")[:_ASKED]))
    return len(adaptive_deletions(ensemble, most_moved, min(steps, len(unique_ids(asked.ids)) - 1), asked))
