"""The adapters that generate images, and how often each is asked: in proportion to its members.

Every record is routed to equally many adapters. So if each adapter draws from the distribution of its
members, and is asked as often as its share of them says, images come from the distribution of all records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from gen_unlearn.adapters.family import AdapterState, has_weights
from gen_unlearn.repro import numpy_generator

NO_ADAPTER = -1
"""In the place of an adapter, where an image is asked of fewer than there is room for."""


@dataclass(frozen=True, eq=False)
class ServedAdapters:
    """Adapters, and the members that they have now; both change with a deletion.

    Attributes:
        states: the adapters that answer, by number.
        members: records of each class that are routed to each adapter, int64 ``(adapters, classes)``. Those
            of adapters that wait to be rebuilt are counted too.

    Raises:
        ValueError: the counts are not of that kind, or an adapter is not among them or has no weights.
    """

    states: Mapping[int, AdapterState]
    members: np.ndarray

    def __post_init__(self) -> None:
        counts = self.members
        if counts.dtype != np.int64 or counts.ndim != 2 or (counts < 0).any():
            raise ValueError(
                f"expected members as int64 (adapters, classes) of at least 0, got {counts.dtype} "
                f"{counts.shape}; count them with gen_unlearn.adapters.serving.count_members"
            )
        unknown = sorted(number for number in self.states if not 0 <= number < len(counts))
        if unknown:
            raise ValueError(f"expected adapters from 0 to {len(counts) - 1}, got {unknown}")
        waiting = sorted(number for number, state in self.states.items() if not has_weights(state))
        if waiting:
            raise ValueError(
                f"expected adapters with weights, got {waiting} without: leave out those that wait"
            )

    @property
    def serving(self) -> np.ndarray:
        """Which adapters answer: those that are complete and have members, bool ``(adapters,)``."""
        complete = np.zeros(len(self.members), dtype=bool)
        complete[list(self.states)] = True
        return complete & (self.members.sum(axis=1) > 0)

    @property
    def served_classes(self) -> list[int]:
        """Classes with members at an adapter that answers, ascending."""
        return np.flatnonzero(self.members[self.serving].sum(axis=0)).tolist()

    def shares(self, label: int | None) -> np.ndarray:
        """Return how often each adapter is to be asked, float64 ``(adapters,)``, of sum 1.

        It is the adapter's share of the members, of one class or of all. What waits is not asked, and the
        others are asked more often instead.

        Args:
            label: a class, or `None` for all.

        Raises:
            ValueError: no adapter that answers has such a member.
        """
        counts = np.where(self.serving, self._counts(label), 0)
        if not counts.any():
            raise ValueError(self._why_none(label))
        return counts / counts.sum()

    def _why_none(self, label: int | None) -> str:
        """Say why no adapter answers for a class."""
        of_class = "" if label is None else f" of class {label}"
        if self._counts(label).any():
            return f"all images{of_class} are in adapters that wait to be rebuilt; rebuild them first"
        if not self.states:
            return (
                "expected adapters, got none: all images were deleted, or it was not loaded; load a run with "
                "RunFolder.load_pipeline(), a saved pipeline with load_adapters(folder) besides"
            )
        return f"no image{of_class} is left in any adapter; ask for another class"

    def masked_share(self, label: int | None) -> float:
        """Return the share of the members, of a class or of all, that adapters which wait have, 0 to 1."""
        counts = self._counts(label)
        return float(counts[~self.serving].sum() / max(int(counts.sum()), 1))

    def choose(self, label: int | None, seeds: Iterable[int], count: int = 1) -> np.ndarray:
        """Draw adapters for images, in proportion to `shares`.

        An image takes those with the largest ``log(members) + g``, where `g` is a standard Gumbel number
        that hangs on the image's seed and the adapter alone. One adapter is then drawn with exactly its
        share, and several without replacement. When an adapter loses members or waits, only images that had
        chosen it choose again; where it gains some, they can only change to it.

        Args:
            label: a class, or `None` for all.
            seeds: of each image.
            count: adapters for each image.

        Returns:
            int64 ``(images, count)``, the first choice first. Where fewer adapters have a share, `NO_ADAPTER`
            follows.

        Raises:
            ValueError: no adapter that answers has such a member.
        """
        with np.errstate(divide="ignore"):
            levels = np.log(np.where(self.shares(label) > 0, self._counts(label), 0))
        chosen = []
        for seed in seeds:
            draws = numpy_generator("adapter of an image", seed).gumbel(size=len(levels))
            chosen.append(np.argsort(-(levels + draws), kind="stable"))
        order = np.array(chosen, dtype=np.int64).reshape(-1, len(levels))
        return self._first(order, levels > -np.inf, count)

    def nearest(self, label: int | None, order: np.ndarray, count: int = 1) -> np.ndarray:
        """Take for each image the first adapters in an order of its own that have a share.

        Args:
            label: a class, or `None` for all.
            order: all adapters, ``(images, adapters)``, as from `gen_unlearn.adapters.routing.route`.
            count: adapters for each image.

        Returns:
            Like `choose`.

        Raises:
            ValueError: no adapter that answers has such a member.
        """
        return self._first(order.astype(np.int64), self.shares(label) > 0, count)

    def replaced(self, adapter: int, state: AdapterState | None, members: np.ndarray) -> ServedAdapters:
        """Return the same with another adapter in the place of one.

        Args:
            adapter: its number.
            state: the adapter that answers from now on; `None` while it waits.
            members: its records of each class, ``(classes,)``.
        """
        if not 0 <= adapter < len(self.members) or np.shape(members) != self.members.shape[1:]:
            raise ValueError(
                f"expected an adapter from 0 to {len(self.members) - 1} and its members in "
                f"{self.members.shape[1]} classes, got {adapter} and an array of shape {np.shape(members)}"
            )
        counts = self.members.copy()
        counts[adapter] = members
        states = {number: other for number, other in self.states.items() if number != adapter}
        return ServedAdapters(states if state is None else states | {adapter: state}, counts)

    def _counts(self, label: int | None) -> np.ndarray:
        classes = self.members.shape[1]
        if label is not None and not 0 <= label < classes:
            raise ValueError(f"expected class labels from 0 to {classes - 1}, got {label}")
        return self.members.sum(axis=1) if label is None else self.members[:, label]

    def _first(self, order: np.ndarray, eligible: np.ndarray, count: int) -> np.ndarray:
        """Return the first `count` eligible adapters of each row."""
        if count < 1:
            raise ValueError(f"expected at least 1 adapter for each image, got {count}")
        last = np.argsort(~eligible[order], axis=1, kind="stable")
        found = np.full((len(order), count), NO_ADAPTER, dtype=np.int64)
        taken = min(count, int(eligible.sum()))
        found[:, :taken] = np.take_along_axis(order, last[:, :taken], axis=1)
        return found


def count_members(labels: np.ndarray, routes: np.ndarray, adapters: int, classes: int) -> np.ndarray:
    """Count the records of each class that are routed to each adapter.

    Args:
        labels: class of each record, int64 ``(n,)``.
        routes: adapters of each record, int16 ``(n, neighbours)``.
        adapters: number of adapters.
        classes: number of classes.

    Returns:
        int64 ``(adapters, classes)``.
    """
    cells = routes.astype(np.int64) * classes + labels[:, None]
    counts = np.bincount(cells.ravel(), minlength=adapters * classes)
    return counts.astype(np.int64).reshape(adapters, classes)
