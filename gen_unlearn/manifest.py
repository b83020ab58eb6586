"""The manifest of a run: what it was made from, and what training took."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from gen_unlearn.repro import software_versions


@dataclass(frozen=True)
class TrainingRecord:
    """What training took, and what came out.

    Attributes:
        seconds: wall-clock time, summed over interrupted parts.
        images: images shown.
        loss: running mean of the loss at the end.
        parameters: number of trained numbers.
        weights_digest: SHA-256 of the averaged weights.
    """

    seconds: float
    images: int
    loss: float
    parameters: int
    weights_digest: str


@dataclass(frozen=True)
class RunManifest:
    """What a run was made from.

    Attributes:
        recipe_digest: what decides the trained model.
        data_digest: the training images, after taking out those to train without.
        class_names: names of the classes.
        image_shape: ``(height, width, channels)``.
        without: digest of the forget set that an oracle was trained without.
        versions: software.
        training: what training took; `None` until it is complete.
    """

    recipe_digest: str
    data_digest: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    without: str | None = None
    versions: dict[str, str] = field(default_factory=software_versions)
    training: TrainingRecord | None = None

    @classmethod
    def from_file(cls, path: Path) -> RunManifest:
        """Read a manifest; a damaged file is an error that names it."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            training = fields["training"]
            return cls(
                **{
                    **fields,
                    "class_names": tuple(fields["class_names"]),
                    "image_shape": tuple(fields["image_shape"]),
                    "training": None if training is None else TrainingRecord(**training),
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not the manifest of a run: {error}") from error
