"""Images to delete and to retain, and everything that can be left of them in a folder."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from gen_unlearn.data import IndexedImages, load_digits_images
from gen_unlearn.report.images import image_sheet, page_picture, save_grid
from gen_unlearn.repro import ids_to_hex, image_ids
from gen_unlearn.residue.search import DeletedImages, ResidueReport, search_residue


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a data set with everything that may be left of them."""

    images: np.ndarray
    names: tuple[str, ...]
    tokens: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        return image_ids(self.images)

    @property
    def hex_ids(self) -> list[str]:
        return ids_to_hex(self.ids)

    @property
    def floats(self) -> np.ndarray:
        """Pixels in [-1, 1], float32 ``(n, channels, height, width)``."""
        return np.ascontiguousarray(self.images.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=np.float32)

    def picture(self, number: int = 0, scale: int = 1) -> Image.Image:
        image = self.images[number]
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


@dataclass(frozen=True, eq=False)
class Case:
    """A data set in two parts."""

    deleted: Subset
    retained: Subset

    def search(self, folder: Path, skip: Collection[Path] = ()) -> ResidueReport:
        some = self.deleted
        deleted = DeletedImages(some.ids, some.images, some.names, some.tokens)
        return search_residue(folder, deleted, recognise_nothing, some.images.shape[1:], skip)

    def search_by_tombstones(self, folder: Path) -> ResidueReport:
        """Search as when nobody has anything of the images but a way to recognise their ids."""
        shape = self.deleted.images.shape[1:]
        nothing = DeletedImages(np.empty((0, 16), np.uint8), np.empty((0, *shape), np.uint8))
        listed = set(self.deleted.hex_ids)
        return search_residue(
            folder, nothing, lambda ids: np.array([text in listed for text in ids_to_hex(ids)]), shape
        )


def recognise_nothing(ids: np.ndarray) -> np.ndarray:
    return np.zeros(len(ids), dtype=bool)


def subset(images: np.ndarray, folder: str) -> Subset:
    """Name images and encode them, all with the same random network."""
    names = tuple(f"{folder}/{folder}_{number:04d}.png" for number in range(len(images)))
    flat = images.reshape(len(images), -1) / 127.5 - 1
    weights = np.random.default_rng(7).standard_normal((flat.shape[1], 64))
    tokens = np.tanh(flat @ weights / np.sqrt(flat.shape[1])).reshape(-1, 2, 4, 8).astype(np.float32)
    return Subset(images, names, tokens)


def digits() -> Case:
    """Delete twenty threes; all other threes, and more, are retained."""
    data: IndexedImages = load_digits_images()
    threes = data.images[data.labels == 3]
    others = data.images[data.labels != 3][:200]
    return Case(subset(threes[:20], "gone"), subset(np.concatenate([threes[20:], others]), "kept"))


def colours() -> Case:
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    return Case(subset(images[:15], "gone"), subset(images[15:], "kept"))


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def store(path: Path, some: Subset) -> None:
    save_file({"pixels": some.images, "digests": some.ids}, path)


def planar_store(path: Path, some: Subset) -> None:
    save_file({"pixels": np.ascontiguousarray(some.images.transpose(0, 3, 1, 2))}, path)


def whole_numbers(path: Path, some: Subset) -> None:
    save_file({"pixels": some.images.astype(np.int64)}, path)


def feature_cache(path: Path, some: Subset) -> None:
    save_file({text: np.ones(4, np.float32) for text in some.hex_ids}, path)


def unnamed_feature_cache(path: Path, some: Subset) -> None:
    save_file({"features": np.ones((len(some.ids), 4), np.float32), "ids": some.ids}, path)


def tokens(path: Path, some: Subset) -> None:
    # Another batch composition rounds differently.
    save_file({"bank": some.tokens * np.float32(1 + 2e-6)}, path)


def half_tokens(path: Path, some: Subset) -> None:
    save_file({"bank": some.tokens.reshape(len(some.tokens), -1).astype(np.float16)}, path)


def bfloat16_tokens(path: Path, some: Subset) -> None:
    save_torch_file({"bank": torch.from_numpy(some.tokens).bfloat16()}, path)


def averaged_state(path: Path, some: Subset) -> None:
    weights = np.random.default_rng(1).standard_normal((64, 9)).astype(np.float32)
    save_file({"ema.weight": weights, "ema.exemplars": some.floats}, path)


def state_in_unit_range(path: Path, some: Subset) -> None:
    save_file({"x": (some.images / 255).astype(np.float32)}, path)


def bfloat16_state(path: Path, some: Subset) -> None:
    save_torch_file({"x": torch.from_numpy(some.floats).bfloat16()}, path)


def parquet(path: Path, some: Subset) -> None:
    rows = [{"bytes": encoded(some.picture(number)), "path": None} for number in range(5)]
    pq.write_table(pa.table({"img": rows, "label": [0] * 5}), path, compression="zstd")


def parquet_names(path: Path, some: Subset) -> None:
    pq.write_table(pa.table({"file": pa.array(some.names).dictionary_encode()}), path)


def parquet_ids(path: Path, some: Subset) -> None:
    pq.write_table(pa.table({"id": [row.tobytes() for row in some.ids]}), path)


def parquet_pixels(path: Path, some: Subset) -> None:
    pq.write_table(pa.table({"pixels": [image.tolist() for image in some.images[:5]]}), path)


def arrow_file(path: Path, some: Subset) -> None:
    table = pa.table({"img": [encoded(some.picture(number)) for number in range(5)]})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def arrow_stream(path: Path, some: Subset) -> None:
    table = pa.table({"some": [[{"name": name}] for name in some.names]})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def thumbnail(path: Path, some: Subset) -> None:
    path.write_bytes(encoded(some.picture()))


def thumbnail_with_alpha(path: Path, some: Subset) -> None:
    path.write_bytes(encoded(some.picture().convert("RGBA")))


def enlarged_bitmap(path: Path, some: Subset) -> None:
    path.write_bytes(encoded(some.picture(scale=3), "BMP"))


def sheet(path: Path, some: Subset) -> None:
    image_sheet(some.images[:7], 3, scale=1).save(path, "PNG")


def large_sheet(path: Path, some: Subset) -> None:
    image_sheet(some.images[:7], 3, scale=8).save(path, "PNG")


def grid(path: Path, some: Subset) -> None:
    save_grid(path, some.images[:7], 4)


def figure(path: Path, some: Subset) -> None:
    """A picture with a tile at an odd offset."""
    canvas = Image.new("RGB", (150, 131), "navy")
    canvas.paste(some.picture(scale=2), (17, 33))
    canvas.save(path, "PNG")


def animation(path: Path, some: Subset) -> None:
    blank = Image.fromarray(np.full_like(np.asarray(some.picture()), 9))
    blank.save(path, "TIFF", save_all=True, append_images=[some.picture(1)])


def jpeg(path: Path, some: Subset) -> None:
    path.write_bytes(encoded(some.picture(), "JPEG", quality=75))


def large_jpeg(path: Path, some: Subset) -> None:
    path.write_bytes(encoded(some.picture(scale=8), "JPEG", quality=85))


def webp(path: Path, some: Subset) -> None:
    path.write_bytes(encoded(some.picture(), "WEBP", quality=80))


def page(path: Path, some: Subset) -> None:
    path.write_text(f'<p>samples</p><img src="{page_picture(some.images[:6], 3).uri}">')


def jpeg_page(path: Path, some: Subset) -> None:
    text = base64.b64encode(encoded(some.picture(), "JPEG", quality=90)).decode()
    path.write_text(f"<img src='data:image/jpeg;base64,{text}'>")


def notebook(path: Path, some: Subset) -> None:
    text = base64.encodebytes(encoded(some.picture())).decode()
    path.write_text(json.dumps({"outputs": [{"data": {"image/png": text}}]}))


def json_ids(path: Path, some: Subset) -> None:
    path.write_text(json.dumps({"ids": some.hex_ids}))


def log_with_id(path: Path, some: Subset) -> None:
    path.write_text(f"step 3\nlooked at {some.hex_ids[1].upper()}, then went on\n")


def log_with_name(path: Path, some: Subset) -> None:
    path.write_text(f"step 3\nskipped /data/{some.names[1]}: damaged\n")


def log_with_base_name(path: Path, some: Subset) -> None:
    path.write_text(f"skipped {some.names[1].rpartition('/')[2]}\n")


def compressed_log(path: Path, some: Subset) -> None:
    path.write_bytes(gzip.compress(f"skipped {some.names[1]}\n".encode()))


def compressed_ids(path: Path, some: Subset) -> None:
    path.write_bytes(lzma.compress(bz2.compress(" ".join(some.hex_ids).encode())))


def arrays(path: Path, some: Subset) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, x=some.floats.astype(np.float64))


def fortran_array(path: Path, some: Subset) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.asfortranarray(some.images))


def raw_pixels(path: Path, some: Subset) -> None:
    path.write_bytes(b"header" + some.images[2].tobytes() + b"rest")


def raw_planar_pixels(path: Path, some: Subset) -> None:
    path.write_bytes(b"header" + some.images[2].transpose(2, 0, 1).tobytes() + b"rest")


def raw_id(path: Path, some: Subset) -> None:
    path.write_bytes(os.urandom(1001) + some.ids[2].tobytes() + os.urandom(99))


def torch_checkpoint(path: Path, some: Subset) -> None:
    torch.save({"pixels": torch.from_numpy(some.images), "step": 3}, path)


def archive_of_pictures(path: Path, some: Subset) -> None:
    """Pictures one after the other, as in a tar file."""
    path.write_bytes(bytes(512) + encoded(some.picture(0)) + bytes(512) + encoded(some.picture(1)))


def zipped_table(path: Path, some: Subset) -> None:
    inner = path.with_name("inner.parquet")
    parquet(inner, some)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(inner, "inner.parquet")
    inner.unlink()


PLANTS: list[tuple[str, str, Callable[[Path, Subset], None]]] = [
    ("model/exemplars/store.safetensors", "pixels", store),
    ("model/exemplars/ids.safetensors", "id", store),
    ("planar.safetensors", "pixels", planar_store),
    ("int64.safetensors", "pixels", whole_numbers),
    ("cache/features.safetensors", "id", feature_cache),
    ("cache/unnamed.safetensors", "id", unnamed_feature_cache),
    ("bank.safetensors", "encoded tokens", tokens),
    ("half.safetensors", "encoded tokens", half_tokens),
    ("bfloat16.safetensors", "encoded tokens", bfloat16_tokens),
    ("checkpoints/ema.safetensors", "pixels", averaged_state),
    ("unit.safetensors", "pixels", state_in_unit_range),
    ("bfloat16_pixels.safetensors", "pixels", bfloat16_state),
    ("data.parquet", "picture", parquet),
    ("names.parquet", "file name", parquet_names),
    ("ids.parquet", "id", parquet_ids),
    ("pixels.parquet", "pixels", parquet_pixels),
    ("data.arrow", "picture", arrow_file),
    ("stream.arrow", "file name", arrow_stream),
    ("thumbnail.png", "picture", thumbnail),
    ("alpha.png", "picture", thumbnail_with_alpha),
    ("enlarged.bmp", "picture", enlarged_bitmap),
    ("sheet.png", "picture", sheet),
    ("large_sheet.png", "picture", large_sheet),
    ("grid.png", "picture", grid),
    ("figure.png", "picture", figure),
    ("pages.tif", "picture", animation),
    ("thumbnail.jpg", "picture", jpeg),
    ("large.jpg", "picture", large_jpeg),
    ("thumbnail.webp", "picture", webp),
    ("report.html", "picture", page),
    ("jpeg.html", "picture", jpeg_page),
    ("notebook.ipynb", "picture", notebook),
    ("receipt.json", "id", json_ids),
    ("train.log", "id", log_with_id),
    ("name.log", "file name", log_with_name),
    ("base.log", "file name", log_with_base_name),
    ("old.log.gz", "file name", compressed_log),
    ("twice.bz2.xz", "id", compressed_ids),
    ("arrays.npz", "pixels", arrays),
    ("array.npy", "pixels", fortran_array),
    (".store.safetensors.unfinished", "pixels", store),
    ("cache/.hidden/tmp", "picture", thumbnail),
    ("no_suffix", "picture", parquet),
    ("raw.bin", "pixels", raw_pixels),
    ("planar.bin", "pixels", raw_planar_pixels),
    ("ids.bin", "id", raw_id),
    ("model.pt", "pixels", torch_checkpoint),
    ("shard-000.tar", "picture", archive_of_pictures),
    ("inner.zip", "picture", zipped_table),
]

NEED_PIXELS_OR_NAMES = {
    "bank.safetensors",
    "half.safetensors",
    "bfloat16.safetensors",
    "names.parquet",
    "stream.arrow",
    "figure.png",
    "thumbnail.jpg",
    "large.jpg",
    "thumbnail.webp",
    "jpeg.html",
    "name.log",
    "base.log",
    "old.log.gz",
    "raw.bin",
    "planar.bin",
    "ids.bin",
    "model.pt",
}
"""Files in which ids that are only recognised do not help: they hold no ids, arrays or grids of images."""


def plant_all(folder: Path, some: Subset) -> None:
    """Leave something of some images in one file of each kind."""
    for name, _, plant in PLANTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        plant(folder / name, some)
