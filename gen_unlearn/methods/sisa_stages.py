"""Where a SISA ensemble keeps the stages of its training: in memory, or as safetensors files."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import Tensor

from gen_unlearn.atomic import write_undated

Stage = dict[str, Tensor]
"""Weights, buffers and momentum after a stage, on the CPU, by name."""

_PREFIX = "stage-"


class StageStore:
    """Keep stages by name.

    Args:
        folder: where to; `None` keeps them in memory. It is created if need be. Stages that lie there from
            before are found again; other files are left alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, Stage] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def names(self) -> frozenset[str]:
        """Names of the stages that are kept."""
        if self._folder is None:
            return frozenset(self._memory)
        files = self._folder.glob(f"{_PREFIX}*.safetensors")
        return frozenset(file.stem.removeprefix(_PREFIX) for file in files)

    def keep(self, name: str, stage: Stage) -> None:
        """Keep a copy of a stage, in place of one of that name."""
        if self._folder is None:
            self._memory[name] = {key: value.detach().cpu().clone() for key, value in stage.items()}
            return
        content = {key: value.detach().cpu().contiguous().clone() for key, value in stage.items()}
        write_undated(self._path(name), safetensors.torch.save(content))

    def load(self, name: str) -> Stage:
        """Return a stage that is kept; it is not to be changed."""
        if self._folder is None:
            return self._memory[name]
        return safetensors.torch.load(self._path(name).read_bytes())

    def keep_only(self, names: frozenset[str]) -> None:
        """Throw away all stages but some."""
        for name in self.names - names:
            if self._folder is None:
                del self._memory[name]
            else:
                self._path(name).unlink()

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{_PREFIX}{name}.safetensors"
