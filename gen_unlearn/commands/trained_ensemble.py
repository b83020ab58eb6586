"""A trained adapter ensemble in memory: its networks, its records, and the adapters that they decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gen_unlearn.adapters.adapter_folder import save_adapters
from gen_unlearn.adapters.family import AdapterState
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.resumable import fit_resumably
from gen_unlearn.adapters.routing import members_of
from gen_unlearn.exemplar_keys import save_exemplars
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.run_paths import RunPaths
from gen_unlearn.shards import Rows


@dataclass(frozen=True)
class TrainedEnsemble:
    """A frozen network, and everything that was learned on it.

    Attributes:
        network: the backbone of a classifier; of a generator its pipeline, without adapters.
        recipe: what decides the adapters, but for the records.
        exemplars: the records with their pictures; codes are features and, behind them, routes.
        decoded_size: ``(height, width)`` of the images that the ids stand for.
        kept: folder where adapters that take long are kept until all are fit; `None` for none.
    """

    network: AdapterBackbone | AdapterEnsembleDDPMPipeline
    recipe: EnsembleRecipe
    exemplars: Rows
    decoded_size: tuple[int, int]
    kept: Path | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes."""
        return self.recipe.class_names

    @cached_property
    def members(self) -> dict[int, np.ndarray]:
        """The rows that are routed to each adapter, ascending, int64."""
        routes = Records.of_rows(self.exemplars, self.recipe.shape.features)[1]
        return dict(enumerate(members_of(routes, len(self.recipe.keys))))

    @cached_property
    def adapters(self) -> Mapping[int, AdapterState]:
        """The adapters that have members: fit on the records when they are asked for first."""
        records = Records.of_rows(self.exemplars, self.recipe.shape.features)[0]
        return fit_resumably(self.recipe, records, self.members, self.kept)

    def save_pretrained(self, save_directory: Path, /) -> None:
        """Save network, records and adapters to a folder."""
        self.save_network(save_directory)
        self.save_exemplars(save_directory / RunPaths.exemplars_name)
        self.save_adapters(save_directory / RunPaths.adapters_name)

    def save_network(self, folder: Path) -> None:
        """Save what no deletion changes to the model folder of a run."""
        network = self.network
        name = RunPaths.classifier_name if isinstance(network, AdapterBackbone) else ""
        network.save_pretrained(folder / name)

    def save_exemplars(self, folder: Path) -> None:
        """Save the records alone to a folder."""
        save_exemplars(self.exemplars, self.class_names, self.decoded_size, folder)

    def save_adapters(self, folder: Path) -> None:
        """Save the adapters alone to a folder."""
        sizes = {adapter: len(rows) for adapter, rows in self.members.items()}
        save_adapters(self.adapters, sizes, folder)
