"""Route records to adapters: each adapter has a public key, each record goes to those with the nearest keys.

Distances are integers, ties go to the smaller number, and no adapter has a capacity: a record's route is a
function of the record and the keys, on every device, and no deletion changes another record's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from threadpoolctl import threadpool_limits

from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.adapters.records import LARGEST_CODE
from gen_unlearn.repro import digest_arrays, digest_json, keyed_order, numpy_generator

KeySource = Literal["public-samples", "public-kmeans", "public-gaussian", "training-samples"]

MOST_ADAPTERS = 32767
"""Their numbers are int16."""

_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Keys:
    """One key for each adapter.

    Attributes:
        codes: int16 ``(adapters, features)``, see `gen_unlearn.adapters.records.Records`.
        source: what they were made from. ``"training-samples"`` is the published recipe: noised encodings of
            deletable images, which stay in the keys when the images are deleted. It exists to be compared
            with, and no receipt for it promises more than ``exemplar-only``.
    """

    codes: np.ndarray
    source: KeySource

    def __post_init__(self) -> None:
        if self.codes.dtype != np.int16 or self.codes.ndim != 2 or not 0 < len(self.codes) <= MOST_ADAPTERS:
            raise ValueError(
                f"expected keys as int16 (adapters, features) with 1 to {MOST_ADAPTERS} adapters, got "
                f"{self.codes.dtype} {self.codes.shape}"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the keys and of what they were made from."""
        return digest_json([self.source, digest_arrays(self.codes)])

    @cached_property
    def distance_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """What squared distances are made from, less the image's own square: ``-2 K`` and ``|K|^2``.

        Integers in float64, ``(features, adapters)`` and ``(adapters,)``.
        """
        wide = self.codes.astype(np.float64)
        return -2.0 * wide.T, (wide**2).sum(axis=1)

    def __len__(self) -> int:
        return len(self.codes)


def public_keys(codes: np.ndarray, ids: np.ndarray, count: int, source: KeySource, seed: int) -> Keys:
    """Make keys from public images, which nobody will ask to delete.

    Args:
        codes: of the public images, int16 ``(n, features)``.
        ids: of the public images, uint8 ``(n, 16)``.
        count: number of keys.
        source: ``"public-samples"`` takes images at random; ``"public-kmeans"`` the centres of as many
            clusters; ``"public-gaussian"`` draws from a normal distribution with the images' moments.
        seed: of the random choice.

    Raises:
        ValueError: fewer distinct public images than keys, or another source.
    """
    order = keyed_order(ids, seed, "keys")
    distinct = np.unique(codes[order], axis=0, return_index=True)[1]
    if source != "public-gaussian" and len(distinct) < count:
        raise ValueError(
            f"expected at least as many distinct public images as adapters ({count}), got {len(distinct)}; "
            f"lower the number of adapters, raise core.fraction, or take keys from public-gaussian"
        )
    if source == "public-samples":
        return Keys(codes[order[np.sort(distinct)[:count]]], source)
    values = codes[order].astype(np.float64)
    with one_thread():
        if source == "public-kmeans":
            return Keys(_as_codes(_centres(values, count, seed)), source)
        if source == "public-gaussian":
            return Keys(_as_codes(_normal_draws(values, count, seed)), source)
    raise ValueError(f"expected keys from public images, got source {source!r}")


def _centres(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the centres of clusters, float64 ``(count, features)``."""
    from sklearn.cluster import KMeans

    with threadpool_limits(1):  # Those of scikit-learn itself, which were not known before the import.
        means = KMeans(count, n_init=1, random_state=seed % 2**32).fit(values)
    return np.asarray(means.cluster_centers_)


def _normal_draws(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw from the normal distribution with the moments of the values, float64 ``(count, features)``."""
    draws = numpy_generator(seed, "gaussian keys").standard_normal((count, values.shape[1]))
    deviations = values - values.mean(axis=0)
    covariance = deviations.T @ deviations / len(values)
    root = np.linalg.cholesky(covariance + np.eye(values.shape[1]))
    return np.asarray(values.mean(axis=0) + draws @ root.T)


def route(codes: np.ndarray, keys: Keys, neighbours: int) -> np.ndarray:
    """Return the adapters with the keys nearest to each record, nearest first, int16 ``(n, neighbours)``.

    The squared distance is an exact integer: float64 holds every sum of products below 2**53.

    Raises:
        ValueError: more neighbours than adapters, or codes of another length.
    """
    if not 0 < neighbours <= len(keys) or codes.shape[1:] != keys.codes.shape[1:]:
        raise ValueError(
            f"expected 1 to {len(keys)} neighbours and codes of {keys.codes.shape[1]} features, got "
            f"{neighbours} and codes of shape {codes.shape}"
        )
    assert codes.shape[1] < 2**21, "sums of products of so many features are not exact in float64"
    directions, offsets = keys.distance_terms
    routes = np.empty((len(codes), neighbours), dtype=np.int16)
    for start in range(0, len(codes), _BLOCK):
        distances = codes[start : start + _BLOCK].astype(np.float64) @ directions + offsets
        routes[start : start + _BLOCK] = _nearest(distances, neighbours)
    return routes


def _nearest(distances: np.ndarray, count: int) -> np.ndarray:
    """Return the columns of the `count` smallest numbers of each row; of equal ones the first."""
    if count == distances.shape[1]:
        return np.argsort(distances, axis=1, kind="stable")
    found = np.argpartition(distances, count, axis=1)[:, :count]
    greatest = np.take_along_axis(distances, found, axis=1).max(axis=1, keepdims=True)
    tied = (distances <= greatest).sum(axis=1) > count  # Then which of them were found is left to chance.
    found[tied] = np.argsort(distances[tied], axis=1, kind="stable")[:, :count]
    found.sort(axis=1)
    nearest = np.argsort(np.take_along_axis(distances, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, nearest, axis=1)


def _as_codes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(-LARGEST_CODE, LARGEST_CODE).astype(np.int16)


def members_of(routes: np.ndarray, adapters: int) -> list[np.ndarray]:
    """Return the rows that are routed to each adapter, ascending, int64 arrays."""
    order = np.argsort(routes.ravel(), kind="stable") // routes.shape[1]
    counts = np.bincount(routes.ravel(), minlength=adapters)
    return np.split(order, np.cumsum(counts)[:-1])
