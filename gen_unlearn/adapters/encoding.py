"""Turn images into the records of an adapter ensemble."""

from __future__ import annotations

import sys

import numpy as np
import torch

from gen_unlearn.adapters.records import LARGEST_CODE, quantise
from gen_unlearn.adapters.routing import public_keys, route
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplar_keys import BLOCK, encode_rows, full_block
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.processes import process_state
from gen_unlearn.repro import id_keys
from gen_unlearn.shards import Rows
from gen_unlearn.shared_rows import shared_rows

_LEAST_SHARE = 0.1
"""A feature that hardly varies among public images must not decide every distance: its deviation counts as at
least this share of the root mean square of all."""


@torch.inference_mode()
def block_codes(backbone: AdapterBackbone, images: np.ndarray) -> np.ndarray:
    """Map at most `BLOCK` uint8 images ``(n, height, width, channels)`` to codes, int16 ``(n, features)``.

    Each is computed from the image and the backbone alone: the block is filled up to its full size.
    """
    return backbone.codes(full_block(images).to(backbone.device))[0][: len(images)]


def images_cut_off(codes: np.ndarray) -> int:
    """Return how many images, of codes ``(n, features)``, have one that is cut off."""
    return int(((codes.max(axis=1) == LARGEST_CODE) | (codes.min(axis=1) == -LARGEST_CODE)).sum())


def encode_records(
    backbone: AdapterBackbone,
    data: IndexedImages,
    neighbours: int,
    picture_size: tuple[int, int],
    description: str = "encode records",
) -> Rows:
    """Encode images to stored records, sorted by id and label; repeated ones count once.

    Their codes are the features of the record and, behind them, its routes, see
    `gen_unlearn.adapters.records.Records.of_rows`.

    Args:
        backbone: gives features and keys.
        data: the images, in memory or decoded as they are needed.
        neighbours: adapters that each record is routed to.
        picture_size: ``(height, width)`` in pixels of the pictures that are kept.
        description: shown before the progress bar.

    Raises:
        ValueError: more neighbours than keys, or a feature that is not a finite number.
    """
    keys, features = backbone.public_keys(), backbone.encoder.out_dim

    def encode(images: np.ndarray) -> np.ndarray:
        codes = block_codes(backbone, images)
        return np.concatenate([codes, route(codes, keys, neighbours)], axis=1)

    rows = encode_rows(encode, features + neighbours, data, picture_size, description)
    assert rows.codes is not None, "they were encoded"
    cut_off = images_cut_off(rows.codes[:, :features])
    if cut_off and process_state().is_main_process:
        sys.stderr.write(
            f"note: features of {cut_off} of {len(rows.ids)} images lie 128 standard deviations from those "
            "of the public images, or further, and are cut off there\n"
        )
    return rows


@torch.inference_mode()
def set_public_statistics(
    backbone: AdapterBackbone, core: IndexedImages, seed: int, description: str = "encode core"
) -> None:
    """Give a backbone its scale and its keys, from the public core alone; repeated images count once.

    Args:
        backbone: its encoder is final; the buffers are replaced.
        core: the public images.
        seed: of the choice of keys.
        description: shown before the progress bar.

    Raises:
        ValueError: too few distinct images for so many keys, or a feature that is not a finite number.
    """
    distinct = core.select(np.unique(id_keys(core.ids), return_index=True)[1])

    def encoded(rows: slice) -> np.ndarray:
        images = distinct.images[np.arange(rows.start, rows.stop)]
        return backbone(full_block(images).to(backbone.device))[: len(images)].float().cpu().numpy()

    features = torch.from_numpy(shared_rows(len(distinct), BLOCK, encoded, description))
    exact = features.double().numpy()
    deviation = exact.std(axis=0)
    least = max(_LEAST_SHARE * float(np.sqrt(np.square(deviation).mean())), float(np.finfo(np.float32).tiny))
    backbone.mean.copy_(torch.from_numpy(exact.mean(axis=0)))
    backbone.deviation.copy_(torch.from_numpy(np.maximum(deviation, least)))
    codes, _ = quantise(features, backbone.mean, backbone.deviation)
    keys = public_keys(codes, distinct.ids, len(backbone.key_codes), backbone.config.key_source, seed)
    backbone.key_codes.copy_(torch.from_numpy(keys.codes))
