"""Change the exemplars of a run so that a crash at any moment leaves the old state or the new one.

A change is prepared in the folder ``.change``: the new shards, the new list of them, the receipt. One rename,
of ``commit.json``, decides. Before it, the change is undone by removing the folder; after it, the change is
finished by moving everything into place, which can be repeated as often as it takes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from gen_unlearn.atomic import flush_folder, write_flushed, write_text
from gen_unlearn.exemplar_changes import StoreChange
from gen_unlearn.ledger import LedgerEntry, append_line
from gen_unlearn.sealing import RunKey
from gen_unlearn.shards import SUMS

LOCK_SECONDS = 30.0
"""How long a change waits for another one."""

FINISHED = "finished a change of {} that had been interrupted; it is in force"
UNDONE = "undid a change of {} that had been interrupted; nothing was changed, so make the request again"


class RunBusyError(ValueError):
    """Say that another process holds the lock of a run."""


@dataclass(frozen=True)
class _Commit:
    """What has to be done once a change is decided.

    Attributes:
        new: shards and groups to move into the store.
        obsolete: files of the store to remove.
        receipt: name of the receipt, if there is one.
        ledger_size: size of the ledger in bytes before the change.
        line: line to append to it.
        purge: other files and folders of the run to remove, by path in the run.
    """

    new: list[str]
    obsolete: list[str]
    receipt: str | None
    ledger_size: int
    line: str
    purge: list[str]

    def to_json(self, key: RunKey) -> str:
        """Return the record, sealed with the key of the run."""
        return json.dumps(asdict(self) | {"seal": self._seal(key)})

    @classmethod
    def from_file(cls, path: Path, key: RunKey) -> _Commit:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it was edited, or written by somebody else.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            seal = fields.pop("seal")
            commit = cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not the record of a change: {error}") from error
        if seal != commit._seal(key):
            raise ValueError(f"{path} was not written by this program; remove {path.parent} by hand")
        return commit

    def _seal(self, key: RunKey) -> str:
        return key.seal("commit", json.dumps(asdict(self), sort_keys=True))


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

    @property
    def shards(self) -> Path:
        """Where the new files of the store wait."""
        return self.path / "exemplars"

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

    @property
    def _store(self) -> Path:
        return self.run / "model" / "exemplars"

    @contextmanager
    def prepared(self, wait: float = LOCK_SECONDS) -> Iterator[Path]:
        """Hold the lock of the run and give an empty folder for new shards; clear up unless `commit` follows.

        Raises:
            ValueError: another process held the lock for `wait` seconds, or a part of the run is a link.
        """
        with self.locked(wait):
            self.recover()
            _refuse_links(self.run)
            try:
                self.shards.mkdir(parents=True)
                yield self.shards
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
        change: StoreChange,
        entry: LedgerEntry,
        ledger_size: int,
        receipt: str | None = None,
        purge: tuple[str, ...] = (),
    ) -> None:
        """Decide the change that is prepared; what is left to do is done on leaving `prepared`.

        Args:
            change: what was staged.
            entry: the ledger's next entry.
            ledger_size: size of the ledger before it.
            receipt: text of the receipt.
            purge: other files and folders of the run to remove.
        """
        write_flushed(self.path / SUMS, change.sums.encode())
        if receipt is not None:
            write_flushed(self.path / "receipt.json", receipt.encode())
        flush_folder(self.path)
        flush_folder(self.run)
        line = entry.to_line().decode()
        commit = _Commit(
            list(change.new), list(change.obsolete), entry.receipt, ledger_size, line, list(purge)
        )
        write_text(self._commit_path, commit.to_json(RunKey.from_file(self._key_path)))

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
                    self._finish(_Commit.from_file(self._commit_path, RunKey.from_file(self._key_path)))
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

    def _finish(self, commit: _Commit) -> None:
        """Do what a decided change asks for, as far as it is not done yet."""
        ledger = self.run / "ledger.jsonl"
        if ledger.stat().st_size > commit.ledger_size + len(commit.line.encode()):
            raise ValueError(
                f"{self.path} holds a change from before the ledger's last entry; remove it by hand"
            )
        for name in commit.new:
            _move(self.shards / name, self._store / name)
        flush_folder(self._store)
        _move(self.path / SUMS, self._store / SUMS)
        flush_folder(self._store)
        if commit.receipt is not None:
            receipts = self.run / "receipts"
            receipts.mkdir(exist_ok=True)
            _move(self.path / "receipt.json", receipts / commit.receipt)
            flush_folder(receipts)
        append_line(ledger, commit.ledger_size, commit.line.encode())
        for name in commit.obsolete:
            (self._store / name).unlink(missing_ok=True)
        for name in commit.purge:
            _remove(self.run / name)
        flush_folder(self._store)
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


def _refuse_links(run: Path) -> None:
    """Raise a ValueError if a part of a run's state is a link: deleting it would leave what it points to."""
    folders = [run, run / "model", run / "model" / "exemplars", run / "receipts"]
    links: list[Path] = []
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:  # Many shards: it tells links without asking for each.
                links += [Path(entry.path) for entry in entries if entry.is_symlink()]
    if links:
        raise ValueError(
            f"expected plain files in the run, got {links[0]}, a link to {links[0].resolve()}; nothing was "
            f"changed; put what it points to in its place"
        )
