"""Turn training images into the exemplars of a classifier: pictures, labels, ids, and the keys that vote."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplar_changes import save_store
from gen_unlearn.key_bank import encode_keys
from gen_unlearn.models.classifier import SemiParametricClassifier
from gen_unlearn.pixels import resize_images, to_model_input
from gen_unlearn.progress import progress_bar
from gen_unlearn.repro import id_keys
from gen_unlearn.shards import Rows
from gen_unlearn.shared_rows import shared_batches

BLOCK = 64
"""Images that are encoded at a time. Always as many, so that an image's keys do not depend on its company."""


def encode_exemplars(
    network: SemiParametricClassifier,
    data: IndexedImages,
    picture_size: tuple[int, int],
    description: str = "encode exemplars",
) -> Rows:
    """Encode images to exemplars of a semi-parametric classifier, see `encode_rows`.

    Args:
        network: gives the keys; in evaluation mode.
        data: the images, in memory or decoded as they are needed.
        picture_size: ``(height, width)`` in pixels of the pictures that are kept.
        description: shown before the progress bar.
    """
    length = network.config.experts * network.config.key_dim

    def encode(images: np.ndarray) -> np.ndarray:
        return encode_keys(image_keys(network, images)).reshape(-1, length)

    return encode_rows(encode, length, data, picture_size, description)


def encode_rows(
    encode: Callable[[np.ndarray], np.ndarray],
    length: int,
    data: IndexedImages,
    picture_size: tuple[int, int],
    description: str,
) -> Rows:
    """Encode images, a block at a time, to exemplars sorted by id and label; repeated ones count once.

    Several processes share the blocks, and all get all exemplars.

    Args:
        encode: maps at most `BLOCK` uint8 images to codes, int16 ``(n, length)``.
        length: of the codes.
        data: the images, in memory or decoded as they are needed.
        picture_size: ``(height, width)`` in pixels of the pictures that are kept.
        description: shown before the progress bar.
    """
    order = np.lexsort((data.labels, id_keys(data.ids)))
    ids, labels = data.ids[order], data.labels[order]
    if len(order):
        repeated = (ids[1:] == ids[:-1]).all(axis=1) & (labels[1:] == labels[:-1])
        order = order[np.concatenate([[True], ~repeated])]
    pixels = np.empty((len(order), *picture_size, data.image_shape[2]), dtype=np.uint8)
    codes = np.empty((len(order), length), dtype=np.int16)

    def encoded(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        images = data.images[order[rows]]
        return encode(images), resize_images(images, picture_size)

    with progress_bar(len(order), description) as progress:
        for rows, found in shared_batches(len(order), BLOCK, encoded) if len(order) else ():
            codes[rows], pixels[rows] = found
            progress.update(rows.stop - rows.start)
    return Rows(pixels, data.labels[order], data.ids[order], codes)


@torch.inference_mode()
def image_keys(network: SemiParametricClassifier, images: np.ndarray) -> torch.Tensor:
    """Map at most `BLOCK` uint8 images ``(n, height, width, channels)`` to keys ``(n, experts, key_dim)``.

    Each is computed from the image and the weights alone: the block is filled up to its full size.
    """
    inputs = full_block(images).to(network.device, network.dtype)
    return network.keys(network.encoder(inputs))[: len(images)]


def full_block(images: np.ndarray) -> torch.Tensor:
    """Map at most `BLOCK` uint8 images ``(n, height, width, channels)`` to input of exactly `BLOCK` images.

    The others are black. What a network in evaluation mode makes of an image among as many does not depend on
    which the others are.

    Raises:
        ValueError: more images.
    """
    if len(images) > BLOCK:
        raise ValueError(f"expected at most {BLOCK} images, got {len(images)}")
    filled = np.zeros((BLOCK, *images.shape[1:]), dtype=np.uint8)
    filled[: len(images)] = images
    return to_model_input(filled)


def save_exemplars(
    rows: Rows, class_names: Sequence[str], decoded_size: tuple[int, int], folder: Path
) -> None:
    """Save exemplars with their keys to a folder.

    Args:
        rows: as from `encode_exemplars`.
        class_names: names of all classes.
        decoded_size: ``(height, width)`` of the images that the ids stand for.
        folder: where to; a store that is there is replaced.
    """
    height, width, channels = rows.pixels.shape[1:]
    config = {
        "height": height,
        "width": width,
        "channels": channels,
        "class_names": list(class_names),
        "code_length": rows.code_length,
        "decoded_size": list(decoded_size),
    }
    text = json.dumps({"_class_name": "KeyedExemplars", **config}, indent=2, sort_keys=True) + "\n"
    save_store(rows, text.encode(), folder)
