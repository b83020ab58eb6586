"""A diffusers folder with a `UNet2DModel` that denoises pixels: read it, and write it with other weights."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from diffusers import DDPMScheduler, UNet2DModel

from gen_unlearn.data import DataConfig, load_images
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.models.denoiser_checks import require_plain_network
from gen_unlearn.models.diffusers_folders import folders_of_parts, load_schedule, load_unet
from gen_unlearn.models.unet import SemiParametricUNet2DModel

_CONFIGS = ("model_index.json", "config.json")
_READ = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|msgpack|h5|onnx)(\.index\.json)?")


@dataclass(frozen=True, eq=False)
class UNetCheckpoint:
    """A checkpoint that was loaded; nothing of it runs as code.

    Attributes:
        path: the folder of a pipeline of a UNet and a scheduler, or of a UNet alone.
        source: of the images that it was trained on, see `gen_unlearn.data.DataConfig`.
        unet_path: where the UNet lies.
        network: in float32, on the CPU.
        noise: what noise it was trained with.
    """

    path: Path
    source: str
    unet_path: Path
    network: UNet2DModel
    noise: DDPMScheduler

    record_name: ClassVar[str] = "unlearning.json"
    receipts_name: ClassVar[str] = "receipts"
    key_name: ClassVar[str] = "receipts.key"

    @staticmethod
    def is_at(path: Path) -> bool:
        """Tell whether a folder has what all checkpoints have."""
        return any((path / name).is_file() for name in _CONFIGS)

    @classmethod
    def open(cls, path: Path, source: str) -> UNetCheckpoint:
        """Load a checkpoint.

        Args:
            path: the folder.
            source: of the images that it was trained on; not read yet.

        Raises:
            ValueError: files are missing or broken, its weights are not safetensors, it is not a
                `UNet2DModel` that denoises pixels, or it was unlearned before.
        """
        parts = folders_of_parts(path)
        for name in (cls.record_name, cls.receipts_name, cls.key_name):
            if (path / name).exists():
                raise ValueError(
                    f"{path} was unlearned before: it has {name}; name everything that is to be forgotten, "
                    "and start from the checkpoint that it was made from"
                )
        if others := sorted(parts.keys() - {"unet", "scheduler"}):
            raise ValueError(
                f"expected a pipeline of a unet and a scheduler in {path}, which denoises pixels, got "
                f"{', '.join(others)} too; choose one in the layout of DDPMPipeline"
            )
        network = load_unet(parts["unet"])
        if isinstance(network, SemiParametricUNet2DModel):
            raise ValueError(
                f"{path} holds a semi-parametric network: images are deleted exactly from the run that it "
                "belongs to, with gen-unlearn forget"
            )
        if not isinstance(network, UNet2DModel):
            raise ValueError(
                f"expected a UNet2DModel in {path}, got a {type(network).__name__}; choose another checkpoint"
            )
        require_plain_network(network, None)
        noise = load_schedule(_scheduler(path, parts), clip_sample=True)
        return cls(path, source, parts["unet"], network, noise)

    def load_images(self) -> IndexedImages:
        """Load the images that it was trained on, converted to the size and channels of the network.

        Raises:
            ValueError: there is no such source, it has another number of classes than the network embeds, or
                the network is not one of square grey or colour images.
        """
        config = self.network.config
        sides, channels = config.sample_size, config.in_channels
        height, width = (sides, sides) if isinstance(sides, int) else sides
        if height != width or channels not in (1, 3):
            raise ValueError(
                f"expected a network of square images of 1 or 3 channels in {self.path}, got {height} x "
                f"{width} x {channels}; choose another checkpoint"
            )
        data = load_images(DataConfig(source=self.source, image_size=height, channels=channels))
        embeddings, classes = config.num_class_embeds, len(data.class_names)
        if embeddings is not None and embeddings not in (classes, classes + 1):
            raise ValueError(
                f"expected {embeddings - 1} classes in {self.source}, or {embeddings} without a null class, "
                f"as the network in {self.path} embeds, got {classes}; name the images that it was trained "
                "on with --data, all of its class folders"
            )
        return data

    def write(self, folder: Path, network: UNet2DModel) -> tuple[str, ...]:
        """Write the checkpoint with other weights, in float32, to an empty folder, all else as it is.

        Weights of the UNet in other files and hidden folders, such as ``.git``, are left out: they hold what
        the network was.

        Returns:
            What was left out, by path.
        """
        network.save_pretrained(folder / self.unet_path.relative_to(self.path))
        left_out = []
        for place, folders, files in os.walk(self.path, followlinks=True):
            at = Path(place)
            hidden = [name for name in folders if name.startswith(".")]
            folders[:] = sorted(set(folders) - set(hidden))
            weights = [name for name in files if at == self.unet_path and _WEIGHTS.fullmatch(name)]
            dropped = [*hidden, *(name for name in weights if not _READ.fullmatch(name))]
            left_out += [str((at / name).relative_to(self.path)) for name in dropped]
            target = folder / at.relative_to(self.path)
            target.mkdir(exist_ok=True)
            for name in sorted(set(files) - set(weights)):
                shutil.copyfile(at / name, target / name)
        return tuple(sorted(left_out))

    @property
    def other_entries(self) -> list[str]:
        """Names of the files and folders that are copied and never read."""
        known = {*_CONFIGS, "scheduler", "unet"} if self.unet_path != self.path else {*_CONFIGS, "scheduler"}
        return sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in known
            and not (entry.is_dir() and entry.name.startswith("."))
            and not (self.unet_path == self.path and _WEIGHTS.fullmatch(entry.name))
        )


def _scheduler(path: Path, parts: dict[str, Path]) -> Path:
    """Return the folder of the scheduler; of a UNet alone it is inside or beside it."""
    inside = parts.get("scheduler", path / "scheduler")
    for found in (inside, path.resolve().parent / "scheduler"):
        if (found / "scheduler_config.json").is_file():
            return found
    raise ValueError(
        f"expected {inside / 'scheduler_config.json'}, which says what noise the network was trained with, "
        "found none; save the scheduler there with save_pretrained"
    )
