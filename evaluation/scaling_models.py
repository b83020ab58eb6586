"""Count what networks compute, send and keep: from networks that are built, but never given memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.repro import ID_BYTES, numpy_generator
from gen_unlearn.shards import Piece, first_words, grouped, shard_limit, split_into_shards, sums_text

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = ("cifar10_spm", "cifar10_spm_paper")
SHAPE = (32, 32, 3)
CLASSES = 10
_GRADIENT_BYTES = 4
_LABEL_BYTES = 8


@dataclass(frozen=True)
class Assumed:
    """Speeds that were not measured.

    Attributes:
        flops: floating-point operations per second of one GPU in training.
        bandwidths: bytes per second that a process sends, by the name of the link.
        batch: images of one process and step.
    """

    flops: float = 1e14
    bandwidths: tuple[tuple[str, float], ...] = (
        ("NVLink, 450 GB/s", 4.5e11),
        ("400 Gbit/s", 5e10),
        ("100 Gbit/s", 1.25e10),
        ("10 Gbit/s", 1.25e9),
    )
    batch: int = 64


def step_table(processes: Sequence[int], assumed: Assumed) -> list[dict[str, Any]]:
    """Compare, for a training step, what a ring of processes sends with what each computes.

    A forward pass is that of the plain UNet of the size; the backward pass counts twice. Times of sending are
    those of bandwidth alone, and nothing of it is hidden behind the backward pass.
    """
    rows = []
    for preset in PRESETS:
        config = load_config(CONFIGS / f"{preset}.yaml")
        parameters = sum(part.numel() for part in _unallocated(config).parameters())
        computes = assumed.batch * 3 * _forward_flops(config) / assumed.flops
        for count in (count for count in processes if count > 1):
            sent = 2 * (count - 1) / count * _GRADIENT_BYTES * parameters
            for link, bandwidth in assumed.bandwidths:
                seconds = sent / bandwidth
                row: dict[str, Any] = {"preset": preset, "parameters": parameters, "processes": count}
                row |= {"MB sent": round(sent / 1e6, 1), "link": link}
                row |= {"ms computing": round(1000 * computes, 1), "ms sending": round(1000 * seconds, 2)}
                rows.append(row | {"efficiency": round(computes / (computes + seconds), 3)})
    return rows


def memory_tables(images: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Count the bytes of exemplars in memory, of what is derived from them, and of their files."""
    pixels = int(np.prod(SHAPE))
    rows = [_memory("store: pixels, label, id", pixels + _LABEL_BYTES + ID_BYTES, images)]
    for preset in PRESETS:
        numbers = _token_numbers(load_config(CONFIGS / f"{preset}.yaml"))
        for size, dtype in ((4, "float32"), (2, "float16")):
            rows.append(_memory(f"bank of tokens, {preset}, {dtype}", size * numbers, images))
    for length in (128, 512):
        rows.append(_memory(f"keys of a classifier, {length} numbers", 2 * length, images))
    for features, neighbours in ((128, 1), (128, 10)):
        row = 2 * (features + neighbours) + _LABEL_BYTES + ID_BYTES
        rows.append(_memory(f"records of an ensemble, {features} features, {neighbours} routes", row, images))
    return {"memory": rows, "files": _file_rows(images, seed)}


def _memory(what: str, each: int, images: int) -> dict[str, Any]:
    return {"what": what, "bytes each": each, "images": images, "GB": round(each * images / 1e9, 2)}


def _unallocated(config: RunConfig) -> torch.nn.Module:
    """Build the denoiser of a recipe without memory for its weights."""
    with torch.device("meta"):
        return build_denoiser(config.model, SHAPE, CLASSES, config.noise).eval()


def _forward_flops(config: RunConfig) -> int:
    """Return the operations of one image's way through the plain UNet, two for each multiply-add."""
    plain = replace(config.model, kind="class-conditional")
    with torch.device("meta"):
        model = build_denoiser(plain, SHAPE, CLASSES).eval()
        image, label = torch.empty(1, SHAPE[2], *SHAPE[:2]), torch.zeros(1, dtype=torch.int64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image, torch.zeros(1, dtype=torch.int64), class_labels=label)
    return int(counter.get_total_flops())


def _token_numbers(config: RunConfig) -> int:
    """Return how many numbers the tokens of one exemplar are."""
    model = _unallocated(config)
    assert isinstance(model, SemiParametricUNet2DModel)
    tokens = model.encode_exemplars(torch.empty(1, SHAPE[2], *SHAPE[:2], device="meta"))
    parts: list[Tensor] = [tokens.keys]
    parts += [] if tokens.values is tokens.keys else [tokens.values]
    parts += [] if tokens.pixels is None else [tokens.pixels]
    return sum(part.numel() for part in parts)


def _file_rows(images: int, seed: int) -> list[dict[str, Any]]:
    """Lay random exemplars out in shards, and count what deletions of random ones read and write again."""
    draws = numpy_generator(seed, "files")
    ids = draws.integers(0, 256, (images, ID_BYTES), dtype=np.uint8)
    ids = ids[np.argsort(first_words(ids), kind="stable")]
    limit = shard_limit(SHAPE)
    spans = list(split_into_shards(ids, limit))
    starts = np.array([span.start for _, span in spans])
    pieces = [Piece.of(prefix, span.stop - span.start, "0" * 32, "safetensors") for prefix, span in spans]
    groups = grouped(pieces)
    each = int(np.prod(SHAPE)) + _LABEL_BYTES + ID_BYTES
    lists = {name: len(sums_text({piece.name: "0" * 64 for piece in some})) for name, some in groups.items()}
    rows = []
    for deleted in (1, images // 1000, images // 100):
        touched = np.unique(np.searchsorted(starts, draws.choice(images, deleted, False), "right") - 1)
        written = sum(pieces[shard].exemplars for shard in touched) * each
        row = {"exemplars": images, "shards": len(pieces), "lists of shards": len(groups)}
        row |= {"bytes of all lists": sum(lists.values()), "deleted": deleted}
        rows.append(row | {"shards touched": len(touched), "MB written": round(written / 1e6, 1)})
    return rows
