"""Results of a benchmark: one row for each method, forget set and seed, each in a file of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.summary import Kind

SCHEMA = 1
"""Version of a row; rows of another one are measured again."""

FAILURES = (ValueError, RuntimeError, ArithmeticError)
"""What a method may raise: its row failed, the others go on. Anything else is a fault of this program."""


def reason_of(error: Exception) -> str:
    """Return what went wrong in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@dataclass(frozen=True)
class Row:
    """What one model did on one forget set.

    Attributes:
        key: digest of everything that decides the row; its file is named by it.
        name: of the method or of the reference model, as tables show it.
        kind: see `gen_unlearn.benchmark.summary.Kind`.
        forget_set: its name.
        seeds: ``train``, ``unlearn``, ``forget`` and ``evaluation``.
        status: ``"failed"`` until everything that was asked for is measured.
        error: why it failed.
        method: name in the table of methods, `None` for others.
        settings: every hyper-parameter.
        digests: of ``data``, ``forget``, ``original``, ``retrained`` and ``model``.
        metrics: id -> value.
        cost: ``seconds``, ``forward_samples``, ``backward_samples``, ``passes`` in percent of retraining,
            ``peak_memory`` in bytes, and of the search of the settings, which all seeds share,
            ``search_seconds`` and ``search_passes``.
        regime: pilot retraining is allowed in ``"benchmark"``.
        environment: versions and hardware.
        schema: see `SCHEMA`.
    """

    key: str
    name: str
    kind: Kind
    forget_set: str
    seeds: Mapping[str, int]
    status: Literal["ok", "failed"] = "failed"
    error: str | None = None
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float | None] = field(default_factory=dict)
    regime: Literal["benchmark", "deployment"] = "benchmark"
    environment: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def as_json(self) -> str:
        """Return the row as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)


class RowFolder:
    """The rows of a benchmark that are there, one file each, so that processes never write to the same.

    Args:
        path: the folder; made when a row is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, key: str) -> Row | None:
        """Return a row that was measured, or `None` if it is not there, failed, or is of another schema."""
        file = self.path / f"{key}.json"
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("schema") != SCHEMA or content.get("status") != "ok":
            return None
        return Row(**content)

    def read(self, key: str) -> Row:
        """Return a row, failed or not.

        Raises:
            ValueError: it is not there.
        """
        file = self.path / f"{key}.json"
        if not file.is_file():
            raise ValueError(f"expected the row {key} in {self.path}, found none; run the benchmark again")
        return Row(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, row: Row) -> None:
        """Write a row under its key, in one step."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / f"{row.key}.json", row.as_json() + "\n")


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, in their order."""
    write_text(path, "".join(f"{row.as_json()}\n" for row in rows))
