"""Tell the format of a file by its content, and what its name makes expect."""

from __future__ import annotations

from typing import Literal

import numpy as np

from gen_unlearn.residue.embedded import looks_like_picture
from gen_unlearn.residue.tensors import safetensors_header

Format = Literal["safetensors", "npy", "zip", "gzip", "bzip2", "xz", "zstd", "parquet", "arrow", "picture"]

_BEGINNINGS: dict[bytes, Format] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ARROW_STREAM = b"\xff\xff\xff\xff"
_BZIP2, _BZIP2_BLOCK = b"BZh", b"1AY&SY"
_HEAD = 64

_SUFFIXES: dict[str, Format] = {
    ".safetensors": "safetensors",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".npy": "npy",
    ".npz": "zip",
    ".zip": "zip",
    ".gz": "gzip",
    ".bz2": "bzip2",
    ".xz": "xz",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp"), "picture"),
}


def expected_format(suffix: str) -> Format | None:
    """Return the format that the suffix of a file's name announces."""
    return _SUFFIXES.get(suffix.lower())


def format_of(data: np.ndarray) -> Format | None:
    """Return the format of contiguous uint8 ``(n,)`` by its content, or `None`."""
    head = data[:_HEAD].tobytes()
    for beginning, name in _BEGINNINGS.items():
        if head.startswith(beginning):
            return name
    if looks_like_picture(head):
        return "picture"
    if head.startswith(_BZIP2) and head[4:10] == _BZIP2_BLOCK:
        return "bzip2"
    if head.startswith(_ARROW_STREAM) and 0 < int.from_bytes(head[4:8], "little") < len(data):
        return "arrow"
    return "safetensors" if safetensors_header(data) else None
