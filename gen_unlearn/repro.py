"""Seeds derived by hashing, content digests, and the description of a run's software."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

ID_BYTES = 16
"""Length of a sample id: 128 bits."""

_RECORDED_PACKAGES = ("gen_unlearn", "torch", "diffusers", "accelerate", "numpy")


def derive_seed(*parts: int | str | bytes) -> int:
    """Derive a 63-bit seed from a path of names and numbers.

    Different paths give independent seeds, so that no two random streams of a run collide:
    ``derive_seed(seed, "noise", step, image)``. The value does not depend on platform or process.
    """
    hasher = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part if isinstance(part, bytes) else str(part).encode()
        kind = type(part).__name__[:1].encode()
        hasher.update(kind + len(encoded).to_bytes(4, "little") + encoded)
    return int.from_bytes(hasher.digest(), "little") >> 1


def torch_generator(*parts: int | str | bytes) -> torch.Generator:
    """Return a CPU generator seeded with `derive_seed(*parts)`."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*parts))


def numpy_generator(*parts: int | str | bytes) -> np.random.Generator:
    """Return a NumPy generator seeded with `derive_seed(*parts)`."""
    return np.random.default_rng(derive_seed(*parts))


def image_id(image: np.ndarray) -> np.ndarray:
    """Return the sample id of one image: a 128-bit digest of its shape and pixels.

    Args:
        image: uint8 array of shape ``(height, width, channels)``.

    Returns:
        uint8 array of shape ``(16,)``.
    """
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(
            f"expected a uint8 image of shape (height, width, channels), "
            f"got {image.dtype} of shape {image.shape}; decode it with gen_unlearn.data first"
        )
    hasher = hashlib.blake2b(np.asarray(image.shape, dtype="<i8").tobytes(), digest_size=ID_BYTES)
    hasher.update(np.ascontiguousarray(image).data)
    return np.frombuffer(hasher.digest(), dtype=np.uint8).copy()


def image_ids(images: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sample ids of several images as a uint8 array of shape ``(images, 16)``."""
    ids = [image_id(image) for image in images]
    return np.stack(ids) if ids else np.empty((0, ID_BYTES), dtype=np.uint8)


def id_keys(ids: np.ndarray) -> np.ndarray:
    """View ids of shape ``(n, 16)`` as `n` fixed-width byte strings, which sort, compare and search.

    NumPy strips trailing zero bytes when it shows such a string, but compares all 16 bytes.
    """
    if ids.dtype != np.uint8 or ids.ndim != 2 or ids.shape[1] != ID_BYTES:
        raise ValueError(f"expected ids as uint8 of shape (n, {ID_BYTES}), got {ids.dtype} {ids.shape}")
    return np.ascontiguousarray(ids).view(f"S{ID_BYTES}").reshape(-1)


def among(ids: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Return which of `ids`, uint8 ``(n, 16)``, are among others, which are sorted, as bool ``(n,)``."""
    keys, others = id_keys(ids), id_keys(ascending)
    if not len(others):
        return np.zeros(len(keys), dtype=bool)
    return others[np.searchsorted(others, keys).clip(max=len(others) - 1)] == keys


def keyed_order(ids: np.ndarray, *parts: int | str | bytes) -> np.ndarray:
    """Return the row order that sorts ids of shape ``(n, 16)`` by a hash keyed with `parts`.

    The order of any two ids depends on nothing but the two ids and the key. So a choice of the first
    `k` is stable: it ignores the order of the rows, and removing an id changes it only where that id was.
    Equal ids keep their row order.
    """
    return np.lexsort((id_keys(ids), keyed_words(ids, *parts)))


def keyed_words(ids: np.ndarray, *parts: int | str | bytes) -> np.ndarray:
    """Return one uniform 64-bit word for each of `ids`, uint8 ``(n, 16)``: a hash keyed with `parts`.

    Returns:
        uint64 ``(n,)``; a word depends on its own id and the key alone.
    """
    words = np.ascontiguousarray(ids).view("<u8").reshape(-1, ID_BYTES // 8)
    mixed = _mix64(words[:, 0] ^ np.uint64(derive_seed("first", *parts)))
    return _mix64(mixed ^ words[:, 1] ^ np.uint64(derive_seed("second", *parts)))


def _mix64(words: np.ndarray) -> np.ndarray:
    """Apply the finaliser of SplitMix64 (Steele et al. 2014), a bijection of 64-bit words."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def ids_to_hex(ids: np.ndarray) -> list[str]:
    """Return ids of shape ``(n, 16)`` as lower-case hexadecimal strings of 32 characters."""
    return [row.tobytes().hex() for row in np.ascontiguousarray(ids)]


def ids_from_hex(texts: Iterable[str]) -> np.ndarray:
    """Parse hexadecimal ids, in either case, into a uint8 array of shape ``(n, 16)``."""
    rows = []
    for text in texts:
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            raw = b""
        if len(raw) != ID_BYTES:
            raise ValueError(f"expected an id of {2 * ID_BYTES} hexadecimal digits, got {text!r}")
        rows.append(np.frombuffer(raw, dtype=np.uint8))
    return np.stack(rows) if rows else np.empty((0, ID_BYTES), dtype=np.uint8)


def digest_bytes(*chunks: bytes | memoryview) -> str:
    """Return the SHA-256 of length-prefixed chunks as 64 hexadecimal digits."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        hasher.update(view.nbytes.to_bytes(8, "little"))
        hasher.update(view)
    return hasher.hexdigest()


def digest_arrays(*arrays: np.ndarray) -> str:
    """Return the SHA-256 over dtype, shape and bytes of each array, in order."""
    chunks: list[bytes | memoryview] = []
    for array in arrays:
        contiguous = np.ascontiguousarray(array)
        chunks.append(f"{contiguous.dtype.str}{contiguous.shape}".encode())
        chunks.append(
            contiguous.tobytes() if contiguous.size == 0 else contiguous.reshape(-1).view(np.uint8).data
        )
    return digest_bytes(*chunks)


def digest_state(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of a state dict, in name order."""
    import torch

    chunks: list[bytes | memoryview] = []
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        chunks.append(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        chunks.append(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest_bytes(*chunks)


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return digest_bytes(text.encode())


def software_versions() -> dict[str, str]:
    """Return the versions that decide a result: Python, the platform, and the packages that compute."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    """Look them up once: reading what is installed takes longer than deleting an image."""
    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    return versions | {package: metadata.version(package) for package in _RECORDED_PACKAGES}
