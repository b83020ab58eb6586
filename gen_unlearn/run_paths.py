"""Where things lie in a run folder.

What lies in it::

    recipe.yaml     the resolved recipe
    manifest.json   digests of recipe and data, versions, what training cost
    held_out.txt    the ids that are held out for testing
    core.txt        of a run with a public core: the ids that the weights are fit on
    without.txt     of an oracle: tombstones of what it is trained without
    ledger.key      the secret key of tombstones and seals
    held_back.json  of an adapter ensemble: which adapters are held back; only its owner can read it
    ledger.jsonl    what happened to the run, see `gen_unlearn.ledger`
    model/          the pipeline in diffusers layout, or the classifier, exemplars and adapters included
    checkpoints/    resume points, while training is not complete
    receipts/       one sealed JSON file for each deletion, and for each rebuilding of adapters
    samples/        generated images, by the digest of what generated them
    metrics/        the judge and the scorecard
    features/       features of images, by the digest of what they were extracted from
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gen_unlearn.changes import ADAPTERS, EXEMPLARS, ChangeFolder

_WRITTEN_FIRST = {
    f"{prefix}{name}{suffix}"
    for name in ("ledger.key", "recipe.yaml", "without.txt", "manifest.json")
    for prefix, suffix in (("", ""), (".", ".unfinished"))
}


@dataclass(frozen=True)
class RunPaths:
    """The paths of a run; see the module's docstring.

    Attributes:
        path: the folder.
    """

    path: Path

    classifier_name: ClassVar[str] = "classifier"
    router_name: ClassVar[str] = "router"
    exemplars_name: ClassVar[str] = EXEMPLARS
    adapters_name: ClassVar[str] = ADAPTERS

    @property
    def is_begun(self) -> bool:
        """Whether the folder holds nothing but what a new run writes first, perhaps cut short by a crash."""
        return {entry.name for entry in self.path.iterdir()} <= _WRITTEN_FIRST

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        """The manifest."""
        return self.path / "manifest.json"

    @property
    def without_path(self) -> Path:
        """The tombstones of what an oracle is trained without."""
        return self.path / "without.txt"

    @property
    def held_out_path(self) -> Path:
        """The ids of the images that were held out for testing."""
        return self.path / "held_out.txt"

    @property
    def core_path(self) -> Path:
        """The ids of a public core."""
        return self.path / "core.txt"

    @property
    def key_path(self) -> Path:
        """The secret key."""
        return self.path / "ledger.key"

    @property
    def ledger_path(self) -> Path:
        """The ledger."""
        return self.path / "ledger.jsonl"

    @property
    def held_back_path(self) -> Path:
        """The adapters that are held back, see `gen_unlearn.adapters.release`."""
        return self.path / "held_back.json"

    @property
    def change(self) -> ChangeFolder:
        """The change of the run that is in progress, if there is one."""
        return ChangeFolder(self.path)

    @property
    def model_path(self) -> Path:
        """The pipeline."""
        return self.path / "model"

    @property
    def classifier_path(self) -> Path:
        """The network of a classifier."""
        return self.model_path / self.classifier_name

    @property
    def router_path(self) -> Path:
        """What tells which adapters of a generator an image goes to."""
        return self.model_path / self.router_name

    @property
    def exemplars_path(self) -> Path:
        """The exemplar store."""
        return self.model_path / self.exemplars_name

    @property
    def adapters_path(self) -> Path:
        """The adapters of an ensemble."""
        return self.model_path / self.adapters_name

    @property
    def receipts_path(self) -> Path:
        """The receipts."""
        return self.path / "receipts"

    @property
    def samples_path(self) -> Path:
        """The generated images."""
        return self.path / "samples"

    @property
    def metrics_path(self) -> Path:
        """The judge and the scorecard."""
        return self.path / "metrics"

    @property
    def features_path(self) -> Path:
        """The features of images, which a deletion removes: some are of training images."""
        return self.path / "features"

    @property
    def scorecard_path(self) -> Path:
        """The newest scorecard."""
        return self.metrics_path / "scorecard.json"

    @property
    def report_path(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def state_names(self) -> frozenset[str]:
        """Names of the files and folders that make up a run; everything else is derived, or foreign."""
        paths = [
            self.recipe_path,
            self.manifest_path,
            self.held_out_path,
            self.core_path,
            self.without_path,
            self.key_path,
            self.held_back_path,
            self.ledger_path,
            self.model_path,
            self.receipts_path,
        ]
        return frozenset(path.name for path in paths) | self.change.names
