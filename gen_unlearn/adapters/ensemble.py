"""The adapter ensemble in memory: a deletion rebuilds the few adapters that the images were routed to.

"LegoNet" (arXiv 2210.16023) with its holes closed: keys are public, so no deleted image stays in them, and
each adapter is a function, to the bit, of public settings and of the records routed to it that are left.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

import numpy as np

from gen_unlearn.adapters.answering import Answers, answers
from gen_unlearn.adapters.family import AdapterState, PixelFamily, Subtractable, digest_adapter, has_weights
from gen_unlearn.adapters.promise import ARTEFACT, fit_here, promised_level
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.routing import members_of, route
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import first_few
from gen_unlearn.receipts import DeletionReceipt, Level
from gen_unlearn.repro import digest_json, ids_to_hex, image_ids, software_versions
from gen_unlearn.row_lookup import RowLookup
from gen_unlearn.set_digest import ClassSums


class AdapterEnsemble:
    """Adapters with the records that they were fit on.

    Deleting images masks the adapters they were routed to, takes the images out, and rebuilds these adapters
    from what is left. `delete` does it in one go. Where rebuilding takes long, `quarantine` does the first
    two steps: from then on nothing that answers has seen the images. `rebuild` does the third.

    Deleted rows and their routes are zeroed and stay empty; a save is without them.

    Args:
        recipe: what it is made of.
        records: what it was fit on, sorted by id and label; copied.
        routes: of the records, int16 ``(n, neighbours)``, see `gen_unlearn.adapters.routing.route`.
        states: the adapters that have members.
        environments: digests of where they were fit, see `gen_unlearn.adapters.promise`; by default all here.
            Elsewhere the same fit can have other bits, so that no deletion is bit-exact until adapters that
            are made from sums are completed again, with the next rebuilding; others never are.

    Raises:
        ValueError: `states` are not those of the adapters with members, or the records have no pixels, or
            others than adapters are fit on.
    """

    def __init__(
        self,
        recipe: EnsembleRecipe,
        records: Records,
        routes: np.ndarray,
        states: Mapping[int, AdapterState],
        environments: Collection[str] | None = None,
    ) -> None:
        _require_pixels(recipe, records)
        self.environments = environments
        self.recipe, self.routes = recipe, routes.astype(np.int16)
        self.records = records.select(np.arange(len(records)))  # A copy: deleted rows are zeroed in it.
        members = members_of(self.routes, len(recipe.keys))
        self.members = {a: rows.copy() for a, rows in enumerate(members)}  # Views would keep them all.
        filled = {adapter for adapter, rows in self.members.items() if len(rows)}
        if not states.keys() <= filled:
            without = sorted(states.keys() - filled)
            raise ValueError(
                f"expected adapters with members alone, got {first_few([str(a) for a in without])}"
            )
        self.states = dict(states)
        self.waiting = {a for a in filled if not has_weights(states.get(a))}
        self._held = np.ones(len(records), dtype=bool)
        self._lookup = RowLookup(records.ids)
        self._tally = _sums_of(records, recipe.shape.classes)
        self._digests = {adapter: digest_adapter(state) for adapter, state in self.states.items()}
        self._versions = software_versions()

    @classmethod
    def fit(cls, recipe: EnsembleRecipe, records: Records) -> AdapterEnsemble:
        """Route records and fit all adapters."""
        _require_pixels(recipe, records)
        routes = route(records.codes, recipe.keys, recipe.neighbours)
        members = dict(enumerate(members_of(routes, len(recipe.keys))))
        return cls(recipe, records, routes, recipe.fit(records, members))

    @property
    def ids(self) -> np.ndarray:
        """Sample ids of the records that are left, uint8 ``(n, 16)``, sorted."""
        return self.records.ids[self._held]

    @property
    def labels(self) -> np.ndarray:
        """Their class indices, int64 ``(n,)``."""
        return self.records.labels[self._held]

    @property
    def left(self) -> tuple[Records, np.ndarray]:
        """The records that are left, and their routes: copies."""
        return self.records.select(self._held), self.routes[self._held]

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe, the set of records, and every adapter."""
        adapters = {str(adapter): digest for adapter, digest in self._digests.items()}
        return digest_json([self.recipe.digest, len(self), self._tally.rows.hexdigest, adapters])

    @property
    def level(self) -> Level:
        """What can be promised of the images that were deleted so far."""
        recipe, waiting = self.recipe, bool(self.waiting)
        return promised_level(recipe.keys.source, recipe.family, waiting, self.environments, recipe.shape)

    def __len__(self) -> int:
        return int(self._tally.counts.sum())

    def delete(self, forget: ForgetSet) -> DeletionReceipt:
        """Delete every record of the images of `forget` and rebuild the adapters they were routed to.

        Raises:
            ValueError: an id is not held; nothing is deleted.
        """
        return self._changed(forget, rebuild=True)

    def quarantine(self, forget: ForgetSet) -> DeletionReceipt:
        """Delete records, and mask the adapters they were routed to until `rebuild`.

        Raises:
            ValueError: an id is not held; nothing is deleted.
        """
        return self._changed(forget, rebuild=False)

    def rebuild(self) -> int:
        """Rebuild the adapters that wait for it from the records that are left; return how many."""
        waiting, family = sorted(self.waiting), self.recipe.family
        filled = [adapter for adapter in waiting if len(self.members[adapter])]
        if isinstance(family, Subtractable) and all(adapter in self.states for adapter in filled):
            again = filled if fit_here(self.environments) else list(self.states)
            rebuilt = {adapter: family.complete(self.states[adapter]) for adapter in again}
            self.environments = None
        else:
            rebuilt = self.recipe.fit(self.records, {adapter: self.members[adapter] for adapter in filled})
        self.states |= rebuilt
        self._digests |= {adapter: digest_adapter(state) for adapter, state in rebuilt.items()}
        self.waiting.clear()
        return len(waiting)

    def touched(self, forget: ForgetSet) -> np.ndarray:
        """Return the adapters that the images of `forget` are routed to, int16, ascending.

        Raises:
            ValueError: an id is not held.
        """
        return np.unique(self.routes[self._rows_of(forget)])

    def scores(self, codes: np.ndarray) -> Answers:
        """Ask the adapters with the nearest keys.

        Args:
            codes: of the images, int16 ``(n, features)``.
        """
        routes = route(codes, self.recipe.keys, self.recipe.neighbours)
        return answers(self.recipe, self._serving(), codes, routes)

    def replay(self, adapters: Iterable[int] | None = None) -> list[int]:
        """Fit adapters afresh from the records that are left; return those that come out differently.

        Args:
            adapters: which; all by default.
        """
        records, routes = self.left
        members = members_of(routes, len(self.recipe.keys))
        chosen = range(len(members)) if adapters is None else sorted(adapters)
        fresh = self.recipe.fit(records, {adapter: members[adapter] for adapter in chosen})
        digests = {adapter: digest_adapter(state) for adapter, state in fresh.items()}
        return [adapter for adapter in chosen if digests.get(adapter) != self._digests.get(adapter)]

    def verify(self) -> None:
        """Check records, routes and adapters against what the state says of itself, and pixels against ids.

        Raises:
            ValueError: something was changed by other means than a deletion; says what.
        """
        records, routes = self.left
        digests = {adapter: digest_adapter(state) for adapter, state in self.states.items()}
        fits = {
            "records": _sums_of(records, self.recipe.shape.classes).rows == self._tally.rows,
            "pixels": records.pixels is None or np.array_equal(image_ids(records.pixels), records.ids),
            "routes": np.array_equal(routes, route(records.codes, self.recipe.keys, self.recipe.neighbours)),
            "adapters": digests == self._digests,
        }
        if not all(fits.values()):
            changed = ", ".join(name for name, fit in fits.items() if not fit)
            raise ValueError(f"expected the ensemble as it was made, got changed {changed}; fit it again")

    def _serving(self) -> dict[int, AdapterState]:
        return {adapter: state for adapter, state in self.states.items() if adapter not in self.waiting}

    def _rows_of(self, forget: ForgetSet) -> np.ndarray:
        rows, found = self._lookup.find(forget.ids, self.records.ids)
        unknown = np.delete(forget.ids, found, axis=0)
        if len(unknown):
            raise ValueError(
                f"{len(unknown)} of {len(forget)} ids are not in the {ARTEFACT}: "
                f"{first_few(ids_to_hex(unknown))}; nothing was deleted"
            )
        return np.sort(rows)

    def _changed(self, forget: ForgetSet, rebuild: bool) -> DeletionReceipt:
        """Delete, and perhaps rebuild; return the receipt."""
        started = time.perf_counter()
        rows, before = self._rows_of(forget), self.digest
        removed = np.bincount(self.records.labels[rows], minlength=len(self.recipe.class_names))
        self._withdraw(rows)
        if rebuild:
            self.rebuild()
        names = self.recipe.class_names
        return DeletionReceipt(
            artefact=ARTEFACT,
            level=self.level,
            reason=forget.reason,
            ids=tuple(ids_to_hex(forget.ids)),
            forget_digest=forget.digest,
            removed=len(rows),
            removed_per_class={names[label]: int(removed[label]) for label in np.flatnonzero(removed)},
            remaining=len(self),
            digest_before=before,
            digest_after=self.digest,
            seconds=time.perf_counter() - started,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=dict(self._versions),
        )

    def _withdraw(self, rows: np.ndarray) -> None:
        """Mask the adapters that rows are routed to, and take the rows out of them and out of the records."""
        family, shape = self.recipe.family, self.recipe.shape
        touched = [int(adapter) for adapter in np.unique(self.routes[rows])]
        self.waiting |= set(touched)
        for adapter in touched:
            leaving = np.intersect1d(self.members[adapter], rows, assume_unique=True)
            self.members[adapter] = np.setdiff1d(self.members[adapter], leaving, assume_unique=True)
            state = self.states.pop(adapter, None)
            self._digests.pop(adapter, None)
            if len(self.members[adapter]) and state is not None and isinstance(family, Subtractable):
                self.states[adapter] = family.update(state, self.records.select(leaving), -1, shape)
                self._digests[adapter] = digest_adapter(self.states[adapter])
        self._tally.remove(self.records.codes[rows], self.records.labels[rows], self.records.ids[rows])
        self._lookup.drop(rows)
        for column in (*self.records.columns, self.routes):
            column[rows] = 0
        self._held[rows] = False


def _require_pixels(recipe: EnsembleRecipe, records: Records) -> None:
    """Check, before anything is deleted, that adapters can be rebuilt."""
    family, pixels = recipe.family, records.pixels
    if isinstance(family, PixelFamily) and (pixels is None or pixels.shape[1:] != family.image_shape):
        got = "none" if pixels is None else f"some of shape {pixels.shape[1:]}"
        raise ValueError(f"expected records with pixels of shape {family.image_shape}, got {got}")


def _sums_of(records: Records, classes: int) -> ClassSums:
    """Return what records add up to."""
    sums = ClassSums(classes, records.codes.shape[1:])
    sums.add(records.codes, records.labels, records.ids)
    return sums
