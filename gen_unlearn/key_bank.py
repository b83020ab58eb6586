"""The keys of a semi-parametric classifier's exemplars, from which images are deleted in O(deleted)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.core import CoreMode
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import first_few
from gen_unlearn.receipts import CLASSIFIER_PROMISES, DeletionReceipt
from gen_unlearn.repro import ID_BYTES, digest_json, ids_to_hex, software_versions
from gen_unlearn.row_lookup import RowLookup, swapped
from gen_unlearn.set_digest import ClassSums

_LARGEST = 32767
_BLOCK = 8192


def key_scale(key_dim: int) -> int:
    """Return the steps per unit of the codes, ``floor(32767 / sqrt(key_dim))``: a normalised key fits."""
    return math.isqrt(_LARGEST**2 // key_dim)


def encode_keys(keys: Tensor) -> np.ndarray:
    """Round float keys ``(n, experts, key_dim)`` to int16 codes ``rint(key * scale)``, in float64.

    Raises:
        ValueError: another shape, or a component that is not finite or beyond ``32767 / scale``.
    """
    if keys.ndim != 3 or not keys.is_floating_point() or not keys.shape[2]:
        raise ValueError(f"expected float keys (n, experts, key_dim), got {keys.dtype} {tuple(keys.shape)}")
    scale = key_scale(keys.shape[2])
    codes = np.empty(tuple(keys.shape), dtype=np.int16)
    for part in _parts(len(codes)):
        steps = np.rint(keys[part].detach().to("cpu", torch.float64).numpy() * scale)
        largest = np.abs(steps).max(initial=0)
        if not largest <= _LARGEST:  # so for NaN
            raise ValueError(
                f"expected key components of magnitude up to {_LARGEST / scale:.4f}, got {largest / scale}; "
                f"normalise each key to length sqrt({keys.shape[2]})"
            )
        codes[part] = steps
    return codes


def decode_keys(codes: np.ndarray) -> Tensor:
    """Return the keys that int16 codes ``(n, experts, key_dim)`` stand for, float32 on the CPU."""
    return torch.from_numpy(np.divide(codes, np.float32(key_scale(codes.shape[-1])), dtype=np.float32))


class KeyBank:
    """The exemplars of a semi-parametric classifier as fixed-point keys, in memory.

    Class sums of the codes are integers, and the set digest is a sum as well, so that a deletion subtracts
    what the deleted rows had added: it costs O(deleted), and leaves bit for bit the sums, prototypes and
    digest of a bank that never held them. The last rows move into the holes and the freed ones are zeroed;
    the order of the rows means nothing. Arrays and tensors are views: take them anew after a deletion.

    Args:
        codes: see `encode_keys`, int16 ``(n, experts, key_dim)``; copied, like labels and ids.
        labels: class indices, int64 ``(n,)``.
        ids: sample ids, uint8 ``(n, 16)``; an image with several labels has several rows.
        class_names: names of all classes, also of those without an exemplar.
        core: decides what a receipt promises: weights of a ``"joint"`` core have seen the exemplars.
        device: where `keys`, `labels_tensor`, `prototypes` and `present` are.

    Attributes:
        codes, labels, ids: as above, of the `n` rows that are held now.
        counts: rows per class, int64 ``(classes,)``.
        sums: sums of the codes per class, int64 ``(classes, experts, key_dim)``.

    Raises:
        ValueError: arrays that do not fit each other, a label without a class, or an unknown core.
    """

    def __init__(
        self,
        codes: np.ndarray,
        labels: np.ndarray,
        ids: np.ndarray,
        class_names: Sequence[str],
        core: CoreMode = "joint",
        device: torch.device | str = "cpu",
    ) -> None:
        _require_rows(codes, labels, ids, len(class_names))
        if core not in CLASSIFIER_PROMISES:
            raise ValueError(f"expected a core out of {', '.join(CLASSIFIER_PROMISES)}, got {core!r}")
        self.codes, self.labels, self.ids = (np.array(rows, order="C") for rows in (codes, labels, ids))
        self.class_names, self.core, self.device = tuple(class_names), core, torch.device(device)
        self._tally = self._tallied()
        self.counts, self.sums = self._tally.counts, self._tally.sums
        self._lookup = RowLookup(self.ids)
        self._served: tuple[Tensor, ...] = ()
        self._prototypes: Tensor | None = None
        self._names_digest = digest_json(self.class_names)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 of the set of (id, label, codes), the class names and the shape; the order is left out."""
        return digest_json([self._tally.rows.hexdigest, self._names_digest, self.codes.shape])

    @property
    def present(self) -> Tensor:
        """Which classes have a row, bool ``(classes,)``."""
        return torch.from_numpy(self.counts > 0).to(self.device)

    @property
    def prototypes(self) -> Tensor:
        """Mean key of each class, float32 ``(classes, experts, key_dim)``; 0 for a class without a row."""
        if self._prototypes is None:
            self._prototypes = self._means(np.arange(len(self.counts)))
        return self._prototypes

    @property
    def keys(self) -> Tensor:
        """Keys for retrieval, float32 ``(n, experts, key_dim)``; made on first use, changed by deletions."""
        return self._serve()[0]

    @property
    def labels_tensor(self) -> Tensor:
        """Labels of `keys`, int64 ``(n,)``; made with them."""
        return self._serve()[1]

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Return which of `ids`, uint8 ``(n, 16)``, are held, as bool ``(n,)``."""
        return self._find(ids)[1]

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Return all rows of `ids`, uint8 ``(m, 16)``, as int64, in the order of `ids`.

        Raises:
            ValueError: an id is not held.
        """
        rows, known = self._find(ids)
        if not known.all():
            raise ValueError(
                f"{int((~known).sum())} of {len(ids)} ids are not in the key bank: "
                f"{first_few(ids_to_hex(ids[~known]))}; nothing was deleted"
            )
        return rows

    def delete(self, forget: ForgetSet) -> DeletionReceipt:
        """Delete every row of the images of `forget`; the receipt has level ``bit-exact`` if core is public.

        Raises:
            ValueError: an id is not held; nothing is deleted.
        """
        started = time.perf_counter()
        rows = self.rows_of(forget.ids)
        digest_before = self.digest
        removed = self._take_out(np.sort(rows))
        return DeletionReceipt(
            *CLASSIFIER_PROMISES[self.core],
            reason=forget.reason,
            ids=tuple(ids_to_hex(forget.ids)),
            forget_digest=forget.digest,
            removed=len(rows),
            removed_per_class=removed,
            remaining=len(self),
            digest_before=digest_before,
            digest_after=self.digest,
            seconds=time.perf_counter() - started,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=software_versions(),
        )

    def verify(self) -> None:
        """Check sums, counts, digest and lookup against the rows, and what was made of them for serving.

        Raises:
            ValueError: something was changed by other means than a deletion; says what.
        """
        fresh, classes = self._tallied(), np.arange(len(self.counts))
        fits = {
            "counts": np.array_equal(fresh.counts, self.counts),
            "sums": np.array_equal(fresh.sums, self.sums),
            "rows": fresh.rows == self._tally.rows,
            "lookup": bool(self.holds(self.ids).all()),
            "keys": not self._served or torch.equal(self._served[0].cpu(), decode_keys(self.codes)),
            "labels": not self._served or torch.equal(self._served[1].cpu(), torch.tensor(self.labels)),
            "prototypes": torch.equal(self.prototypes, self._means(classes)),
        }
        if not all(fits.values()):
            changed = ", ".join(name for name, fit in fits.items() if not fit)
            raise ValueError(f"expected the key bank as it was made, got changed {changed}; build it again")

    def _tallied(self) -> ClassSums:
        tally = ClassSums(len(self.class_names), self.codes.shape[1:])
        for part in _parts(len(self.codes)):
            tally.add(self.codes[part], self.labels[part], self.ids[part])
        return tally

    def _find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, index = self._lookup.find(ids, self.ids)
        known = np.zeros(len(ids), dtype=bool)
        known[index] = True
        return rows, known

    def _means(self, classes: np.ndarray) -> Tensor:
        counts = np.maximum(self.counts[classes], 1)[:, None, None]  # the sums of an empty class are 0
        means = (self.sums[classes] / counts / key_scale(self.codes.shape[2])).astype(np.float32)
        with torch.inference_mode(False):  # an inference tensor could not be changed by a deletion
            return torch.from_numpy(means).to(self.device)

    def _serve(self) -> tuple[Tensor, ...]:
        if not self._served:
            with torch.inference_mode(False):
                labels = torch.tensor(self.labels, device=self.device)
                self._served = decode_keys(self.codes).to(self.device), labels
        return self._served

    def _take_out(self, rows: np.ndarray) -> dict[str, int]:
        """Subtract the rows, which are ascending, and remove them; return how many, by class name."""
        classes, counts = np.unique(self.labels[rows], return_counts=True)
        for block in (rows[part] for part in _parts(len(rows))):
            self._tally.remove(self.codes[block], self.labels[block], self.ids[block])
        if self._prototypes is not None:
            memory: Any = self._prototypes.numpy() if self._prototypes.is_cpu else self._prototypes
            memory[classes] = self._means(classes)
        after = len(self) - len(rows)
        holes = rows[rows < after]
        moving = np.delete(np.arange(after, len(self)), rows[len(holes) :] - after)
        self._lookup.move(rows, moving, holes)
        arrays = (self.codes, self.labels, self.ids)
        self.codes, self.labels, self.ids = (swapped(array, moving, holes, after) for array in arrays)
        self._served = tuple(swapped(tensor, moving, holes, after) for tensor in self._served)
        return {self.class_names[label]: int(n) for label, n in zip(classes, counts, strict=True)}


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, count, _BLOCK))


def _require_rows(codes: np.ndarray, labels: np.ndarray, ids: np.ndarray, classes: int) -> None:
    got = [f"{array.dtype}{list(array.shape)}" for array in (codes, labels, ids)]
    fit = [f"int16{list(codes.shape)}", f"int64[{len(codes)}]", f"uint8[{len(codes)}, {ID_BYTES}]"]
    if got != fit or codes.ndim != 3 or 0 in codes.shape[1:]:
        raise ValueError(
            f"expected codes int16[n, experts, key_dim], labels int64[n] and ids uint8[n, {ID_BYTES}], "
            f"got {', '.join(got)}; encode_keys makes the codes"
        )
    if ((labels < 0) | (labels >= classes)).any():
        raise ValueError(f"expected labels from 0 to {classes - 1}, got others; name every class")
