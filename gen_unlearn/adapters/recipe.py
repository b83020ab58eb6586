"""What an ensemble is made of, apart from its records, and the fitting of its adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property

import numpy as np

from gen_unlearn.adapters.family import AdapterFamily, AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.routing import Keys
from gen_unlearn.adapters.sharing import Stacked, share_adapters
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.repro import digest_json

_STACKS = 64
"""Stacks whose records are gathered at once."""


@dataclass(frozen=True, eq=False)
class EnsembleRecipe:
    """Everything public that decides an ensemble: with the records it decides every byte.

    Attributes:
        keys: one for each adapter.
        family: the kind of adapter, a frozen dataclass.
        neighbours: adapters that each record is routed to, and that answer for an image.
        class_names: names of all classes.
        seed: of initial weights and orders.
    """

    keys: Keys
    family: AdapterFamily
    neighbours: int
    class_names: tuple[str, ...]
    seed: int

    @property
    def shape(self) -> HeadShape:
        """Sizes of every adapter."""
        return HeadShape(self.keys.codes.shape[1], len(self.class_names))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        family = {"name": type(self.family).__name__, **_hyper_parameters(self.family)}
        rest = {"neighbours": self.neighbours, "class_names": list(self.class_names), "seed": self.seed}
        return digest_json({"keys": self.keys.digest, "family": family, **rest})

    def fit(self, records: Records, members: Mapping[int, np.ndarray]) -> dict[int, AdapterState]:
        """Fit adapters to their members, each in one process; every process gets all of them.

        Args:
            records: the records.
            members: the rows of `records` that are routed to each adapter; without any, it has no state.
        """
        from accelerate.utils import gather_object

        from gen_unlearn.processes import process_state

        sizes = {adapter: len(rows) for adapter, rows in members.items() if len(rows)}
        stack = self.family.stack if isinstance(self.family, Stacked) else 1
        state = process_state()
        mine = share_adapters(sizes, state.num_processes, stack)[state.process_index]
        at_once = stack * _STACKS  # Records of all adapters together are `neighbours` times all records.
        found: list[tuple[int, AdapterState]] = []
        for start in range(0, len(mine), at_once):
            chosen = mine[start : start + at_once]
            jobs = [FitJob(adapter, records.select(members[adapter])) for adapter in chosen]
            found += zip(chosen, self.family.fit(jobs, self.shape, self.seed), strict=True)
        return dict(sorted(gather_object(found) if state.num_processes > 1 else found))

    def visits(self, members: Iterable[np.ndarray]) -> int:
        """Return how often records are read to fit adapters to their members."""
        return sum(self.family.visits(len(rows)) for rows in members if len(rows))


def ensemble_recipe(config: ClassifierRunConfig, keys: Keys, class_names: tuple[str, ...]) -> EnsembleRecipe:
    """Return what decides the adapters of a classifier.

    Args:
        config: the recipe of an adapter ensemble.
        keys: of its backbone.
        class_names: names of all classes.
    """
    adapters = config.model.adapters
    return EnsembleRecipe(keys, adapters.heads, adapters.neighbours, class_names, config.seed)


def _hyper_parameters(family: AdapterFamily) -> dict[str, object]:
    """Return the fields of a family that are compared, which decide its adapters."""
    values = {
        entry.name: getattr(family, entry.name)
        for entry in fields(family)  # type: ignore[arg-type]  # A frozen dataclass, says the protocol.
        if entry.compare
    }
    return {name: asdict(value) if is_dataclass(value) else value for name, value in values.items()}  # type: ignore[arg-type]
