"""Generate images as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gen_unlearn.decoding import decode_image
from gen_unlearn.indexed_images import class_index
from gen_unlearn.pipelines.loading import served_classes
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.sampling import GeneratorPipeline, sample_images
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.processes import process_state
from gen_unlearn.report.images import save_grid
from gen_unlearn.repro import derive_seed, torch_generator
from gen_unlearn.runs import RunFolder
from gen_unlearn.shared_rows import shared_rows

_NULL_NAME = "null"


@dataclass(frozen=True)
class SampleRequest:
    """What to generate.

    Attributes:
        classes: names or indices; every class that is served if empty.
        count: images of each class.
        null: sample without exemplars, or under the null label, instead of under a class.
        like: an image file; of an adapter ensemble the adapters with the keys nearest to it, under the
            classes or, if there are none, without a class.
    """

    classes: tuple[str, ...]
    count: int
    null: bool = False
    like: Path | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"expected a count of at least 1, got {self.count}")
        if self.null and self.classes:
            raise ValueError("expected either classes or the null token, got both")

    def resolve(self, class_names: Sequence[str], pipeline: GeneratorPipeline) -> list[int | None]:
        """Return the labels to sample under.

        Raises:
            ValueError: a class is unknown, or an image is given to another model than an adapter ensemble.
        """
        if self.like is not None and not isinstance(pipeline, AdapterEnsembleDDPMPipeline):
            raise ValueError(
                "expected --like with an adapter ensemble, whose adapters it chooses among, got another "
                "model; leave it out"
            )
        if self.null or (self.like is not None and not self.classes):
            return [None]
        if self.classes:
            labels = [class_index(class_names, name) for name in self.classes]
            return list(dict.fromkeys(labels))
        return list(served_classes(pipeline))


def sample(run: RunFolder, request: SampleRequest, out: Path) -> int:
    """Write ``CLASS-INDEX.png`` for every image, and ``sheet.png`` with a row for each class.

    Several processes share the sampling; the main one writes, and the others wait.

    Returns:
        The number of images.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder; choose another --out")
    pipeline = run.load_pipeline()
    asked = request.resolve(run.manifest.class_names, pipeline)
    labels = [label for label in asked for _ in range(request.count)]
    indices = [index for _ in range(len(labels) // request.count) for index in range(request.count)]
    if request.like is None:
        images = sample_images(pipeline, labels, indices, run.config.sampling)
    else:
        assert isinstance(pipeline, AdapterEnsembleDDPMPipeline), "others were refused"
        height, width, channels = run.manifest.image_shape
        query = decode_image(request.like, size=(height, width), channels=channels)
        images = _sample_like(pipeline, query, labels, indices, run.config.sampling)
    state = process_state()
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        for image, label, index in zip(images, labels, indices, strict=True):
            name = _NULL_NAME if label is None else _file_name(run.manifest.class_names[label])
            _picture(image).save(out / f"{name}-{index:05d}.png")
        save_grid(out / "sheet.png", images, columns=min(request.count, 20))
    state.wait_for_everyone()
    return len(images)


def _sample_like(
    pipeline: AdapterEnsembleDDPMPipeline,
    query: np.ndarray,
    labels: Sequence[int | None],
    indices: Sequence[int],
    config: SamplingConfig,
) -> np.ndarray:
    """Sample with the adapters nearest to an image, from the noise that each label and index always has."""
    pipeline.set_progress_bar_config(disable=True)

    def batch(rows: slice) -> np.ndarray:
        asked, numbers = list(labels[rows]), indices[rows]
        pairs = list(zip(asked, numbers, strict=True))
        return pipeline(
            asked,
            query_images=np.repeat(query[np.newaxis], len(asked), axis=0),
            composition=config.composition,
            adapters_per_image=config.adapters_per_image,
            exemplars_per_class=config.exemplars_per_class,
            exemplar_seed=[
                derive_seed(config.seed, "exemplars", number // config.images_per_draw) for number in numbers
            ],
            guidance_scale=config.guidance_scale,
            num_inference_steps=config.num_inference_steps,
            generator=[torch_generator(config.seed, "sample", str(label), number) for label, number in pairs],
            output_type="uint8",
            return_dict=False,
        )[0]

    return shared_rows(len(labels), config.batch_size, batch, "sample")


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _file_name(class_name: str) -> str:
    """Replace what a file name cannot hold."""
    return "".join(letter if letter.isalnum() or letter in " ._-" else "_" for letter in class_name).strip(
        " ."
    )
