"""Find encoded pictures inside other data: as they are, and in base64 as pages and notebooks have them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

import numpy as np

from gen_unlearn.residue.raw import find_all

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BEGINNING = _PNG + b"\0\0\0\rIHDR"
_JPEG = b"\xff\xd8\xff"
_GIF = (b"GIF87a", b"GIF89a")
_TIFF = (b"II*\0", b"MM\0*")
_HEAD = 16

_URI = b";base64,"
_BASE64_PICTURES = (b"iVBORw0KGgoAAAANSUhEU", b"/9j/", b"R0lGOD", b"UklGR")
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/=\s]|\\n|\\/)+")
_IN_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/,")


def looks_like_picture(data: bytes) -> bool:
    """Tell from its beginning whether data is a picture in one of the formats that are searched."""
    is_bitmap = data[:2] == b"BM" and data[6:10] == bytes(4) and len(data) >= _HEAD
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return data.startswith((_PNG, _JPEG, *_GIF, *_TIFF)) or is_bitmap or is_webp


def picture_positions(data: np.ndarray) -> Iterator[int]:
    """Yield where PNG, JPEG, GIF and WEBP pictures begin in contiguous uint8 ``(n,)``, after its start."""
    for magic in (_PNG_BEGINNING, *_GIF):
        yield from (position for position in find_all(data, magic) if position)
    for position in find_all(data, _JPEG):
        if position and _is_jpeg(data[position:]):
            yield position
    for position in find_all(data, b"WEBP"):
        if position > 8 and data[position - 8 : position - 4].tobytes() == b"RIFF":
            yield position - 8


def base64_pieces(data: np.ndarray) -> Iterator[tuple[int, bytes | None]]:
    """Yield where base64 begins that a data URI announces or that is a picture, and what it encodes.

    The second value is `None` where the base64 of a data URI is damaged.
    """
    for position in find_all(data, _URI):
        yield position + len(_URI), _decode(data, position + len(_URI))
    for beginning in _BASE64_PICTURES:
        for position in find_all(data, beginning):
            if position == 0 or int(data[position - 1]) not in _IN_BASE64:
                piece = _decode(data, position)
                if piece is not None and looks_like_picture(piece[:_HEAD]):
                    yield position, piece


def _is_jpeg(data: np.ndarray) -> bool:
    """Tell whether the first segment after the start of a JPEG file is followed by another."""
    head = data[:6].tobytes()
    following = 4 + int.from_bytes(head[4:6], "big")
    return following >= 6 and following < len(data) and int(data[following]) == 0xFF


def _decode(data: np.ndarray, position: int) -> bytes | None:
    match = _BASE64.match(data.data, position)
    if match is None:
        return None
    text = re.sub(rb"\\n|\\|\s", b"", match.group()).partition(b"=")[0]
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4))
    except binascii.Error:
        return None
