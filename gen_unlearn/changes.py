"""Change what a run was made of so that a crash at any moment leaves the old state or the new one.

A change concerns the stores of the model: the exemplars, and of an ensemble the adapters. It is prepared in
the folder ``.change``: the new files of each store, the new lists of them, the receipt, private files. One
rename, of ``commit.json``, decides for all of them. Before it, the change is undone by removing the folder;
after it, it is finished by moving everything into place, which can be repeated as often as it takes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock, Timeout

from gen_unlearn.atomic import flush_folder, write_flushed, write_private, write_text
from gen_unlearn.commit_record import CommitRecord, StagedChange, StoreFiles
from gen_unlearn.ledger import LedgerEntry, append_line
from gen_unlearn.sealing import RunKey
from gen_unlearn.shards import SUMS

EXEMPLARS = "exemplars"
"""The store of exemplars, by its name in the model."""

ADAPTERS = "adapters"
"""The store of an ensemble's adapters."""

_STORES = (ADAPTERS, EXEMPLARS)  # In this order: what saw deleted images stops answering before they go.

LOCK_SECONDS = 30.0
"""How long a change waits for another one."""

FINISHED = "finished a change of {} that had been interrupted; it is in force"
UNDONE = "undid a change of {} that had been interrupted; nothing was changed, so make the request again"


class RunBusyError(ValueError):
    """Say that another process holds the lock of a run."""


@dataclass(frozen=True)
class ChangeFolder:
    """The change of a run that is being prepared or finished.

    Attributes:
        run: the run's folder.
    """

    run: Path

    @property
    def path(self) -> Path:
        """The folder of the change; it exists only while there is one."""
        return self.run / ".change"

    @property
    def lock_path(self) -> Path:
        """The file that is locked."""
        return self.run / ".lock"

    def staging(self, store: str) -> Path:
        """Where the new files of a store wait."""
        return self.path / store

    @property
    def names(self) -> frozenset[str]:
        """Names of what a change leaves in the run's folder for a while."""
        return frozenset({self.path.name, self._done.name, self.lock_path.name})

    @property
    def _done(self) -> Path:
        return self.run / ".change.done"

    @property
    def _key_path(self) -> Path:
        return self.run / "ledger.key"

    @property
    def _commit_path(self) -> Path:
        return self.path / "commit.json"

    def _store(self, name: str) -> Path:
        return self.run / "model" / name

    @contextmanager
    def prepared(self, wait: float = LOCK_SECONDS) -> Iterator[ChangeFolder]:
        """Hold the lock of the run and make empty folders to stage in; clear up unless `commit` follows.

        Raises:
            ValueError: another process held the lock for `wait` seconds, or a part of the run is a link.
        """
        with self.locked(wait), self.staged():
            yield self

    @contextmanager
    def staged(self) -> Iterator[ChangeFolder]:
        """Do what `prepared` does for whoever holds the lock already: several changes can share one.

        Raises:
            ValueError: a part of the run is a link.
        """
        self.recover()
        refuse_links([self.run, self._store(""), self._store(ADAPTERS), self.run / "receipts"])
        try:
            for store in _STORES:
                self.staging(store).mkdir(parents=True)
            yield self
        except OSError:  # A disk that is full after the decision changes nothing.
            if self.recover() != self._finished:
                raise
        finally:
            try:
                self.recover()
            except KeyboardInterrupt:
                self.recover()
                raise

    @contextmanager
    def locked(self, wait: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold the lock of the run, which every change and every recovery needs.

        Raises:
            RunBusyError: another process held it for `wait` seconds.
            ValueError: a negative wait.
        """
        if not wait >= 0:
            raise ValueError(f"expected to wait for 0 seconds or more, got {wait:g}")
        lock = FileLock(self.lock_path, timeout=wait)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunBusyError(
                f"another process is changing {self.run} and was not done after {wait:g} seconds; "
                f"nothing was changed; try again later"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def settled(self, wait: float = LOCK_SECONDS) -> Iterator[None]:
        """Keep changes away while the run is read as a whole; where it cannot be written there are none."""
        if not os.access(self.run, os.W_OK):
            yield
            return
        with self.locked(wait):
            yield

    def commit(
        self,
        changes: Mapping[str, StagedChange],
        entry: LedgerEntry,
        ledger_size: int,
        receipt: str | None = None,
        purge: tuple[str, ...] = (),
        private: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Decide the change that is prepared; what is left to do is done on leaving `prepared`.

        Args:
            changes: what was staged, by store: `EXEMPLARS`, `ADAPTERS` or both.
            entry: the ledger's next entry.
            ledger_size: size of the ledger before it.
            receipt: text of the receipt.
            purge: other files and folders of the run to remove.
            private: new contents of files of the run that only its owner can read, by name.

        Raises:
            ValueError: a file that the change removes or puts another one in the place of is a link.
        """
        purged = (Path(folder) for name in purge for folder, _, _ in os.walk(self.run / name))
        refuse_links(purged)
        for store, change in changes.items():
            refuse_links(files=(self._store(store) / name for name in (SUMS, *change.obsolete)))
            write_flushed(self.staging(store) / SUMS, change.sums.encode())
            flush_folder(self.staging(store))
        if receipt is not None:
            write_flushed(self.path / "receipt.json", receipt.encode())
        for name, content in private.items():
            write_private(self.path / name, content)
        flush_folder(self.path)
        flush_folder(self.run)
        line = entry.to_line().decode()
        stores = {store: StoreFiles.of(change) for store, change in changes.items()}
        record = CommitRecord(stores, entry.receipt, ledger_size, line, list(purge), list(private))
        write_text(self._commit_path, record.to_json(RunKey.from_file(self._key_path)))

    def pending(self) -> bool:
        """Tell whether there is a change to finish or to undo, or one in progress."""
        return self.path.exists() or self._done.exists()

    def recover(self) -> str | None:
        """Finish a change that was decided, undo one that was not; say which. Needs the lock.

        Raises:
            ValueError: a decided change could not be finished, or was planted.
        """
        notice = None
        decided = self._commit_path.exists()
        try:
            if self.path.exists():
                if decided:
                    self._finish(CommitRecord.from_file(self._commit_path, RunKey.from_file(self._key_path)))
                notice = self._finished if decided else UNDONE.format(self.run)
                self.path.rename(self._done)  # From here on there is no change, only something to clear away.
                flush_folder(self.run)
            if self._done.exists():
                shutil.rmtree(self._done)
        except OSError as error:
            if not decided:
                raise
            raise ValueError(
                f"the change of {self.run} is decided but could not be finished: {error}; the next command "
                f"will finish it"
            ) from error
        return notice

    @property
    def _finished(self) -> str:
        return FINISHED.format(self.run)

    def _finish(self, record: CommitRecord) -> None:
        """Do what a decided change asks for, as far as it is not done yet."""
        ledger = self.run / "ledger.jsonl"
        if ledger.stat().st_size > record.ledger_size + len(record.line.encode()):
            raise ValueError(
                f"{self.path} holds a change from before the ledger's last entry; remove it by hand"
            )
        for name in record.private:  # First: what a change lets nobody see is in force before the change is.
            _move(self.path / name, self.run / name)
        flush_folder(self.run)
        stores = [name for name in _STORES if name in record.stores]
        for store in stores:
            for name in record.stores[store].new:
                _move(self.staging(store) / name, self._store(store) / name)
            flush_folder(self._store(store))
        for store in stores:
            _move(self.staging(store) / SUMS, self._store(store) / SUMS)
            flush_folder(self._store(store))
        if record.receipt is not None:
            receipts = self.run / "receipts"
            receipts.mkdir(exist_ok=True)
            _move(self.path / "receipt.json", receipts / record.receipt)
            flush_folder(receipts)
        append_line(ledger, record.ledger_size, record.line.encode())
        for store in stores:
            for name in record.stores[store].obsolete:
                (self._store(store) / name).unlink(missing_ok=True)
            flush_folder(self._store(store))
        for name in record.purge:
            _remove(self.run / name)
        flush_folder(self.run)


def _move(source: Path, target: Path) -> None:
    """Rename a file unless that was done before."""
    if source.exists():
        source.replace(target)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_links(folders: Iterable[Path] = (), files: Iterable[Path] = ()) -> None:
    """Raise a ValueError if a part of a run's state is a link: deleting it would leave what it points to.

    Args:
        folders: whose files to look at; one that is missing has none.
        files: to look at, too. Of a large store a change asks for those alone that it takes away.
    """
    links = [file for file in files if file.is_symlink()]
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:  # Many shards: it tells links without asking for each.
                links += [Path(entry.path) for entry in entries if entry.is_symlink()]
    if links:
        raise ValueError(
            f"expected plain files in the run, got {links[0]}, a link to {links[0].resolve()}; nothing was "
            f"changed; put what it points to in its place"
        )
