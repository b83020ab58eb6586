"""Route many images to many adapters, and deal the adapters out to processes: how even is that?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from gen_unlearn.adapters.family import AdapterFamily, HeadShape
from gen_unlearn.adapters.planning import change_of, imbalance_of, measure
from gen_unlearn.adapters.records import STEPS
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import Keys, public_keys, route
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.adapters.sharing import share_adapters
from gen_unlearn.repro import numpy_generator

_CHUNK = 65536
_SINGLES = 200
"""Single deletions that a median is taken over."""


@dataclass(frozen=True)
class AdapterWorld:
    """What is simulated of an ensemble.

    Attributes:
        adapters: how many.
        neighbours: numbers of adapters that an image is routed to.
        features: of an encoded image that is routed; few, so that a simulation takes minutes.
        clusters: of the encoded images; the *c*-th has a share in proportion to ``c ** -0.5``.
        spread: standard deviation within clusters, over that between them.
        width: features of an encoded image where bytes are counted.
        classes: of the images.
    """

    adapters: int = 10_000
    neighbours: tuple[int, ...] = (1, 10)
    features: int = 16
    clusters: int = 1000
    spread: float = 0.7
    width: int = 128
    classes: int = 10


def adapter_tables(
    world: AdapterWorld, images: int, processes: Sequence[int], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of sizes, shares, deletions and bytes."""
    with threadpool_limits(1):
        nearest = routes_of_clusters(world, images, seed)
    tables: dict[str, list[dict[str, Any]]] = {"adapters": [], "shares": [], "deletions": []}
    for neighbours in world.neighbours:
        routes = np.ascontiguousarray(nearest[:, :neighbours])
        tables["adapters"].append(_sizes_row(world, routes))
        tables["shares"] += _share_rows(world, routes, processes)
        tables["deletions"] += _deletion_rows(world, routes, processes, seed)
    return tables | {"adapter bytes": _byte_rows(world)}


def routes_of_clusters(world: AdapterWorld, images: int, seed: int) -> np.ndarray:
    """Return the nearest adapters of random images around common centres, int16 ``(images, neighbours)``.

    Keys are public images from the same clusters. Fewer neighbours are the first columns.
    """
    public = _codes(world, 4 * world.adapters, seed, "public")
    ids = numpy_generator(seed, "public ids").integers(0, 256, (len(public), 16), dtype=np.uint8)
    keys: Keys = public_keys(public, ids, world.adapters, "public-samples", seed)
    most = max(world.neighbours)
    routes = np.empty((images, most), dtype=np.int16)
    for start in range(0, images, _CHUNK):
        stop = min(start + _CHUNK, images)
        routes[start:stop] = route(_codes(world, stop - start, seed, "images", start), keys, most)
    return routes


def _codes(world: AdapterWorld, count: int, seed: int, *name: str | int) -> np.ndarray:
    """Draw encoded images, int16 ``(count, features)``."""
    centres = numpy_generator(seed, "centres").standard_normal((world.clusters, world.features))
    draws = numpy_generator(seed, *name)
    weights = np.arange(1, world.clusters + 1) ** -0.5
    cluster = draws.choice(world.clusters, count, p=weights / weights.sum())
    values = centres[cluster] + world.spread * draws.standard_normal((count, world.features))
    return np.rint(STEPS * values).astype(np.int16)


def _sizes_row(world: AdapterWorld, routes: np.ndarray) -> dict[str, Any]:
    sizes = np.bincount(routes.ravel(), minlength=world.adapters)
    least, middle, most = np.percentile(sizes, [0, 50, 100]).astype(int).tolist()
    return {
        "neighbours": routes.shape[1],
        "members, mean": round(float(sizes.mean()), 1),
        "least": least,
        "median": middle,
        "most": most,
        "empty": int((sizes == 0).sum()),
        "imbalance": round(imbalance_of(routes, world.adapters), 2),
    }


def _share_rows(world: AdapterWorld, routes: np.ndarray, processes: Sequence[int]) -> list[dict[str, Any]]:
    """Tell how busy processes are in fitting all adapters, dealt out as they are and as they were."""
    sizes = np.bincount(routes.ravel(), minlength=world.adapters)
    filled = {int(adapter): int(sizes[adapter]) for adapter in np.flatnonzero(sizes)}
    rows = []
    for name, stack in (("ridge", 1), ("sgd", SgdHeads.stack)):
        for count in processes:
            found = {
                how: efficiency(shares, filled, stack)
                for how, shares in (
                    ("efficiency", share_adapters(filled, count, stack)),
                    ("every P-th by size", every_nth(filled, count)),
                )
            }
            rounded = {how: round(value, 4) for how, value in found.items()}
            rows.append({"neighbours": routes.shape[1], "family": name, "processes": count, **rounded})
    return rows


def every_nth(sizes: Mapping[int, int], processes: int) -> list[list[int]]:
    """Deal out adapters in turn in the order of their sizes, to compare with."""
    by_size = sorted(sizes, key=lambda adapter: (sizes[adapter], adapter))
    return [by_size[process::processes] for process in range(processes)]


def efficiency(shares: Sequence[Sequence[int]], sizes: Mapping[int, int], stack: int) -> float:
    """Return the least work that one process could do it all in, over P times that of the busiest.

    A stack takes as long as its largest adapter. In whole stacks of similar size, all adapters are the least
    work: so it is below 1 also where stacks are badly made.
    """
    alone = _work(list(sizes), sizes, stack)
    return alone / (len(shares) * max(_work(share, sizes, stack) for share in shares))


def _work(adapters: Sequence[int], sizes: Mapping[int, int], stack: int) -> int:
    """Return the records that a process reads one after the other, for one epoch."""
    return sum(sorted((sizes[adapter] for adapter in adapters), reverse=True)[::stack])


def _deletion_rows(
    world: AdapterWorld, routes: np.ndarray, processes: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """Count what deletions of random images touch and read, and what processes gain, without stacks."""
    draws = numpy_generator(seed, "deletions")
    rows = []
    for deleted in (1, 100, len(routes) // 100):
        times = _SINGLES if deleted == 1 else 1
        chosen = [draws.choice(len(routes), deleted, replace=False) for _ in range(times)]
        ridge: AdapterFamily = RidgeHeads()
        changes = [change_of(routes, some, world.adapters, ridge) for some in chosen]
        row: dict[str, Any] = {
            "neighbours": routes.shape[1],
            "deleted": deleted,
            "adapters touched": int(np.median([change.touched for change in changes])),
            "members read again": int(np.median([change.visits for change in changes])),
        }
        gains = {
            str(count): [_efficiency_of_deletion(world, routes, some, count) for some in chosen]
            for count in processes
        }
        row["efficiency by processes"] = {
            count: round(float(np.median(values)), 3) for count, values in gains.items()
        }
        rows.append(row)
    return rows


def _efficiency_of_deletion(
    world: AdapterWorld, routes: np.ndarray, deleted: np.ndarray, processes: int
) -> float:
    sizes = np.bincount(routes.ravel(), minlength=world.adapters)
    leaving = np.bincount(routes[deleted].ravel(), minlength=world.adapters)
    left = {
        int(adapter): int(sizes[adapter] - leaving[adapter])
        for adapter in np.flatnonzero(leaving)
        if sizes[adapter] > leaving[adapter]
    }
    return efficiency(share_adapters(left, processes), left, 1) if left else 1.0


def _byte_rows(world: AdapterWorld) -> list[dict[str, Any]]:
    """Count the bytes of all adapters, from one that is really fit."""
    families: dict[str, AdapterFamily] = {"ridge": RidgeHeads(), "sgd": SgdHeads(epochs=1)}
    rows = []
    for name, family in families.items():
        one = measure(family, HeadShape(world.width, world.classes), 64).adapter_bytes
        shape = {"family": name, "features": world.width, "classes": world.classes}
        rows.append(shape | {"bytes of one": one, "bytes of all": one * world.adapters})
    return rows
