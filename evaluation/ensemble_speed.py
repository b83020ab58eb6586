"""The speed of the adapter ensemble: deletions and predictions, on one core."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from evaluation.timing import Row, seconds_of
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import AdapterFamily
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import STEPS, Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import public_keys
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import id_keys, numpy_generator

RECORDS, PUBLIC, FEATURES, CLASSES = 50_000, 5_000, 512, 10
ADAPTERS, NEIGHBOURS = 1000, 10
ASKED = 1000
TARGETS = {"ridge": 100.0, "SGD": 1000.0}
"""Milliseconds of a single deletion."""

_CENTRES = 200
_SPREAD = 0.7


def ensemble_rows(repeats: int) -> list[Row]:
    """Time deletions of 1 and of 100 images, and predictions against one linear layer, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return _rows(repeats)
    finally:
        torch.set_num_threads(threads)


def clustered_records(count: int, name: str) -> Records:
    """Return random records around common centres of uneven sizes, sorted by id."""
    centres = numpy_generator(0, "centres").standard_normal((_CENTRES, FEATURES))
    draws = numpy_generator(0, "records", name)
    shares = 1 / np.arange(1, _CENTRES + 1) ** 0.5
    cluster = draws.choice(_CENTRES, count, p=shares / shares.sum())
    codes = np.empty((count, FEATURES), dtype=np.int16)
    for start in range(0, count, 4096):
        rows = cluster[start : start + 4096]
        values = centres[rows] + _SPREAD * draws.standard_normal((len(rows), FEATURES))
        codes[start : start + 4096] = np.rint(STEPS * values)
    ids = draws.integers(0, 256, (count, 16), dtype=np.uint8)
    order = np.argsort(id_keys(ids))
    labels = np.where(draws.random(count) < 0.8, cluster % CLASSES, draws.integers(0, CLASSES, count))
    return Records(codes, labels, ids[order])  # Ids are drawn by themselves, so any order of them will do.


def _rows(repeats: int) -> list[Row]:
    records, public = clustered_records(RECORDS, "deletable"), clustered_records(PUBLIC, "public")
    keys = public_keys(public.codes, public.ids, ADAPTERS, "public-samples", 0)
    names = tuple(map(str, range(CLASSES)))
    families: dict[str, AdapterFamily] = {"ridge": RidgeHeads(), "SGD": SgdHeads(epochs=10)}
    asked = clustered_records(ASKED, "asked").codes
    rows = []
    for name, family in families.items():
        recipe = EnsembleRecipe(keys, family, NEIGHBOURS, names, 0)
        rows += _rows_of_family(AdapterEnsemble.fit(recipe, records), name, asked, repeats)
    return rows


def _rows_of_family(ensemble: AdapterEnsemble, name: str, asked: np.ndarray, repeats: int) -> list[Row]:
    """Time deletions of 1 and of 100 images, one after the other, and then predictions."""
    rows = []
    for size, times in ((1, 5 * repeats), (100, max(2, repeats // 2))):
        target = TARGETS[name] if size == 1 else None
        rows.append(_deletions(ensemble, name, size, times, target))
    return rows + [
        row for count in (1, ASKED) for row in _predictions(ensemble, name, asked[:count], repeats)
    ]


def _deletions(ensemble: AdapterEnsemble, name: str, size: int, times: int, target: float | None) -> Row:
    order = numpy_generator(0, "deletions").permutation(len(ensemble.ids))
    requests = [
        ForgetSet(ensemble.ids[np.sort(rows)], "speed") for rows in order[: size * times].reshape(times, size)
    ]
    touched = [len(ensemble.touched(request)) for request in requests]
    found = [1000 * seconds_of(partial(ensemble.delete, request)) for request in requests]
    title = f"deletion of {size} of {RECORDS:,} from {ADAPTERS:,} {name} adapters"
    note = f"rebuilds {np.median(touched):.0f} adapters, one core"
    return Row.of(title, note, found, " ms", target)


def _predictions(ensemble: AdapterEnsemble, name: str, codes: np.ndarray, repeats: int) -> list[Row]:
    """Compare predictions of encoded images with those of one linear layer."""
    weights = numpy_generator(0, "probe").standard_normal((FEATURES + 1, CLASSES))

    def ask() -> float:
        return _again(lambda: ensemble.scores(codes))

    def probe() -> float:
        return _again(lambda: codes / STEPS @ weights[:-1] + weights[-1])

    pairs = [(ask(), probe()) for _ in range(repeats)]
    work = f"prediction of {len(codes):,} by {NEIGHBOURS} of {ADAPTERS:,} {name} adapters"
    each = [1000 * seconds / len(codes) for seconds, _ in pairs]
    return [
        Row.of_ratio(work, "a linear layer, features given", pairs),
        Row.of(f"{work}, each", "features given, one core", each, " ms"),
    ]


def _again(work: Callable[[], object]) -> float:
    """Return the seconds of the second of two runs: the first finds its data out of the caches."""
    work()
    return seconds_of(work)
