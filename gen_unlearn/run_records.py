"""What a run keeps on record: manifest, ledger, receipts, and lists of ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gen_unlearn.adapters.adapter_folder import AdapterFolder
from gen_unlearn.adapters.promise import environment_digest
from gen_unlearn.adapters.release import HeldBack, ReleaseConfig
from gen_unlearn.changes import ADAPTERS
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.ledger import Ledger, LedgerEntry
from gen_unlearn.manifest import RunManifest, differences
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import digest_json, ids_from_hex
from gen_unlearn.run_paths import RunPaths
from gen_unlearn.sealing import RunKey, Tombstones
from gen_unlearn.shards import sha256

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RunRecords(RunPaths):
    """The records of a run, read when they are asked for."""

    @cached_property
    def key(self) -> RunKey:
        """The secret key."""
        return RunKey.from_file(self.key_path)

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is on disk now."""
        return Ledger.read(self.ledger_path, self.key)

    @property
    def manifest(self) -> RunManifest:
        """The manifest as it is on disk now."""
        return RunManifest.from_file(self.manifest_path)

    @property
    def last_fit(self) -> str:
        """What the weights came out of, in words."""
        if self.manifest.unlearned is None:
            return "the training"
        return "approximate unlearning, which may have left traces of the images in the weights"

    @property
    def fitting_device(self) -> torch.device | None:
        """Where the adapters of an ensemble are fit: LoRA where this process computes, heads on the CPU."""
        if not self.router_path.exists():
            return None
        from gen_unlearn.processes import process_state

        return process_state().device

    @property
    def environment_note(self) -> str:
        """What differs here from where weights and adapters were fit, which can change bits; or nothing."""
        return self.manifest.environment_note + self.adapters_note

    @property
    def adapters_note(self) -> str:
        """What differs here from where the adapters of an ensemble that are there were fit; or nothing."""
        if not self.adapters_path.exists():
            return ""
        others = set(self.ledger.environments) - {environment_digest(self.fitting_device)}
        if not others:
            return ""
        seen = [self.manifest.versions, *(receipt.versions for receipt in self._rebuildings())]
        known = {_digest_of(versions): versions for versions in seen}
        named = [differences(known[other]) if other in known else "not noted where" for other in others]
        return f"; adapters were fit with other software or on another processor: {'; '.join(sorted(named))}"

    def _rebuildings(self) -> Iterator[DeletionReceipt]:
        """Yield the receipts of rebuildings that are as they were filed."""
        for entry in self.ledger.entries:
            receipt = self.filed_receipt(entry) if entry.kind == "rebuilt" else None
            if receipt is not None:
                yield receipt

    def filed_receipt(self, entry: LedgerEntry) -> DeletionReceipt | None:
        """Return the receipt of an entry of the ledger; `None` if it is missing or was changed."""
        path = self.receipts_path / str(entry.receipt)
        if not path.is_file() or sha256(path.read_bytes()) != entry.receipt_sum:
            return None
        return DeletionReceipt.from_file(path)

    def unchanging_files(self) -> dict[str, str]:
        """Return the SHA-256, by path in the run, of every file of the state that no deletion changes."""
        state = [self.recipe_path, self.manifest_path, self.held_out_path, self.core_path, self.without_path]
        stores = {self.exemplars_path, self.adapters_path}
        model = (path for path in self.model_path.rglob("*") if stores.isdisjoint(path.parents))
        files = [path for path in (*state, *model) if path.is_file()]
        return {path.relative_to(self.path).as_posix(): sha256(path.read_bytes()) for path in sorted(files)}

    @property
    def held_out_ids(self) -> np.ndarray:
        """The ids that are held out for testing, uint8 ``(n, 16)``."""
        return _read_ids(self.held_out_path)

    @property
    def core_ids(self) -> np.ndarray:
        """The ids of a public core, uint8 ``(n, 16)``; none of a joint one, where all are deletable."""
        return _read_ids(self.core_path)

    def receipts(self) -> list[DeletionReceipt]:
        """Return the receipts, oldest first; they are sealed.

        The receipt of a rebuilding stands for those of the deletions that it completes.
        """
        names = (str(entry.receipt) for entry in self.ledger.standing)
        return [DeletionReceipt.from_file(self.receipts_path / name) for name in names]

    def without(self) -> Tombstones | None:
        """Return what an oracle is trained without, or `None`."""
        return Tombstones.from_file(self.without_path, self.key) if self.without_path.exists() else None

    def forgotten(self) -> Tombstones:
        """Return the tombstones of everything that was deleted from this run."""
        return self.ledger.tombstones

    def adapter_folder(self) -> AdapterFolder:
        """Open the adapters of an ensemble on disk.

        Raises:
            ValueError: the model has none.
        """
        return AdapterFolder.open(self.adapters_path)

    def held_back(self, release: ReleaseConfig) -> HeldBack:
        """Return which adapters of an ensemble are held back now.

        Args:
            release: when they are not any more.

        Raises:
            ValueError: the file cannot be read.
        """
        return HeldBack.load(self.held_back_path).settled(release, datetime.now(UTC))

    def state_of(self, exemplars: ExemplarFolder) -> str:
        """Return the digest of what deletions change: the exemplars, and of an ensemble the adapters too."""
        adapters = self.adapter_folder().digest if self.adapters_path.exists() else None
        return stores_digest(exemplars.digest, adapters)

    def environments_of(self, exemplars: str, adapters: str) -> tuple[str, ...] | None:
        """Return where adapters were fit; `None` if the ledger does not end with stores of these digests."""
        ledger = self.ledger
        one_state = ledger.entries[-1].describes(stores_digest(exemplars, adapters), self.key)
        return ledger.environments if one_state else None

    def require_own_state(self, exemplars: ExemplarFolder, ledger: Ledger) -> None:
        """Check that recipe, lists and stores are those of the ledger, before a change builds on them.

        Raises:
            ValueError: one of them was edited, or the ledger was cut back.
        """
        expected = ledger.entries[0].files or {}
        paths = [self.recipe_path, self.manifest_path, self.held_out_path, self.core_path, self.without_path]
        for path in paths:
            if expected.get(path.name) != (sha256(path.read_bytes()) if path.exists() else None):
                raise ValueError(f"{path} was changed since the training; nothing was changed; put it back")
        stores = "exemplars and adapters" if self.adapters_path.exists() else "exemplars"
        if not ledger.entries[-1].describes(self.state_of(exemplars), self.key):
            raise ValueError(
                f"the {stores} of {self.path} are not in the state that the ledger's last entry describes; "
                f"nothing was changed; see: gen-unlearn verify {self.path}"
            )


def stores_digest(exemplars: str, adapters: str | None) -> str:
    """Return the digest of the stores of a model, from theirs; `None` stands for no adapters."""
    return exemplars if adapters is None else digest_json({"exemplars": exemplars, "adapters": adapters})


def _digest_of(versions: Mapping[str, str]) -> str:
    """Return the digest of an environment that a manifest or a receipt states."""
    return digest_json({name: version for name, version in versions.items() if name != ADAPTERS})


def _read_ids(path: Path) -> np.ndarray:
    """Read one hexadecimal id per line; a missing file holds none."""
    return ids_from_hex(path.read_text(encoding="utf-8").split() if path.exists() else [])
