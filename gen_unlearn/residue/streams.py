"""Files over bytes in memory, and bounded decompression."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from typing import Protocol

import numpy as np

MOST_DECOMPRESSED = 1 << 30
"""Bytes that are decompressed of one file or member; what lies beyond is not searched."""

DECOMPRESSION_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)
"""What damaged, encrypted or unsupported compressed data raise."""

_CHUNK = 1 << 20


class ArrayFile(io.RawIOBase):
    """A file to read whose content is contiguous uint8 ``(n,)``, which is not copied."""

    def __init__(self, data: np.ndarray) -> None:
        self._view = data.data
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset from the start, the position or the end; return the new position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        if origin + offset < 0:
            raise ValueError(f"expected a position of at least 0, got {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill as much of a buffer as there are bytes; return their number."""
        part = self._view[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


def file_of(data: np.ndarray) -> io.BufferedReader:
    """Open contiguous uint8 ``(n,)`` as a file."""
    return io.BufferedReader(ArrayFile(data))


class Readable(Protocol):
    """What can be read bit by bit."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        ...


def decompressed(file: Readable) -> tuple[np.ndarray, str]:
    """Read a file that decompresses, as far as it goes.

    Returns:
        The bytes, uint8 ``(n,)``, and why they are not all, or an empty text.
    """
    content = bytearray()
    reason = ""
    try:
        while chunk := file.read(_CHUNK):
            content += chunk
            if len(content) > MOST_DECOMPRESSED:
                reason = f"only the first {MOST_DECOMPRESSED} decompressed bytes were searched"
                break
    except DECOMPRESSION_DAMAGE as error:
        reason = f"it cannot be decompressed: {error}"
    return np.frombuffer(content, dtype=np.uint8), reason
