"""Search data of any format: its bytes as they are, and what opening it brings to light."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath

import numpy as np

from gen_unlearn.residue.arrays import search_array
from gen_unlearn.residue.embedded import base64_pieces, picture_positions
from gen_unlearn.residue.formats import Format, expected_format, format_of
from gen_unlearn.residue.hits import Hit, Trace, Unsearched, counted_at, inside
from gen_unlearn.residue.pictures import search_picture
from gen_unlearn.residue.streams import DECOMPRESSION_DAMAGE, Readable, decompressed, file_of
from gen_unlearn.residue.tables import search_arrow, search_parquet
from gen_unlearn.residue.tensors import HEADER_DAMAGE, read_npy, read_safetensors, widened
from gen_unlearn.residue.wanted import Wanted

DEEPEST = 5
"""How many files may lie in one another before the search gives up."""

_Search = Callable[[np.ndarray, Wanted], Iterator[Trace]]
_SearchWithin = Callable[[np.ndarray, Wanted, int], Iterator[Trace]]


def search_contents(data: np.ndarray, wanted: Wanted, suffix: str = "", depth: int = 0) -> Iterator[Trace]:
    """Search the content of a file, or of a file inside another one.

    Args:
        data: contiguous uint8 ``(n,)``.
        wanted: what to look for.
        suffix: of the file's name; without the format it announces, the file counts as damaged.
        depth: how many files lie around this one.
    """
    raw = wanted.raw.search(data)
    within = list(_search_within(data, wanted, suffix, depth))
    found = _count(within)
    counts = _count(raw)
    yield from (hit for hit in raw if counts[hit.kind] > found[hit.kind])  # Else it was found twice.
    yield from within


def _count(traces: Iterable[Trace]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for trace in traces:
        if isinstance(trace, Hit):
            counts[trace.kind] += len(trace.positions)
    return counts


def _search_within(data: np.ndarray, wanted: Wanted, suffix: str, depth: int) -> Iterator[Trace]:
    if not len(data):
        return
    if depth > DEEPEST:
        yield Unsearched(reason=f"more than {DEEPEST} files lie in one another")
        return
    found = format_of(data)
    if found is not None:
        traces = list(_open(found, data, wanted, depth))
        yield from traces
        if found in _SEARCHED_WHOLE and not any(isinstance(trace, Unsearched) for trace in traces):
            return
    elif expected_format(suffix):
        yield Unsearched(reason=f"it is named {suffix} but is none; only its bytes were searched")
    yield from _search_embedded(data, wanted, depth)


def _open(found: Format, data: np.ndarray, wanted: Wanted, depth: int) -> Iterator[Trace]:
    if found in _CONTAINERS:
        return _CONTAINERS[found](data, wanted, depth)
    return _FORMATS[found](data, wanted)


def _search_embedded(data: np.ndarray, wanted: Wanted, depth: int) -> Iterator[Trace]:
    """Search the pictures within data; what only looks like one is passed over."""
    for position in picture_positions(data):
        traces = search_picture(file_of(data[position:]), wanted)
        hits = [trace for trace in traces if isinstance(trace, Hit)]
        yield from inside("picture within", counted_at("byte", position, hits))
    for position, piece in base64_pieces(data):
        if piece is None:
            traces = iter([Unsearched(reason="the base64 of a data URI is damaged")])
        else:
            traces = search_contents(np.frombuffer(piece, dtype=np.uint8), wanted, depth=depth + 1)
        yield from inside("base64", counted_at("byte", position, traces))


def _search_safetensors(data: np.ndarray, wanted: Wanted) -> Iterator[Trace]:
    try:
        for number, tensor in enumerate(read_safetensors(data)):
            place = wanted.label("tensor", tensor if isinstance(tensor, str) else tensor.name, number)
            if isinstance(tensor, str):
                yield Unsearched(place=place, reason="its number type is not known; only bytes were searched")
            else:
                yield from inside(place, search_array(widened(tensor), wanted, tensor.is_bfloat16))
    except HEADER_DAMAGE as error:
        yield Unsearched(reason=f"it cannot be read as safetensors: {type(error).__name__}: {error}")


def _search_npy(data: np.ndarray, wanted: Wanted) -> Iterator[Trace]:
    try:
        array = read_npy(data)
    except HEADER_DAMAGE as error:
        yield Unsearched(reason=f"it cannot be read as a NumPy array: {error}")
        return
    if array is not None:
        yield from search_array(array, wanted)


def _search_picture(data: np.ndarray, wanted: Wanted) -> Iterator[Trace]:
    return search_picture(file_of(data), wanted)


def _search_unsupported(data: np.ndarray, wanted: Wanted) -> Iterator[Trace]:
    del data, wanted
    yield Unsearched(reason="its compression is not supported; only its bytes were searched")


def _search_gzip(data: np.ndarray, wanted: Wanted, depth: int) -> Iterator[Trace]:
    return _search_decompressed(gzip.GzipFile(fileobj=file_of(data)), wanted, "", depth)


def _search_bz2(data: np.ndarray, wanted: Wanted, depth: int) -> Iterator[Trace]:
    return _search_decompressed(bz2.BZ2File(file_of(data)), wanted, "", depth)


def _search_xz(data: np.ndarray, wanted: Wanted, depth: int) -> Iterator[Trace]:
    return _search_decompressed(lzma.LZMAFile(file_of(data)), wanted, "", depth)


def _search_zip(data: np.ndarray, wanted: Wanted, depth: int) -> Iterator[Trace]:
    """Search the members of a zip file, such as the arrays of an npz file."""
    try:
        with zipfile.ZipFile(file_of(data)) as archive:
            for number, member in enumerate(archive.infolist()):
                if not member.is_dir():
                    place = wanted.label("member", member.filename, number)
                    yield from inside(place, _search_member(archive, member, wanted, depth))
    except DECOMPRESSION_DAMAGE as error:
        yield Unsearched(reason=f"it cannot be read as a zip file: {error}")


def _search_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, wanted: Wanted, depth: int
) -> Iterator[Trace]:
    try:
        file = archive.open(member)
    except DECOMPRESSION_DAMAGE as error:
        yield Unsearched(reason=f"it cannot be opened: {error}")
        return
    with file:
        yield from _search_decompressed(file, wanted, PurePath(member.filename).suffix, depth)


def _search_decompressed(file: Readable, wanted: Wanted, suffix: str, depth: int) -> Iterator[Trace]:
    content, reason = decompressed(file)
    if reason:
        yield Unsearched(reason=reason)
    yield from search_contents(content, wanted, suffix, depth + 1)


_FORMATS: dict[Format, _Search] = {
    "safetensors": _search_safetensors,
    "npy": _search_npy,
    "parquet": search_parquet,
    "arrow": search_arrow,
    "picture": _search_picture,
    "zstd": _search_unsupported,
}
_CONTAINERS: dict[Format, _SearchWithin] = {
    "zip": _search_zip,
    "gzip": _search_gzip,
    "bzip2": _search_bz2,
    "xz": _search_xz,
}
_SEARCHED_WHOLE: set[Format] = {*_CONTAINERS, "parquet", "arrow"}
"""Formats in which no picture is left over once they were opened."""
