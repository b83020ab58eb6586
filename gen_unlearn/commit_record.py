"""The record of a change that is decided: what has to be moved into place, and what has to go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from gen_unlearn.sealing import RunKey


class StagedChange(Protocol):
    """A change of a folder that is listed in ``SHA256SUMS``: written, but not in force."""

    @property
    def sums(self) -> str:
        """The new list; putting it in place brings the change into force."""

    @property
    def new(self) -> tuple[str, ...]:
        """Names of the new files."""

    @property
    def obsolete(self) -> tuple[str, ...]:
        """Names of the files that are not listed any more."""


@dataclass(frozen=True)
class StoreFiles:
    """What a change does to one store of the model.

    Attributes:
        new: files to move into it.
        obsolete: files of it to remove.
    """

    new: list[str]
    obsolete: list[str]

    @classmethod
    def of(cls, change: StagedChange) -> StoreFiles:
        """Return what a staged change needs to be finished."""
        return cls(list(change.new), list(change.obsolete))


@dataclass(frozen=True)
class CommitRecord:
    """What has to be done once a change is decided.

    Attributes:
        stores: what to do to each store, by its name in the model; only those that change.
        receipt: name of the receipt, if there is one.
        ledger_size: size of the ledger in bytes before the change.
        line: line to append to it.
        purge: other files and folders of the run to remove, by path in the run.
        private: files of the run that only its owner can read, by name; they take their places first.
    """

    stores: Mapping[str, StoreFiles]
    receipt: str | None
    ledger_size: int
    line: str
    purge: list[str]
    private: list[str]

    def to_json(self, key: RunKey) -> str:
        """Return the record, sealed with the key of the run."""
        return json.dumps(asdict(self) | {"seal": self._seal(key)})

    @classmethod
    def from_file(cls, path: Path, key: RunKey) -> CommitRecord:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it was edited, or written by somebody else.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            seal = fields.pop("seal")
            stores = {name: StoreFiles(**files) for name, files in fields.pop("stores").items()}
            record = cls(stores, **fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not the record of a change: {error}") from error
        if seal != record._seal(key):
            raise ValueError(f"{path} was not written by this program; remove {path.parent} by hand")
        return record

    def _seal(self, key: RunKey) -> str:
        return key.seal("commit", json.dumps(asdict(self), sort_keys=True))
