"""Search the columns of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from operator import add

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gen_unlearn.residue.arrays import search_array, search_joined, search_texts
from gen_unlearn.residue.embedded import looks_like_picture
from gen_unlearn.residue.hits import Trace, Unsearched, counted_at, inside, renumbered
from gen_unlearn.residue.pictures import search_picture_bytes
from gen_unlearn.residue.wanted import Wanted

_ARROW_FILE = b"ARROW1"
_ROWS_AT_ONCE = 256
_DAMAGE = (pa.ArrowException, OSError, ValueError, NotImplementedError)


def search_parquet(data: np.ndarray, wanted: Wanted) -> Iterator[Trace]:
    """Search a Parquet file."""
    try:
        batches = pq.ParquetFile(_reader(data)).iter_batches(batch_size=_ROWS_AT_ONCE)
        yield from _search_batches(batches, wanted)
    except _DAMAGE as error:
        yield Unsearched(reason=f"it cannot be read as Parquet: {_in_one_line(error)}")


def search_arrow(data: np.ndarray, wanted: Wanted) -> Iterator[Trace]:
    """Search an Arrow file, or an Arrow stream such as `datasets` caches."""
    is_file = data[: len(_ARROW_FILE)].tobytes() == _ARROW_FILE
    try:
        yield from _search_batches(
            _file_batches(data) if is_file else pa.ipc.open_stream(_reader(data)), wanted
        )
    except _DAMAGE as error:
        yield Unsearched(reason=f"it cannot be read as Arrow: {_in_one_line(error)}")


def _reader(data: np.ndarray) -> pa.BufferReader:
    return pa.BufferReader(pa.py_buffer(data))


def _file_batches(data: np.ndarray) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_file(_reader(data))
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _search_batches(batches: Iterable[pa.RecordBatch], wanted: Wanted) -> Iterator[Trace]:
    before = 0
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            part = batch.slice(start, _ROWS_AT_ONCE)
            for number, column in enumerate(part.columns):
                place = wanted.label("column", part.schema.names[number], number)
                traces = inside(place, _search_column(column, wanted))
                yield from renumbered(traces, partial(add, before + start))
        before += batch.num_rows


def _search_column(column: pa.Array, wanted: Wanted) -> Iterator[Trace]:
    """Search a column of any type, down to the values of its fields and lists."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        yield from _search_column(column.storage, wanted)
    elif pa.types.is_dictionary(kind):
        yield from _search_column(column.dictionary_decode(), wanted)
    elif pa.types.is_struct(kind):
        for field, values in zip(kind, column.flatten(), strict=True):
            yield from inside(f"field '{field.name}'", _search_column(values, wanted))
    elif pa.types.is_map(kind):
        yield from inside("keys", _search_column(column.keys, wanted))
        yield from inside("items", _search_column(column.items, wanted))
    elif _is_list(kind):
        yield from _search_lists(column, wanted)
    elif _is_text(kind):
        yield from search_texts([text or "" for text in column.to_pylist()], wanted)
    elif _is_binary(kind):
        yield from _search_binary([value or b"" for value in column.to_pylist()], wanted)


def _search_binary(values: list[bytes], wanted: Wanted) -> Iterator[Trace]:
    """Search byte strings as they are, as ids, as pixels and as encoded pictures."""
    yield from search_joined(values, wanted)
    lengths = np.array([len(value) for value in values])
    yield from _search_rows(np.frombuffer(b"".join(values), dtype=np.uint8), lengths, wanted)
    for row, value in enumerate(values):
        if looks_like_picture(value):
            yield from counted_at("row", row, search_picture_bytes(value, wanted))


def _search_lists(column: pa.Array, wanted: Wanted) -> Iterator[Trace]:
    """Search lists, of lists to any depth. All numbers in one value of the column make one row."""
    leaves, owners = column, np.arange(len(column))
    while _is_list(leaves.type):
        owners = owners[pc.list_parent_indices(leaves).to_numpy()]
        leaves = pc.list_flatten(leaves)
        leaves = leaves.storage if isinstance(leaves.type, pa.BaseExtensionType) else leaves
    if pa.types.is_integer(leaves.type) or pa.types.is_floating(leaves.type):
        numbers = leaves.to_numpy(zero_copy_only=False)
        yield from _search_rows(numbers, np.bincount(owners, minlength=len(column)), wanted)
    else:
        yield from renumbered(_search_column(leaves, wanted), owners.tolist().__getitem__)


def _search_rows(values: np.ndarray, lengths: np.ndarray, wanted: Wanted) -> Iterator[Trace]:
    """Search rows of different lengths, given one after the other, as arrays of rows of equal length."""
    for length in sorted(wanted.row_sizes):
        own = lengths == length
        array = values[np.repeat(own, lengths)].reshape(-1, length)
        yield from renumbered(search_array(array, wanted), np.flatnonzero(own).tolist().__getitem__)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def _is_binary(kind: pa.DataType) -> bool:
    plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or kind == pa.binary_view()
    return plain or pa.types.is_fixed_size_binary(kind)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
