"""Generate images as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gen_unlearn.indexed_images import class_index
from gen_unlearn.pipelines.loading import served_classes
from gen_unlearn.pipelines.sampling import GeneratorPipeline, sample_images
from gen_unlearn.report.images import save_grid
from gen_unlearn.runs import RunFolder

_NULL_NAME = "null"


@dataclass(frozen=True)
class SampleRequest:
    """What to generate.

    Attributes:
        classes: names or indices; every class that is served if empty.
        count: images of each class.
        null: sample without exemplars, or under the null label, instead of under a class.
    """

    classes: tuple[str, ...]
    count: int
    null: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"expected a count of at least 1, got {self.count}")
        if self.null and self.classes:
            raise ValueError("expected either classes or the null token, got both")

    def resolve(self, class_names: Sequence[str], pipeline: GeneratorPipeline) -> list[int | None]:
        """Return the labels to sample under."""
        if self.null:
            return [None]
        if self.classes:
            labels = [class_index(class_names, name) for name in self.classes]
            return list(dict.fromkeys(labels))
        return list(served_classes(pipeline))


def sample(run: RunFolder, request: SampleRequest, out: Path) -> int:
    """Write ``CLASS-INDEX.png`` for every image, and ``sheet.png`` with a row for each class.

    Returns:
        The number of images.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder; choose another --out")
    pipeline = run.load_pipeline()
    asked = request.resolve(run.manifest.class_names, pipeline)
    labels = [label for label in asked for _ in range(request.count)]
    indices = [index for _ in range(len(labels) // request.count) for index in range(request.count)]
    images = sample_images(pipeline, labels, indices, run.config.sampling)
    out.mkdir(parents=True, exist_ok=True)
    for image, label, index in zip(images, labels, indices, strict=True):
        name = _NULL_NAME if label is None else _file_name(run.manifest.class_names[label])
        _picture(image).save(out / f"{name}-{index:05d}.png")
    save_grid(out / "sheet.png", images, columns=min(request.count, 20))
    return len(images)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _file_name(class_name: str) -> str:
    """Replace what a file name cannot hold."""
    return "".join(letter if letter.isalnum() or letter in " ._-" else "_" for letter in class_name).strip(
        " ."
    )
