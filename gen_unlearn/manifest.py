"""The manifest of a run: what it was made from, and what training took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gen_unlearn.repro import software_versions
from gen_unlearn.sealing import RunKey


def differences(versions: Mapping[str, str]) -> str:
    """Say in words what of some versions is another here, and what is here that an environment lacks."""
    from gen_unlearn.adapters.determinism import environment
    from gen_unlearn.processes import process_state

    now = environment(process_state().device)
    names = [*versions, *(name for name in now if "blas" in versions and name not in versions)]
    return ", ".join(
        f"{name} {versions.get(name)} -> {now.get(name)}"
        for name in names
        if versions.get(name) != now.get(name)
    )


def _threads() -> int:
    import torch

    return torch.get_num_threads()


@dataclass(frozen=True)
class TrainingRecord:
    """What training took, and what came out.

    Attributes:
        seconds: wall-clock time, summed over interrupted parts.
        images: images shown.
        loss: running mean of the loss at the end.
        parameters: number of trained numbers.
        weights_digest: SHA-256 of the averaged weights.
        threads: CPU threads that trained it; another number can give other bits.
        processes: processes that trained it together; another number gives other bits.
    """

    seconds: float
    images: int
    loss: float
    parameters: int
    weights_digest: str
    threads: int = field(default_factory=_threads)
    processes: int = 1


@dataclass(frozen=True)
class UnlearningRecord:
    """What was done to the weights of another run, to make those of a run that approximately forgets.

    Attributes:
        method: name of the method.
        settings: all of them, as YAML would give them.
        seed: of everything random in it.
        forward_samples: samples that passed a network forward.
        backward_samples: samples whose gradients were taken.
        seconds: wall-clock time.
        peak_memory: most bytes that the accelerator held; `None` on a CPU.
        images: how many distinct images it was to forget.
        forget_digest: SHA-256 of their tombstones.
        origin: SHA-256 of the manifest of the run that it started from.
        origin_weights: SHA-256 of the weights of that run.
        origin_path: where that run was, relative to this one.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    forward_samples: int
    backward_samples: int
    seconds: float
    peak_memory: int | None
    images: int
    forget_digest: str
    origin: str
    origin_weights: str
    origin_path: str


@dataclass(frozen=True)
class RunManifest:
    """What a run was made from.

    Attributes:
        recipe_digest: what decides the trained model.
        data_digest: the training images, after taking out those to train without; sealed with the run's key
            in the file, as whoever has one of them could recognise it by an open digest.
        class_names: names of the classes.
        image_shape: ``(height, width, channels)``.
        without: digest of the tombstones of what an oracle was trained without.
        started_from: SHA-256 of the weights that the training started from, if the recipe names some: of a
            file, of the files of a folder, or of the weights of another run.
        versions: software; of an adapter ensemble also what else decides the last bits of its sums.
        training: what training took; `None` until it is complete. After approximate unlearning it is that of
            the run that was unlearned, with the digest of the weights as they are now.
        unlearned: what approximate unlearning did to the weights; `None` of all other runs.
    """

    recipe_digest: str
    data_digest: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    without: str | None = None
    started_from: str | None = None
    versions: dict[str, str] = field(default_factory=software_versions)
    training: TrainingRecord | None = None
    unlearned: UnlearningRecord | None = None

    def sealed(self, key: RunKey) -> RunManifest:
        """Return the manifest as it is kept."""
        return replace(self, data_digest=key.seal("data", self.data_digest))

    @property
    def made_from(self) -> tuple[object, ...]:
        """What tells two runs apart: recipe, data, forget set, first weights, and what was unlearned."""
        return self.recipe_digest, self.data_digest, self.without, self.started_from, self.unlearned

    @property
    def removal(self) -> str:
        """What is done to images that the run is asked to forget, in words."""
        return "deleted" if self.unlearned is None else "approximately unlearned"

    @property
    def environment_note(self) -> str:
        """What differs here from where the run was trained, as that alone can change bits; or nothing."""
        changes = differences(self.versions)
        return f"; the software differs from the training's: {changes}" if changes else ""

    def to_json(self) -> str:
        """Return the manifest as indented JSON text."""
        fields = asdict(self)
        if self.unlearned is None:  # As manifests were written before there was unlearning.
            del fields["unlearned"]
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> RunManifest:
        """Read a manifest; a damaged file is an error that names it."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            training, unlearned = fields["training"], fields.get("unlearned")
            return cls(
                **{
                    **fields,
                    "class_names": tuple(fields["class_names"]),
                    "image_shape": tuple(fields["image_shape"]),
                    "training": None if training is None else TrainingRecord(**training),
                    "unlearned": None if unlearned is None else UnlearningRecord(**unlearned),
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not the manifest of a run: {error}") from error
