"""The exemplar store, from which images are deleted."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from gen_unlearn.data import IndexedImages
from gen_unlearn.digest_tree import DigestTree
from gen_unlearn.exemplar_changes import save_store
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import first_few
from gen_unlearn.metrics.copying import nearest_images
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import (
    ID_BYTES,
    id_keys,
    ids_to_hex,
    image_ids,
    keyed_order,
    software_versions,
)
from gen_unlearn.shards import Rows, digest_of_rows

_ROWS = threading.RLock()
"""Held while the rows of a store change, and to look at them, which may close gaps; shared by all stores."""


class ExemplarStore(ModelMixin, ConfigMixin):
    """The training images that a semi-parametric model may look at, addressed by id.

    Rows are sorted by id, and by label where one image has two. A saved store (see `gen_unlearn.shards`) is
    a function of the images it holds and of nothing else: after a deletion its files are byte-identical to
    those of a store that never held the deleted images. The store stays in host memory whatever device its
    pipeline moves to. To change one on disk without loading it, use `gen_unlearn.exemplar_changes`.

    A deletion erases the rows where they are, whatever the number of the others, once the digest of all is
    known; whoever looks at the rows next has the gaps closed, which copies the others. Arrays are views: take
    them anew after a change.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        channels: 1 for grey, 3 for colour.
        class_names: names of all classes, also of those without an image.
    """

    @register_to_config
    def __init__(
        self,
        height: int = 32,
        width: int = 32,
        channels: int = 3,
        class_names: Sequence[str] = (),  # noqa: ARG002, kept in the configuration
    ) -> None:
        super().__init__()
        self.register_buffer("pixels", torch.zeros(0, height, width, channels, dtype=torch.uint8))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("digests", torch.zeros(0, ID_BYTES, dtype=torch.uint8))
        self._held, self._gaps = np.zeros(0, dtype=bool), 0
        self._tree = DigestTree(self.image_shape, self.class_names)

    @classmethod
    def from_images(cls, data: IndexedImages) -> ExemplarStore:
        """Build a store of all images of `data`; an image that occurs twice is kept once."""
        height, width, channels = data.image_shape
        store = cls(height, width, channels, list(data.class_names))
        store.add(data)
        return store

    def __len__(self) -> int:
        with _ROWS:
            return len(self._held) - self._gaps

    @property
    def images(self) -> np.ndarray:
        """Images, uint8 ``(n, height, width, channels)``; a view, not a copy."""
        return self.rows.pixels

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 ``(n,)``."""
        return self.rows.labels

    @property
    def ids(self) -> np.ndarray:
        """Sample ids, uint8 ``(n, 16)``, sorted."""
        return self.rows.ids

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes."""
        return tuple(self.config.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)``."""
        return self.config.height, self.config.width, self.config.channels

    @property
    def digest(self) -> str:
        """SHA-256 of ids, labels, class names and image shape. The ids stand for the pixels."""
        with _ROWS:
            return self._tree.digest(self._rows_and_gaps, self._held)

    @property
    def rows(self) -> Rows:
        """All exemplars; views, not copies."""
        with _ROWS:
            self._close_gaps()
            return self._rows_and_gaps

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Return which of `ids`, uint8 ``(n, 16)``, are held, as bool ``(n,)``."""
        with _ROWS:
            keys, wanted = id_keys(self._rows_and_gaps.ids), id_keys(ids)
            if not len(keys):
                return np.zeros(len(wanted), dtype=bool)
            first = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
            return np.asarray((keys[first] == wanted) & self._held[first])

    def by_class(self, label: int) -> np.ndarray:
        """Return the rows of one class, int64, in the order of their ids."""
        return np.flatnonzero(self.labels == label)

    def draw(self, label: int, count: int, seed: int) -> np.ndarray:
        """Choose up to `count` exemplars of a class; fewer only when the class has fewer.

        The choice is a function of the seed and of the ids of the class. Deleting an exemplar puts the next
        one in its place and moves no other.
        """
        rows = self.by_class(label)
        return rows[keyed_order(self.ids[rows], "draw", seed)[:count]]

    def nearest(self, images: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` nearest exemplars of uint8 images ``(n, height, width, channels)``.

        Returns:
            Distances, float64 ``(n, k)``, Euclidean over pixels in [0, 1], and rows, int64 ``(n, k)``.
        """
        return nearest_images(images, self.images, k)

    def add(self, data: IndexedImages) -> int:
        """Add images; those already held under the same label are left alone. Return how many were new."""
        if data.image_shape != self.image_shape or data.class_names != self.class_names:
            raise ValueError(
                f"expected images of shape {self.image_shape} with classes {self.class_names}, "
                f"got {data.image_shape} with {data.class_names}; nothing was added"
            )
        with _ROWS:
            return self._add(data)

    def delete(self, forget: ForgetSet) -> DeletionReceipt:
        """Delete every image of `forget`, and say so in a receipt of level ``bit-exact``.

        Raises:
            ValueError: an id is not held; nothing is deleted.
        """
        with _ROWS:
            unknown = forget.ids[~self.holds(forget.ids)]
            if len(unknown):
                raise ValueError(
                    f"{len(unknown)} of {len(forget)} ids are not in the store: "
                    f"{first_few(ids_to_hex(unknown))}; nothing was deleted"
                )
            started = time.perf_counter()
            digest_before, count_before = self.digest, len(self)
            counts = np.bincount(self._erase(forget.ids), minlength=len(self.class_names))
            digest_after, count_after = self.digest, len(self)
        return DeletionReceipt(
            artefact="exemplar store",
            level="bit-exact",
            reason=forget.reason,
            ids=tuple(ids_to_hex(forget.ids)),
            forget_digest=forget.digest,
            removed=count_before - count_after,
            removed_per_class={
                self.class_names[label]: int(counts[label]) for label in np.flatnonzero(counts)
            },
            remaining=count_after,
            digest_before=digest_before,
            digest_after=digest_after,
            seconds=time.perf_counter() - started,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=software_versions(),
        )

    def verify(self) -> None:
        """Check that every image still has the pixels that its id stands for, and the digest of all.

        Raises:
            ValueError: an image was changed, or put under another id; or something but by `add` and `delete`.
        """
        wrong = (image_ids(self.images) != self.ids).any(axis=1)
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum())} of {len(self)} images in the exemplar store do not have the pixels "
                f"that their ids stand for: {first_few(ids_to_hex(self.ids[wrong]))}"
            )
        if digest_of_rows(self.rows, self.image_shape, self.class_names) != self.digest:
            raise ValueError("the exemplar store was changed by other means than an addition or a deletion")

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Save the store to a folder, in the place of a store that may be there.

        Raises:
            ValueError: the folder holds other files, or a variant or another format than safetensors is asked
                for.
        """
        if not safe_serialization or variant is not None:
            raise ValueError("an exemplar store is saved as safetensors, in one variant")
        config = {name: self.config[name] for name in ("height", "width", "channels", "class_names")}
        text = json.dumps({"_class_name": type(self).__name__, **config}, indent=2, sort_keys=True) + "\n"
        save_store(self.rows, text.encode(), Path(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **_: object) -> ExemplarStore:
        """Load a store from a local folder, one consistent generation even while it is changed.

        Args:
            pretrained_model_name_or_path: the folder.
            _: what a diffusers pipeline passes to the loaders of all its parts; nothing of it applies.

        Raises:
            ValueError: the folder is no exemplar store, or a file of it is missing or was changed.
        """
        return ExemplarFolder.read(Path(pretrained_model_name_or_path), cls._from_folder)

    @classmethod
    def _from_folder(cls, folder: ExemplarFolder) -> ExemplarStore:
        store = cls(*folder.image_shape, folder.class_names)
        rows = folder.all_rows()
        store._replace_rows(rows.pixels, rows.labels, rows.ids)
        return store

    @property
    def _rows_and_gaps(self) -> Rows:
        """All rows and, between them, the gaps: black, under the id of a row before, and not held."""
        return Rows(self.pixels.numpy(), self.classes.numpy(), self.digests.numpy())

    def _add(self, data: IndexedImages) -> int:
        before = len(self)
        ids = np.concatenate([self.ids, data.ids])
        labels = np.concatenate([self.labels, data.labels])
        order = np.lexsort((labels, id_keys(ids)))
        repeated = (ids[order[1:]] == ids[order[:-1]]).all(axis=1) & (labels[order[1:]] == labels[order[:-1]])
        order = order[np.concatenate([[True], ~repeated])] if len(order) else order
        pixels = np.empty((len(order), *self.image_shape), dtype=np.uint8)
        held = order < before
        pixels[held] = self.images[order[held]]
        pixels[~held] = data.images[order[~held] - before]
        self._replace_rows(pixels, labels[order], ids[order])
        self._tree.drop(data.ids)
        return len(self) - before

    def _erase(self, ids: np.ndarray) -> np.ndarray:
        """Make gaps of the rows of ids, which are sorted and held; return the labels that were there."""
        rows = self._rows_and_gaps
        starts, stops = (np.searchsorted(id_keys(rows.ids), id_keys(ids), side) for side in ("left", "right"))
        labels = []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            gap = slice(start, stop)
            labels.append(rows.labels[gap][self._held[gap]])
            self._gaps += len(labels[-1])
            rows.pixels[gap], rows.labels[gap] = 0, 0
            rows.ids[gap] = rows.ids[start - 1] if start else 0  # So that ids stay sorted.
            self._held[gap] = False
        self._tree.drop(ids)
        return np.concatenate(labels)

    def _close_gaps(self) -> None:
        if self._gaps:
            rows = self._rows_and_gaps.select(self._held)
            self._replace_rows(rows.pixels, rows.labels, rows.ids)

    def _replace_rows(self, pixels: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> None:
        self.pixels = torch.from_numpy(pixels)
        self.classes = torch.from_numpy(labels)
        self.digests = torch.from_numpy(np.ascontiguousarray(ids))
        self._held, self._gaps = np.ones(len(ids), dtype=bool), 0

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ExemplarStore:
        """Stay in host memory, with the stored types, when a pipeline moves or casts its parts."""
        del fn, recurse
        return self
