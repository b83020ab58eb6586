"""Read the arrays in safetensors and NumPy files, as views of the bytes of the file."""

from __future__ import annotations

import json
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gen_unlearn.residue.streams import file_of

LONGEST_HEADER = 100_000_000
"""Bytes that the header of a safetensors file may have, by its specification."""

BFLOAT16 = "BF16"

_TYPES = {
    "BOOL": "|u1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    BFLOAT16: "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}

HEADER_DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    SyntaxError,
    EOFError,
    RecursionError,
    tokenize.TokenError,
)
"""What a damaged header raises."""


class Tensor(NamedTuple):
    """A named array; of bfloat16, which NumPy lacks, its 16 bits as uint16."""

    name: str
    values: np.ndarray
    is_bfloat16: bool


def safetensors_header(data: np.ndarray) -> int:
    """Return the length of the header that contiguous uint8 ``(n,)`` begins with; 0 if it cannot be one."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    fits = len(data) >= 10 and 2 <= length <= min(LONGEST_HEADER, len(data) - 8)
    return length if fits and data[8] == ord("{") else 0


def read_safetensors(data: np.ndarray) -> Iterator[Tensor | str]:
    """Yield each tensor of a safetensors file; the name alone where its number type is not known.

    The format is read here, not by its library, since the file may lie inside another one.

    Raises:
        HEADER_DAMAGE: it does not follow the format.
    """
    begin = 8 + safetensors_header(data)
    header = json.loads(data[8:begin].tobytes())
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in _TYPES:
            yield name
            continue
        first, last = entry["data_offsets"]
        values = data[begin + first : begin + last].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
        yield Tensor(name, values, entry["dtype"] == BFLOAT16)


def read_npy(data: np.ndarray) -> np.ndarray | None:
    """Return the array of a NumPy file; `None` if it holds pickled objects, which are not read.

    Raises:
        HEADER_DAMAGE: it does not follow the format.
    """
    file = file_of(data)
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        return None
    return np.ndarray(shape, dtype, data.data, file.tell(), order="F" if is_fortran else "C")


def widened(tensor: Tensor) -> np.ndarray:
    """Return the values, those of bfloat16 as float32."""
    if not tensor.is_bfloat16:
        return tensor.values
    return (tensor.values.astype(np.uint32) << np.uint32(16)).view(np.float32)
