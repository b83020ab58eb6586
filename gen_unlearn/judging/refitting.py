"""An adapter ensemble that generates, with other images in it: in memory only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gen_unlearn.adapters.encoding import encode_records
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.routing import members_of
from gen_unlearn.adapters.serving import ServedAdapters, count_members
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.repro import among, ids_to_hex, keyed_order
from gen_unlearn.shards import Rows, row_keys


@dataclass(frozen=True, eq=False)
class RefittableEnsemble:
    """An adapter ensemble as it is now, to be had as it was: only the adapters that differ are fit again.

    Nothing on disk changes. Where fits repeat their bits, the model as it was is met to the bit.

    Attributes:
        pipeline: the generator.
        recipe: what decides its adapters.
        rows: the images in its adapters, with their codes and routes.
        deleted: the deleted images, or those of them that are still to be had.
    """

    pipeline: AdapterEnsembleDDPMPipeline
    recipe: EnsembleRecipe
    rows: Rows
    deleted: IndexedImages

    @cached_property
    def undeleted_rows(self) -> Rows:
        """The images with the deleted ones among them again, encoded as they were then."""
        router = self.pipeline.router
        assert router is not None, "a run has one"
        size = self.rows.pixels.shape[1:3]
        if not len(self.deleted):
            return self.rows
        neighbours = self.recipe.neighbours
        back = encode_records(router, self.deleted, neighbours, size, "encode deleted images")
        back = back.select(np.isin(row_keys(back), row_keys(self.rows), invert=True))
        return _sorted(Rows.joined([self.rows, back]))

    @cached_property
    def before(self) -> AdapterEnsembleDDPMPipeline:
        """The generator before its deletions."""
        return self.with_rows(self.undeleted_rows)

    @property
    def without_others(self) -> AdapterEnsembleDDPMPipeline | None:
        """The generator without as many other images as were deleted; `None` if there are not so many."""
        gone, others = unique_ids(self.deleted.ids), unique_ids(self.rows.ids)
        if len(gone) > len(others):
            return None
        chosen = unique_ids(others[keyed_order(others, "random removal")[: len(gone)]])
        rows = self.undeleted_rows
        return self.with_rows(rows.select(~among(rows.ids, chosen)))

    def with_rows(self, rows: Rows) -> AdapterEnsembleDDPMPipeline:
        """Return the generator with other images in its adapters, sorted, with codes and routes."""
        records, routes = Records.of_rows(rows, self.recipe.shape.features)
        members = members_of(routes, len(self.recipe.keys))
        changed = self._changed(rows)
        states = {a: state for a, state in self.pipeline.adapters.states.items() if a not in changed}
        states |= self.recipe.fit(records, {adapter: members[adapter] for adapter in sorted(changed)})
        pipeline, names = self.pipeline, self.recipe.class_names
        counts = count_members(rows.labels, routes, len(self.recipe.keys), len(names))
        other = AdapterEnsembleDDPMPipeline(
            pipeline.unet,
            pipeline.scheduler,
            pipeline.router,
            list(names),
            pipeline.lora.rank,
            pipeline.lora.alpha,
            list(pipeline.lora.targets),
            pipeline.vae,
            pipeline.prompts,
            None if pipeline.exemplars is None else _store(rows, names),
        )
        other.adapters = ServedAdapters(dict(sorted(states.items())), counts)
        return other

    def routes(self, rows: Rows) -> np.ndarray:
        """Return the adapters of images, nearest first, int16 ``(n, neighbours)``."""
        return Records.of_rows(rows, self.recipe.shape.features)[1]

    def _changed(self, rows: Rows) -> set[int]:
        """Return the adapters that have other members with other images."""
        own, other = row_keys(self.rows), row_keys(rows)
        changed: set[int] = set()
        for part, lacking in ((rows, own), (self.rows, other)):
            keys = other if part is rows else own
            differing = part.select(np.isin(keys, lacking, invert=True))
            changed.update(self.routes(differing).ravel().tolist())
        return changed

    @property
    def visits(self) -> tuple[int, int]:
        """How often images are read to fit all adapters as before, and to rebuild those that were hit."""
        hit = sorted(self._changed(self.undeleted_rows))
        return self._visits(self.undeleted_rows, range(len(self.recipe.keys))), self._visits(self.rows, hit)

    def _visits(self, rows: Rows, adapters: Iterable[int]) -> int:
        members = members_of(self.routes(rows), len(self.recipe.keys))
        return self.recipe.visits(members[adapter] for adapter in adapters)


def _sorted(rows: Rows) -> Rows:
    return rows.select(np.argsort(row_keys(rows)))


def _store(rows: Rows, names: tuple[str, ...]) -> ExemplarStore:
    """Return what a semi-parametric backbone looks at."""
    return ExemplarStore.from_images(
        IndexedImages(rows.pixels, rows.labels, rows.ids, names, tuple(ids_to_hex(rows.ids)))
    )
