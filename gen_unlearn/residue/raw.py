"""Search the bytes of a file, whatever its format, for ids, pixels and file names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gen_unlearn.repro import ID_BYTES, ids_from_hex, ids_to_hex
from gen_unlearn.residue.deleted import DeletedImages, KnownIds, is_flat, textured
from gen_unlearn.residue.hits import Hit, Kind, merged
from gen_unlearn.residue.names import stands_alone, written_forms
from gen_unlearn.residue.patterns import PatternGroup, PatternSet
from gen_unlearn.residue.windows import NARROW

FLAT = "the image has one colour all over, so this may be anything"
"""Remark on a hit that says little."""

_HEX_DIGITS = 2 * ID_BYTES
_HEX_TOKEN = re.compile(rb"(?<![0-9A-Fa-f])[0-9A-Fa-f]{%d}(?![0-9A-Fa-f])" % _HEX_DIGITS)
_IS_HEX = np.isin(np.arange(256), list(b"0123456789abcdefABCDEF"))
_PAGE = 1 << 12
_BLOCK = 1 << 22


@dataclass(frozen=True)
class _Group:
    """Strings of one kind and length; the remark of a file name depends on the row."""

    kind: Kind
    patterns: PatternGroup
    remarks: dict[bytes, str] | None = None


class RawSearch:
    """Everything about the deleted images that can stand in a file as it is.

    Args:
        deleted: what is known of them.
        known: recognises the ids among hexadecimal digits, also ids that are not listed.
        image_patterns: of the images and of the pictures, those that are not flat as strings, or `None` if
            there are none.
    """

    def __init__(
        self, deleted: DeletedImages, known: KnownIds, image_patterns: Sequence[PatternGroup | None]
    ) -> None:
        self._known = known
        self._groups = [*_id_groups(deleted.ids), *_name_groups(deleted.names, deleted.shared_names)]
        for images, patterns in zip(deleted.looks, image_patterns, strict=True):
            if patterns is not None:
                self._groups += _pixel_groups(textured(images), patterns)
        self._patterns = PatternSet([group.patterns for group in self._groups])
        flat = deleted.images[is_flat(deleted.images)]
        layouts = [*flat, *flat.transpose(0, 3, 1, 2)]
        self._flat = sorted({image.tobytes() for image in layouts if image.size >= NARROW})

    def search(self, data: np.ndarray, starts: np.ndarray | None = None) -> list[Hit]:
        """Search contiguous uint8 ``(n,)``.

        Args:
            data: the bytes.
            starts: where the rows of a column begin that `data` joins, int64, ascending from 0; hits then
                name rows instead of bytes.
        """
        found: dict[tuple[Kind, int], tuple[int, str]] = {}
        for number, rows, begins in self._patterns.find(data):
            group = self._groups[number]
            length = group.patterns.rows.shape[1]
            for row, begin in zip(rows.tolist(), begins.tolist(), strict=True):
                remark = _remark(group, row, data, begin)
                if remark is not None:
                    _keep(found, group.kind, begin, begin + length, remark)
        for begin in self._hex_tokens(data):
            _keep(found, "id", begin, begin + _HEX_DIGITS, "")
        for begin, length in self._flat_runs(data):
            _keep(found, "pixels", begin, begin + length, FLAT)
        return merged(_as_hits(found, starts))

    def _hex_tokens(self, data: np.ndarray) -> Iterator[int]:
        """Yield where 32 hexadecimal digits, no more and no fewer, write the id of a deleted image."""
        begins = hex_tokens(data)
        texts = (data[begin : begin + _HEX_DIGITS].tobytes().decode("ascii") for begin in begins)
        known = self._known(ids_from_hex(texts))
        return (begin for begin, is_known in zip(begins, known, strict=True) if is_known)

    def _flat_runs(self, data: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield begin and length of the flat images, none overlapping another of the same colour."""
        for pattern in self._flat:
            yield from ((begin, len(pattern)) for begin in find_all(data, pattern, step=len(pattern)))


def find_all(data: np.ndarray, text: bytes, step: int = 1) -> Iterator[int]:
    """Yield where `text` begins in contiguous uint8 ``(n,)``, at least `step` bytes apart."""
    following = 0
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK + len(text) - 1].tobytes()
        at = block.find(text, max(0, following - start))
        while at >= 0:
            yield start + at
            following = start + at + step
            at = block.find(text, at + step)


def hex_tokens(data: np.ndarray) -> list[int]:
    """Return where runs of exactly 32 hexadecimal digits begin in contiguous uint8 ``(n,)``."""
    count = len(data) // ID_BYTES
    grid = data[: count * ID_BYTES].reshape(count, ID_BYTES)
    probes = _IS_HEX[grid[:, [0, 4, 8, 12]]].all(axis=1)  # A token covers 16 aligned bytes, wherever it is.
    pages = np.unique(np.flatnonzero(probes) * ID_BYTES // _PAGE)
    begins: set[int] = set()
    for page in pages.tolist():
        low = max(0, page * _PAGE - 2 * _HEX_DIGITS)
        text = data[low : (page + 1) * _PAGE + 2 * _HEX_DIGITS].tobytes()
        begins.update(low + match.start() for match in _HEX_TOKEN.finditer(text))
    return sorted(begin for begin in begins if _is_whole(data, begin))


def _is_whole(data: np.ndarray, begin: int) -> bool:
    """Check a token against the bytes around it, which the edge of a page may have hidden."""
    end = begin + _HEX_DIGITS
    return not (begin > 0 and _IS_HEX[data[begin - 1]]) and not (end < len(data) and _IS_HEX[data[end]])


def _id_groups(ids: np.ndarray) -> list[_Group]:
    if not len(ids):
        return []
    lower = [text.encode("ascii") for text in ids_to_hex(ids)]
    texts = np.stack([np.frombuffer(text, np.uint8) for text in [*lower, *(text.upper() for text in lower)]])
    return [_Group("id", PatternGroup.of(ids)), _Group("id", PatternGroup.of(texts))]


def _name_groups(names: Sequence[str], shared: Collection[str]) -> list[_Group]:
    forms = written_forms(names, shared)
    by_length: dict[int, list[bytes]] = {}
    for form in forms:
        by_length.setdefault(len(form), []).append(form)
    return [
        _Group(
            "file name", PatternGroup.of(np.frombuffer(b"".join(some), np.uint8).reshape(-1, length)), forms
        )
        for length, some in by_length.items()
    ]


def _pixel_groups(images: np.ndarray, image_patterns: PatternGroup) -> list[_Group]:
    groups = [_Group("pixels", image_patterns)]
    if images.shape[-1] > 1:
        planar = images.transpose(0, 3, 1, 2)
        groups.append(_Group("pixels", PatternGroup.of(planar.reshape(len(planar), -1))))
    return groups


def _remark(group: _Group, row: int, data: np.ndarray, begin: int) -> str | None:
    """Return the remark on a hit, or `None` if it is a file name that is only a part of another."""
    if group.remarks is None:
        return ""
    name = group.patterns.rows[row].tobytes()
    end = begin + len(name)
    before = int(data[begin - 1]) if begin else None
    after = int(data[end]) if end < len(data) else None
    return group.remarks[name] if stands_alone(before, name, after) else None


def _keep(
    found: dict[tuple[Kind, int], tuple[int, str]], kind: Kind, begin: int, end: int, remark: str
) -> None:
    """Add a hit; of a name and its base name, which end together, the longer one stays."""
    if (kind, end) not in found or begin < found[kind, end][0]:
        found[kind, end] = (begin, remark)


def _as_hits(found: dict[tuple[Kind, int], tuple[int, str]], starts: np.ndarray | None) -> Iterator[Hit]:
    for (kind, _), (begin, remark) in sorted(found.items(), key=lambda item: item[1][0]):
        if starts is None:
            yield Hit(kind=kind, unit="byte", positions=(begin,), remark=remark)
        else:
            row = int(np.searchsorted(starts, begin, side="right")) - 1
            yield Hit(kind=kind, unit="row", positions=(row,), remark=remark)
